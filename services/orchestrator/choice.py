"""Hops 2 to 4 as one: the cheapest good model, the shortest good prompt, within the budget; down the tiers while the
budget asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import chat_pb2

from mesh.errors import Code, TenthError
from mesh.money import format_usd
from services.orchestrator import policy
from services.orchestrator.call import Call, Prompt, Route
from services.orchestrator.errors import Reason
from services.orchestrator.steps import Steps, tier_value

_STEP_MESSAGES = {
    ledger_pb2.RESERVE_DECISION_CACHE_ONLY: "; only answers from the cache are given, and this was a miss",
    ledger_pb2.RESERVE_DECISION_BATCH: "; it would pass as a batch request, with a far completion_window",
}


class OutOfControl(Exception):  # noqa: N818  (no error: the request starts anew)
    """The budget does not hold a request of the control share, but may hold it with every layer."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A model, its prompt, and funds for them."""

    route: Route
    prompt: Prompt
    ceiling: chat_pb2.Tier.ValueType
    """Where the budget has sent the request: a next choice is not above it."""
    reserved_nano_usd: int


async def choose(
    steps: Steps,
    call: Call,
    embedding: chat_pb2.Embedding | None,
    ceiling: chat_pb2.Tier.ValueType = chat_pb2.TIER_UNSPECIFIED,
    failure: TenthError | None = None,
) -> Choice:
    """The next model to ask. ``failure`` is what the one before it failed with.

    Raises what a hop says no with, BUDGET_EXCEEDED, RATE_LIMITED, and OutOfControl.
    """
    while True:
        try:
            route = await steps.select(call, embedding, ceiling)
        except TenthError as error:
            # The caller wants to know why the models failed, not that none is left.
            raise _no_model(failure, error) if failure is not None else error from failure
        prompt = await steps.compress(call, route, embedding)
        funds = await steps.reserve(call, route, prompt)
        if funds.decision == ledger_pb2.RESERVE_DECISION_OK:
            return Choice(route, prompt, ceiling, funds.reserved_nano_usd)
        ceiling = _downgrade(call, route, funds, ceiling)


def refused(call: Call, funds: ledger_pb2.ReserveFundsResponse) -> TenthError:
    """What a reservation that was not made means to the caller: RATE_LIMITED, or BUDGET_EXCEEDED naming the step."""
    if funds.decision == ledger_pb2.RESERVE_DECISION_RATE_LIMITED:
        return TenthError(
            Code.RESOURCE_EXHAUSTED,
            Reason.RATE_LIMITED,
            f"tenant {call.identity.tenant_id} has used its requests or tokens of this minute",
            retry_after_seconds=funds.retry_after.ToNanoseconds() / 1e9,
        )
    step = ledger_pb2.ReserveDecision.Name(funds.decision).removeprefix("RESERVE_DECISION_").lower()
    left = f"budget {funds.budget_name!r} has {format_usd(funds.remaining_nano_usd)} left for this request"
    return TenthError(
        Code.RESOURCE_EXHAUSTED,
        Reason.BUDGET_EXCEEDED,
        left + _STEP_MESSAGES.get(funds.decision, ""),
        metadata={"budget": funds.budget_name, "remaining_nano_usd": str(funds.remaining_nano_usd), "step": step},
    )


def _downgrade(
    call: Call, route: Route, funds: ledger_pb2.ReserveFundsResponse, ceiling: chat_pb2.Tier.ValueType
) -> chat_pb2.Tier.ValueType:
    """The ceiling for the next try, lower than the last; else the ledger's refusal, as an error."""
    if call.in_control:
        call.leave_control(f"budget {funds.budget_name}")
        raise OutOfControl
    tier = min(route.tier, ceiling) if ceiling else route.tier
    below = policy.lower_tier(tier, call.request.policy.tier_floor)
    fixed = call.request.policy.model or call.disabled("routing")
    if funds.decision == ledger_pb2.RESERVE_DECISION_DOWNGRADE and below and not fixed:
        call.downgraded = True
        return tier_value(below)
    raise refused(call, funds)


def _no_model(failure: TenthError, error: TenthError) -> TenthError:
    return TenthError(
        Code.UNAVAILABLE,
        Reason.NO_MODEL_AVAILABLE,
        f"no model is left to try: {failure.message}",
        metadata={"last_reason": failure.reason, "router_reason": error.reason},
        retry_after_seconds=failure.retry_after_seconds,
        details=failure.details,
    )
