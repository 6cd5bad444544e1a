"""The adversarial tables: what must be refused is, unless a table says that only the verifier can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cache.guards import GUARD_NAMES, HARD, differences, fired, hints

TABLES = sorted((Path(__file__).parents[3] / "bench" / "adversarial").glob("*.yaml"))
ROWS: list[dict[str, Any]] = [row for table in TABLES for row in yaml.safe_load(table.read_text(encoding="utf-8"))]
DIFFERENT = [row for row in ROWS if not row["same"]]
SAME = [row for row in ROWS if row["same"]]


def test_the_tables_are_large_and_cover_both_languages() -> None:
    assert len(DIFFERENT) >= 150
    assert len(SAME) >= 100
    assert {(row["kind"], row["lang"]) for row in DIFFERENT} == {
        (kind, lang)
        for kind in ("antonyms", "entities", "modality", "negation", "numbers", "roles", "time")
        for lang in ("en", "ko")
    }


@pytest.mark.parametrize("row", DIFFERENT, ids=lambda row: f"{row['a']} / {row['b']}")
def test_what_must_be_refused_is_refused_both_ways(row: dict[str, Any]) -> None:
    found = [differences(row["a"], row["b"]), differences(row["b"], row["a"])]
    if row.get("needs") == "verifier":
        assert found == [(), ()], "a guard learned it: take the mark off"
    else:
        assert all(found)


def test_few_paraphrases_are_refused() -> None:
    refused = [(row["a"], row["b"]) for row in SAME if differences(row["a"], row["b"])]
    assert len(refused) <= 2, refused


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['a']} / {row['b']}")
def test_guards_do_not_depend_on_the_order_and_agree_with_what_they_say(row: dict[str, Any]) -> None:
    bits = fired(row["a"], row["b"])
    assert bits == fired(row["b"], row["a"])
    named = {difference.name for difference in (*differences(row["a"], row["b"]), *hints(row["a"], row["b"]))}
    assert {name for name, bit in zip(GUARD_NAMES, bits, strict=True) if bit} == named


def test_hard_guards_come_first() -> None:
    assert GUARD_NAMES[: len(HARD)] == tuple(name for name, _ in HARD)
    assert len(set(GUARD_NAMES)) == len(GUARD_NAMES)


def test_a_text_has_no_difference_from_itself() -> None:
    for row in ROWS:
        assert not any(fired(row["a"], row["a"]))
