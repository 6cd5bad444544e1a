"""The running summary, old turns told in a few sentences by a cheap model: what it covers, how it is asked for. Pure.

Off unless a policy asks for it. What it covers is a function of the conversation alone: whole turns from the
beginning, in steps of ``step_turn_count``, all but the newest ``keep_turn_count``. So while a conversation grows, the
same summary stands at its front for several turns, byte for byte, and a prompt cache keeps hitting; then one more step
is folded in, from the summary before and the turns that it did not cover yet.

A summary is filed under a digest of the scope (the tenant), the prompt's version, the language and every covered
message, chained step by step. System messages are never covered, nor is a turn with a pinned message, or with a tool
exchange that reaches beyond the covered turns. Where the newest summary is not there and cannot be had, the one before
stands (``SummaryPlan.older``); without any the covered messages go out as they are, for the ``history`` strategy to cut
(plain truncation). ``summary_step.py`` decides.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from services.compressor.exchanges import exchanges, protected_positions, turn_numbers
from services.compressor.prompt import SYSTEM, TOOL, Message
from services.compressor.summary_prompts import ENGLISH, KOREAN, VERSION, Words

NEW = -1
"""The index of the summary's message, which was not in the original prompt."""
_HANGUL = re.compile(r"[\uac00-\ud7a3]")
_LETTER = re.compile(r"[^\W\d_]")
_KOREAN_SHARE = 0.3
_SEEN_CHARS = 8000


@dataclass(frozen=True, slots=True)
class SummarySettings:
    """When a summary is made, and how long it gets."""

    keep_turn_count: int = 4
    """Newest turns that are never covered, at least 1."""
    step_turn_count: int = 4
    """Turns by which a summary grows, at least 1: a larger step changes the prompt's front less often."""
    least_covered_tokens: int = 800
    """Fewer are not worth a call."""
    most_output_tokens: int = 300
    most_tool_chars: int = 1500
    """Of a longer tool result the summarising model sees both ends."""


@dataclass(frozen=True, slots=True)
class SummaryRequest:
    """What the summarising model is sent: a fixed instruction, then the material."""

    system: str
    user: str
    most_output_tokens: int


@dataclass(frozen=True, slots=True)
class SummaryAnswer:
    """What came back; ``failure`` says why there is no text. ``overheads`` are the items of what it cost."""

    text: str
    failure: str = ""
    overheads: tuple[object, ...] = ()
    useless: bool = False
    """True for a failure that asking again would only pay for again."""


class Summarizer(Protocol):
    """Makes summaries."""

    async def summarize(self, request: SummaryRequest) -> SummaryAnswer:
        """One summary; a failure is a field, not an exception."""
        ...


@dataclass(frozen=True, slots=True)
class SummaryPlan:
    """What to summarise. Nothing when ``digest`` is empty; nothing to make when ``text`` is there already."""

    digest: str = ""
    covered: tuple[int, ...] = ()
    """Positions that the summary stands for."""
    covered_tokens: int = 0
    korean: bool = False
    text: str = ""
    request: SummaryRequest | None = None
    turn_count: int = 0
    """Turns of the conversation so far, the one to be answered included."""
    lasting_turn_count: int = 0
    """Requests that the summary stands in, this one included, before the next step is folded in."""
    older: SummaryPlan | None = None
    """The longest summary that is there, when this one's text is not."""


class SummaryStore:
    """Summaries by digest, least recently used out first, bounded by their characters. Safe to use from threads."""

    def __init__(self, capacity_chars: int) -> None:
        """Keep at most ``capacity_chars`` of text."""
        self._capacity = capacity_chars
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._chars = 0
        self._lock = Lock()

    def look(self, digest: str) -> str:
        """The summary, or an empty text; looking at it does not count as a use."""
        with self._lock:
            return self._texts.get(digest, "")

    def get(self, digest: str) -> str:
        """The summary, or an empty text."""
        with self._lock:
            text = self._texts.get(digest, "")
            if text:
                self._texts.move_to_end(digest)
            return text

    def keep(self, digest: str, text: str) -> str:
        """Keep a summary; of two made at the same time the first stands, so that prompts stay the same."""
        kept = self.get(digest)
        if kept or len(text) > self._capacity:
            return kept or text
        with self._lock:
            self._texts[digest] = text
            self._chars += len(text)
            while self._chars > self._capacity:
                _, old = self._texts.popitem(last=False)
                self._chars -= len(old)
        return text


def plan_summary(
    messages: Sequence[Message],
    settings: SummarySettings,
    cost: Callable[[Message], int],
    known: Callable[[str], str],
    scope: str,
) -> SummaryPlan:
    """What the summary covers, and the request that makes it unless ``known`` has its text by digest."""
    turns = turn_numbers(messages)
    count = (turns[-1] + 1 if turns else 0) - max(1, settings.keep_turn_count)
    steps = max(0, count) // max(1, settings.step_turn_count)
    if not steps:
        return SummaryPlan()
    ends = [step * settings.step_turn_count for step in range(1, steps + 1)]
    coverable = _coverable(messages, turns, ends[-1])
    tokens = sum(cost(messages[at]) for at in coverable)
    if tokens < settings.least_covered_tokens:
        return SummaryPlan()
    korean = _is_korean(messages, [at for at in coverable if turns[at] < ends[0]])
    digests = _chain(messages, turns, coverable, ends, korean, scope)
    text = known(digests[-1])
    request, older = None, None
    if not text:
        # The longest summary that there is, and all that it does not cover.
        step = next((at for at in range(steps - 2, -1, -1) if known(digests[at])), None)
        before = known(digests[step]) if step is not None else ""
        start = ends[step] if step is not None else 0
        new = [messages[at] for at in coverable if turns[at] >= start]
        request = _request(before, new, settings, KOREAN if korean else ENGLISH, digests[-1])
        if step is not None:
            older = _older(messages, [at for at in coverable if turns[at] < start], cost, digests[step], korean, before)
    lasting = settings.step_turn_count - count % settings.step_turn_count
    return SummaryPlan(digests[-1], coverable, tokens, korean, text, request, turns[-1] + 1, lasting, older)


