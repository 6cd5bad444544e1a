"""The cache's tables: what they hold, and when a reach is reached."""

from __future__ import annotations

from typing import Any

import pytest

from bench.cache_tables import cache_tables
from bench.result import Result


def _tables(result: Result) -> list[str]:
    result.assumptions |= {"rows": "held out of training", "seed": 7, "embedder": "some-encoder"}
    shape: dict[str, Any] = result.as_json()
    return cache_tables(shape).splitlines()


@pytest.mark.parametrize(
    ("hits", "wrong", "outside", "said"),
    [(0.40, 3.0, 2.0, ["yes", "yes", "yes"]), (0.399, 3.1, 2.1, ["**no**", "**no**", "**no**"])],
)
def test_what_is_reached(hits: float, wrong: float, outside: float, said: list[str]) -> None:
    result = Result("cache", quick=False)
    result.add("clinc150/ours_faq/hit_rate", hits, "ratio", 2000, (0.3, 0.5))
    result.add("clinc150/ours_faq/wrong_per_1000", wrong, "per 1000", 2000, (1.0, 5.0))
    result.add("clinc150/ours_faq/oos_served_per_1000", outside, "per 1000", 500)
    result.add("clinc150/article/hit_rate", 0.1, "ratio", 2000, (0.09, 0.11))
    rows = [line for line in _tables(result) if line.startswith("| clinc150, faq")]
    assert [row.split(" | ")[-1].removesuffix(" |") for row in rows] == said
    assert rows[0].split(" | ")[2:5] == ["0.100 [0.090, 0.110]", f"{hits:.3f} [0.300, 0.500]", "at least 0.4"]


def test_contradictions_and_lookups_have_a_reach_too() -> None:
    result = Result("cache", quick=False)
    result.add("klue_nli_ko/ours_strict/contradiction_served_rate", 0.011, "ratio", 500, (0.005, 0.02))
    result.add("lookup_10k/ours/p50_ms", 1.0, "ms", 2000)
    result.add("lookup_10k/gptcache/p50_ms", 40.0, "ms", 2000)
    lines = _tables(result)
    assert "| klue_nli_ko, strict | contradictions served |  | 0.011 [0.005, 0.020] | at most 0.01 | **no** |" in lines
    assert "| lookup, 10k entries | p50 ms |  | 1.00 | at most 1 | yes |" in lines
    assert "| 10k entries | GPTCache | 40.0 |  |  |" in lines


def test_traps_are_listed_by_kind() -> None:
    result = Result("cache", quick=False)
    result.add("adversarial_ko/ours_strict/refused_rate", 0.9, "ratio", 20)
    result.add("adversarial_ko/ours_strict/refused_rate_negation", 0.8, "ratio", 5)
    result.add("adversarial_ko/ours_strict/passed_rate_negation", 1.0, "ratio", 4)
    lines = _tables(result)
    assert "| ko | all | Tenth, strict | 0.900 of 20 |  |" in lines
    assert "| ko | negation | Tenth, strict | 0.800 of 5 | 1.000 of 4 |" in lines


def test_tables_of_nothing_are_left_out_and_what_was_skipped_is_said() -> None:
    result = Result("cache", quick=False, skipped=["lookup: not asked for"])
    result.add("banking77/article/hit_rate", 0.16, "ratio", 3000, (0.15, 0.17))
    lines = _tables(result)
    assert not [line for line in lines if line.startswith("| lookup")]
    assert "Not measured: lookup: not asked for." in lines
    assert [line for line in lines if "rows: held out of training, seed 7, embedder some-encoder" in line]
