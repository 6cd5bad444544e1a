"""Which model answers: tier bounds, abilities, room in the context window, and the order of fallbacks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mesh import money
from mesh.errors import Code, TenthError, invalid_argument
from services.router.catalog import Catalog, Model, Tier
from services.router.classifier import Judgement, Thresholds, success_probability, wanted_tier
from services.router.decision import UNKNOWN_COST, Candidate, Demand, Route
from services.router.errors import Reason


def choose(catalog: Catalog, demand: Demand, judgement: Judgement, thresholds: Thresholds, why: str) -> Route:
    """The cheapest model that answers well enough, and what to try after it.

    The wanted tier follows from the judgement and the quality target, moved into the bounds. Within a tier the
    catalogue's order decides. When no model of the tier can serve the request the next tiers up to the ceiling are
    tried, then those down to the floor. ``why`` says how the judgement came about. Raises NO_ELIGIBLE_MODEL,
    UNKNOWN_MODEL, CONTRADICTORY_BOUNDS.
    """
    floor, ceiling = _bounds(demand)
    if demand.model:
        return _named(catalog, demand, judgement, thresholds, ceiling)
    demand = _attainable(catalog, demand, floor, ceiling)
    target = thresholds.quality_target if demand.quality_target is None else demand.quality_target
    wanted = wanted_tier(judgement, target, thresholds)
    tier = min(max(wanted, floor), ceiling)
    candidates = tuple(_candidates(catalog.models, demand, judgement, thresholds, floor, ceiling))
    eligible = [candidate.model for candidate in candidates if not candidate.rejected_reason]
    ordered = [model for rank in tier_order(tier, floor, ceiling) for model in eligible if model.tier is rank]
    if not ordered:
        raise _none_eligible(candidates)
    model = ordered[0]
    parts = [why, f"complexity {judgement.complexity:.2f} at quality target {target:.2f}: {wanted.name.lower()}"]
    if tier is not wanted:
        bound = "floor" if tier > wanted else "budget's ceiling" if tier is demand.budget_ceiling else "ceiling"
        parts.append(f"moved to {tier.name.lower()} by the {bound}")
    if model.tier is not tier:
        parts.append(f"no {tier.name.lower()} model can take it, {model.tier.name.lower()} is the nearest")
    return Route(model, tuple(ordered[1:]), candidates, "; ".join(parts))


def tier_order(tier: Tier, floor: Tier, ceiling: Tier) -> tuple[Tier, ...]:
    """The tier itself, those above it up to the ceiling, then those below it down to the floor."""
    above = [rank for rank in Tier if tier < rank <= ceiling]
    below = [rank for rank in reversed(Tier) if floor <= rank < tier]
    return (tier, *above, *below)


def expected_cost_nano_usd(model: Model, prompt_token_count: int, max_output_tokens: int | None) -> int:
    """Reference price of the prompt and the expected output; -1 when the model has no price."""
    if model.price is None:
        return UNKNOWN_COST
    output = min(model.expected_output_tokens, max_output_tokens or model.expected_output_tokens)
    # Rounded up in integers: this is an estimate, no ledger line, and a Fraction costs more than the rest of it.
    exact = prompt_token_count * model.price.input + output * model.price.output
    return -(-exact // money.TOKENS_PER_PRICE)


def estimate_tokens(char_count: int, hangul_char_count: int, message_count: int, image_count: int) -> int:
    """Prompt tokens by characters, on the high side: 1 per Hangul syllable, 0.3 per other character, 6 per message.

    (cl100k_base takes about 1.0 and 0.22.) 800 for a picture.
    """
    other = char_count - hangul_char_count
    return hangul_char_count + (other * 3 + 9) // 10 + 6 * message_count + 800 * image_count


def _bounds(demand: Demand) -> tuple[Tier, Tier]:
    floor = demand.floor or Tier.SIMPLE
    asked = demand.ceiling or Tier.COMPLEX
    if floor > asked:
        raise invalid_argument(
            f"the floor {floor.name.lower()} is above the ceiling {asked.name.lower()}",
            field="request.policy.tier_floor",
            reason=Reason.CONTRADICTORY_BOUNDS,
        )
    ceiling = min(asked, demand.budget_ceiling or Tier.COMPLEX)
    if floor > ceiling:
        raise TenthError(
            Code.FAILED_PRECONDITION,
            Reason.NO_ELIGIBLE_MODEL,
            f"the budget allows no tier above {ceiling.name.lower()}, the request none below {floor.name.lower()}",
            "tier_ceiling",
        )
    return floor, ceiling


def _attainable(catalog: Catalog, demand: Demand, floor: Tier, ceiling: Tier) -> Demand:
    """The demand with no more output than the most generous allowed model gives: "a million" means "all you can"."""
    if demand.max_output_tokens is None:
        return demand
    limits = [model.max_output_tokens for model in catalog.models if model.routable and floor <= model.tier <= ceiling]
    return replace(demand, max_output_tokens=min(demand.max_output_tokens, max(limits, default=1)))


def _named(catalog: Catalog, demand: Demand, judgement: Judgement, thresholds: Thresholds, ceiling: Tier) -> Route:
    """The model that the caller named, if it can; a named model has no fallbacks."""
    model = catalog.model(demand.model)
    field = "request.policy.model"
    if model is None:
        raise invalid_argument(f"the catalogue has no model {demand.model}", field=field, reason=Reason.UNKNOWN_MODEL)
    (candidate,) = _candidates((model,), demand, judgement, thresholds, Tier.SIMPLE, ceiling)
    if candidate.rejected_reason:
        raise _none_eligible((candidate,), field)
    return Route(model, (), (candidate,), f"{model.name} is named by the request")


def _candidates(
    models: Iterable[Model],
    demand: Demand,
    judgement: Judgement,
    thresholds: Thresholds,
    floor: Tier,
    ceiling: Tier,
) -> Iterator[Candidate]:
    for model in models:
        yield Candidate(
            model,
            success_probability(model.tier, judgement.complexity, thresholds),
            expected_cost_nano_usd(model, demand.prompt_token_count, demand.max_output_tokens),
            min(model.expected_output_tokens, demand.max_output_tokens or model.expected_output_tokens),
            0.0,
            "; ".join(_objections(model, demand, floor, ceiling)),
        )


def _objections(model: Model, demand: Demand, floor: Tier, ceiling: Tier) -> Iterator[str]:
    if not model.routable and not demand.model:
        yield "only by name"
    if model.name in demand.excluded_models:
        yield "excluded for now"
    if model.tier < floor:
        yield f"below the floor {floor.name.lower()}"
    if model.tier > ceiling:
        yield f"above the ceiling {ceiling.name.lower()}"
    needs, can = demand.needs, model.abilities
    if needs.tools and not can.tools:
        yield "cannot call tools"
    if needs.json_schema and not can.json_schema:
        yield "cannot follow a JSON schema"
    if needs.vision and not can.vision:
        yield "cannot see pictures"
    # A caller who names a model knows its Korean.
    if needs.korean and not can.korean and not demand.model:
        yield "weak in Korean"
    output = demand.max_output_tokens or 0
    if output > model.max_output_tokens and not demand.model:
        yield f"gives at most {model.max_output_tokens} output tokens, {output} are asked for"
    room = demand.prompt_token_count + max(output, 1)
    # For a named model the compressor, which counts exactly, has the last word.
    if room > model.context_window_tokens and not demand.model:
        yield f"context window {model.context_window_tokens} < about {room} tokens"


def _none_eligible(candidates: tuple[Candidate, ...], field: str = "") -> TenthError:
    reasons = {candidate.model.name: candidate.rejected_reason for candidate in candidates}
    listed = ", ".join(f"{name} ({reason})" for name, reason in reasons.items())
    return TenthError(
        Code.FAILED_PRECONDITION,
        Reason.NO_ELIGIBLE_MODEL,
        f"no model can take this request: {listed}",
        field,
        metadata=reasons,
    )
