"""Which neighbour's answer is served."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.cache.choice import candidates, explain, judge
from services.cache.features import NEIGHBOURHOOD, PAIR, letters_of, neighbourhood_features, pair_features
from services.cache.keys import ROLE_ASSISTANT, ROLE_USER, Message, Question
from services.cache.namespaces import Mode, NamespacePolicy
from services.cache.store import Entry, Found
from services.cache.verifier import NEVER, Basis
from tests.cache_verifier import VERIFIER

NOW = 1_000_000.0
RULES = NamespacePolicy()
"""Bound 5: with the headroom the stand-in's curve asks for .5, which it gives at cosine .95."""
ASKED = "How do I reset my password?"
PARAPHRASE = "How can I reset my password?"


def question(text: str, **changes: object) -> Question:
    base = Question("acme", "default", (Message(ROLE_USER, (("text", text),)),))
    return replace(base, **changes)  # type: ignore[arg-type]  # Fields by name.


def found(turn: str, similarity: float, **changes: object) -> Found:
    entry = Entry("id", "key", "scope", "acme", "default", "", turn, turn, b"", NOW - 10, NOW + 10, "m", 2)
    return Found(replace(entry, **changes), similarity)  # type: ignore[arg-type]  # Fields by name.


def certain(_: Entry) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("asked", "neighbour", "serve"),
    [
        (question(ASKED), found(PARAPHRASE, 0.97), True),
        (question(ASKED), found(PARAPHRASE, 0.9499), False),
        (question(ASKED), found("How do I not reset my password?", 0.99), False),
        (question(ASKED, max_age_seconds=15.0), found(PARAPHRASE, 0.97), True),
        (question(ASKED, tier_floor=3), found(PARAPHRASE, 0.97, tier=3), True),
        (question(ASKED, tier_floor=1), found(PARAPHRASE, 0.97, tier=3), True),
    ],
)
def test_what_is_served(asked: Question, neighbour: Found, serve: bool) -> None:
    (verdict,) = judge(asked, [neighbour], RULES, VERIFIER, certain, NOW)
    assert verdict.serve is serve, verdict.reasons
    assert any(line.startswith("refused") for line in verdict.reasons) is not serve


@pytest.mark.parametrize(
    ("asked", "neighbour"),
    [
        (question(ASKED), found(PARAPHRASE, 0.99, expires=NOW)),
        (question(ASKED, max_age_seconds=5.0), found(PARAPHRASE, 0.99)),
        (question(ASKED, tier_floor=3), found(PARAPHRASE, 0.99)),
    ],
)
def test_an_old_or_weak_answer_is_no_candidate_and_says_so_when_inspected(asked: Question, neighbour: Found) -> None:
    assert judge(asked, [neighbour], RULES, VERIFIER, certain, NOW) == []
    (verdict,) = explain(asked, [neighbour], RULES, VERIFIER, certain, NOW)
    assert not verdict.serve


def test_a_tighter_bound_serves_less_and_an_unreachable_one_nothing() -> None:
    near = [found(PARAPHRASE, 0.955)]
    assert judge(question(ASKED), near, RULES, VERIFIER, certain, NOW)[0].serve
    tight = replace(RULES, max_wrong_hits_per_thousand=1.0)
    assert not judge(question(ASKED), near, tight, VERIFIER, certain, NOW)[0].serve
    none = judge(question(ASKED), [found(PARAPHRASE, 1.0)], replace(RULES, max_wrong_hits_per_thousand=0.1), VERIFIER,
                 certain, NOW)[0]  # fmt: skip
    assert not none.serve
    assert none.needed == NEVER
    assert "no threshold" in none.reasons[0]


def test_an_entry_reported_wrong_before_must_be_surer() -> None:
    near = [found(PARAPHRASE, 0.955)]
    assert judge(question(ASKED), near, RULES, VERIFIER, lambda entry: 1.0, NOW)[0].serve
    assert not judge(question(ASKED), near, RULES, VERIFIER, lambda entry: 5.0, NOW)[0].serve


def test_a_language_without_a_model_serves_nothing() -> None:
    (verdict,) = judge(
        question("パスワードを変更するには"), [found("パスワードの変更方法", 1.0)], RULES, VERIFIER, certain, NOW
    )
    assert not verdict.serve


