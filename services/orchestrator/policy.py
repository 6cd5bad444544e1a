"""Pure decisions of the orchestrator: what to do when a hop is down, what may be shared, what to try next."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

SIMPLE, MEDIUM, COMPLEX = 1, 2, 3
"""Tiers, numbered as in tenth.type.v1.Tier; 0 is "no bound"."""
TIER_NUMBERS = {"simple": SIMPLE, "medium": MEDIUM, "complex": COMPLEX}

EXPECTED_OUTPUT_TOKENS = 200
"""Expected length of an answer of which nobody said more; a rough figure, in dry runs and forecasts only."""


class IfDown(IntEnum):
    """What becomes of a request when a hop is down or late."""

    MISS = 1
    DEFAULT_TIER = 2
    UNCHANGED = 3
    REFUSE_IF_HARD_BUDGET = 4
    NEXT_MODEL = 5
    DROP = 6
    OUTBOX = 7
    FIRST_ANSWER = 8
    ONLINE = 9


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What is remembered of a catalogue model for the time when the router is down."""

    name: str
    tier: int
    context_window_tokens: int
    self_hosted: bool
    routable: bool
    tools: bool
    korean: bool


def fallback_model(
    models: Sequence[KnownModel],
    *,
    default_tier: int,
    floor: int,
    ceiling: int,
    named: str,
    excluded: Sequence[str],
    needs_tools: bool,
) -> KnownModel | None:
    """The model to use while the router is down: the named one, else one of the default tier within the bounds.

    Without any in that tier, the next tier up, then down, is taken; never one outside floor and ceiling.
    """
    usable = [
        model
        for model in models
        if model.name not in excluded and (model.tools or not needs_tools) and (model.routable or model.name == named)
    ]
    if named:
        return next((model for model in usable if model.name == named), None)
    low, high = floor or SIMPLE, ceiling or COMPLEX
    wanted = min(max(default_tier, low), high)
    order = [wanted, *range(wanted + 1, high + 1), *range(wanted - 1, low - 1, -1)]
    # A model that also answers Korean is the safer guess when nobody classified the question.
    ranked = sorted(usable, key=lambda model: not model.korean)
    return next((model for tier in order for model in ranked if model.tier == tier), None)


def control_side(tenant_id: str, request_id: str, share: float, *, layers_on: bool) -> bool | None:
    """The request's side in the tenant's measured comparison: True, the control share; False, the others.

    None: it takes no part, because the tenant measures nothing or the request leaves some layer off by itself. The
    draw is a hash of the ids, so that a retry, on whatever replica, is on the same side.
    """
    if not (layers_on and share > 0):
        return None
    digest = hashlib.sha256(f"tenth.control\0{tenant_id}\0{request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


def lower_tier(tier: int, floor: int) -> int:
    """The ceiling for a downgraded retry; 0 when there is no tier left to go down to."""
    below = tier - 1
    return below if below >= (floor or SIMPLE) else 0


def store_refusal(
    *, complete: bool, downgraded: bool, fell_back: bool, router_degraded: bool, writes: bool, unaccepted: bool = False
) -> str:
    """Why an answer is only shared with its followers and not stored; empty when it may be stored."""
    if not writes:
        return "cache_mode"
    if not complete:
        return "truncated"
    if downgraded:
        return "downgraded"
    if fell_back:
        return "fallback"
    if router_degraded:
        return "router_down"
    if unaccepted:
        return "unaccepted"
    return ""


def as_long_as_asked(output_tokens: int, limit: int, caller_set_limit: bool) -> bool:
    """True when an answer was cut at the caller's own limit: the next one who asks with that limit gets the same.

    An answer cut anywhere else (our default, the model's window) is less than was asked for.
    """
    return caller_set_limit and output_tokens >= limit


def estimate_tokens(text_chars: int, non_ascii_chars: int) -> int:
    """An upper guess of a text's tokens without a tokenizer, for when the compressor is down.

    English costs about 0.22 cl100k tokens a character and Korean about 1.0 (field notes); rounded up by half.
    """
    ascii_chars = text_chars - non_ascii_chars
    return int(ascii_chars * 0.33 + non_ascii_chars * 1.25) + 8


def reserve_input_tokens(counted: int, estimated: bool) -> int:
    """Upper bound of the input to reserve: other providers' tokenizers count up to a third more than ours."""
    return counted + counted // 3 + 16 if estimated else counted + counted // 20 + 16


def original_tokens(counted_original: int, counted_sent: int, used_input: int) -> int:
    """The original prompt in the answering model's own tokens.

    The provider's count of what was sent is the truth; what the compressor removed is added to it, scaled by how
    the provider's count differs from ours, so that a tokenizer's error never shows up as a saving.
    """
    removed = max(counted_original - counted_sent, 0)
    if not removed or not counted_sent:
        return used_input + removed
    return used_input + (removed * used_input + counted_sent // 2) // counted_sent
