"""Which strategies run in which mode, on which budgets, and what the prompt becomes. Pure and deterministic.

| mode | cleanup | retrieved chunks | history |
|---|---|---|---|
| off | no | all | all |
| safe | yes | at most 10, of these only the relevant | what fits the context window beside the answer |
| balanced | yes | at most 5 | 8,000 tokens |
| aggressive | yes | at most 3 | 3,000 tokens |

(The numbers are settings.) A strategy's change is only taken where it saves tokens. System messages are cleaned by
their text alone, so that a prefix shared by many requests stays byte-identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from mesh.errors import Code, TenthError
from services.compressor.cleanup import clean
from services.compressor.errors import Reason
from services.compressor.history import keep_history
from services.compressor.prompt import ASSISTANT, SYSTEM, USER, Message, Prompt
from services.compressor.strategies import Ranking, keep_chunks

DEFAULT_OUTPUT_TOKENS = 1024
"""Room kept for the answer when the request does not say, at most a quarter of the window."""
MAX_CLEANED_CHARS = 200_000
"""Longer texts are sent as they are: cleaning a book takes a second and saves next to nothing."""


class Mode(StrEnum):
    """How hard the compressor may work."""

    OFF = "off"
    SAFE = "safe"
    BALANCED = "balanced"
    AGGRESSIVE = "aggressive"


class Counter(Protocol):
    """Counts tokens as the answering model does."""

    def message(self, message: Message) -> int:
        """Tokens that one message adds."""
        ...

    def chunk(self, text: str) -> int:
        """Tokens that one retrieved chunk adds."""
        ...

    def prompt(self, prompt: Prompt) -> int:
        """Input tokens of a whole prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a mode does. ``None`` is no limit but the context window's."""

    mode: Mode
    most_chunks: int | None = None
    chunk_threshold: float = 0.0
    least_chunks: int = 1
    history_tokens: int | None = None

    @property
    def cleans(self) -> bool:
        """True when the clean-up runs."""
        return self.mode is not Mode.OFF

    def ranks(self, chunks: Sequence[str]) -> bool:
        """True when it matters which chunks are the best."""
        return self.most_chunks is not None and len(set(chunks)) > self.least_chunks


@dataclass(frozen=True, slots=True)
class Step:
    """What one strategy did."""

    strategy: str
    removed_token_count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Compressed:
    """The shortened prompt."""

    prompt: Prompt
    chunk_positions: tuple[int, ...]
    original_token_count: int
    token_count: int
    steps: tuple[Step, ...]
    stable_prefix_message_count: int


def plans(
    safe_chunks: int, balanced_chunks: int, aggressive_chunks: int, balanced_history: int, aggressive_history: int
) -> dict[Mode, Plan]:
    """The plan of each mode."""
    return {
        Mode.OFF: Plan(Mode.OFF),
        Mode.SAFE: Plan(Mode.SAFE, safe_chunks, 0.35, 3),
        Mode.BALANCED: Plan(Mode.BALANCED, balanced_chunks, 0.5, 2, balanced_history),
        Mode.AGGRESSIVE: Plan(Mode.AGGRESSIVE, aggressive_chunks, 0.6, 1, aggressive_history),
    }