def test_of_entries_with_one_answer_the_nearest_that_no_guard_refuses_speaks() -> None:
    stored = ["How do I reset my password in 5 steps?", PARAPHRASE, "Reset of a password?"]
    (one,) = candidates(ASKED, stored, [0.99, 0.97, 0.96], ["a", "a", "a"], Mode.STRICT)
    assert one.place == 1
    assert one.basis is Basis.NEIGHBOURS
    assert not one.refusals


def test_when_guards_refuse_all_of_them_the_nearest_says_why() -> None:
    stored = ["How do I reset my password in 5 steps?", "How do I reset my password in 7 steps?"]
    (one,) = candidates(ASKED, stored, [0.99, 0.97], ["a", "a"], Mode.STRICT)
    assert one.place == 0
    assert "5" in one.refusals[0]


def test_unnamed_answers_are_all_different() -> None:
    found_ones = candidates(ASKED, [PARAPHRASE, "Reset of a password?"], [0.97, 0.96], ["", ""], Mode.STRICT)
    assert [one.basis for one in found_ones] == [Basis.PAIR, Basis.PAIR]


def test_the_surest_answer_wins_not_the_first() -> None:
    near = [found("How do I not reset my password?", 0.99), found(PARAPHRASE, 0.97)]
    best = judge(question(ASKED), near, RULES, VERIFIER, certain, NOW)[0]
    assert best.serve
    assert best.found.entry.turn == PARAPHRASE


def test_follow_ups_need_their_own_words_to_agree() -> None:
    history = (Message(ROLE_USER, (("text", ASKED),)), Message(ROLE_ASSISTANT, (("text", "So."),)))
    asked = question("x", messages=(*history, Message(ROLE_USER, (("text", "and for a phone?"),))))
    assert not judge(asked, [found("and for a laptop?", 0.99)], RULES, VERIFIER, certain, NOW)[0].serve
    assert judge(asked, [found("and for the phone?", 0.99)], RULES, VERIFIER, certain, NOW)[0].serve


def around(place: int, similarities: list[float], overlaps: list[float], answers: list[str]) -> dict[str, float]:
    values = neighbourhood_features(place, similarities, overlaps, answers)
    return dict(zip(NEIGHBOURHOOD[len(PAIR) :], values, strict=True))


def test_margin_and_votes_of_the_neighbourhood() -> None:
    values = around(0, [0.98, 0.97, 0.95, 0.90], [0.8, 0.4, 0.5, 0.9], ["a", "a", "b", "a"])
    assert values["margin"] == pytest.approx(0.03)
    assert values["second_margin"] == pytest.approx(0.02)
    assert values["mean_margin"] == pytest.approx(0.95 - 0.95)
    assert values["letters_margin"] == pytest.approx(0.4)
    assert values["letters_mean_margin"] == pytest.approx(0.7 - 0.5)
    assert values["share"] == 0.75
    assert 0.75 < values["weighted_share"] < 1
    assert values["votes"] == 3
    assert values["different"] == 0.5
    assert values["nearest"] == 1
    assert values["run"] == 0.5
    assert values["near_five"] == pytest.approx((0.98 + 0.97 + 0.90) / 5)


def test_an_answer_behind_the_nearest_has_a_negative_margin() -> None:
    values = around(1, [0.98, 0.97, 0.96], [0.5, 0.4, 0.3], ["a", "b", "b"])
    assert values["margin"] == pytest.approx(-0.01)
    assert (values["nearest"], values["run"]) == (0.0, 0.0)


def test_without_a_second_vote_the_second_margin_is_a_low_one() -> None:
    values = around(0, [0.98, 0.97], [0.5, 0.4], ["a", "b"])
    assert values["second_margin"] < 0 < values["margin"]


def test_equal_texts_are_alike_in_every_way() -> None:
    values = dict(zip(PAIR, pair_features(ASKED, ASKED, 1.0), strict=True))
    alike = ("similarity", "letters", "letter_pairs", "words", "contained", "same_words", "few_words_apart")
    assert [values[name] for name in (*alike, "no_difference")] == [1.0] * 8
    assert not any(values[name] for name in ("only_asked", "only_stored", "length_ratio", "one_word_apart"))
    assert not any(value for name, value in values.items() if name.startswith("guard_"))


def test_korean_words_are_compared_without_their_particles() -> None:
    assert letters_of("비밀번호를 변경하려면").words == letters_of("비밀번호는 변경했는데").words


@pytest.mark.parametrize("text", ["", "?", "a", "가", "   "])
def test_tiny_texts_have_traits(text: str) -> None:
    assert len(pair_features(text, "abc", 0.0)) == len(pair_features("abc", text, 0.0))
