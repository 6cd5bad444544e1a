"""Rules: what is refused, which rule decides, the directive, and that nothing is ever widened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mesh.catalog import CatalogError
from mesh.errors import Code, TenthError
from services.router.catalog import Abilities, Catalog, Model, Tier
from services.router.decision import Asked, Demand, Needs, Strategy
from services.router.features import Prompt, extract
from services.router.rules import Effect, Rules, apply, directive_of, merged, parse_rules, unknown_models

SIMPLE, MEDIUM, COMPLEX = Tier.SIMPLE, Tier.MEDIUM, Tier.COMPLEX


def model(name: str, tier: Tier) -> Model:
    return Model(name, "p", tier, 8000, 4000, 100, Abilities())


CATALOG = Catalog((model("mini", SIMPLE), model("haiku", MEDIUM), model("opus-4.7", COMPLEX)), MEDIUM, "", "v")


def asked(question: str = "Hello there", **more: Any) -> Asked:
    prompt = Prompt(question)
    demand = more.pop("demand", Demand(Needs(), 10))
    given: dict[str, Any] = {"tenant_id": "acme", "user_id": "", "project_id": "", "tags": {}, **more}
    return Asked(request_id="r", prompt=prompt, found=extract(prompt), demand=demand, **given)


def rules(*written: dict[str, Any]) -> Rules:
    return parse_rules(yaml.safe_dump({"rules": list(written)}, allow_unicode=True), "r.yaml")


def rule(then: dict[str, Any], when: dict[str, Any] | None = None, name: str = "one") -> dict[str, Any]:
    return {"name": name, "when": when or {}, "then": then}


def result(request: Asked, *written: dict[str, Any]) -> Demand:
    return merged(request.demand, apply(rules(*written), request, CATALOG))


def demand(**more: Any) -> Demand:
    return Demand(Needs(), 10, **more)


# --- The file


def test_the_shipped_file_has_no_rules_and_its_example_is_good() -> None:
    text = Path("deploy/routing.yaml").read_text("utf-8")
    assert parse_rules(text, "routing.yaml").rules == ()
    head, _, example = text.partition("\nrules: []\n")
    assert head
    found = parse_rules("\n".join(line.removeprefix("# ") for line in example.splitlines()), "routing.yaml").rules
    assert [each.name for each in found] == ["lawyers", "translations stay here", "staff choose"]
    assert found[0].when.tag == {"area": ("legal", "tax")}
    assert found[0].then.strategy is Strategy.TRAINED
    assert found[2].then.directive is True


@pytest.mark.parametrize("text", ["", "rules: []", "rules:", "# nothing\n"])
def test_no_rules_are_good_rules(text: str) -> None:
    empty = parse_rules(text, "r.yaml")
    assert empty.rules == ()
    assert apply(empty, asked("model=nobody hello"), CATALOG) == Effect()


GOOD = """rules:
  - name: one
    when:
      tenant: [acme]
      tag: { area: [legal] }
      task: [code]
      language: [ko]
    then:
      model: haiku
      tier_floor: simple
      tier_ceiling: medium
      quality_target: 0.9
      strategy: features
      exploration: false
  - name: two
    then: { directive: true }
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("tenant: [acme]", "tennant: [acme]"), "r.yaml:4: rules[0].when.tennant: unknown key"),
        (("tenant: [acme]", "tenant: acme"), "r.yaml:4: rules[0].when.tenant: must be a list"),
        (("tenant: [acme]", "tenant: []"), "r.yaml:4: rules[0].when.tenant: must be a list of at least one"),
        (("tenant: [acme]", "tenant: [a, 12]"), "r.yaml:4: rules[0].when.tenant: must be text"),
        (("tenant: [acme]", 'tenant: [""]'), "must be text"),
        (("tenant: [acme]", "tenant: [[a]]"), "must be text"),
        (("{ area: [legal] }", "{ area: legal }"), "r.yaml:5: rules[0].when.tag.area: must be a list"),
        (("{ area: [legal] }", "[legal]"), "r.yaml:5: rules[0].when.tag: must be a mapping"),
        (("task: [code]", "task: [coding]"), "r.yaml:6: rules[0].when.task: 'coding' is none of code, maths"),
        (("language: [ko]", "language: [kr]"), "r.yaml:7: rules[0].when.language: 'kr' is none of ko, en, other"),
        (("model: haiku", 'model: ""'), "r.yaml:9: rules[0].then.model: must be text"),
        (("tier_floor: simple", "tier_floor: low"), "r.yaml:10: rules[0].then.tier_floor: 'low' is none of"),
        (("tier_floor: simple", "tier_floor: complex"), "r.yaml:10: rules[0].then.tier_floor: is above tier_ceiling"),
        (("quality_target: 0.9", "quality_target: 1.1"), "r.yaml:12: rules[0].then.quality_target: '1.1' is not"),
        (("quality_target: 0.9", "quality_target: 0"), "rules[0].then.quality_target: '0' is not"),
        (("strategy: features", "strategy: override"), "r.yaml:13: rules[0].then.strategy: 'override' is none of"),
        (("exploration: false", "exploration: never"), "r.yaml:14: rules[0].then.exploration: 'never' is neither"),
        (("name: two", "name: one"), "r.yaml:15: rules[1].name: two rules are named 'one'"),
        (("name: two", "nam: two"), "r.yaml:15: rules[1].nam: unknown key"),
        (("then: { directive: true }", "when: {}"), "rules[1].then: required"),
        (("then: { directive: true }", "then: {}"), "r.yaml:16: rules[1].then: at least one key"),
        (("rules:", "rule:"), "r.yaml:1: rule: unknown key"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(change: tuple[str, str], message: str) -> None:
    assert len(parse_rules(GOOD, "r.yaml").rules) == 2
    changed = GOOD.replace(*change, 1)
    assert changed != GOOD
    with pytest.raises(CatalogError) as caught:
        parse_rules(changed, "r.yaml")
    assert message in str(caught.value)


def test_models_that_the_catalogue_lacks_are_found_with_their_line() -> None:
    assert unknown_models(parse_rules(GOOD, "r.yaml"), CATALOG) == []
    wrong = parse_rules(GOOD.replace("haiku", "hiku"), "r.yaml")
    assert unknown_models(wrong, CATALOG) == [("one", "hiku", 9)]


# --- Which rule holds


@pytest.mark.parametrize(
    ("when", "request_", "holds"),
    [
        ({}, {}, True),
        ({"tenant": ["acme"]}, {}, True),
        ({"tenant": ["other", "acme"]}, {}, True),
        ({"tenant": ["other"]}, {}, False),
        ({"tenant": ["acm"]}, {}, False),
        ({"project": ["p"]}, {}, False),
        ({"project": ["p"]}, {"project_id": "p"}, True),
        ({"user": ["ann"]}, {"user_id": "ann"}, True),
        ({"user": ["ann"]}, {"user_id": "ben"}, False),
        ({"user": ["ann"], "project": ["p"]}, {"user_id": "ann"}, False),
        ({"tag": {"area": ["legal", "tax"]}}, {"tags": {"area": "tax"}}, True),
        ({"tag": {"area": ["legal"]}}, {"tags": {"area": "tax"}}, False),
        ({"tag": {"area": ["legal"], "vip": ["1"]}}, {"tags": {"area": "legal"}}, False),
        ({"tag": {"area": ["legal"]}}, {}, False),
        ({"language": ["ko"]}, {"question": "안녕하세요"}, True),
        ({"language": ["ko"]}, {"question": "Hello"}, False),
        ({"task": ["translate"]}, {"question": "이 문장을 영어로 번역해 줘."}, True),
        ({"task": ["translate"]}, {"question": "Hello"}, False),
        ({"task": ["code"], "language": ["en"]}, {"question": "Write a Python function that adds two numbers."}, True),
    ],
)
def test_a_rule_holds_when_all_that_it_names_holds(when: dict[str, Any], request_: dict[str, Any], holds: bool) -> None:
    found = apply(rules(rule({"quality_target": 0.5}, when)), asked(**request_), CATALOG)
    assert (found.quality_target is not None) is holds
    assert found.rule == ("one" if holds else "")


def test_the_first_rule_that_gives_a_key_decides_it_and_later_ones_add() -> None:
    found = apply(
        rules(
            rule({"quality_target": 0.5}, {"tenant": ["other"]}, "not mine"),
            rule({"quality_target": 0.6, "exploration": True}, name="first"),
            rule({"quality_target": 0.7}, name="late"),
            rule({"exploration": False, "strategy": "cascade"}, name="adds"),
        ),
        asked(),
        CATALOG,
    )
    assert (found.quality_target, found.exploration, found.strategy) == (0.6, True, Strategy.CASCADE)
    assert found.rule == "first, adds"


@pytest.mark.parametrize(("word", "kept"), [(True, True), (False, False)])
def test_exploration(word: bool, kept: bool) -> None:
    assert apply(rules(rule({"exploration": word})), asked(), CATALOG).exploration is kept


def test_what_the_request_says_itself_is_no_rules_doing() -> None:
    written = rule({"quality_target": 0.5, "strategy": "llm", "model": "haiku"})
    request = asked(demand=demand(quality_target=0.8, model="mini"), strategy=Strategy.FEATURES)
    found = apply(rules(written), request, CATALOG)
    assert found == Effect()
    after = merged(request.demand, found)
    assert (after.quality_target, after.model) == (0.8, "mini")


# --- The directive


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ("model=opus-4.7\nWhy is the sky blue?", "opus-4.7"),
        ("model=opus-4.7 why is the sky blue?", "opus-4.7"),
        ("model=opus-4.7, please: why?", "opus-4.7"),
        ("model=opus-4.7. Why?", "opus-4.7"),
        ("\n  MODEL=mini", "mini"),
        ("model=mini\n하늘은 왜 파란가요?", "mini"),
        ("model=opus-4.7로 번역해 줘", "opus-4.7"),
        ("model=mini 하늘은 왜 파란가요?", "mini"),
        ("model=org/name:tag why?", "org/name:tag"),
        ("Use model=mini", ""),
        ("모델 model=mini", ""),
        ("model = mini", ""),
        ("model=", ""),
        ("model=f(x)", ""),
        ("model=sklearn.LinearRegression()", ""),
        ("model=a=b", ""),
        ('model="mini"', ""),
        ("", ""),
    ],
)
def test_directives(question: str, named: str) -> None:
    assert directive_of(question) == named


