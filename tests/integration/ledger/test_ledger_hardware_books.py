"""Own hardware and the control share in the books, on both stores and over a real socket."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tenth.ledger.v1 import ledger_pb2 as pb
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.auth import Identity
from mesh.errors import Code, TenthError
from services.ledger.report import Filter
from tests.integration.ledger.ledger_books import START_NS, Books
from tests.integration.ledger.test_ledger_rpc import OPERATOR, PLAIN, Ledger, at, ledger, price

__all__ = ["ledger"]

USD = 10**9
HOUR = 3600
SERVICE = Identity(tenant_id="", caller="inference")


def node(**changes: Any) -> pb.NodeUtilization:
    """An hour of two GPUs, a quarter of it busy."""
    values: dict[str, Any] = {
        "node": "rack-1",
        "hardware": "gpu:a100",
        "unit_count": 2,
        "start_time": at(-HOUR),
        "end_time": at(0),
        "busy_share": 0.25,
        "model": "small",
        "output_token_count": 1000,
    }
    return pb.NodeUtilization(**{**values, **changes})


def rows(*nodes: pb.NodeUtilization) -> pb.RecordUtilizationRequest:
    return pb.RecordUtilizationRequest(nodes=nodes)


def gpu(hour_usd: int, start: Timestamp) -> pb.AddPricesRequest:
    return pb.AddPricesRequest(
        prices=[
            receipt_pb2.Price(
                model="gpu:a100",
                gpu_hour_nano_usd=hour_usd * USD,
                valid_from_time=start,
                source="test",
                confirmed=True,
            )
        ]
    )


async def failure(call: Any) -> TenthError:
    with pytest.raises(TenthError) as caught:
        await call
    return caught.value


async def test_idle_cost_from_report_to_money(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    await writes.AddPrices(gpu(4, at(-HOUR * 24)))
    reports, _ = ledger.stubs(SERVICE, service="inference")
    later = node(start_time=at(0), end_time=at(HOUR), busy_share=1.0)
    cpu = node(node="laptop", hardware="cpu", unit_count=8, busy_share=0.0)
    assert (await reports.RecordUtilization(rows(node(), cpu))).recorded_count == 2
    assert (await reports.RecordUtilization(rows(node(), later, later))).recorded_count == 1
    assert (await reports.RecordUtilization(rows())).recorded_count == 0

    _, reads = ledger.stubs()
    found = await reads.GetIdleCost(pb.GetIdleCostRequest(start_time=at(-HOUR // 2), end_time=at(HOUR // 2)))
    laptop, rack = found.nodes
    assert (laptop.node, laptop.busy_nano_usd, laptop.idle_nano_usd) == ("laptop", 0, 8 * 40_000_000 // 2)
    # Half an hour a quarter busy and half an hour busy, 8 USD an hour.
    assert (rack.busy_nano_usd, rack.idle_nano_usd) == (5 * USD, 3 * USD)
    assert (rack.busy_share, rack.duration.ToSeconds()) == (0.625, HOUR)
    assert found.idle_nano_usd == laptop.idle_nano_usd + rack.idle_nano_usd
    # Without a window: the last 31 days, until now.
    now = await reads.GetIdleCost(pb.GetIdleCostRequest())
    assert [(each.busy_nano_usd, each.idle_nano_usd) for each in now.nodes] == [(0, 8 * 40_000_000), (2 * USD, 6 * USD)]
    nothing = await reads.GetIdleCost(pb.GetIdleCostRequest(start_time=at(HOUR), end_time=at(2 * HOUR)))
    assert not nothing.nodes


async def test_a_price_change_holds_for_rows_that_begin_after_it(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    await writes.AddPrices(gpu(4, at(-HOUR * 24)))
    await writes.AddPrices(gpu(2, at(0)))
    await writes.RecordUtilization(rows(node(busy_share=0), node(start_time=at(0), end_time=at(HOUR), busy_share=0)))
    found = await reads.GetIdleCost(pb.GetIdleCostRequest(start_time=at(-HOUR), end_time=at(HOUR)))
    assert found.idle_nano_usd == 8 * USD + 4 * USD


async def test_rows_of_one_node_never_overlap(ledger: Ledger) -> None:
    writes, _ = ledger.stubs()
    await writes.AddPrices(gpu(4, at(-HOUR * 24)))
    # The longest row there can be: a later one inside it must still find it.
    long = node(start_time=at(-31 * 24 * HOUR), end_time=at(0))
    await writes.RecordUtilization(rows(long))
    for other in (node(), node(start_time=at(-1), end_time=at(1)), node(start_time=long.start_time, busy_share=0.5)):
        error = await failure(writes.RecordUtilization(rows(node(node="rack-2"), other)))
        assert (error.code, error.reason) == (Code.ALREADY_EXISTS, "UTILIZATION_OVERLAP")
        assert error.field == "request.nodes[1].start_time"
    # Nothing of a refused call is kept, and another node's time is its own.
    assert (await writes.RecordUtilization(rows(node(node="rack-2")))).recorded_count == 1
    assert (await writes.RecordUtilization(rows(node(start_time=at(0), end_time=at(1))))).recorded_count == 1
    assert (await writes.RecordUtilization(rows(long))).recorded_count == 0


async def test_without_an_hour_price_idle_cost_is_an_error(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    await writes.RecordUtilization(rows(node()))
    for call in (reads.GetIdleCost(pb.GetIdleCostRequest()), reads.PlanBreakEven(plan())):
        error = await failure(call)
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "PRICE_UNKNOWN")


BAD_NODES: list[tuple[str, dict[str, Any], str]] = [
    ("node", {"node": ""}, "REQUIRED_FIELD"),
    ("node", {"node": "a\0b"}, "INVALID_FIELD"),
    ("node", {"node": "x" * 257}, "INVALID_FIELD"),
    ("hardware", {"hardware": ""}, "REQUIRED_FIELD"),
    ("hardware", {"hardware": "'; DROP TABLE utilization; --"}, "INVALID_FIELD"),
    ("unit_count", {"unit_count": -1}, "INVALID_FIELD"),
    ("start_time", {"start_time": None}, "INVALID_FIELD"),
    ("start_time", {"start_time": Timestamp(seconds=2**62)}, "INVALID_FIELD"),
    ("end_time", {"end_time": None}, "INVALID_FIELD"),
    ("end_time", {"end_time": at(-HOUR)}, "INVALID_FIELD"),
    ("busy_share", {"busy_share": float("nan")}, "INVALID_FIELD"),
    ("busy_share", {"busy_share": float("inf")}, "INVALID_FIELD"),
    ("busy_share", {"busy_share": 1.5}, "INVALID_FIELD"),
    ("model", {"model": "x" * 257}, "INVALID_FIELD"),
    ("output_token_count", {"output_token_count": -1}, "INVALID_FIELD"),
]


async def test_every_bad_row_gets_a_typed_error_and_is_not_kept(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    for field, changes, reason in BAD_NODES:
        error = await failure(writes.RecordUtilization(rows(node(node="good"), node(**changes))))
        assert (error.reason, error.field) == (reason, f"request.nodes[1].{field}"), changes
    error = await failure(writes.RecordUtilization(rows(*[node()] * 501)))
    assert (error.reason, error.field) == ("TOO_MANY_ITEMS", "request.nodes")
    assert not (await reads.GetIdleCost(pb.GetIdleCostRequest())).nodes


async def test_who_may_report_and_see_the_fleet(ledger: Ledger) -> None:
    cases = (
        (OPERATOR, "orchestrator", True, True),
        (SERVICE, "inference", True, False),
        (PLAIN, "orchestrator", False, False),
        (PLAIN, "cli", False, False),
    )
    for identity, service, may_report, may_see in cases:
        writes, reads = ledger.stubs(identity, service)
        for call, allowed in (
            (writes.RecordUtilization(rows()), may_report),
            (reads.GetIdleCost(pb.GetIdleCostRequest()), may_see),
        ):
            if allowed:
                await call
            else:
                assert (await failure(call)).reason == "CROSS_TENANT_FORBIDDEN", (identity, service)


async def test_an_idle_window_that_cannot_be_is_refused(ledger: Ledger) -> None:
    _, reads = ledger.stubs()
    for window in (
        {"start_time": at(0), "end_time": at(0)},
        {"start_time": at(1)},
        {"start_time": at(-401 * 24 * HOUR)},
    ):
        error = await failure(reads.GetIdleCost(pb.GetIdleCostRequest(**window)))
        assert (error.reason, error.field) == ("INVALID_FIELD", "request.end_time"), window


def plan(**changes: Any) -> pb.PlanBreakEvenRequest:
    values: dict[str, Any] = {
        "hardware": "gpu:a100",
        "unit_count": 1,
        "output_tokens_per_second": 2000.0,
        "input_tokens_per_second": 20_000.0,
        "input_token_count": 1000,
        "output_token_count": 500,
    }
    return pb.PlanBreakEvenRequest(**{**values, **changes})


async def test_a_plan_over_the_current_book(ledger: Ledger) -> None:
    _, reads = ledger.stubs(PLAIN)  # Prices are no secret, and a plan spends nothing.
    operator, _ = ledger.stubs()
    await operator.AddPrices(gpu(4, at(-HOUR * 24)))
    await operator.AddPrices(price(model="later", valid_from_time=at(HOUR)))
    found = await reads.PlanBreakEven(plan())
    assert (found.day_nano_usd, found.request_nano_usd) == (96 * USD, 333_333)
    assert [each.model for each in found.models] == ["big", "small"]
    big, small = found.models
    assert (big.request_nano_usd, big.requests_per_day) == (35_000_000, pytest.approx(96 * USD / 35_000_000))
    assert small.utilization == pytest.approx(small.requests_per_day / found.capacity_per_day)
    error = await failure(reads.PlanBreakEven(plan(output_tokens_per_second=float("nan"))))
    assert (error.reason, error.field) == ("INVALID_FIELD", "request.output_tokens_per_second")


async def fill(books: Books) -> tuple[list[int], list[int]]:
    """Ten control requests on the baseline and thirty others; what each cost."""
    control: list[int] = []
    treated: list[int] = []
    for index in range(40):
        usage = usage_pb2.Usage(input_token_count=1000, output_token_count=400 + 10 * index)
        model = "big" if index < 10 else "small"
        receipt = await books.receipt(f"r{index}", model=model, usage=usage, failed=index == 11)
        receipt.facts.tags["tenth.control"] = "true" if index < 10 else "false"
        assert await books.settle(receipt) == [""]
        (control if index < 10 else treated).append(receipt.actual_nano_usd)
    return control, treated


async def test_measured_savings_are_those_of_the_receipts(ledger: Ledger) -> None:
    control, treated = await fill(ledger.books)
    _, reads = ledger.stubs()
    found = await reads.GetMeasuredSavings(pb.GetMeasuredSavingsRequest())
    assert found.measured
    assert (found.control_count, found.treated_count) == (10, 30)
    assert found.control_mean_nano_usd == pytest.approx(sum(control) / 10)
    assert found.treated_mean_nano_usd == pytest.approx(sum(treated) / 30)
    assert found.saving == pytest.approx(1 - (sum(treated) / 30) / (sum(control) / 10))
    assert found.saving_low < found.saving < found.saving_high
    (row,), _ = await ledger.books.reports.spend(Filter(model="small"), [])
    assert found.stated_saving == pytest.approx(1 - row.amounts["actual"] / row.amounts["baseline"])
    surer = await reads.GetMeasuredSavings(pb.GetMeasuredSavingsRequest(confidence=0.999))
    assert surer.saving_low < found.saving_low < found.saving_high < surer.saving_high


async def test_measured_savings_keep_tenants_apart_and_say_when_they_know_nothing(ledger: Ledger) -> None:
    await fill(ledger.books)
    _, reads = ledger.stubs(PLAIN)
    own = await reads.GetMeasuredSavings(pb.GetMeasuredSavingsRequest())
    assert (own.control_count, own.treated_count, own.measured) == (0, 0, False)
    error = await failure(
        reads.GetMeasuredSavings(pb.GetMeasuredSavingsRequest(filter=pb.ReceiptFilter(tenant_id="acme")))
    )
    assert error.reason == "CROSS_TENANT_FORBIDDEN"
    _, reads = ledger.stubs()
    small = await reads.GetMeasuredSavings(pb.GetMeasuredSavingsRequest(filter=pb.ReceiptFilter(model="small")))
    assert (small.control_count, small.treated_count, small.measured) == (0, 30, False)
    none = await reads.GetMeasuredSavings(
        pb.GetMeasuredSavingsRequest(filter=pb.ReceiptFilter(end_time=Timestamp(seconds=START_NS // 10**9)))
    )
    assert not none.measured
    for confidence in (1.0, float("nan"), -1.0):
        error = await failure(reads.GetMeasuredSavings(pb.GetMeasuredSavingsRequest(confidence=confidence)))
        assert (error.reason, error.field) == ("INVALID_FIELD", "request.confidence")


async def test_only_requests_that_could_have_been_drawn_are_compared_when_asked(ledger: Ledger) -> None:
    await fill(ledger.books)
    # A caller that names the dear model takes no part; among "all others" it would hide the saving.
    for index in range(5):
        assert await ledger.books.settle(await ledger.books.receipt(f"named{index}", model="big")) == [""]
    _, reads = ledger.stubs()
    every = await reads.GetMeasuredSavings(pb.GetMeasuredSavingsRequest())
    drawn = await reads.GetMeasuredSavings(
        pb.GetMeasuredSavingsRequest(filter=pb.ReceiptFilter(tag_key="tenth.control"))
    )
    assert (every.control_count, every.treated_count) == (10, 35)
    assert (drawn.control_count, drawn.treated_count) == (10, 30)
    assert drawn.saving > every.saving