def compress(
    prompt: Prompt,
    plan: Plan,
    counter: Counter,
    ranking: Ranking | None,
    window_tokens: int,
    max_output_tokens: int | None,
) -> Compressed:
    """Shorten a prompt for one model. ``ranking`` is needed where ``plan.ranks`` says so; a window of 0 is unknown.

    Room is kept for the wanted answer while messages or chunks can be dropped for it. Raises PROMPT_TOO_LONG when the
    result leaves no room at all.
    """
    original = count = counter.prompt(prompt)
    result = prompt
    steps: list[Step] = []
    positions = tuple(range(len(prompt.chunks)))
    room = _room(window_tokens, max_output_tokens)

    def take(candidate: Prompt, strategy: str, reason: str) -> bool:
        nonlocal result, count
        after = counter.prompt(candidate)
        if after >= count:
            return False
        steps.append(Step(strategy, count - after, reason))
        result, count = candidate, after
        return True

    if plan.cleans and prompt.size() <= 5 * MAX_CLEANED_CHARS:
        cleaned, changed = _clean(prompt.messages, counter)
        if changed:
            take(replace(result, messages=cleaned), "cleanup", f"{changed} of {len(prompt.messages)} messages cleaned")
    if ranking is not None and plan.ranks(prompt.chunks) and plan.most_chunks is not None:
        kept = keep_chunks(prompt.chunks, ranking, plan.most_chunks, plan.chunk_threshold, plan.least_chunks)
        if room is not None:
            kept = _fitting_chunks(
                kept, prompt.chunks, ranking, counter, room - counter.prompt(replace(result, chunks=()))
            )
        reason = f"{len(kept)} of {len(prompt.chunks)} chunks kept by {ranking.method}"
        if len(kept) < len(prompt.chunks) and take(
            replace(result, chunks=tuple(prompt.chunks[at] for at in kept)), "retrieval", reason
        ):
            positions = tuple(kept)
    truncated = False
    if plan.cleans:
        budget = _history_budget(plan, room, result, count, counter)
        if budget is not None:
            kept = keep_history(result.messages, budget, counter.message)
            dropped = len(result.messages) - len(kept)
            if dropped:
                shorter = replace(result, messages=tuple(result.messages[at] for at in kept))
                truncated = take(shorter, "history", f"the {dropped} oldest messages dropped, budget {budget} tokens")
    # A long answer gives way to the prompt (inference cuts it to what is left), but one token must have room.
    if window_tokens and count >= window_tokens:
        raise TenthError(
            Code.INVALID_ARGUMENT,
            Reason.PROMPT_TOO_LONG,
            f"{count} prompt tokens leave no room for an answer in a window of {window_tokens}",
            "request.messages",
            metadata={"input_token_count": str(count), "context_window_tokens": str(window_tokens)},
        )
    return Compressed(result, positions, original, count, tuple(steps), _stable_prefix(result, truncated))


def _room(window_tokens: int, max_output_tokens: int | None) -> int | None:
    """Tokens that the prompt may have beside the answer."""
    if not window_tokens:
        return None
    return max(1, window_tokens - (max_output_tokens or min(DEFAULT_OUTPUT_TOKENS, window_tokens // 4)))


def _history_budget(plan: Plan, room: int | None, prompt: Prompt, count: int, counter: Counter) -> int | None:
    """Tokens for messages; None when nothing limits them."""
    messages = sum(map(counter.message, prompt.messages))
    limits = [] if plan.history_tokens is None else [plan.history_tokens]
    if room is not None and count > room:
        # What is no message (tools, chunks, priming) takes its share of the window first.
        limits.append(max(0, room - max(0, count - messages)))
    return min(limits) if limits and messages > min(limits) else None


def _clean(messages: Sequence[Message], counter: Counter) -> tuple[tuple[Message, ...], int]:
    """The messages cleaned where that saves tokens, and how many were; emptied system messages are dropped."""
    result, changed = [], 0
    for message in messages:
        if message.role not in (SYSTEM, USER, ASSISTANT):
            result.append(message)  # A tool's result is data.
            continue
        system = message.role == SYSTEM
        texts = tuple(clean(text, system=system) if len(text) <= MAX_CLEANED_CHARS else text for text in message.texts)
        cleaned = replace(message, texts=texts)
        if texts == message.texts or counter.message(cleaned) >= counter.message(message):
            result.append(message)
            continue
        changed += 1
        if message.role == SYSTEM and not message.pinned and not any(texts) and len(messages) > 1:
            continue
        result.append(cleaned)
    return tuple(result), changed


def _fitting_chunks(
    kept: Sequence[int], chunks: Sequence[str], ranking: Ranking, counter: Counter, room: int
) -> list[int]:
    """The best of these chunks that fit; none is a last resort that leaves the question answerable without them."""
    fitting, spent = [], 0
    for at in sorted(kept, key=lambda at: (-ranking.scores[at], at)):
        price = counter.chunk(chunks[at])
        if spent + price <= max(room, 0):
            fitting.append(at)
            spent += price
    return sorted(fitting) if len(fitting) < len(kept) else list(kept)


def _stable_prefix(prompt: Prompt, truncated: bool) -> int:
    """Leading messages that earlier requests began with byte for byte.

    The system messages at the front; and, when the conversation went out whole and no chunks were put into it, all
    before the answer that the last request got.
    """
    messages = prompt.messages
    systems = next((at for at, message in enumerate(messages) if message.role != SYSTEM), len(messages))
    if truncated or prompt.chunks:
        return systems
    answered = [at for at, message in enumerate(messages) if message.role == ASSISTANT]
    return max(systems, answered[-1]) if answered else systems
