"""Both services over a real socket: what they answer, whom they refuse, and how."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.timestamp_pb2 import Timestamp
from tenth.ledger.v1 import ledger_pb2 as pb
from tenth.ledger.v1 import ledger_pb2_grpc as rpc
from tenth.type.v1 import receipt_pb2

from mesh.auth import Authenticator, Identity, Signer, set_identity
from mesh.channel import connect
from mesh.errors import Code, TenthError
from mesh.server import MeshServer
from mesh.settings import MeshSettings
from mesh.testing import KEY, memory_telemetry
from services.ledger.read_servicer import LedgerReadServicer
from services.ledger.servicer import LedgerServicer
from tests.integration.ledger.ledger_books import SECOND, START_NS, Books

OPERATOR = Identity(tenant_id="acme", caller="operator", may_assert_user=True, may_see_all_tenants=True)
PLAIN = Identity(tenant_id="umbrella", caller="backend")


@dataclass
class Ledger:
    """Stubs of a running ledger, and its books."""

    books: Books
    port: int
    stack: AsyncExitStack

    def stubs(self, identity: Identity = OPERATOR, service: str = "orchestrator") -> tuple[Any, Any]:
        """Stubs that call as a service on behalf of an identity."""
        set_identity(identity)
        channel = connect(f"127.0.0.1:{self.port}", MeshSettings(), memory_telemetry()[0], Signer(KEY, service))
        self.stack.push_async_callback(channel.close)
        return rpc.LedgerServiceStub(channel), rpc.LedgerReadServiceStub(channel)


@pytest.fixture
async def ledger(books: Books, tmp_path: Path) -> AsyncIterator[Ledger]:
    """A ledger that the services orchestrator, inference and cli may call."""
    callers = tmp_path / "callers.yaml"
    services = {name: ["*"] for name in ("orchestrator", "inference", "cli")}
    callers.write_text(yaml.safe_dump({"callers": [], "services": services}))
    settings = MeshSettings(unready_seconds=0, drain_seconds=0.5)
    server = MeshServer(settings, memory_telemetry()[0], Authenticator(callers, KEY), {})
    writes = LedgerServicer(books.book, books.admin, books.clock, reservation_ttl_seconds=600)
    reads = LedgerReadServicer(books.reports, books.admin, books.prices, books.clock)
    server.add(rpc.add_LedgerServiceServicer_to_server, writes, "tenth.ledger.v1.LedgerService")
    server.add(rpc.add_LedgerReadServiceServicer_to_server, reads, "tenth.ledger.v1.LedgerReadService")
    port = await server.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.drain)
        yield Ledger(books, port, stack)


def at(seconds: int) -> Timestamp:
    """A time relative to the tests' clock."""
    return Timestamp(seconds=START_NS // SECOND + seconds)


def budget(**changes: Any) -> pb.SetBudgetRequest:
    """A month's budget of acme."""
    values = {"name": "all", "tenant_id": "acme", "window": pb.BUDGET_WINDOW_MONTH, "limit_nano_usd": 10**9}
    return pb.SetBudgetRequest(budget=pb.Budget(**{**values, "hard": True, **changes}))


def rolling(**length: int) -> pb.SetBudgetRequest:
    """A budget of acme over the last so much time."""
    return budget(window=pb.BUDGET_WINDOW_ROLLING, **({"rolling": length} if length else {}))


def price(**changes: Any) -> pb.AddPricesRequest:
    """A new price of the small model."""
    values: dict[str, Any] = {
        "model": "small",
        "valid_from_time": at(3600),
        "input_nano_usd_per_million_tokens": 5,
        "output_nano_usd_per_million_tokens": 6,
        "source": "test",
        "confirmed": True,
    }
    return pb.AddPricesRequest(prices=[receipt_pb2.Price(**{**values, **changes})])


def reserve(**changes: Any) -> pb.ReserveFundsRequest:
    """The reservation of 1,000 and 1,000 tokens on the small model."""
    values = {"request_id": "r", "model": "small", "input_token_count": 1000, "max_output_token_count": 1000}
    return pb.ReserveFundsRequest(**{**values, "price_book_version": 1, **changes})


async def test_a_request_from_reservation_to_report(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    status = (await writes.SetBudget(budget(time_zone="Asia/Seoul"))).status
    assert status.window_start_time.ToJsonString() == "2026-05-31T15:00:00Z"
    made = await writes.ReserveFunds(reserve(user_id="ann"))
    assert (made.decision, made.reserved_nano_usd) == (pb.RESERVE_DECISION_OK, 3_000_000)
    receipt = await ledger.books.receipt("r", user_id="ann", reservation_id=made.reservation_id)
    events = [ledger.books.attempt("r", kind) for kind in (pb.ATTEMPT_KIND_STARTED, pb.ATTEMPT_KIND_FINISHED)]
    assert (await writes.RecordAttempts(pb.RecordAttemptsRequest(events=events))).recorded_count == 2
    with pytest.raises(TenthError, match="RECEIPT_NOT_FOUND"):
        await reads.GetReceipt(pb.GetReceiptRequest(request_id="r"))
    settled = await writes.SettleReceipts(pb.SettleReceiptsRequest(receipts=[receipt]))
    assert [each.error_reason for each in settled.results] == [""]
    final = (await reads.GetReceipt(pb.GetReceiptRequest(request_id="r"))).receipt
    assert final.state == receipt_pb2.RECEIPT_STATE_FINAL
    assert final.facts == receipt.facts
    row = (await reads.GetSpendReport(pb.GetSpendReportRequest(group_by=["user", "day", "tier"]))).rows[0]
    assert list(row.group) == ["ann", "2026-06-15", "simple"]
    total = row.baseline_nano_usd - sum(each.saving_nano_usd for each in row.savings) + row.overhead_nano_usd
    assert total == row.actual_nano_usd == receipt.actual_nano_usd
    stands = (await reads.ListBudgets(pb.ListBudgetsRequest())).budgets[0]
    assert (stands.spent_nano_usd, stands.reserved_nano_usd) == (receipt.actual_nano_usd, 0)
    books = await reads.GetBooksStatus(pb.GetBooksStatusRequest())
    assert (books.receipt_count, books.attempt_count, books.open_reservation_count) == (1, 1, 0)
    assert (books.unreceipted_request_count, books.identity_violation_count) == (0, 0)


async def test_a_stream_and_a_report_over_the_wire(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    receipts = [await ledger.books.receipt(f"r{index}") for index in range(3)]
    await writes.SettleReceipts(pb.SettleReceiptsRequest(receipts=receipts))
    pages = [page async for page in reads.StreamReceipts(pb.StreamReceiptsRequest())]
    assert [[each.facts.request_id for each in page.receipts] for page in pages] == [["r0", "r1", "r2"]]
    wanted = pb.GetSpendReportRequest(group_by=["week", "baseline", "tag:team"], time_zone="Asia/Seoul", currency="USD")
    (row,) = (await reads.GetSpendReport(wanted)).rows
    assert list(row.group) == ["2026-06-15", "big", ""]
    assert row.actual_in_currency == f"{row.actual_nano_usd / 10**9:.2f}"
    assert row.baseline_in_currency == f"{row.baseline_nano_usd / 10**9:.2f}"
    for wrong, field in (
        (pb.GetSpendReportRequest(time_zone="Mars/Base"), "request.time_zone"),
        (pb.GetSpendReportRequest(currency="won"), "request.currency"),
        (pb.GetSpendReportRequest(group_by=["tag:"]), r"request.group_by\[0\]"),
        (pb.GetSpendReportRequest(filter=pb.ReceiptFilter(tag_value="x")), "request.filter.tag_value"),
        (pb.GetSpendReportRequest(filter=pb.ReceiptFilter(tag_key="x\0")), "request.filter.tag_key"),
    ):
        with pytest.raises(TenthError, match=field):
            await reads.GetSpendReport(wrong)
    with pytest.raises(TenthError, match=r"EXCHANGE_RATE_UNKNOWN.*2026-06-15"):
        await reads.GetSpendReport(pb.GetSpendReportRequest(currency="KRW"))
    _, umbrella = ledger.stubs(PLAIN)
    assert [page async for page in umbrella.StreamReceipts(pb.StreamReceiptsRequest())] == []
    with pytest.raises(TenthError, match="CROSS_TENANT_FORBIDDEN"):
        async for _ in umbrella.StreamReceipts(pb.StreamReceiptsRequest(filter=pb.ReceiptFilter(tenant_id="acme"))):
            pass


async def test_the_snapshot_changes_its_version_with_every_change(ledger: Ledger) -> None:
    writes, _ = ledger.stubs()
    first = await writes.GetAdmissionSnapshot(pb.GetAdmissionSnapshotRequest())
    assert (first.price_book_version, [each.tenant_id for each in first.tenants]) == (1, ["acme", "umbrella"])
    assert {each.model for each in first.prices} == {"big", "small", "cpu"}
    acme = first.tenants[0]
    assert (acme.has_hard_budget, acme.baseline_model, acme.max_requests_per_minute) == (False, "big", 60)
    same = await writes.GetAdmissionSnapshot(pb.GetAdmissionSnapshotRequest(version=first.version))
    assert same.unchanged
    assert not same.prices
    versions = {first.version}
    changes: list[Callable[[], Any]] = [
        lambda: writes.SetBudget(budget()),
        lambda: writes.SetLayerSwitch(pb.SetLayerSwitchRequest(tenant_id="acme", layer="routing", disabled=True)),
        lambda: writes.SetLayerSwitch(pb.SetLayerSwitchRequest(tenant_id="*", layer="cache", disabled=True)),
        lambda: writes.AddPrices(price()),
    ]
    for change in changes:
        await change()
        last = await writes.GetAdmissionSnapshot(pb.GetAdmissionSnapshotRequest(version=first.version))
        versions.add(last.version)
    assert len(versions) == 5
    assert last.tenants[0].has_hard_budget
    assert list(last.tenants[0].disabled_layers) == ["cache", "routing"]
    assert list(last.tenants[1].disabled_layers) == ["cache"]
    assert [each.model for each in last.prices].count("small") == 2
    on = await writes.SetLayerSwitch(pb.SetLayerSwitchRequest(tenant_id="acme", layer="routing"))
    assert list(on.disabled_layers) == []


async def test_a_budget_is_deleted_once(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    await writes.SetBudget(budget())
    wanted = pb.DeleteBudgetRequest(tenant_id="acme", name="all")
    assert [(await writes.DeleteBudget(wanted)).deleted for _ in range(2)] == [True, False]
    assert not (await reads.ListBudgets(pb.ListBudgetsRequest())).budgets


async def test_prices_are_dated_and_never_change(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    assert (await writes.AddPrices(price())).price_book_version == 2
    assert (await writes.AddPrices(price())).price_book_version == 2
    now = await reads.ListPrices(pb.ListPricesRequest(model="small"))
    later = await reads.ListPrices(pb.ListPricesRequest(model="small", at_time=at(3600)))
    assert now.price_book_version == 2
    assert now.prices[0].valid_to_time == later.prices[0].valid_from_time == at(3600)
    assert [each.prices[0].input_nano_usd_per_million_tokens for each in (now, later)] == [10**9, 5]
    with pytest.raises(TenthError, match="PRICE_NOT_LATER"):
        await writes.AddPrices(price(input_nano_usd_per_million_tokens=7))


async def test_a_reservation_holds_the_price_of_its_requests_creation(ledger: Ledger) -> None:
    writes, _ = ledger.stubs()
    await writes.AddPrices(price(valid_from_time=at(1), input_nano_usd_per_million_tokens=5 * 10**8))
    ledger.books.clock.advance(2)
    amounts = []
    for index, created in enumerate(({"create_time": at(0)}, {"create_time": at(2)}, {})):
        made = await writes.ReserveFunds(reserve(request_id=f"r{index}", price_book_version=2, **created))
        amounts.append(made.reserved_nano_usd)
    assert amounts[0] == 3_000_000
    assert amounts[1] == amounts[2] < 1_000_000


async def test_receipts_come_in_pages_newest_first(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    names = []
    for index in range(7):
        ledger.books.clock.advance(index % 2)  # Some at the same instant.
        names.append(f"r{index}")
        receipt = await ledger.books.receipt(names[-1], model="big" if index == 3 else "small")
        await writes.SettleReceipts(pb.SettleReceiptsRequest(receipts=[receipt]))
    seen, token = [], ""
    while True:
        page = await reads.ListReceipts(pb.ListReceiptsRequest(page_size=3, page_token=token))
        seen += [each.facts.request_id for each in page.receipts]
        token = page.next_page_token
        if not token:
            break
        last = token
    assert seen == names[::-1]
    only = await reads.ListReceipts(pb.ListReceiptsRequest(filter=pb.ReceiptFilter(model="big")))
    assert [each.facts.request_id for each in only.receipts] == ["r3"]
    with pytest.raises(TenthError, match="page_token"):
        await reads.ListReceipts(pb.ListReceiptsRequest(filter=pb.ReceiptFilter(model="big"), page_token=last))


async def test_a_tenant_sees_and_sets_its_own_only(ledger: Ledger) -> None:
    orchestrator, _ = ledger.stubs()
    await orchestrator.SettleReceipts(pb.SettleReceiptsRequest(receipts=[await ledger.books.receipt("r")]))
    _, by_service = ledger.stubs(PLAIN)
    assert (await by_service.GetReceipt(pb.GetReceiptRequest(request_id="r"))).receipt.facts.tenant_id == "acme"
    writes, reads = ledger.stubs(PLAIN, "cli")
    assert not (await reads.ListReceipts(pb.ListReceiptsRequest())).receipts
    assert (await reads.GetSpendReport(pb.GetSpendReportRequest())).rows[0].request_count == 0
    forbidden: list[Callable[[], Any]] = [
        lambda: reads.ListReceipts(pb.ListReceiptsRequest(filter=pb.ReceiptFilter(tenant_id="acme"))),
        lambda: reads.ListBudgets(pb.ListBudgetsRequest(tenant_id="acme")),
        lambda: writes.SetBudget(budget()),
        lambda: writes.DeleteBudget(pb.DeleteBudgetRequest(tenant_id="acme", name="all")),
        lambda: writes.SetLayerSwitch(pb.SetLayerSwitchRequest(tenant_id="*", layer="cache", disabled=True)),
        lambda: writes.AddPrices(price()),
        lambda: writes.RecordAttempts(
            pb.RecordAttemptsRequest(events=[ledger.books.attempt("r", pb.ATTEMPT_KIND_FAILED)])
        ),
    ]
    for call in forbidden:
        with pytest.raises(TenthError) as caught:
            await call()
        assert (caught.value.code, caught.value.reason) == (Code.PERMISSION_DENIED, "CROSS_TENANT_FORBIDDEN")
        assert caught.value.field
    result = await writes.SettleReceipts(pb.SettleReceiptsRequest(receipts=[await ledger.books.receipt("s")]))
    assert result.results[0].error_reason == "INVALID_RECEIPT"


async def test_a_bad_receipt_is_refused_alone_and_says_why(ledger: Ledger) -> None:
    writes, _ = ledger.stubs()
    good = await ledger.books.receipt("good")
    bad: list[tuple[str, str, receipt_pb2.Receipt]] = []
    for index, (field, reason, change) in enumerate(BAD_RECEIPTS):
        receipt = receipt_pb2.Receipt()
        receipt.CopyFrom(await ledger.books.receipt(f"bad{index}"))
        change(receipt)
        bad.append((field, reason, receipt))
    settled = await writes.SettleReceipts(pb.SettleReceiptsRequest(receipts=[*(each[2] for each in bad), good]))
    for (field, reason, _), result in zip(bad, settled.results, strict=False):
        assert result.error_reason == reason, field
        assert field in result.error_message
    assert settled.results[-1].error_reason == ""
    assert (await ledger.books.reports.status()).receipt_count == 1


BAD_RECEIPTS: list[tuple[str, str, Callable[[receipt_pb2.Receipt], Any]]] = [
    ("request_id", "INVALID_RECEIPT", lambda it: it.facts.ClearField("request_id")),
    ("tenant_id", "INVALID_RECEIPT", lambda it: it.facts.ClearField("tenant_id")),
    ("baseline_model", "INVALID_RECEIPT", lambda it: it.facts.ClearField("baseline_model")),
    ("create_time", "INVALID_RECEIPT", lambda it: it.facts.ClearField("create_time")),
    ("create_time", "INVALID_RECEIPT", lambda it: it.facts.create_time.CopyFrom(at(10**7))),
    ("facts.model", "INVALID_RECEIPT", lambda it: it.facts.ClearField("model")),
    ("user_id", "INVALID_RECEIPT", lambda it: setattr(it.facts, "user_id", "a\0b")),
    ("output_token_count", "INVALID_RECEIPT", lambda it: setattr(it.facts.usage, "output_token_count", -1)),
    ("usage", "INVALID_RECEIPT", lambda it: setattr(it.facts.usage, "cached_input_token_count", 801)),
    ("64 bits", "INVALID_RECEIPT", lambda it: setattr(it.facts.usage, "output_token_count", 2**62)),
    ("actual_nano_usd", "INVALID_RECEIPT", lambda it: setattr(it, "actual_nano_usd", 1)),
    ("baseline_nano_usd", "INVALID_RECEIPT", lambda it: setattr(it, "baseline_nano_usd", 1)),
    ("savings", "INVALID_RECEIPT", lambda it: it.ClearField("savings")),
    ("price_book_version", "INVALID_RECEIPT", lambda it: setattr(it.facts, "price_book_version", 9)),
    ("nobody", "PRICE_UNKNOWN", lambda it: setattr(it.facts, "model", "nobody")),
    ("facts.tags", "INVALID_RECEIPT", lambda it: it.facts.tags.update({"x": "y" * 257})),
    ("facts.tags", "INVALID_RECEIPT", lambda it: it.facts.tags.update({"x" * 257: "y"})),
    ("facts.tags", "INVALID_RECEIPT", lambda it: it.facts.tags.update({"x": "a\0b"})),
    ("facts.tags", "INVALID_RECEIPT", lambda it: it.facts.tags.update({"": "y"})),
    ("facts.tags", "INVALID_RECEIPT", lambda it: it.facts.tags.update({str(each): "" for each in range(65)})),
    ("end_time", "INVALID_RECEIPT", lambda it: it.facts.end_time.CopyFrom(Timestamp(seconds=2**62))),
    ("output_token_count", "INVALID_RECEIPT", lambda it: setattr(it.facts.usage, "output_token_count", -(2**63))),
    ("64 bits", "INVALID_RECEIPT", lambda it: setattr(it.facts.usage, "output_token_count", 2**63 - 1)),
]

LONG = "x" * 257
BAD_REQUESTS: list[tuple[str, Any, str, str]] = [
    ("ReserveFunds", reserve(request_id=""), "REQUIRED_FIELD", "request.request_id"),
    ("ReserveFunds", reserve(request_id=LONG), "INVALID_FIELD", "request.request_id"),
    ("ReserveFunds", reserve(model=""), "REQUIRED_FIELD", "request.model"),
    ("ReserveFunds", reserve(model="a\0"), "INVALID_FIELD", "request.model"),
    ("ReserveFunds", reserve(input_token_count=-1), "INVALID_FIELD", "request.input_token_count"),
    ("ReserveFunds", reserve(max_output_token_count=2**62), "AMOUNT_OUT_OF_RANGE", "usage"),
    ("ReserveFunds", reserve(price_book_version=7), "UNKNOWN_PRICE_BOOK_VERSION", "request.price_book_version"),
    ("ReserveFunds", reserve(ttl={"seconds": -1}), "INVALID_FIELD", "request.ttl"),
    ("ReserveFunds", reserve(ttl={"seconds": 8 * 86_400 + 1}), "INVALID_FIELD", "request.ttl"),
    ("ReserveFunds", reserve(create_time=Timestamp(seconds=2**62)), "INVALID_FIELD", "request.create_time"),
    ("ReserveFunds", reserve(model="nobody"), "PRICE_UNKNOWN", ""),
    ("ReserveFunds", reserve(tags={"": "x"}), "REQUIRED_FIELD", "request.tags"),
    ("ReserveFunds", reserve(tags={LONG: "x"}), "INVALID_FIELD", "request.tags"),
    ("ReserveFunds", reserve(tags={"x": LONG}), "INVALID_FIELD", "request.tags"),
    ("ReserveFunds", reserve(tags={"x": "a\0b"}), "INVALID_FIELD", "request.tags"),
    ("ReserveFunds", reserve(tags={str(number): "" for number in range(65)}), "INVALID_FIELD", "request.tags"),
    ("ReserveFunds", reserve(payload_digest="AB" * 32), "INVALID_FIELD", "request.payload_digest"),
    ("ReserveFunds", reserve(user_id=LONG), "INVALID_FIELD", "request.user_id"),
    ("ReserveFunds", reserve(input_token_count=-(2**63)), "INVALID_FIELD", "request.input_token_count"),
    ("ReserveFunds", reserve(input_token_count=2**63 - 1), "AMOUNT_OUT_OF_RANGE", "usage"),
    ("ReleaseFunds", pb.ReleaseFundsRequest(), "REQUIRED_FIELD", "request.reservation_id"),
    ("ReleaseFunds", pb.ReleaseFundsRequest(reservation_id="no"), "UNKNOWN_RESERVATION", "request.reservation_id"),
    (
        "SettleReceipts",
        pb.SettleReceiptsRequest(receipts=[receipt_pb2.Receipt()] * 501),
        "TOO_MANY_ITEMS",
        "request.receipts",
    ),
    ("RecordAttempts", pb.RecordAttemptsRequest(events=[pb.AttemptEvent()] * 501), "TOO_MANY_ITEMS", "request.events"),
    (
        "RecordAttempts",
        pb.RecordAttemptsRequest(events=[pb.AttemptEvent()]),
        "REQUIRED_FIELD",
        "request.events[0].request_id",
    ),
    ("SetLayerSwitch", pb.SetLayerSwitchRequest(layer="cache"), "REQUIRED_FIELD", "request.tenant_id"),
    ("SetLayerSwitch", pb.SetLayerSwitchRequest(tenant_id="acme", layer="x"), "INVALID_FIELD", "request.layer"),
    ("SetLayerSwitch", pb.SetLayerSwitchRequest(tenant_id="no", layer="cache"), "UNKNOWN_TENANT", "request.tenant_id"),
    ("SetBudget", pb.SetBudgetRequest(), "REQUIRED_FIELD", "request.budget"),
    ("SetBudget", budget(name=""), "REQUIRED_FIELD", "request.budget.name"),
    ("SetBudget", budget(tenant_id="nobody"), "UNKNOWN_TENANT", "request.budget.tenant_id"),
    ("SetBudget", budget(limit_nano_usd=-1), "INVALID_FIELD", "request.budget.limit_nano_usd"),
    ("SetBudget", budget(time_zone="Mars/Olympus"), "INVALID_FIELD", "request.budget.time_zone"),
    ("SetBudget", budget(time_zone="../etc/passwd"), "INVALID_FIELD", "request.budget.time_zone"),
    ("SetBudget", budget(window=0), "INVALID_FIELD", "request.budget.window"),
    ("SetBudget", budget(window=99), "INVALID_FIELD", "request.budget.window"),
    ("SetBudget", budget(model=LONG), "INVALID_FIELD", "request.budget.model"),
    ("SetBudget", budget(model="nobody"), "PRICE_NOT_FOUND", "request.budget.model"),
    ("SetBudget", budget(tag_key="a\0"), "INVALID_FIELD", "request.budget.tag_key"),
    ("SetBudget", budget(tag_key="a", tag_value=LONG), "INVALID_FIELD", "request.budget.tag_value"),
    ("SetBudget", budget(tag_value="a"), "REQUIRED_FIELD", "request.budget.tag_key"),
    ("SetBudget", budget(rolling={"seconds": 60}), "INVALID_FIELD", "request.budget.rolling"),
    ("SetBudget", rolling(), "REQUIRED_FIELD", "request.budget.rolling"),
    ("SetBudget", rolling(seconds=59), "INVALID_FIELD", "request.budget.rolling"),
    ("SetBudget", rolling(seconds=60, nanos=1), "INVALID_FIELD", "request.budget.rolling"),
    ("SetBudget", rolling(seconds=-60), "INVALID_FIELD", "request.budget.rolling"),
    ("SetBudget", rolling(seconds=2**62), "INVALID_FIELD", "request.budget.rolling"),
    ("SetBudget", budget(alert_percents=[0]), "INVALID_FIELD", "request.budget.alert_percents[0]"),
    ("SetBudget", budget(alert_percents=[1, 1001]), "INVALID_FIELD", "request.budget.alert_percents[1]"),
    ("SetBudget", budget(alert_url="https://a.example"), "REQUIRED_FIELD", "request.budget.alert_percents"),
    (
        "SetBudget",
        budget(alert_percents=[1], alert_url="http://169.254.169.254/"),
        "INVALID_FIELD",
        "request.budget.alert_url",
    ),
    ("SetBudget", budget(ladder=[{"from_percent": 80}]), "INVALID_FIELD", "request.budget.ladder[0].step"),
    ("SetBudget", budget(ladder=[{"step": 9}]), "INVALID_FIELD", "request.budget.ladder[0].step"),
    ("SetBudget", budget(ladder=[{"step": 1}]), "INVALID_FIELD", "request.budget.ladder[0].from_percent"),
    (
        "SetBudget",
        budget(ladder=[{"step": 1, "from_percent": 80}], hard=False),
        "INVALID_FIELD",
        "request.budget.ladder",
    ),
    ("DeleteBudget", pb.DeleteBudgetRequest(name="all"), "REQUIRED_FIELD", "request.tenant_id"),
    ("DeleteBudget", pb.DeleteBudgetRequest(tenant_id="acme"), "REQUIRED_FIELD", "request.name"),
    ("DeleteBudget", pb.DeleteBudgetRequest(tenant_id="acme", name=LONG), "INVALID_FIELD", "request.name"),
    ("DeleteBudget", pb.DeleteBudgetRequest(tenant_id="no", name="all"), "UNKNOWN_TENANT", "request.tenant_id"),
    ("AddPrices", pb.AddPricesRequest(), "REQUIRED_FIELD", "request.prices"),
    ("AddPrices", price(source=" "), "REQUIRED_FIELD", "request.prices[0].source"),
    ("AddPrices", price(model=""), "REQUIRED_FIELD", "request.prices[0].model"),
    ("AddPrices", price(input_nano_usd_per_million_tokens=-1), "INVALID_FIELD", "request.prices[0].input"),
    ("AddPrices", price(valid_from_time=None), "REQUIRED_FIELD", "request.prices[0].valid_from_time"),
    ("AddPrices", price(valid_to_time=at(1)), "INVALID_FIELD", "request.prices[0].valid_to_time"),
    ("AddPrices", price(model="cpu"), "REQUIRED_FIELD", "request.prices[0].cpu_hour"),
    ("AddPrices", price(valid_from_time=at(-(10**8))), "PRICE_NOT_LATER", "request.prices[0].valid_from_time"),
    ("GetReceipt", pb.GetReceiptRequest(), "REQUIRED_FIELD", "request.request_id"),
    ("GetReceipt", pb.GetReceiptRequest(request_id="no"), "RECEIPT_NOT_FOUND", "request.request_id"),
    ("ListReceipts", pb.ListReceiptsRequest(page_size=-1), "INVALID_FIELD", "request.page_size"),
    ("ListReceipts", pb.ListReceiptsRequest(page_size=1001), "INVALID_FIELD", "request.page_size"),
    ("ListReceipts", pb.ListReceiptsRequest(page_token="%%"), "INVALID_FIELD", "request.page_token"),
    ("GetSpendReport", pb.GetSpendReportRequest(group_by=["colour"]), "INVALID_FIELD", "request.group_by[0]"),
    ("GetSpendReport", pb.GetSpendReportRequest(group_by=["day", "day"]), "INVALID_FIELD", "request.group_by[1]"),
    (
        "GetSpendReport",
        pb.GetSpendReportRequest(filter=pb.ReceiptFilter(start_time=at(1), end_time=at(0))),
        "INVALID_FIELD",
        "request.filter.end_time",
    ),
    ("ListBudgets", pb.ListBudgetsRequest(tenant_id="nobody"), "UNKNOWN_TENANT", "request.tenant_id"),
    ("ListPrices", pb.ListPricesRequest(at_time=Timestamp(seconds=2**62)), "INVALID_FIELD", "request.at_time"),
]


async def test_every_bad_request_gets_a_typed_error(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    for method, request, reason, field in BAD_REQUESTS:
        stub = writes if hasattr(writes, method) else reads
        with pytest.raises(TenthError) as caught:
            await getattr(stub, method)(request)
        assert (caught.value.reason, caught.value.field) == (reason, field), (method, request)
    status = await reads.GetBooksStatus(pb.GetBooksStatusRequest())
    assert (status.open_reservation_count, status.receipt_count, status.attempt_count) == (0, 0, 0)


async def test_an_attempts_record_names_what_is_wrong(ledger: Ledger) -> None:
    writes, _ = ledger.stubs(service="inference")
    for field, change in (
        ("attempt", {"attempt": 0}),
        ("kind", {"kind": 0}),
        ("price_book_version", {"price_book_version": -1}),
        ("model", {"model": ""}),
        ("event_time", {"event_time": Timestamp()}),
    ):
        changes: dict[str, Any] = {"kind": pb.ATTEMPT_KIND_FAILED, **change}
        event = ledger.books.attempt("r", **changes)
        with pytest.raises(TenthError) as caught:
            await writes.RecordAttempts(pb.RecordAttemptsRequest(events=[event]))
        assert caught.value.field == f"request.events[0].{field}"


async def test_a_budget_comes_back_as_it_was_set(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    asked = rolling(seconds=7 * 86_400)
    asked.budget.MergeFrom(
        pb.Budget(
            user_id="ann",
            project_id="x",
            model="small",
            tag_key="team",
            tag_value="search",
            time_zone="Asia/Seoul",
            alert_percents=[50, 100],
            alert_url="https://alerts.example/hook",
            ladder=[pb.LadderRung(step=pb.LADDER_STEP_BATCH, from_percent=90)],
        )
    )
    assert (await writes.SetBudget(asked)).status.budget == asked.budget
    [listed] = (await reads.ListBudgets(pb.ListBudgetsRequest(tenant_id="acme"))).budgets
    assert listed.budget == asked.budget
    assert listed.window_start_time.seconds < START_NS // SECOND - 7 * 86_400 + 1


async def test_a_ladder_and_a_limit_are_decisions_on_the_wire(ledger: Ledger) -> None:
    writes, _ = ledger.stubs()
    ladder = [pb.LadderRung(step=pb.LADDER_STEP_BATCH, from_percent=50)]
    await writes.SetBudget(budget(limit_nano_usd=10_000_000, ladder=ladder, tag_key="team"))
    tagged = {"tags": {"team": "a"}}
    for number in range(2):
        made = await writes.ReserveFunds(reserve(request_id=f"r{number}", **tagged))
        assert made.decision == pb.RESERVE_DECISION_OK
    told = await writes.ReserveFunds(reserve(request_id="r3", **tagged))
    assert (told.decision, told.budget_name, told.remaining_nano_usd) == (
        pb.RESERVE_DECISION_BATCH,
        "all",
        4_000_000,
    )
    batch = await writes.ReserveFunds(reserve(request_id="r3", batch=True, **tagged))
    assert (batch.decision, batch.reserved_nano_usd) == (pb.RESERVE_DECISION_OK, 1_500_000)
    # The tests' tenant has 60 requests a minute, and the batch is none of them.
    for number in range(4, 62):
        await writes.ReserveFunds(reserve(request_id=f"r{number}"))
    limited = await writes.ReserveFunds(reserve(request_id="last"))
    assert limited.decision == pb.RESERVE_DECISION_RATE_LIMITED
    assert limited.retry_after.ToSeconds() == 61


async def test_an_unknown_tenant_reserves_nothing(ledger: Ledger) -> None:
    writes, _ = ledger.stubs(Identity(tenant_id="nobody", caller="x"))
    with pytest.raises(TenthError, match="UNKNOWN_TENANT"):
        await writes.ReserveFunds(reserve())
