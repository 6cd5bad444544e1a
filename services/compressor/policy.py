"""Which strategies run in which mode, in which order, on which budgets, and what the prompt becomes. Pure.

| mode | retrieved chunks | history | cleanup, dedupe |
|---|---|---|---|
| off | all | all | no |
| safe | fitted to lose under 1% of answers | what fits the context window beside the answer | yes |
| balanced | fitted to lose about 2% | 8,000 tokens | yes |
| aggressive | fitted to lose about 5% | 3,000 tokens, long messages shortened | yes |

(The history budgets are settings; ``fit.py`` has the chunks' thresholds.) A change is only taken where it saves tokens,
and where the ``Weigher`` says that it saves money; what the context window or a stated budget demands is cut without
asking. System messages are cleaned by their text alone, so that a prefix shared by many requests stays byte-identical.
History is chosen by relevance, anew for each question, so a provider's cache never holds what is left of it: it is
shortened where even so every request costs less than the whole talk read from that cache would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mesh.errors import Code, TenthError
from services.compressor.choosing import Chosen
from services.compressor.cleanup import ANSWER_STEPS, SYSTEM_STEPS, TEXT_STEPS, cleaned
from services.compressor.dedupe import dedupe
from services.compressor.errors import Reason
from services.compressor.exchanges import exchanges, protected_positions
from services.compressor.history import keep_history, select_history
from services.compressor.history_relevance import Vectors
from services.compressor.modes import CLEANUP, DEDUPE, HISTORY, ORDERING, OUTPUT, RETRIEVAL, TOOLS, Mode, Plan
from services.compressor.output import plan_output
from services.compressor.prefixes import volatile
from services.compressor.prompt import ASSISTANT, SYSTEM, USER, Message, Prompt, last_user, question
from services.compressor.tools import select_tools
from services.compressor.work import Compressed, Counter, Edits, Free, Step, Verdict, Weigher, Work

__all__ = [
    "Chunks",
    "Compressed",
    "Counter",
    "Edits",
    "Free",
    "Hints",
    "Step",
    "Verdict",
    "Weigher",
    "compress",
    "room_of",
]

DEFAULT_OUTPUT_TOKENS = 1024
"""Room kept for the answer when the request does not say, at most a quarter of the window."""
MAX_CLEANED_CHARS = 200_000
"""Longer texts are sent as they are: cleaning a book takes a second and saves next to nothing."""
_MAX_COUNTED_CHARS = 20_000
"""Of longer texts each cleaning step is measured by characters: counting tokens again and again takes too long."""
_MAX_DEDUPED_CHARS = 150_000
_FITTING_TRIES = 6


class Chunks(Protocol):
    """Chooses among the prompt's chunks."""

    def by_mode(self, mode: Mode) -> Chosen:
        """What a mode leaves."""
        ...

    def by_budget(self, budget_tokens: int) -> Chosen:
        """The most that fits about so many tokens, and what must stay."""
        ...


@dataclass(frozen=True, slots=True)
class Hints:
    """What helps some strategies, and may be missing."""

    question_vector: Sequence[float] | None = None
    message_vectors: Mapping[int, Sequence[float]] | None = None
    """By the message's index; L2-normalised, by the embedder of ``question_vector``."""
    tool_choice: str = ""
    """The name of the tool that must be called."""
    predicted_output_tokens: float = 0.0
    wants_json: bool = False


def compress(
    prompt: Prompt,
    plan: Plan,
    counter: Counter,
    chunks: Chunks | None,
    window_tokens: int,
    max_output_tokens: int | None,
    weigher: Weigher | None = None,
    token_budget: int | None = None,
    hints: Hints | None = None,
) -> Compressed:
    """Shorten a prompt for one model. ``chunks`` is needed where ``plan.ranks`` says so; a window of 0 is unknown.

    Room is kept for the wanted answer while messages or chunks can be dropped for it. Raises PROMPT_TOO_LONG when the
    result leaves no room at all, and BUDGET_TOO_SMALL when what must stay is more than ``token_budget``.
    """
    work = Work(prompt, counter, weigher or Free())
    hints = hints or Hints()
    room = room_of(window_tokens, max_output_tokens, token_budget)
    if plan.runs(CLEANUP):
        _cleanup(work)
    if plan.runs(RETRIEVAL) and prompt.chunks and chunks is not None:
        _retrieval(work, plan, chunks, room)
    if plan.runs(HISTORY):
        _history(work, plan, room, hints)
    if plan.runs(DEDUPE):
        _dedupe(work, plan)
    if plan.runs(TOOLS):
        _tools(work, plan, hints)
    if plan.runs(OUTPUT):
        _output(work, plan, max_output_tokens, hints)
    if plan.strategies and plan.mode is not Mode.OFF:
        _point_out(work)
    _check(work.count, window_tokens, token_budget)
    return work.done()


