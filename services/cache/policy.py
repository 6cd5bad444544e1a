"""Decisions of the cache: what may be looked up, what is stored, and which stored answer may be served. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from services.cache.gate import identifies, own_account, time_bound
from services.cache.keys import ROLE_USER, Language, Question, language
from services.cache.store import Entry

MODE_OFF, MODE_READ, MODE_WRITE, MODE_READ_WRITE = 1, 2, 3, 4
"""The numbers of tenth.type.v1.CacheMode."""
FINISH_STOP, FINISH_LENGTH, FINISH_TOOL_CALLS = 1, 2, 3
"""The numbers of tenth.type.v1.FinishReason."""


class BypassReason(StrEnum):
    """Why a request is neither looked up nor stored. Part of the API: clients and dashboards name them."""

    CACHE_MODE_OFF = "cache_mode_off"
    """The caller asked for it."""
    TEMPERATURE = "temperature"
    """An explicit temperature above the limit: the caller wants variety."""
    TOOL_SIDE_EFFECTS = "tool_side_effects"
    """A tool of the request changes something in the world."""
    TIME_BOUND = "time_bound"
    """The last turn asks for what changes by the hour: today, prices, weather, news."""
    PERSONAL_DATA = "personal_data"
    """A user turn holds an e-mail address, phone or card number, an identity or account number, or a stated name; or
    the last one asks how somebody's own account, order or calendar stands."""
    TOO_LARGE = "too_large"
    """More text than the limit: hashing it would hold the others up, and it will hardly come again."""


class NotStoredReason(StrEnum):
    """Why an answer is not kept. Part of the API."""

    SHARE_ONLY = "share_only"
    """The leader asked for it."""
    CACHE_MODE_READ = "cache_mode_read"
    """The request may only read."""
    TRUNCATED = "truncated"
    """The answer was cut off by a length limit."""
    UNFINISHED = "unfinished"
    """The answer did not end by itself."""
    EMPTY = "empty"
    """Neither text nor tool calls."""
    BELOW_TIER_FLOOR = "below_tier_floor"
    """A weaker tier answered than was asked for."""
    OTHER_MODEL = "other_model"
    """Another model answered than the one demanded."""
    WRITE_RATE = "write_rate"
    """More answers in a minute than the namespace, or the user, may store."""


class ExactOnly(StrEnum):
    """Why a request has no semantic stage."""

    MEDIA = "the last turn holds more than text"
    NO_USER_TURN = "the conversation does not end with a user turn"
    EMPTY = "the last turn is empty"
    LANGUAGE = "the embedder cannot read this script"
    NO_LETTERS = "the last turn holds no letter and no digit"
    TOO_LONG = "the question is longer than the embedder reads"
    MODE_OFF = "the namespace is set to exact hits only"
    NOT_CALIBRATED = "no threshold was calibrated for this embedder in this language and mode"


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """The settings that decisions depend on."""

    temperature_limit: float = 0.5
    max_request_characters: int = 400_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What of a completion decides whether it is stored."""

    finish_reason: int
    model: str
    tier: int
    is_empty: bool
    reached_limit: bool = False
    """As long as the request's own max_output_tokens allows."""


def bypass_reason(question: Question, policy: CachePolicy) -> BypassReason | None:
    """Why a request must not meet the cache at all; None when it may.

    What stands in system prompt, chunks and earlier turns is part of the key word for word, so the time test reads
    the last turn alone. Personal data is looked for in every user turn: it must not even be kept.
    """
    if question.cache_mode == MODE_OFF:
        return BypassReason.CACHE_MODE_OFF
    temperature = dict(question.sampling).get("temperature")
    if isinstance(temperature, float) and temperature > policy.temperature_limit:
        return BypassReason.TEMPERATURE
    if any(tool.has_side_effects for tool in question.tools):
        return BypassReason.TOOL_SIDE_EFFECTS
    if question.character_count > policy.max_request_characters:
        return BypassReason.TOO_LARGE
    if time_bound(question.last_turn):
        return BypassReason.TIME_BOUND
    if own_account(question.last_turn) or any(
        identifies(message.text) for message in question.messages if message.role == ROLE_USER
    ):
        return BypassReason.PERSONAL_DATA
    return None


def exact_only(question: Question, embedder_reads_korean: bool) -> ExactOnly | None:
    """Why a request may only hit exactly; None when its meaning may be compared too."""
    last = question.messages[-1]
    if last.role != ROLE_USER:
        return ExactOnly.NO_USER_TURN
    if any(kind != "text" for kind, _ in last.parts):
        return ExactOnly.MEDIA
    if not question.last_turn:
        return ExactOnly.EMPTY
    if not any(letter.isalnum() for letter in question.last_turn):
        return ExactOnly.NO_LETTERS
    if not embedder_reads_korean and language(question.last_turn) is not Language.ENGLISH:
        return ExactOnly.LANGUAGE
    return None


def not_stored_reason(question: Question, answer: Answer, share_only: bool) -> NotStoredReason | None:
    """Why an answer is only shared with its followers, never kept; None when it is kept."""
    if share_only:
        return NotStoredReason.SHARE_ONLY
    if question.cache_mode == MODE_READ:
        return NotStoredReason.CACHE_MODE_READ
    # Cut at the limit that the request itself names (it is part of the key), an answer is what was asked for.
    if answer.finish_reason == FINISH_LENGTH and not answer.reached_limit:
        return NotStoredReason.TRUNCATED
    if answer.finish_reason not in (FINISH_STOP, FINISH_LENGTH, FINISH_TOOL_CALLS):
        return NotStoredReason.UNFINISHED
    if answer.is_empty:
        return NotStoredReason.EMPTY
    if answer.tier < question.tier_floor:
        return NotStoredReason.BELOW_TIER_FLOOR
    if question.model and answer.model != question.model:
        return NotStoredReason.OTHER_MODEL
    return None


def fresh(entry: Entry, question: Question, now: float) -> str:
    """Why an entry is too old or too weak for this request; empty when it is neither."""
    if now >= entry.expires:
        return "expired"
    # Also from the future by more than that: a clock was set back, and how old it is nobody knows.
    if question.max_age_seconds is not None and abs(now - entry.created) > question.max_age_seconds:
        return f"older than the {question.max_age_seconds:g} s asked for"
    if entry.tier < question.tier_floor:
        return f"answered by tier {entry.tier}, below the floor {question.tier_floor}"
    return ""
