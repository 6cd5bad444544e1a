"""Which model answers: tier bounds, abilities, room in the context window, and the order of fallbacks. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from mesh import money
from mesh.errors import Code, TenthError, invalid_argument
from services.router.catalog import Catalog, Model, Tier
from services.router.classifier import Judgement, Thresholds, success_probability, wanted_tier
from services.router.decision import UNKNOWN_COST, Candidate, Demand, Estimate, Route
from services.router.errors import Reason
from services.router.speed import too_slow


@dataclass(frozen=True, slots=True)
class Ways:
    """What bounds a choice beside the request: which models are down, and what each is expected to do."""

    estimate: Callable[[Model], Estimate]
    down: Mapping[str, str] = field(default_factory=dict)
    """Why each model that is down is."""


def choose(
    catalog: Catalog, demand: Demand, judgement: Judgement, thresholds: Thresholds, why: str, ways: Ways | None = None
) -> Route:  # fmt: skip
    """The cheapest tier that answers well enough, and what to try after its model.

    The wanted tier follows from the judgement and the quality target, moved into the bounds. Within a tier the
    catalogue's order decides. When no model of the tier can serve the request the next tiers up to the ceiling are
    tried, then those down to the floor. ``why`` says how the judgement came about. Raises NO_ELIGIBLE_MODEL,
    UNKNOWN_MODEL, CONTRADICTORY_BOUNDS.
    """
    target = target_of(demand, thresholds)
    wanted = wanted_tier(judgement, target, thresholds)
    ways = ways or Ways(tier_estimates(judgement, thresholds))
    why = f"{why}; complexity {judgement.complexity:.2f} at quality target {target:.2f}: {wanted.name.lower()}"
    return choose_tier(catalog, demand, wanted, why, ways)


def choose_tier(catalog: Catalog, demand: Demand, wanted: Tier, why: str, ways: Ways) -> Route:
    """The first able model of a tier, and what to try after it; see ``choose``."""
    floor, ceiling = _bounds(demand)
    if demand.model:
        return _named(catalog, demand, ceiling, ways)
    tier = min(max(wanted, floor), ceiling)
    candidates, note = _considered(catalog, demand, ways, None, floor, ceiling)
    eligible = [item for item in candidates if not item.rejected_reason]
    ordered = [item.model for rank in tier_order(tier, floor, ceiling) for item in eligible if item.model.tier is rank]
    model = ordered[0]
    parts = [why]
    if tier is not wanted:
        bound = "floor" if tier > wanted else "budget's ceiling" if tier is demand.budget_ceiling else "ceiling"
        parts.append(f"moved to {tier.name.lower()} by the {bound}")
    if model.tier is not tier:
        parts.append(f"no {tier.name.lower()} model can take it, {model.tier.name.lower()} is the nearest")
    return Route(model, tuple(ordered[1:]), candidates, "; ".join((*parts, *note)))


def choose_by_utility(
    catalog: Catalog, demand: Demand, least: Tier, quality_price: float, why: str, ways: Ways
) -> Route:  # fmt: skip
    """The model of the highest utility: success probability less ``quality_price`` (per USD) times its cost in USD.

    No model below ``least`` is taken as long as one at or above it is eligible. A model without a price counts as dear
    as the dearest. The fallbacks are the others of its tier by utility, then the tiers above, then those below. Raises
    as ``choose`` does.
    """
    floor, ceiling = _bounds(demand)
    if demand.model:
        return _named(catalog, demand, ceiling, ways)
    candidates, note = _considered(catalog, demand, ways, quality_price, floor, ceiling)
    # The sort is stable: among equals the catalogue's order decides.
    eligible = sorted((item for item in candidates if not item.rejected_reason), key=lambda item: -item.utility)
    able = [item for item in eligible if item.model.tier >= least] or eligible
    best = able[0]
    tiers = tier_order(best.model.tier, floor, ceiling)
    ordered = [item.model for rank in tiers for item in eligible if item.model.tier is rank and item is not best]
    usd = max(0, best.expected_cost_nano_usd) / 1e9
    parts = [why, f"{best.success_probability:.2f} likely to answer well for {usd:.6f} USD"]
    if able[0] is not eligible[0]:
        parts.append(f"not below {least.name.lower()}")
    return Route(best.model, tuple(ordered), candidates, "; ".join((*parts, *note)))


def target_of(demand: Demand, thresholds: Thresholds) -> float:
    """The quality target in force, 0..1: the request's or a rule's, else the deployment's."""
    return thresholds.quality_target if demand.quality_target is None else demand.quality_target