def with_summary(messages: Sequence[Message], plan: SummaryPlan, text: str) -> tuple[Message, ...]:
    """The messages with one system message in the place of those covered, after the system messages at the front."""
    covered = set(plan.covered)
    front = next((at for at, message in enumerate(messages) if message.role != SYSTEM), len(messages))
    words = KOREAN if plan.korean else ENGLISH
    told = Message(NEW, SYSTEM, (f"{words.lead}\n{text}",))
    rest = tuple(message for at, message in enumerate(messages[front:], front) if at not in covered)
    return (*messages[:front], told, *rest)


def _older(
    messages: Sequence[Message],
    covered: Sequence[int],
    cost: Callable[[Message], int],
    digest: str,
    korean: bool,
    text: str,
) -> SummaryPlan | None:
    groups, inside = exchanges(messages), set(covered)
    if any(not groups[at] <= inside for at in covered):
        return None  # A tool's result came in late: its call may not go without it.
    return SummaryPlan(digest, tuple(covered), sum(cost(messages[at]) for at in covered), korean, text)


def _coverable(messages: Sequence[Message], turns: Sequence[int], end: int) -> tuple[int, ...]:
    """Positions in the turns before ``end`` that may go."""
    groups = exchanges(messages)
    protected = protected_positions(messages, groups)
    # The turns of each message's exchange: of all its members the same.
    known = {id(group): frozenset(turns[at] for at in group) for group in groups}
    reach = [known[id(group)] for group in groups]
    left = {
        turns[at]
        for at, message in enumerate(messages)
        if (at in protected and message.role != SYSTEM) or max(reach[at]) >= end
    }
    # A turn stays whole, and with it the turns that its exchanges reach into: roles go on alternating.
    while True:
        more = {turns[at] for at in range(len(messages)) if not reach[at].isdisjoint(left)}
        if more <= left:
            break
        left |= more
    return tuple(
        at
        for at, message in enumerate(messages)
        if turns[at] < end and turns[at] not in left and message.role != SYSTEM
    )


def _chain(
    messages: Sequence[Message],
    turns: Sequence[int],
    coverable: Sequence[int],
    ends: Sequence[int],
    korean: bool,
    scope: str,
) -> list[str]:
    """The digest of the summary after each step."""
    digest = hashlib.sha256(_framed("tenth-summary", str(VERSION), scope, "ko" if korean else "en"))
    result, waiting = list[str](), list(coverable)
    for end in ends:
        while waiting and turns[waiting[0]] < end:
            digest.update(_framed(*_parts(messages[waiting.pop(0)])))
        result.append(digest.copy().hexdigest())
        digest.update(b"\x00step")
    return result


def _parts(message: Message) -> list[str]:
    calls = [part for call in message.calls for part in (call.name, call.arguments)]
    return [message.role, message.name, *message.texts, *calls, *message.image_details]


def _framed(*texts: str) -> bytes:
    """Texts with their lengths, so that no two lists of texts look alike."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return b"".join(b"%d:%b" % (len(each), each) for each in (str(len(encoded)).encode(), *encoded))


def _request(
    before: str, new: Sequence[Message], settings: SummarySettings, words: Words, digest: str
) -> SummaryRequest:
    # A tag that a message cannot know: what stands in the messages cannot end the list of them.
    tag = f"messages-{digest[:8]}"
    said = "\n".join(_told(message, settings.most_tool_chars, words) for message in new)
    user = f"<summary>\n{before or words.none}\n</summary>\n<{tag}>\n{said}\n</{tag}>\n{words.task}"
    return SummaryRequest(words.system, user, settings.most_output_tokens)


def _told(message: Message, most_tool_chars: int, words: Words) -> str:
    text = "\n".join(message.texts)
    if message.role == TOOL and len(text) > most_tool_chars:
        half = most_tool_chars // 2
        text = f"{text[:half]} […] {text[-half:]}"
    calls = "".join(f"\n[{words.call} {call.name}] {call.arguments[:most_tool_chars]}" for call in message.calls)
    pictures = f" [{words.pictures}: {len(message.image_details)}]" if message.image_details else ""
    name = f" {message.name}" if message.name else ""
    return f"[{words.roles.get(message.role, message.role)}{name}] {text}{pictures}{calls}"


def _is_korean(messages: Sequence[Message], positions: Sequence[int]) -> bool:
    """By the first step alone, so that the language stays while the conversation grows."""
    text = ""
    for at in positions:
        text += "\n".join(messages[at].texts)[: _SEEN_CHARS - len(text)]
        if len(text) >= _SEEN_CHARS:
            break
    letters = len(_LETTER.findall(text))
    return letters > 0 and len(_HANGUL.findall(text)) >= _KOREAN_SHARE * letters
