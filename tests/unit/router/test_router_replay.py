from __future__ import annotations

from dataclasses import replace

from mesh.errors import Code, TenthError
from services.router.catalog import Abilities, Catalog, Model, ReferencePrice, Tier
from services.router.decision import UNKNOWN_COST, Candidate, Demand, Needs, Route
from services.router.outcomes import Completion, Outcome, RecordedCandidate
from services.router.replay import cost_nano_usd, decide


def model(name: str, tier: Tier, price: ReferencePrice | None, tokens: int) -> Model:
    return Model(name, "p", tier, 8000, 1000, tokens, Abilities(), price=price)


CHEAP = model("cheap", Tier.SIMPLE, ReferencePrice(1_000_000, 2_000_000), 100)
STRONG = model("strong", Tier.COMPLEX, ReferencePrice(10_000_000, 50_000_000), 300)
FREE = model("unpriced", Tier.SIMPLE, None, 100)
CATALOG = Catalog((CHEAP, STRONG, FREE), Tier.MEDIUM, "", "v")
RECORDED = Outcome(
    "acme", "r", 0.0, model="cheap", tier=Tier.SIMPLE, demand=Demand(Needs(), 1000),
    candidates=(RecordedCandidate("cheap", Tier.SIMPLE, 0.7, 1, 100),),
)  # fmt: skip


def to(model: Model, *predicted: tuple[Model, float]) -> Route:
    made = tuple(Candidate(each, success, 0, 0, 0.0, "") for each, success in predicted)
    return Route(model, (), made, "as the test says")


def test_both_models_stand_side_by_side_under_the_given_catalogue() -> None:
    replayed = decide(RECORDED, lambda outcome: to(STRONG, (STRONG, 0.9), (CHEAP, 0.6)), CATALOG)
    assert (replayed.model, replayed.tier, replayed.success_probability) == ("strong", Tier.COMPLEX, 0.9)
    assert (replayed.recorded_success_probability, replayed.recorded_cost_nano_usd) == (0.6, 1200)
    assert replayed.cost_nano_usd == 10_000 + 300 * 50
    assert replayed.reason == "as the test says"


def test_real_tokens_are_taken_where_they_are_known() -> None:
    done = replace(RECORDED, completion=Completion("cheap", 900, 50))
    assert cost_nano_usd(done, CHEAP, CATALOG) == 900 + 50 * 2
    # Half of what is usual of the one is half of what is usual of the other.
    assert cost_nano_usd(done, STRONG, CATALOG) == 9000 + 150 * 50
    limited = replace(done, demand=replace(done.demand, max_output_tokens=60))
    assert cost_nano_usd(limited, STRONG, CATALOG) == 9000 + 60 * 50
    # Who answered is not in this catalogue: what is usual is all that is known.
    gone = replace(RECORDED, completion=Completion("gone", 900, 50))
    assert cost_nano_usd(gone, STRONG, CATALOG) == 9000 + 300 * 50


def test_unknown_stays_unknown() -> None:
    assert cost_nano_usd(RECORDED, FREE, CATALOG) == UNKNOWN_COST
    gone = replace(RECORDED, model="gone", candidates=())
    assert decide(gone, lambda outcome: to(CHEAP, (CHEAP, 0.7)), CATALOG).recorded_cost_nano_usd == UNKNOWN_COST


def test_no_eligible_model_is_an_answer() -> None:
    def refuse(outcome: Outcome) -> Route:
        raise TenthError(Code.FAILED_PRECONDITION, "NO_ELIGIBLE_MODEL", "none can take it")

    replayed = decide(RECORDED, refuse, CATALOG)
    assert (replayed.model, replayed.tier, replayed.reason) == ("", None, "none can take it")
    assert replayed.recorded_success_probability == 0.7