def tier_estimates(judgement: Judgement, thresholds: Thresholds) -> Callable[[Model], Estimate]:
    """What the features say of a model: its tier's chance, and the catalogue's length of its answers."""
    return lambda model: Estimate(
        success_probability(model.tier, judgement.complexity, thresholds), model.expected_output_tokens
    )


def tier_order(tier: Tier, floor: Tier, ceiling: Tier) -> tuple[Tier, ...]:
    """The tier itself, those above it up to the ceiling, then those below it down to the floor."""
    above = [rank for rank in Tier if tier < rank <= ceiling]
    below = [rank for rank in reversed(Tier) if floor <= rank < tier]
    return (tier, *above, *below)


def expected_cost_nano_usd(
    model: Model, prompt_token_count: int, max_output_tokens: int | None, output_tokens: int | None = None
) -> int:  # fmt: skip
    """Reference price of the prompt and the expected output; -1 when the model has no price."""
    if model.price is None:
        return UNKNOWN_COST
    output = model.expected_output_tokens if output_tokens is None else output_tokens
    output = min(output, max_output_tokens or output)
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


def _named(catalog: Catalog, demand: Demand, ceiling: Tier, ways: Ways) -> Route:
    """The model that the caller named, if it can; a named model has no fallbacks."""
    model = catalog.model(demand.model)
    field = "request.policy.model"
    if model is None:
        raise invalid_argument(f"the catalogue has no model {demand.model}", field=field, reason=Reason.UNKNOWN_MODEL)
    candidate = _candidate(model, demand, ways, None, "; ".join(_objections(model, demand, Tier.SIMPLE, ceiling)))
    if candidate.rejected_reason:
        raise _none_eligible((candidate,), field)
    return Route(model, (), (candidate,), f"{model.name} is named by the request")


def _considered(
    catalog: Catalog, demand: Demand, ways: Ways, quality_price: float | None, floor: Tier, ceiling: Tier
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """All models with what speaks against each, and a note where not everything that does was heeded.

    Utilities are 0 where ``quality_price`` is None: there tiers decide. A model that is down or too slow is left out
    while another can serve; when none can, late or doubtful is better
    than refused, and the deadline is the orchestrator's to keep.
    """
    demand = _attainable(catalog, demand, floor, ceiling)
    hard = {model.name: "; ".join(_objections(model, demand, floor, ceiling)) for model in catalog.models}
    able = [model for model in catalog.models if not hard[model.name]]
    soft = {model.name: "; ".join(_doubts(model, demand, ways)) for model in able}
    note: tuple[str, ...] = ()
    if able and all(soft.values()):
        note = (f"every able model is doubtful ({able[0].name}: {soft[able[0].name]}), which is ignored",)
        soft = {}
    candidates = [
        _candidate(model, demand, ways, quality_price, hard[model.name] or soft.get(model.name, ""))
        for model in catalog.models
    ]
    if not able:
        raise _none_eligible(tuple(candidates))
    if quality_price:
        dearest = max(item.expected_cost_nano_usd for item in candidates)
        candidates = [
            replace(item, utility=item.success_probability - quality_price * dearest / 1e9)
            if item.expected_cost_nano_usd == UNKNOWN_COST
            else item
            for item in candidates
        ]
    return tuple(candidates), note


def _candidate(model: Model, demand: Demand, ways: Ways, quality_price: float | None, objection: str) -> Candidate:
    estimate = ways.estimate(model)
    limit = demand.max_output_tokens or estimate.output_tokens
    cost = expected_cost_nano_usd(model, demand.prompt_token_count, limit, estimate.output_tokens)
    price = quality_price or 0.0
    utility = 0.0 if quality_price is None else estimate.success_probability - price * max(0, cost) / 1e9
    return Candidate(model, estimate.success_probability, cost, min(estimate.output_tokens, limit), utility, objection)


def _doubts(model: Model, demand: Demand, ways: Ways) -> Iterator[str]:
    if model.name in ways.down:
        yield f"down: {ways.down[model.name]}"
    if demand.seconds_left is not None:
        slow = too_slow(model, ways.estimate(model).output_tokens, demand.seconds_left)
        if slow:
            yield slow


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
