"""Streams of the end-to-end benchmark: shares, repeats, popularity, and what may not come twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench.endtoend_rows import Ask, code_of
from bench.endtoend_workload import MIXES, Arrival, Mix, read_mix, stream, unasked


def _ask(workload: str, number: int, topic: str = "", *, servable: bool = True, correct: float | None = None) -> Ask:
    messages = ({"role": "user", "content": f"{workload} question {number}"},)
    name = topic or f"{workload}:{number}"
    right = {} if correct is None else {"weak": correct, "strong": 1.0}
    return Ask(workload, str(number), name, messages, code_of(name), {"*": 10}, servable, correct=right,
               task="hard" if correct == 0.0 else "easy")  # fmt: skip


def _rows() -> dict[str, list[Ask]]:
    support = [_ask("support", number, f"topic {number % 20}") for number in range(400)]
    strange = [_ask("support", 1000 + number, servable=False) for number in range(50)]
    return {
        "support": support + strange,
        "bulk": [_ask("bulk", number) for number in range(300)],
        "rag": [_ask("rag", number) for number in range(300)],
        "reasoning": [_ask("reasoning", number, correct=float(number % 2)) for number in range(100)],
    }


def test_shares_are_the_mixs() -> None:
    mix = Mix("m", {"support": 0.5, "bulk": 0.3, "rag": 0.2}, 0.9)
    found = Counter(each.ask.workload for each in stream(mix, _rows(), 200, [], 7))
    assert found == {"support": 100, "bulk": 60, "rag": 40}


def test_a_workload_without_rows_leaves_its_share_to_the_others() -> None:
    mix = Mix("m", {"support": 0.5, "chat": 0.5}, 0.9)
    found = stream(mix, _rows(), 100, [], 7)
    assert Counter(each.ask.workload for each in found) == {"support": 100}


def test_no_rows_at_all_are_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        stream(Mix("m", {"chat": 1.0}, 0.9), _rows(), 100, [], 7)


def test_popular_topics_come_often_in_several_wordings() -> None:
    mix = Mix("m", {"support": 1.0}, 0.9, zipf=1.0)
    found = stream(mix, _rows(), 300, [], 7)
    topics = Counter(each.ask.topic for each in found)
    assert topics.most_common(1)[0][1] > 3 * 300 / len(topics)
    most = topics.most_common(1)[0][0]
    assert len({each.ask.question for each in found if each.ask.topic == most}) > 3


def test_out_of_scope_questions_have_their_share() -> None:
    mix = Mix("m", {"support": 1.0}, 0.9, out_of_scope=0.1)
    found = stream(mix, _rows(), 200, [], 7)
    assert sum(not each.ask.servable for each in found) == 20


def test_bulk_repeats_word_for_word() -> None:
    mix = Mix("m", {"bulk": 1.0}, 0.9, bulk_repeats=0.25)
    found = stream(mix, _rows(), 200, [], 7)
    assert len({each.ask.question for each in found}) == 150


def test_unique_mixes_are_as_long_as_their_rows() -> None:
    mix = Mix("m", {"reasoning": 0.8, "rag": 0.2}, 0.9, unique=True, hard=True)
    found = stream(mix, _rows(), 1000, [], 7)
    questions = [each.ask.question for each in found]
    assert len(set(questions)) == len(questions)
    assert 55 <= len(found) <= 63
    assert all(each.ask.task == "hard" for each in found if each.ask.workload == "reasoning")


def test_the_same_seed_gives_the_same_stream() -> None:
    mix = Mix("m", {"support": 0.5, "rag": 0.5}, 0.9)
    one, same, other = (stream(mix, _rows(), 100, [], seed) for seed in (7, 7, 8))
    assert one == same
    assert [each.ask for each in one] != [each.ask for each in other]


def test_what_is_timed_was_not_asked_before() -> None:
    rows = _rows()
    asked = stream(Mix("m", {"support": 0.5, "rag": 0.5}, 0.9), rows, 200, [], 7)
    rest = unasked(rows, [asked])
    assert not {each.ask.question for each in asked} & {
        row.question for name in ("support", "rag") for row in rest[name]
    }
    assert len(rest["rag"]) == 200
    every = [Arrival(at, 0.0, row, "") for at, row in enumerate(rows["bulk"])]
    assert unasked(rows, [every])["bulk"] == rows["bulk"], "none is left, so all may come"


def test_arrivals_take_the_traces_times() -> None:
    times = [0.0, 0.5, 2.0]
    found = stream(Mix("m", {"rag": 1.0}, 0.9), _rows(), 3, times, 7)
    assert [each.seconds for each in found] == times


def test_only_persons_have_a_user() -> None:
    found = stream(Mix("m", {"support": 0.5, "bulk": 0.5}, 0.9), _rows(), 40, [], 7)
    assert all(bool(each.user) == (each.ask.workload == "support") for each in found)


@pytest.mark.parametrize("name", MIXES)
def test_shipped_mixes_can_be_read(name: str) -> None:
    mix = read_mix(name)
    assert sum(mix.shares.values()) == pytest.approx(1.0)
    assert 0 < mix.quality_target < 1


def test_a_mix_of_unknown_workloads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("shares: { poems: 1.0 }\nquality_target: 0.9\n", "utf-8")
    with pytest.raises(ValueError, match="shares"):
        read_mix("x", tmp_path)
