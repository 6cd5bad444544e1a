"""When a request is decided to learn from it: another model than the best, or the strongest one. Pure.

Three ways lie open to a request: the preferred model; an exploration, one of the next models in the policy's order,
the likelier the closer its utility is to the best; an audit, the strongest eligible model, whose answer tells what the
cheaper one was measured against. No model is reached by two ways, so the propensity of a decision is the probability
of its model, as inverse-propensity weighting needs (Horvitz and Thompson, 1952).

What learning may cost is bounded twice: by the shares of requests, and by an account per tenant, which lets the
expected extra cost of all that was drawn be at most a share of the expected cost of all decisions. An alternative that
the account cannot pay is no way at all and has probability 0; so expensive requests are explored later or never, which
the estimates must live with.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from services.router.catalog import Model
from services.router.decision import UNKNOWN_COST, Candidate, Exploration, Route

_BREADTH = 3
"""Models after the preferred one that may be explored."""


@dataclass(frozen=True, slots=True)
class ExplorationShares:
    """How much is tried; both shares 0 switch it off."""

    explore: float = 0.01
    """Share of requests that explore, 0..1."""
    audit: float = 0.005
    """Share of requests that audit, 0..1; together with ``explore`` less than 1."""
    extra_spend: float = 0.02
    """Most expected extra cost, as a share of all expected cost, 0..1."""
    closeness: float = 0.1
    """Utility by which an alternative must be worse to be e times less likely; success probability, above 0."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One way to decide a request, and with which probability it is taken."""

    model: Model
    exploration: Exploration
    propensity: float
    extra_cost_nano_usd: int
    """Expected, beyond the preferred model; 0 where it is cheaper."""


@dataclass(slots=True)
class _Spend:
    expected: int = 0
    extra: int = 0


class SpendAccount:
    """Expected cost by tenant, and what of it was for learning; of one replica since its start, in memory.

    Each replica bounds its own share, so that all together keep it.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        """Remember at most ``capacity`` tenants; the one not seen for longest starts anew."""
        self._capacity = capacity
        self._tenants: OrderedDict[str, _Spend] = OrderedDict()

    def affordable_nano_usd(self, tenant_id: str, share: float, preferred_cost_nano_usd: int) -> int:
        """Extra cost that a decision may have now, with its own preferred cost counted in."""
        spend = self._tenants.get(tenant_id, _Spend())
        return max(0, math.floor(share * (spend.expected + max(0, preferred_cost_nano_usd))) - spend.extra)

    def note(self, tenant_id: str, preferred_cost_nano_usd: int, extra_cost_nano_usd: int) -> None:
        """Count a decision in, also one that could not explore; unknown costs count as nothing."""
        spend = self._tenants.setdefault(tenant_id, _Spend())
        self._tenants.move_to_end(tenant_id)
        spend.expected += max(0, preferred_cost_nano_usd)
        spend.extra += extra_cost_nano_usd
        while len(self._tenants) > self._capacity:
            self._tenants.popitem(last=False)


def may_explore(*, dry_run: bool, request_id: str, named_model: str, rule_names_model: bool) -> bool:
    """False where somebody chose the model, or where nothing could be learnt from the decision."""
    return not dry_run and bool(request_id) and not named_model and not rule_names_model


def ways(route: Route, shares: ExplorationShares, affordable_nano_usd: int) -> tuple[Draw, ...]:
    """The ways to decide, the preferred one first. No two have one model, and the propensities sum to 1.

    Only the route's model and its fallbacks are considered: they are what floors, ceilings, abilities, exclusions, the
    budget and the time left allow. ``affordable_nano_usd`` is the most that an alternative may cost extra.
    """
    preferred = _candidate(route, route.model)
    if preferred is None or preferred.expected_cost_nano_usd == UNKNOWN_COST:
        return (Draw(route.model, Exploration.NONE, 1.0, 0),)
    open_to = [
        (candidate, extra)
        for candidate in (_candidate(route, model) for model in route.fallbacks)
        if candidate is not None and not candidate.rejected_reason and candidate.model is not route.model
        if candidate.expected_cost_nano_usd != UNKNOWN_COST
        for extra in [max(0, candidate.expected_cost_nano_usd - preferred.expected_cost_nano_usd)]
    ]
    drawn: list[Draw] = []
    strongest = max((preferred, *(candidate for candidate, _ in open_to)), key=_strength)
    if shares.audit > 0.0 and strongest is not preferred:
        for candidate, extra in open_to:
            if candidate is strongest and extra <= affordable_nano_usd:
                drawn.append(Draw(candidate.model, Exploration.AUDIT, shares.audit, extra))
    audited = drawn[0].model if drawn else None
    near = [pair for pair in open_to[:_BREADTH] if pair[0].model is not audited and pair[1] <= affordable_nano_usd]
    if shares.explore > 0.0 and near:
        best = max(candidate.utility for candidate, _ in near)
        weights = [math.exp((candidate.utility - best) / shares.closeness) for candidate, _ in near]
        total = sum(weights)
        drawn += [
            Draw(candidate.model, Exploration.EXPLORE, shares.explore * weight / total, extra)
            for (candidate, extra), weight in zip(near, weights, strict=True)
            if shares.explore * weight / total > 0.0
        ]
    rest = 1.0 - sum(draw.propensity for draw in drawn)
    return (Draw(route.model, Exploration.NONE, rest, 0), *drawn)


def draw(open_ways: tuple[Draw, ...], random: Callable[[], float]) -> Draw:
    """One of the ways, by its propensity. ``random`` is uniform in 0..1, below 1."""
    point = random()
    for way in open_ways[1:]:
        if point < way.propensity:
            return way
        point -= way.propensity
    return open_ways[0]


def explored(
    route: Route, shares: ExplorationShares, account: SpendAccount, tenant_id: str, random: Callable[[], float]
) -> Draw:
    """Draw for one request and count it into the account. Call it where ``may_explore`` only."""
    preferred = _candidate(route, route.model)
    cost = preferred.expected_cost_nano_usd if preferred is not None else UNKNOWN_COST
    taken = draw(ways(route, shares, account.affordable_nano_usd(tenant_id, shares.extra_spend, cost)), random)
    account.note(tenant_id, cost, taken.extra_cost_nano_usd)
    return taken


def _candidate(route: Route, model: Model) -> Candidate | None:
    return next((item for item in route.candidates if item.model is model), None)


def _strength(candidate: Candidate) -> tuple[int, float]:
    return candidate.model.tier, candidate.success_probability
