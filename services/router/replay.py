"""Recorded requests decided again, at no cost: what another policy, catalogue or price list would have done. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mesh import money
from mesh.errors import TenthError
from services.router.catalog import Catalog, Model, Tier
from services.router.decision import UNKNOWN_COST, Route
from services.router.outcomes import Outcome


class DecideAgain(Protocol):
    """A policy that decides a recorded outcome from what is kept of it: features, embedding, demand."""

    def __call__(self, outcome: Outcome) -> Route:
        """The route, without exploration. Raises TenthError when no model is eligible."""
        ...


@dataclass(frozen=True, slots=True)
class Replayed:
    """One request decided again; see tenth.router.v1.ReplayedOutcome."""

    request_id: str
    model: str
    tier: Tier | None
    success_probability: float
    cost_nano_usd: int
    recorded_success_probability: float
    recorded_cost_nano_usd: int
    reason: str


def decide(outcome: Outcome, decide_again: DecideAgain, catalog: Catalog) -> Replayed:
    """Decide one outcome again and put the recorded decision's model beside it, both under ``catalog``.

    Both costs take the tokens that were really used where they are known: the prompt's for both models, the answer's
    for the model that gave it, and for another in proportion to what is expected of the two.
    """
    recorded = outcome.candidate(outcome.model)
    before = catalog.model(outcome.model)
    cost_before = cost_nano_usd(outcome, before, catalog) if before is not None else UNKNOWN_COST
    predicted_before = recorded.success_probability if recorded is not None else 0.0
    try:
        route = decide_again(outcome)
    except TenthError as error:
        return Replayed(outcome.request_id, "", None, 0.0, 0, predicted_before, cost_before, error.message)
    predicted = {item.model.name: item.success_probability for item in route.candidates}
    return Replayed(
        request_id=outcome.request_id,
        model=route.model.name,
        tier=route.model.tier,
        success_probability=predicted.get(route.model.name, 0.0),
        cost_nano_usd=cost_nano_usd(outcome, route.model, catalog),
        recorded_success_probability=predicted.get(outcome.model, predicted_before),
        recorded_cost_nano_usd=cost_before,
        reason=route.reason,
    )


def cost_nano_usd(outcome: Outcome, model: Model, catalog: Catalog) -> int:
    """What the request would cost on a model at the catalogue's reference prices; -1 where it has none."""
    if model.price is None:
        return UNKNOWN_COST
    demand, done = outcome.demand, outcome.completion
    output = usual = _expected_tokens(outcome, model)
    prompt = demand.prompt_token_count
    if done is not None:
        prompt = done.input_tokens or prompt
        answered = catalog.model(done.model)
        theirs = _expected_tokens(outcome, answered) if answered is not None else 0
        if done.output_tokens:
            output = done.output_tokens * usual // theirs if theirs else usual
    limits = [limit for limit in (demand.max_output_tokens, model.max_output_tokens) if limit]
    exact = prompt * model.price.input + min(output, *limits) * model.price.output
    return -(-exact // money.TOKENS_PER_PRICE)


def _expected_tokens(outcome: Outcome, model: Model) -> int:
    candidate = outcome.candidate(model.name)
    return (candidate.expected_output_tokens if candidate is not None else 0) or model.expected_output_tokens
