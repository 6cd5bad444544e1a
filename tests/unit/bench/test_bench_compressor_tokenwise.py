"""What the tokenwise part measures of given scores."""

from __future__ import annotations

import re

import pytest

from bench.compressor_product import Product
from bench.compressor_tokenwise import Measured, shuffled
from bench.result import Result
from services.compressor import weights
from services.compressor.datasets import Case
from services.compressor.tokenwise import Surprisal
from tests.unit.bench.bench_words import Words

GOLD = "Lamps\nKeepers lit every lamp with burning matches at dusk long ago."
OTHER = "Ships\nSailors steered big ships around dark rocks near land somehow."
CASE = Case("1", "g", "what lit the lamps", (), (GOLD, OTHER), (0,), ("burning matches",))


def scored(text: str, dull: str) -> list[Surprisal]:
    return [Surprisal(m.start(), m.end(), 0.5 if dull in m[0] else 5.0) for m in re.finditer(r"\s*\S+", text)]


@pytest.fixture
def measured() -> tuple[Measured, Result]:
    result = Result("compressor", quick=True)
    return Measured(result, [CASE], Product(Words(), {}, weights.load()), 7), result


@pytest.mark.parametrize(("dull", "kept"), [("dusk", 1.0), ("burning", 0.0)])
def test_an_answer_is_lost_with_a_word_of_it(measured: tuple[Measured, Result], dull: str, kept: float) -> None:
    bench, result = measured
    left = bench.pruned({GOLD: scored(GOLD, dull), OTHER: scored(OTHER, "dark")}, 0.1)
    assert dull not in left[0][0]
    assert bench.note("tokenwise_at_10", left) == pytest.approx(2 / 23)
    assert result.metrics["tokenwise/tokenwise_at_10/answer_kept"]["value"] == kept
    assert result.metrics["tokenwise/tokenwise_at_10/answer_kept"]["n"] == 1


def test_sentences_are_chosen_to_the_same_saving(measured: tuple[Measured, Result]) -> None:
    bench, result = measured
    saved = bench.note("extractive_words_at_50", bench.extracted(bench.prepared(None), 0.5))
    assert saved == pytest.approx(0.5, abs=0.1)
    assert result.metrics["tokenwise/extractive_words_at_50/answer_kept"]["value"] == 1.0


def test_the_control_knows_the_same_words_and_nothing_else() -> None:
    tokens = [Surprisal(0, 5, None), *scored(GOLD, "dusk")[1:]]
    (drawn,) = shuffled({GOLD: tokens}, 1).values()
    assert [(each.start, each.end) for each in drawn] == [(each.start, each.end) for each in tokens]
    assert drawn[0].nats is None
    assert [each.nats for each in drawn[1:]] != [each.nats for each in tokens[1:]]
    assert shuffled({GOLD: tokens}, 1)[GOLD] == drawn
