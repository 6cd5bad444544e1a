"""Reading the sets: answers, groups, halves, samples, and what training may see."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cache_sets import Choice, halves, present, read_adversarial, read_pairs, read_stream
from services.cache.split import in_training

ALL = Choice(quick=False, held_out=False, seed=7)
HELD_OUT = Choice(quick=False, held_out=True, seed=7)
QUICK = Choice(quick=True, held_out=False, seed=7)


def _write(data: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    (data / "cache").mkdir(exist_ok=True)
    with gzip.open(data / "cache" / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_sets(data: Path, sets: int, rows: int) -> None:
    texts = [(one, f"question {one} in wording {other}") for one in range(sets) for other in range(rows)]
    _write(data, "parakqc_ko", [{"id": text, "set": one, "text": text} for one, text in texts])


def test_intents_share_an_answer_that_does_not_tell_them(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "text": "where is my parcel", "intent": "parcel_tracking"},
        {"id": "2", "text": "track the parcel please", "intent": "parcel_tracking"},
        {"id": "3", "text": "I want my money back", "intent": "refund_wanted"},
    ]
    _write(tmp_path, "banking77", rows)
    one, two, three = read_stream(tmp_path, "banking77", ALL)
    assert one.answer == two.answer != three.answer
    assert one.group == "parcel_tracking"
    assert "parcel" not in one.answer
    assert "refund" not in three.answer


def test_out_of_scope_rows_have_no_answer_in_common(tmp_path: Path) -> None:
    rows = [
        {"id": "a/1", "text": "how tall is that bridge", "intent": "oos"},
        {"id": "a/2", "text": "how tall is that bridge", "intent": "oos"},
        {"id": "a/3", "text": "what is my balance", "intent": "balance"},
    ]
    _write(tmp_path, "clinc150", rows)
    one, two, three = read_stream(tmp_path, "clinc150", ALL)
    assert one.out_of_scope
    assert two.out_of_scope
    assert not three.out_of_scope
    assert one.answer != two.answer
    assert one.group == "oos:a/1"


def test_sets_and_answers_of_the_korean_files(tmp_path: Path) -> None:
    _write(tmp_path, "parakqc_ko", [{"id": "1", "set": 4, "topic": 0, "act": 0, "text": "회의실 예약은 어떻게 하지?"}])
    _write(tmp_path, "chatbot_ko", [{"id": "1", "q": "심심한데 뭐 하지", "answer": "산책은 어떠세요.", "label": 0}])
    (kept,) = read_stream(tmp_path, "parakqc_ko", ALL)
    assert (kept.text, kept.group) == ("회의실 예약은 어떻게 하지?", "4")
    (kept,) = read_stream(tmp_path, "chatbot_ko", ALL)
    assert (kept.text, kept.answer, kept.group) == ("심심한데 뭐 하지", "산책은 어떠세요.", "산책은 어떠세요.")


def test_korsts_from_four_on_is_the_same(tmp_path: Path) -> None:
    rows = [{"id": str(score), "a": "개가 뛴다", "b": "개 한 마리가 뛴다", "score": score} for score in (3.8, 4.0, 5.0)]
    _write(tmp_path, "korsts_ko", rows)
    assert [pair.label for pair in read_pairs(tmp_path, "korsts_ko", ALL)] == ["different", "same", "same"]


def test_pairs_and_premises(tmp_path: Path) -> None:
    row = {"id": "7", "a": "문이 열려 있다", "b": "문이 닫혀 있다"}
    _write(tmp_path, "question_pair_ko", [{**row, "same": 1, "identical": 1}, {**row, "same": 0, "identical": 0}])
    _write(tmp_path, "klue_nli_ko", [{**row, "label": "contradiction"}])
    same, different = read_pairs(tmp_path, "question_pair_ko", ALL)
    assert (same.label, same.kind, same.group) == ("same", "identical", "7")
    assert (different.label, different.kind) == ("different", "")
    (trap,) = read_pairs(tmp_path, "klue_nli_ko", ALL)
    assert (trap.stored, trap.asked, trap.label) == ("문이 열려 있다", "문이 닫혀 있다", "contradiction")
    # Rows share premises: all of one premise are on one side.
    assert trap.group == "문이 열려 있다"


def test_held_out_rows_are_those_that_training_did_not_see(tmp_path: Path) -> None:
    _write_sets(tmp_path, sets=40, rows=2)
    kept = {row.group for row in read_stream(tmp_path, "parakqc_ko", HELD_OUT)}
    assert kept == {str(number) for number in range(40) if not in_training("parakqc_ko", str(number))}
    assert 0 < len(kept) < 40


def test_a_quick_run_takes_whole_groups(tmp_path: Path) -> None:
    _write_sets(tmp_path, sets=80, rows=10)
    few = read_stream(tmp_path, "parakqc_ko", QUICK)
    assert len(few) == 300
    groups = [row.group for row in few]
    assert {groups.count(group) for group in groups} == {10}
    other = read_stream(tmp_path, "parakqc_ko", Choice(quick=True, held_out=False, seed=8))
    assert {row.group for row in other} != set(groups)


def test_halves_are_seeded_and_miss_nothing(tmp_path: Path) -> None:
    _write_sets(tmp_path, sets=101, rows=1)
    rows = read_stream(tmp_path, "parakqc_ko", ALL)
    warm, asked = halves(rows, 7)
    assert (len(warm), len(asked)) == (50, 51)
    assert sorted(row.text for row in (*warm, *asked)) == sorted(row.text for row in rows)
    assert halves(rows, 7) == (warm, asked)
    assert halves(rows, 8) != (warm, asked)


def test_what_is_there(tmp_path: Path) -> None:
    assert not present(tmp_path, "qqp_pairs")
    _write(tmp_path, "qqp_pairs", [])
    assert present(tmp_path, "qqp_pairs")


def test_traps_by_language(tmp_path: Path) -> None:
    (tmp_path / "en.yaml").write_text(
        "- {a: turn it on, b: turn it off, same: false, kind: antonym, lang: en}\n"
        "- {a: turn it on, b: switch it on, same: true, kind: antonym, lang: en}\n",
        "utf-8",
    )
    (tmp_path / "ko.yaml").write_text("- {a: 켜 줘, b: 꺼 줘, same: false, kind: antonym, lang: ko}\n", "utf-8")
    found = read_adversarial(tmp_path)
    assert [pair.label for pair in found["en"]] == ["different", "same"]
    assert (found["ko"][0].stored, found["ko"][0].asked, found["ko"][0].kind) == ("켜 줘", "꺼 줘", "antonym")
    assert read_adversarial(tmp_path / "absent") == {}