ALLOWED = rule({"directive": True}, {"tenant": ["acme"]}, "staff choose")


def test_a_directive_counts_only_where_a_rule_allows_it() -> None:
    question = "model=opus-4.7 why?"
    assert result(asked(question), ALLOWED).model == "opus-4.7"
    assert result(asked(question, tenant_id="other"), ALLOWED).model == ""
    assert result(asked(question)).model == ""
    assert result(asked(question), rule({"directive": False}, {}, "never"), ALLOWED).model == ""
    found = apply(rules(ALLOWED), asked(question), CATALOG)
    assert (found.by_directive, found.rule) == (True, "staff choose")
    assert apply(rules(ALLOWED), asked("why?"), CATALOG) == Effect()


def test_a_directive_goes_before_a_rules_model_and_after_the_requests() -> None:
    model_rule = rule({"model": "haiku"}, name="model")
    assert result(asked("model=mini why?"), model_rule, ALLOWED).model == "mini"
    assert result(asked("why?"), model_rule, ALLOWED).model == "haiku"
    assert result(asked("model=mini why?", demand=demand(model="opus-4.7")), model_rule, ALLOWED).model == "opus-4.7"


def test_an_unknown_name_is_an_error_of_the_message() -> None:
    with pytest.raises(TenthError) as caught:
        apply(rules(ALLOWED), asked("model=gtp-5로 답해 줘"), CATALOG)
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "UNKNOWN_MODEL")
    assert caught.value.field == "request.messages"
    assert "gtp-5" in caught.value.message
    assert apply(rules(ALLOWED), asked("model=gtp-5 why?", tenant_id="other"), CATALOG) == Effect()


