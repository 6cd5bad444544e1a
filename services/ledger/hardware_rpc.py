"""Own hardware and measured savings between the wire and the plain modules."""

from __future__ import annotations

from collections.abc import Iterable

from tenth.ledger.v1 import ledger_pb2

from mesh.auth import current_identity
from mesh.errors import Code, TenthError, invalid_argument
from mesh.money import MAX_NANO_USD
from mesh.receipt import AMOUNT_OUT_OF_RANGE
from services.ledger.breakeven import Machine, Plan, Request
from services.ledger.errors import cross_tenant
from services.ledger.hardware import NodeCost, Utilization, check
from services.ledger.measured import Measured
from services.ledger.policy import NANOS_PER_SECOND
from services.ledger.receipts import check_name, instant

LONGEST_WINDOW_NS = 400 * 86_400 * NANOS_PER_SECOND
"""Longest window of an idle report: bounds the rows that one call reads."""
DEFAULT_WINDOW_NS = 31 * 86_400 * NANOS_PER_SECOND
"""Window of an idle report without a start."""


def require_operator() -> None:
    """The fleet's cost is no one tenant's. Raises CROSS_TENANT_FORBIDDEN."""
    if not current_identity().may_see_all_tenants:
        raise cross_tenant("identity.tenant_id")


def require_reporter() -> None:
    """Inference reports for its own node; else only an operator of all tenants may. Raises CROSS_TENANT_FORBIDDEN."""
    if current_identity().service != "inference":
        require_operator()


def utilization(message: ledger_pb2.NodeUtilization, now_ns: int, field: str) -> Utilization:
    """A checked row. Raises REQUIRED_FIELD or INVALID_FIELD."""
    row = Utilization(
        node=check_name(message.node, f"{field}.node"),
        hardware=check_name(message.hardware, f"{field}.hardware"),
        unit_count=message.unit_count,
        start_ns=instant(message.start_time, f"{field}.start_time"),
        end_ns=instant(message.end_time, f"{field}.end_time"),
        busy_share=message.busy_share,
        model=check_name(message.model, f"{field}.model", optional=True),
        output_tokens=message.output_token_count,
    )
    check(row, now_ns, field)
    return row


def idle_window(request: ledger_pb2.GetIdleCostRequest, now_ns: int) -> tuple[int, int]:
    """The window asked for: until now where no end is given, 31 days where no start is. Raises INVALID_FIELD."""
    end = instant(request.end_time, "request.end_time") if request.HasField("end_time") else now_ns
    if not request.HasField("start_time"):
        return end - DEFAULT_WINDOW_NS, end
    start = instant(request.start_time, "request.start_time")
    if end <= start:
        raise invalid_argument("not after start_time", field="request.end_time")
    if end - start > LONGEST_WINDOW_NS:
        raise invalid_argument("more than 400 days after start_time", field="request.end_time")
    return start, end


def idle_response(costs: Iterable[NodeCost]) -> ledger_pb2.GetIdleCostResponse:
    """Idle cost for the wire. Raises AMOUNT_OUT_OF_RANGE for a sum past int64."""
    costs = list(costs)
    total = sum(each.idle for each in costs)
    if total > MAX_NANO_USD:
        raise TenthError(
            Code.OUT_OF_RANGE,
            AMOUNT_OUT_OF_RANGE,
            "the idle cost of all nodes does not fit 64 bits",
            "request.end_time",
        )
    response = ledger_pb2.GetIdleCostResponse(idle_nano_usd=total)
    for each in costs:
        node = response.nodes.add(
            node=each.node,
            hardware=each.hardware,
            busy_share=each.busy_share,
            busy_nano_usd=each.busy,
            idle_nano_usd=each.idle,
        )
        node.duration.FromNanoseconds(each.covered_ns)
    return response


def machine(request: ledger_pb2.PlanBreakEvenRequest) -> tuple[Machine, Request]:
    """Own hardware and the average request, unchecked."""
    return (
        Machine(
            hardware=request.hardware,
            unit_count=request.unit_count,
            output_rate=request.output_tokens_per_second,
            input_rate=request.input_tokens_per_second,
            paid_share=request.paid_share,
        ),
        Request(request.input_token_count, request.output_token_count),
    )


def plan_response(plan: Plan) -> ledger_pb2.PlanBreakEvenResponse:
    """A plan for the wire."""
    return ledger_pb2.PlanBreakEvenResponse(
        day_nano_usd=plan.day_cost,
        capacity_per_day=plan.capacity_per_day,
        request_nano_usd=plan.request_cost,
        models=[
            ledger_pb2.BreakEven(
                model=each.model,
                request_nano_usd=each.request_cost,
                requests_per_day=each.requests_per_day,
                utilization=each.utilization,
                beyond_capacity=each.beyond_capacity,
            )
            for each in plan.models
        ],
    )


def measured_response(found: Measured) -> ledger_pb2.GetMeasuredSavingsResponse:
    """Measured savings for the wire."""
    return ledger_pb2.GetMeasuredSavingsResponse(
        control_count=found.control.count,
        treated_count=found.treated.count,
        control_mean_nano_usd=found.control.mean,
        treated_mean_nano_usd=found.treated.mean,
        saving=found.saving,
        saving_low=found.saving_low,
        saving_high=found.saving_high,
        stated_saving=found.stated_saving,
        measured=found.measured,
    )