def _check(count: int, window_tokens: int, token_budget: int | None) -> None:
    if token_budget is not None and count > token_budget:
        over = count - token_budget
        raise TenthError(
            Code.INVALID_ARGUMENT,
            Reason.BUDGET_TOO_SMALL,
            f"what must stay has {count} tokens, {over} more than the budget of {token_budget}",
            "token_budget",
            metadata={"input_token_count": str(count), "over_token_count": str(over)},
        )
    # A long answer gives way to the prompt (inference cuts it to what is left), but one token must have room.
    if window_tokens and count >= window_tokens:
        raise TenthError(
            Code.INVALID_ARGUMENT,
            Reason.PROMPT_TOO_LONG,
            f"{count} prompt tokens leave no room for an answer in a window of {window_tokens}",
            "request.messages",
            metadata={"input_token_count": str(count), "context_window_tokens": str(window_tokens)},
        )


def _cleanup(work: Work) -> None:
    if work.prompt.size() > 5 * MAX_CLEANED_CHARS:
        return
    messages = work.prompt.messages
    clean, changed = _clean(messages, work.counter)
    if not changed:
        return
    whole = replace(work.prompt, messages=clean)
    may = work.weigher.edits(whole)
    front = next((at for at, message in enumerate(messages) if message.role != SYSTEM), len(messages))
    last = last_user(messages)
    tail = len(messages) if last is None else last
    by_index = {message.index: message for message in clean}
    chosen: list[Message] = []
    changed = 0
    for at, message in enumerate(messages):
        allowed = may.system if at < front else may.tail if at >= tail else may.talk
        new = by_index.get(message.index) if allowed else message
        changed += new is not message
        if new is not None:
            chosen.append(new)
    if changed:
        candidate = replace(work.prompt, messages=tuple(chosen))
        work.take(candidate, CLEANUP, f"{changed} of {len(messages)} messages cleaned", must=True)
    work.decline(whole, CLEANUP, "could cost more of the provider's prompt cache than it saves")


