"""Decisions of the cache: what may be looked up, what is stored, and which stored answer may be served. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

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
    """The last turn asks about now: today, prices, weather, news."""
    PERSONAL_DATA = "personal_data"
    """A user turn holds an e-mail address, phone or card number, an identity or account number, or a stated name."""
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


_TIME_BOUND = re.compile(
    r"\b(?:today|tonight|tomorrow|yesterday|now|nowadays|currently|current|latest|recent|recently|upcoming|so far"
    r"|at the moment|(?:this|next|last) (?:week|month|year|quarter|morning|afternoon|evening|weekend|time)"
    r"|what time|weather|forecast|temperature outside|news|headlines|prices?|stock|share price|exchange rates?|traffic"
    r"|score of|in stock|available)\b"
    r"|(?<![가-힣])(?:지금|오늘|내일|모레|어제|그제|현재|방금|요즘|최근|최신|아까|이따|이번"
    r"|다음 ?주|다음 ?달|지난 ?주|지난 ?달|작년|내년|올해|올 ?여름|올 ?겨울)"
    r"|날씨|기온|미세먼지|가격|시세|주가|환율|뉴스|속보|실시간|몇 ?시|재고|교통 ?상황",
    re.IGNORECASE,
)

_PERSONAL = re.compile(
    r"[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]{2,}"  # e-mail
    r"|(?<!\d)(?:\+\d{1,3}[ -]?)?\(?0\d{1,2}\)?[ -]?\d{3,4}[ -]?\d{4}(?!\d)"  # Korean phone
    r"|(?<!\d)(?:\+?1[ .-]?)?\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?!\d)"  # North American phone
    r"|\+\d{1,3}[ -]?\d{1,4}(?:[ -]?\d{2,4}){2,4}"  # international phone
    r"|(?<!\d)\d{6}-[1-4]\d{6}(?!\d)|(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)"  # resident registration, social security
    r"|(?<!\d)(?:\d[ -]?){12,18}\d(?!\d)"  # card and account numbers
    r"|\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}\b"  # IBAN
    r"|(?:account|order|customer|member|invoice|booking|reservation|ticket|tracking|policy|passport|case)"
    r"(?: ?(?:number|no\.?|id|#))?(?: is)?:? ?#?(?=[A-Za-z-]{0,6}\d{4,})"
    r"|(?:주문|계좌|고객|회원|예약|송장|운송장|접수|여권|카드) ?번호(?:는|가|이|:)? ?[A-Za-z-]{0,6}\d{4,}"
    r"|\bmy name is\b|(?:제|내) 이름은|저는 [가-힣]{2,4}(?:이라고|라고)",
    re.IGNORECASE,
)


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
    if _TIME_BOUND.search(question.last_turn):
        return BypassReason.TIME_BOUND
    if any(_PERSONAL.search(message.text) for message in question.messages if message.role == ROLE_USER):
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
    if question.max_age_seconds is not None and now - entry.created > question.max_age_seconds:
        return f"older than the {question.max_age_seconds:g} s asked for"
    if entry.tier < question.tier_floor:
        return f"answered by tier {entry.tier}, below the floor {question.tier_floor}"
    return ""
