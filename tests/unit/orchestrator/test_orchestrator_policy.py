"""The orchestrator's pure decisions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.policy import (
    KnownModel,
    as_long_as_asked,
    estimate_tokens,
    fallback_model,
    lower_tier,
    original_tokens,
    reserve_input_tokens,
    store_refusal,
)


def known(name: str, tier: int, **fields: Any) -> KnownModel:
    return KnownModel(
        **{
            "name": name,
            "tier": tier,
            "context_window_tokens": 8192,
            "self_hosted": False,
            "routable": True,
            "tools": True,
            "korean": True,
            **fields,
        }
    )


MODELS = (
    known("small", 1, tools=False),
    known("small-en", 1, korean=False),
    known("middle-en", 2, korean=False),
    known("middle", 2),
    known("large", 3),
    known("secret", 3, routable=False),
)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "middle"),
        ({"default_tier": 1}, "small"),
        ({"default_tier": 1, "needs_tools": True}, "small-en"),
        ({"floor": 3}, "large"),
        ({"ceiling": 1}, "small"),
        ({"floor": 1, "ceiling": 1, "default_tier": 3}, "small"),
        ({"excluded": ["middle"]}, "middle-en"),
        ({"excluded": ["middle", "middle-en"]}, "large"),
        ({"excluded": ["middle", "middle-en", "large"]}, "small"),
        ({"excluded": ["middle", "middle-en", "large"], "floor": 2}, None),
        ({"excluded": ["middle", "middle-en"], "ceiling": 2}, "small"),
        ({"named": "large"}, "large"),
        ({"named": "secret"}, "secret"),
        ({"named": "small", "floor": 3}, "small"),
        ({"named": "small", "needs_tools": True}, None),
        ({"named": "large", "excluded": ["large"]}, None),
        ({"named": "unheard-of"}, None),
    ],
)
def test_the_model_while_the_router_is_down(asked: dict[str, Any], expected: str | None) -> None:
    arguments = {"default_tier": 2, "floor": 0, "ceiling": 0, "named": "", "excluded": (), "needs_tools": False}
    found = fallback_model(MODELS, **{**arguments, **asked})
    assert (found.name if found else None) == expected


def test_without_a_catalogue_there_is_no_fallback() -> None:
    assert fallback_model((), default_tier=2, floor=0, ceiling=0, named="", excluded=(), needs_tools=False) is None


@pytest.mark.parametrize(
    ("tier", "floor", "expected"), [(3, 0, 2), (2, 0, 1), (1, 0, 0), (0, 0, 0), (3, 2, 2), (2, 2, 0), (3, 3, 0)]
)
def test_the_next_tier_down(tier: int, floor: int, expected: int) -> None:
    assert lower_tier(tier, floor) == expected


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        ({}, ""),
        ({"writes": False}, "cache_mode"),
        ({"complete": False}, "truncated"),
        ({"downgraded": True}, "downgraded"),
        ({"fell_back": True}, "fallback"),
        ({"router_degraded": True}, "router_down"),
    ],
)
def test_which_answers_are_not_stored(fact: dict[str, bool], reason: str) -> None:
    facts = {
        "complete": True,
        "downgraded": False,
        "fell_back": False,
        "router_degraded": False,
        "writes": True,
    }
    assert store_refusal(**{**facts, **fact}) == reason


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_reservation_covers_more_than_was_counted(counted: int, other: int) -> None:
    assert reserve_input_tokens(counted, estimated=True) >= reserve_input_tokens(counted, estimated=False) > counted
    small, big = sorted((counted, other))
    assert reserve_input_tokens(small, estimated=False) <= reserve_input_tokens(big, estimated=False)


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_an_estimate_is_above_what_texts_cost(ascii_chars: int, other_chars: int) -> None:
    # English about 0.22 and Korean about 1.0 tokens a character (field notes).
    assert estimate_tokens(ascii_chars + other_chars, other_chars) > 0.22 * ascii_chars + other_chars


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_tokenizers_error_is_no_saving(original: int, sent: int, used: int) -> None:
    found = original_tokens(original, sent, used)
    assert found >= used
    if original <= sent:
        assert found == used  # Nothing was removed, so nothing was saved.


@pytest.mark.parametrize(
    ("original", "sent", "used", "expected"),
    [
        (100, 80, 80, 100),
        (100, 80, 88, 110),  # The provider counts a tenth more, of what was removed as well.
        (100, 100, 90, 90),
        (100, 0, 10, 110),
        (100, 80, 0, 0),
    ],
)
def test_the_original_in_the_answering_models_tokens(original: int, sent: int, used: int, expected: int) -> None:
    assert original_tokens(original, sent, used) == expected


@pytest.mark.parametrize(
    ("output_tokens", "limit", "caller_set_limit", "expected"),
    [(48, 48, True, True), (47, 48, True, False), (1024, 1024, False, False)],
)
def test_an_answer_cut_at_the_callers_own_limit_is_what_was_asked_for(
    output_tokens: int, limit: int, caller_set_limit: bool, expected: bool
) -> None:
    assert as_long_as_asked(output_tokens, limit, caller_set_limit) is expected