def _retrieval(work: Work, plan: Plan, chunks: Chunks, room: int | None) -> None:
    # Chunks that a compressor has chosen before are not chosen from again: every choice is relative to the rest.
    if not work.original.settled:
        work.chosen = _take_chunks(work, chunks.by_mode(plan.mode), must=room is not None and work.count > room)
    if room is None or work.count <= room:
        return
    # Messages that may go give way first, down to half of what is free beside those that must stay.
    bare = work.counter.prompt(replace(work.prompt, chunks=()))
    messages = work.prompt.messages
    standing = protected_positions(messages, exchanges(messages)) if plan.runs(HISTORY) else range(len(messages))
    least = bare - sum(work.counter.message(message) for at, message in enumerate(messages) if at not in standing)
    limit = max(room - bare, (room - least) // 2)
    target = limit
    for attempt in range(_FITTING_TRIES):
        # Chunks are prepared with counts that are near those of the answering model, not equal to them.
        chosen = chunks.by_budget(target if attempt < _FITTING_TRIES - 1 else 0)
        after = work.counter.prompt(replace(work.prompt, chunks=chosen.texts)) - bare
        if after <= limit or not chosen.places:
            break
        target -= max(1, after - limit)
    _take_chunks(work, chosen, must=True)
    work.chosen = True


def _take_chunks(work: Work, chosen: Chosen, *, must: bool) -> bool:
    """True unless the choice was declined."""
    if chosen.texts == work.prompt.chunks:
        return True
    total = len(work.original.chunks)
    candidate = replace(work.prompt, chunks=chosen.texts)
    whole = sum(work.original.chunks[at] == text for at, text in zip(chosen.places, chosen.texts, strict=True))
    cut = f", {len(chosen.places) - whole} of them in part," if whole < len(chosen.places) else ""
    reason = f"{len(chosen.places)} of {total} chunks kept{cut} by {chosen.method}"
    return work.take(candidate, RETRIEVAL, reason, positions=chosen.places, must=must)


def _tokens(work: Work) -> int:
    return sum(map(work.counter.message, work.prompt.messages))


def _history(work: Work, plan: Plan, room: int | None, hints: Hints) -> None:
    if plan.history_tokens is not None and _tokens(work) > plan.history_tokens:
        if plan.history is not None:
            _select(work, plan, plan.history_tokens, hints, must=False)
        else:
            _drop(work, plan.history_tokens, must=False)
    if room is not None and work.count > room:
        # What is no message (tools, chunks, priming) takes its share of the window first.
        now = _tokens(work)
        budget = max(0, room - max(0, work.count - now))
        if plan.history is None or not _select(work, plan, budget, hints, must=True):
            _drop(work, budget, must=True)


def _select(work: Work, plan: Plan, budget: int, hints: Hints, *, must: bool) -> bool:
    """Keep the messages that the question is likely to need."""
    messages = work.prompt.messages
    assert plan.history is not None
    try:
        found = select_history(messages, budget, work.counter.message, plan.history, _vectors(messages, hints))
    except TenthError:
        return False  # What must stay is too much by itself: all else goes, and the budget is checked in the end.
    return _shorten(work, found.messages, f"{found.reason}, budget {budget} tokens", must=must)


def _drop(work: Work, budget: int, *, must: bool) -> None:
    """Keep the newest messages."""
    messages = work.prompt.messages
    kept = keep_history(messages, budget, work.counter.message)
    reason = f"the {len(messages) - len(kept)} oldest messages dropped, budget {budget} tokens"
    _shorten(work, tuple(messages[at] for at in kept), reason, must=must)


def _shorten(work: Work, messages: tuple[Message, ...], reason: str, *, must: bool) -> bool:
    if messages == work.prompt.messages:
        return False
    candidate = replace(work.prompt, messages=messages)
    if not work.take(candidate, HISTORY, reason, must=must, anew=True):
        return False
    work.truncated = True
    return True


def _vectors(messages: Sequence[Message], hints: Hints) -> Vectors | None:
    known, asked = hints.message_vectors, hints.question_vector
    if known is None or asked is None:
        return None
    rows = np.zeros((len(messages), len(asked)), np.float32)
    for at, message in enumerate(messages):
        if message.index in known:
            rows[at] = known[message.index]
    return Vectors(asked, rows)


def _dedupe(work: Work, plan: Plan) -> None:
    if work.prompt.size() > _MAX_DEDUPED_CHARS:
        return
    found = dedupe(work.prompt.messages, work.prompt.chunks, plan.dedupe)
    if not found.repeats:
        return
    candidate = replace(
        work.prompt, messages=found.messages, chunks=tuple(work.prompt.chunks[at] for at in found.chunk_positions)
    )
    positions = tuple(work.positions[at] for at in found.chunk_positions)
    work.take(candidate, DEDUPE, f"{len(found.repeats)} repeated passages", positions=positions)


def _tools(work: Work, plan: Plan, hints: Hints) -> None:
    found = select_tools(work.prompt.tools, work.prompt.messages, plan.tools, hints.tool_choice)
    if len(found.positions) < len(work.prompt.tools):
        candidate = replace(work.prompt, tools=tuple(work.prompt.tools[at] for at in found.positions))
        if work.take(candidate, TOOLS, found.reason):
            work.tool_positions = found.positions


def _output(work: Work, plan: Plan, max_output_tokens: int | None, hints: Hints) -> None:
    prompt = work.prompt
    found = plan_output(
        hints.predicted_output_tokens,
        max_output_tokens,
        question(prompt.messages),
        plan.output,
        prompt.response_schema,
        hints.wants_json,
        bool(prompt.tools),
    )
    work.max_output_tokens = found.max_output_tokens
    at = last_user(prompt.messages)
    if not found.hint or at is None or not prompt.messages[at].texts:
        return
    *before, last = prompt.messages[at].texts
    asked = replace(prompt.messages[at], texts=(*before, f"{last}\n{found.hint}"))
    candidate = replace(prompt, messages=(*prompt.messages[:at], asked, *prompt.messages[at + 1 :]))
    work.add(candidate, OUTPUT, found.reason)


def _point_out(work: Work) -> None:
    """Name what makes the start of each request another one. It is never moved: instructions may refer to it."""
    for message in work.prompt.messages:
        if message.role != SYSTEM:
            return
        found = next(filter(None, map(volatile, message.texts)), "")
        if found:
            reason = f"if {found!r} in message {message.index} changes, no prompt cache holds what follows it"
            work.point_out(ORDERING, f"{reason}; put it into the last message")
            return


def room_of(window_tokens: int, max_output_tokens: int | None, token_budget: int | None) -> int | None:
    """Tokens that the prompt may have beside the answer, and within its budget; None: no limit is known."""
    room = None
    if window_tokens:
        room = max(1, window_tokens - (max_output_tokens or min(DEFAULT_OUTPUT_TOKENS, window_tokens // 4)))
    if token_budget is None:
        return room
    return token_budget if room is None else min(room, token_budget)


def _clean(messages: Sequence[Message], counter: Counter) -> tuple[tuple[Message, ...], int]:
    """The messages cleaned where that saves tokens, and how many were; emptied system messages are dropped."""
    result, changed = [], 0
    for message in messages:
        if message.role not in (SYSTEM, USER, ASSISTANT):
            result.append(message)  # A tool's result is data.
            continue
        texts = tuple(_cleaned(text, message.role, counter) for text in message.texts)
        new = replace(message, texts=texts)
        emptied = any(message.texts) and not any(texts)
        droppable = message.role == SYSTEM and not message.pinned and len(messages) > 1
        if (
            texts == message.texts
            or counter.message(new) >= counter.message(message)
            or (emptied and not droppable)  # Providers refuse messages without text.
        ):
            result.append(message)
            continue
        changed += 1
        if not emptied:
            result.append(new)
    # Providers refuse a prompt without messages, too.
    return (tuple(result), changed) if result else (tuple(messages), 0)


def _cleaned(text: str, role: str, counter: Counter) -> str:
    if len(text) > MAX_CLEANED_CHARS:
        return text
    steps = SYSTEM_STEPS if role == SYSTEM else ANSWER_STEPS if role == ASSISTANT else TEXT_STEPS
    return cleaned(text, steps, counter.text if len(text) <= _MAX_COUNTED_CHARS else None).text