def test_the_directive_stays_in_the_message() -> None:
    request = asked("model=mini why?")
    apply(rules(ALLOWED), request, CATALOG)
    assert request.prompt.question == "model=mini why?"


def test_a_rules_unknown_model_lets_no_other_answer() -> None:
    with pytest.raises(TenthError) as caught:
        apply(rules(rule({"model": "gone"}, name="lawyers")), asked(), CATALOG)
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "RULE_MODEL_UNKNOWN")
    assert caught.value.metadata == {"rule": "lawyers"}


# --- Bounds


@pytest.mark.parametrize(
    ("before", "then", "floor", "ceiling"),
    [
        ({}, {"tier_floor": "medium"}, MEDIUM, None),
        ({"floor": SIMPLE}, {"tier_floor": "medium"}, MEDIUM, None),
        ({"floor": COMPLEX}, {"tier_floor": "medium"}, COMPLEX, None),
        ({"ceiling": MEDIUM}, {"tier_ceiling": "complex"}, None, MEDIUM),
        ({"ceiling": COMPLEX}, {"tier_ceiling": "medium"}, None, MEDIUM),
        ({"floor": MEDIUM}, {"tier_ceiling": "medium"}, MEDIUM, MEDIUM),
        ({"budget_ceiling": MEDIUM}, {"tier_floor": "medium", "tier_ceiling": "complex"}, MEDIUM, COMPLEX),
    ],
)
def test_bounds_tighten(
    before: dict[str, Tier], then: dict[str, str], floor: Tier | None, ceiling: Tier | None
) -> None:
    after = result(asked(demand=demand(**before)), rule(then))
    assert (after.floor, after.ceiling, after.budget_ceiling) == (floor, ceiling, before.get("budget_ceiling"))


