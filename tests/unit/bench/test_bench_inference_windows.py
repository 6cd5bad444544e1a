"""Perplexity by windows: every token once, ratios on the same tokens."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.inference_windows import Score, perplexity, ratio, windows


@given(st.integers(0, 5000), st.integers(2, 600), st.data())
def test_every_token_but_the_first_is_scored_once_and_behind_enough_context(
    count: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window - 1))
    made = windows(count, window, stride)
    scored = [at for part in made for at in range(part.scored, part.end)]
    assert scored == list(range(1, max(count, 1)))
    for number, part in enumerate(made):
        assert 0 <= part.start < part.end <= count
        assert part.end - part.start <= window
        assert part.start < part.scored
        if number:
            assert part.scored - part.start >= min(window - stride, part.scored)


@pytest.mark.parametrize("stride", [0, 10, 11])
def test_a_stride_that_leaves_a_token_without_context_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match="stride"):
        windows(100, 10, stride)


def test_perplexity_is_of_tokens_not_of_windows() -> None:
    scores = [Score(math.log(2) * 30, 30), Score(math.log(8) * 10, 10)]
    assert perplexity(scores) == pytest.approx(2 ** ((30 + 3 * 10) / 40))


def test_a_ratio_is_exact_where_every_window_loses_alike() -> None:
    base = [Score(2.0 * tokens, tokens) for tokens in (1023, 512, 512, 77)]
    worse = [Score((2.0 + math.log(1.05)) * score.tokens, score.tokens) for score in base]
    value, (low, high) = ratio(worse, base, seed=7)
    assert value == pytest.approx(1.05)
    assert low == pytest.approx(1.05)
    assert high == pytest.approx(1.05)
    assert ratio(base, base, seed=7)[0] == 1.0


def test_the_interval_widens_where_windows_differ() -> None:
    base = [Score(1000.0, 500) for _ in range(20)]
    mixed = [Score(1000.0 + (50 if number % 2 else 0), 500) for number in range(20)]
    value, (low, high) = ratio(mixed, base, seed=7)
    assert low < value < high


def test_models_that_scored_other_tokens_are_not_compared() -> None:
    with pytest.raises(ValueError, match="the same tokens"):
        ratio([Score(1.0, 10)], [Score(1.0, 11)], seed=7)
