from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.catalog import Abilities, Model, ReferencePrice, Tier
from services.router.decision import UNKNOWN_COST, Candidate, Exploration, Route
from services.router.exploration import (
    Draw,
    ExplorationShares,
    SpendAccount,
    draw,
    explored,
    may_explore,
    ways,
)

PLENTY = 10**15
SHARES = ExplorationShares(explore=0.1, audit=0.05, extra_spend=0.02)


def candidate(name: str, tier: Tier, cost: int, utility: float = 0.0, success: float = 0.5) -> Candidate:
    model = Model(name, "p", tier, 8000, 1000, 200, Abilities(), price=ReferencePrice(1, 1))
    return Candidate(model, success, cost, 200, utility, "")


def route(*candidates: Candidate, rejected: tuple[Candidate, ...] = ()) -> Route:
    """The first one is preferred, the others are fallbacks in order."""
    models = [item.model for item in candidates]
    return Route(models[0], tuple(models[1:]), (*rejected, *candidates), "as the test says")


CHEAP = candidate("cheap", Tier.SIMPLE, 100, 0.80)
NEAR = candidate("near", Tier.SIMPLE, 120, 0.78)
FAR = candidate("far", Tier.MEDIUM, 500, 0.40)
STRONG = candidate("strong", Tier.COMPLEX, 9000, 0.10, 0.9)


def routes() -> st.SearchStrategy[Route]:
    one = st.tuples(
        st.sampled_from(Tier), st.integers(-1, 10**6), st.floats(-50.0, 1.0), st.floats(0.0, 1.0), st.booleans()
    )

    def build(drawn: list[tuple[Tier, int, float, float, bool]]) -> Route:
        made = [candidate(f"m{n}", tier, cost, u, p) for n, (tier, cost, u, p, _) in enumerate(drawn)]
        eligible = [item for item, row in zip(made, drawn, strict=True) if not row[4]] or made[:1]
        lost = tuple(
            Candidate(item.model, 0.9, 0, 200, 9.0, "excluded for now") for item in made if item not in eligible
        )
        return route(*eligible, rejected=lost)

    return st.lists(one, min_size=1, max_size=8).map(build)


@given(
    routes(),
    st.floats(0, 0.5),
    st.floats(0, 0.4),
    st.integers(0, 10**6),
    st.floats(0.001, 10.0),
)
def test_propensities_sum_to_one_and_every_way_is_allowed(
    found: Route, explore: float, audit: float, affordable: int, closeness: float
) -> None:
    open_ways = ways(found, ExplorationShares(explore, audit, 0.02, closeness), affordable)
    assert sum(way.propensity for way in open_ways) == pytest.approx(1.0)
    assert len({way.model.name for way in open_ways}) == len(open_ways), "a model is reached by one way"
    assert open_ways[0] == Draw(found.model, Exploration.NONE, open_ways[0].propensity, 0)
    assert open_ways[0].propensity >= 1.0 - explore - audit - 1e-9
    allowed = {found.model.name, *(model.name for model in found.fallbacks)}
    costs = {item.model.name: item.expected_cost_nano_usd for item in found.candidates if not item.rejected_reason}
    for way in open_ways[1:]:
        assert way.propensity > 0.0
        assert way.model.name in allowed
        assert costs[way.model.name] != UNKNOWN_COST
        assert way.extra_cost_nano_usd == max(0, costs[way.model.name] - costs[found.model.name]) <= affordable


@given(routes(), st.integers(0, 10**6))
def test_frequencies_are_the_propensities(found: Route, affordable: int) -> None:
    open_ways = ways(found, ExplorationShares(0.3, 0.2, 0.02), affordable)
    points = 4000
    drawn = Counter(draw(open_ways, lambda at=index: (at + 0.5) / points).model.name for index in range(points))  # type: ignore[misc]
    for way in open_ways:
        assert drawn[way.model.name] / points == pytest.approx(way.propensity, abs=1.5 * len(open_ways) / points)


def test_the_closer_is_the_likelier_and_the_strongest_audits() -> None:
    open_ways = {way.model.name: way for way in ways(route(CHEAP, NEAR, FAR, STRONG), SHARES, PLENTY)}
    assert open_ways["strong"].exploration is Exploration.AUDIT
    assert open_ways["strong"].propensity == 0.05
    near, far = open_ways["near"].propensity, open_ways["far"].propensity
    assert near + far == pytest.approx(0.1)
    assert near / far == pytest.approx(2.718281828 ** ((0.78 - 0.40) / 0.1))


def test_the_strongest_itself_needs_no_audit() -> None:
    kinds = {way.exploration for way in ways(route(STRONG, CHEAP), SHARES, PLENTY)}
    assert kinds == {Exploration.NONE, Exploration.EXPLORE}


def test_shares_of_zero_switch_it_off() -> None:
    (way,) = ways(route(CHEAP, NEAR, STRONG), ExplorationShares(0.0, 0.0), PLENTY)
    assert (way.model, way.propensity) == (CHEAP.model, 1.0)


@pytest.mark.parametrize(
    ("changed", "may"),
    [({}, True), ({"dry_run": True}, False), ({"request_id": ""}, False), ({"named_model": "m"}, False),
     ({"rule_names_model": True}, False)],
)  # fmt: skip
def test_nobody_explores_what_somebody_chose(changed: dict[str, object], may: bool) -> None:
    usual: dict[str, object] = {"dry_run": False, "request_id": "r", "named_model": "", "rule_names_model": False}
    assert may_explore(**{**usual, **changed}) is may  # type: ignore[arg-type]  # A table of keywords.


@pytest.mark.parametrize("seed", range(5))
def test_the_extra_cost_of_a_tenant_stays_within_its_share(seed: int) -> None:
    account, rolled = SpendAccount(), random.Random(seed)
    shares = ExplorationShares(explore=0.3, audit=0.3, extra_spend=0.02)
    spent = extra = 0
    kinds: Counter[Exploration] = Counter()
    for _ in range(5000):
        drawn = explored(route(CHEAP, NEAR, FAR, STRONG), shares, account, "acme", rolled.random)
        spent, extra = spent + 100, extra + drawn.extra_cost_nano_usd
        kinds[drawn.exploration] += 1
        assert extra <= 0.02 * spent
    assert kinds[Exploration.EXPLORE] > 20, "the money is there to be used"
    assert extra > 0.01 * spent


def test_an_expensive_audit_waits_until_the_account_can_pay_it() -> None:
    account = SpendAccount()
    only = ExplorationShares(explore=0.0, audit=0.4, extra_spend=0.02)
    # 8,900 extra of 2%: 445,000 must have been expected before.
    decisions = 0
    while explored(route(CHEAP, STRONG), only, account, "acme", lambda: 0.0).exploration is Exploration.NONE:
        decisions += 1
    assert decisions == 4449
    assert account.affordable_nano_usd("another", 0.02, 100) == 2


def test_the_account_forgets_the_tenant_not_seen_for_longest() -> None:
    account = SpendAccount(capacity=2)
    for name in ("a", "b", "a", "c"):
        account.note(name, 1000, 0)
    assert account.affordable_nano_usd("a", 1.0, 0) == 2000
    assert account.affordable_nano_usd("b", 1.0, 0) == 0
