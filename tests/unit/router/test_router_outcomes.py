from __future__ import annotations

from dataclasses import replace

from services.router.catalog import Abilities, Model, ReferencePrice, Tier
from services.router.decision import Asked, Candidate, Decision, Demand, Exploration, Needs, Route, Strategy
from services.router.features import Prompt, extract
from services.router.outcomes import Classified, Completion, RequestMemory, extra_cost_nano_usd, outcome_of

QUESTION = "a question that nobody may find again"
CHEAP = Model("cheap", "p", Tier.SIMPLE, 8000, 1000, 200, Abilities(), price=ReferencePrice(1, 1))
STRONG = replace(CHEAP, name="strong", tier=Tier.COMPLEX)
ROUTE = Route(
    STRONG, (CHEAP,), (Candidate(CHEAP, 0.7, 100, 200, 0.6, ""), Candidate(STRONG, 0.9, 900, 200, 0.5, "")), "why"
)
ASKED = Asked(
    tenant_id="acme", user_id="ann", project_id="shop", request_id="r1", tags={"kind": "faq"},
    prompt=Prompt(QUESTION), found=extract(Prompt(QUESTION)),
    demand=Demand(
        Needs(korean=True), 120, 300, floor=Tier.SIMPLE, ceiling=Tier.COMPLEX, budget_ceiling=Tier.MEDIUM,
        excluded_models=frozenset({"down"}), seconds_left=3.0,
    ),
)  # fmt: skip
DECISION = Decision(ROUTE, Strategy.TRAINED, 0.4, 0.85, 2.0, Exploration.AUDIT, 0.005, rule="faq")


def test_an_outcome_has_what_it_takes_to_decide_again_and_no_text() -> None:
    outcome = outcome_of(ASKED, DECISION, 1000.0, "cheap")
    assert (outcome.tenant_id, outcome.user_id, outcome.project_id, outcome.tags) == (
        "acme", "ann", "shop", {"kind": "faq"},
    )  # fmt: skip
    assert (outcome.model, outcome.tier, outcome.strategy, outcome.rule) == (
        "strong", Tier.COMPLEX, Strategy.TRAINED, "faq",
    )  # fmt: skip
    assert outcome.demand == Demand(Needs(korean=True), 120, 300, 0.85, Tier.SIMPLE, Tier.MEDIUM), "the tighter ceiling"
    assert outcome.features == ASKED.found.numbers()
    assert QUESTION not in repr(outcome)
    assert replace(outcome, completion=Completion("cheap")).answered_by == "cheap"
    assert outcome.answered_by == "strong"


def test_what_an_exploration_was_expected_to_cost() -> None:
    outcome = outcome_of(ASKED, DECISION, 1000.0, "cheap")
    assert extra_cost_nano_usd(outcome) == 800
    cheaper = replace(outcome, model="cheap", preferred_model="strong")
    assert extra_cost_nano_usd(cheaper) == 0, "what was saved pays for nothing"
    unknown = replace(outcome, candidates=tuple(replace(c, expected_cost_nano_usd=-1) for c in outcome.candidates))
    assert extra_cost_nano_usd(unknown) == 0
    assert extra_cost_nano_usd(replace(outcome, exploration=Exploration.NONE)) == 0


def test_labels_are_remembered_by_tenant_and_bounded() -> None:
    memory = RequestMemory(capacity=2)
    memory.put("acme", "r1", Classified(Tier.MEDIUM, 1, "ann"))
    assert memory.get("acme", "r1").label is Tier.MEDIUM
    assert memory.get("another", "r1") == Classified()
    memory.put("acme", "r2", Classified(user_id="ann"))
    memory.put("acme", "r3", Classified(user_id="bob"))
    assert memory.get("acme", "r1") == Classified(), "the oldest is forgotten"
    assert (memory.delete_user("another", "ann"), memory.delete_user("acme", "ann"), len(memory)) == (0, 1, 1)
    nothing = RequestMemory(capacity=0)
    nothing.put("acme", "r1", Classified(Tier.MEDIUM))
    assert len(nothing) == 0