@pytest.mark.parametrize(
    ("before", "then", "field", "words"),
    [
        (
            {"ceiling": SIMPLE},
            {"tier_floor": "medium"},
            "request.policy.tier_ceiling",
            "rule 'one' allows no tier below",
        ),
        ({"floor": COMPLEX}, {"tier_ceiling": "medium"}, "request.policy.tier_floor", "rule 'one' none above medium"),
        ({"budget_ceiling": SIMPLE}, {"tier_floor": "medium"}, "tier_ceiling", "the budget none above simple"),
        ({"floor": MEDIUM, "ceiling": MEDIUM}, {"tier_floor": "complex"}, "request.policy.tier_ceiling", "complex"),
        ({"floor": MEDIUM}, {"model": "mini"}, "", "mini, named by a rule, is below the floor medium"),
        ({"ceiling": MEDIUM}, {"model": "opus-4.7"}, "", "above the ceiling medium"),
        ({"budget_ceiling": SIMPLE}, {"model": "haiku"}, "", "above the ceiling simple"),
    ],
)
def test_what_a_rule_leaves_nothing_of_is_an_error(
    before: dict[str, Tier], then: dict[str, str], field: str, words: str
) -> None:
    with pytest.raises(TenthError) as caught:
        result(asked(demand=demand(**before)), rule(then))
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "CONTRADICTORY_BOUNDS")
    assert (caught.value.field, caught.value.metadata["rule"]) == (field, "one")
    assert words in caught.value.message


def test_two_rules_that_contradict_each_other_are_both_named() -> None:
    with pytest.raises(TenthError) as caught:
        result(asked(), rule({"tier_floor": "complex"}, name="up"), rule({"tier_ceiling": "simple"}, name="down"))
    assert caught.value.metadata["rule"] == "up, down"
    assert caught.value.field == ""


def test_a_directive_outside_the_bounds_is_an_error_of_the_message() -> None:
    with pytest.raises(TenthError) as caught:
        result(asked("model=opus-4.7 why?"), ALLOWED, rule({"tier_ceiling": "medium"}, name="cheap"))
    assert (caught.value.reason, caught.value.field) == ("CONTRADICTORY_BOUNDS", "request.messages")


def test_a_request_that_contradicts_itself_is_left_to_the_policy() -> None:
    before = demand(floor=COMPLEX, ceiling=SIMPLE)
    assert result(asked(demand=before), rule({"tier_floor": "medium"})).floor is COMPLEX
    budget = demand(floor=COMPLEX, budget_ceiling=SIMPLE)
    assert result(asked(demand=budget), rule({"tier_floor": "complex"})) == budget


def outcome(before: Demand, effect: Effect) -> Demand | TenthError:
    try:
        return merged(before, effect)
    except TenthError as error:
        return error


TIERS = st.sampled_from([None, *Tier])


@given(TIERS, TIERS, TIERS, TIERS, TIERS, st.sampled_from([None, *CATALOG.models]))
def test_a_rule_never_widens(
    floor: Tier | None,
    ceiling: Tier | None,
    budget: Tier | None,
    low: Tier | None,
    high: Tier | None,
    named: Model | None,
) -> None:
    before = demand(floor=floor, ceiling=ceiling, budget_ceiling=budget)
    effect = Effect(("one",), model=named, floor=low, floor_rule="one", ceiling=high, ceiling_rule="one")

    def allowed(*bounds: tuple[Tier | None, Tier | None]) -> set[Tier]:
        return {tier for tier in Tier if all((at or SIMPLE) <= tier <= (to or COMPLEX) for at, to in bounds)}

    both = allowed((floor, ceiling), (None, budget), (low, high))
    mine = allowed((floor, ceiling), (None, budget))
    after = outcome(before, effect)
    if isinstance(after, TenthError):
        assert after.reason == "CONTRADICTORY_BOUNDS"
        assert both == set() or (named is not None and named.tier not in both)
        return
    assert allowed((after.floor, after.ceiling), (None, after.budget_ceiling)) == both
    assert both or not mine, "only a request that left nothing itself goes on with nothing"
    assert named is None or after.model == named.name
