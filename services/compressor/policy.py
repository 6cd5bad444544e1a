"""Which strategies run in which mode, in which order, on which budgets, and what the prompt becomes. Pure.

| mode | cleanup | retrieved chunks | history |
|---|---|---|---|
| off | no | all | all |
| safe | yes | at most 10, of these only the relevant | what fits the context window beside the answer |
| balanced | yes | at most 5 | 8,000 tokens |
| aggressive | yes | at most 3 | 3,000 tokens |

(The numbers are settings.) A strategy's change is only taken where it saves tokens, and where the ``Weigher`` says that
it saves money; what the context window or a stated budget demands is cut without asking. System messages are cleaned by
their text alone, so that a prefix shared by many requests stays byte-identical. History is dropped by whole blocks: the
first message kept stays the same for several turns, so that the provider's prompt cache holds what follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mesh.errors import Code, TenthError
from services.compressor.cleanup import clean
from services.compressor.errors import Reason
from services.compressor.history import keep_history
from services.compressor.modes import CLEANUP, HISTORY, ORDERING, RETRIEVAL, Mode, Plan
from services.compressor.prefixes import volatile
from services.compressor.prompt import ASSISTANT, SYSTEM, USER, Message, Prompt, last_user
from services.compressor.strategies import Ranking, keep_chunks

DEFAULT_OUTPUT_TOKENS = 1024
"""Room kept for the answer when the request does not say, at most a quarter of the window."""
MAX_CLEANED_CHARS = 200_000
"""Longer texts are sent as they are: cleaning a book takes a second and saves next to nothing."""


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
class Edits:
    """Which messages may be replaced by what their own text says."""

    system: bool
    """The system messages at the front."""
    talk: bool
    """Those between."""
    tail: bool
    """The last user message and what follows it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a cut is taken, what it is expected to save (nano-USD), and why it is not taken."""

    taken: bool
    saving_nano_usd: float
    reason: str


class Weigher(Protocol):
    """Says what a cut is worth."""

    def edits(self, cleaned: Prompt) -> Edits:
        """Which messages of the request may be replaced by their cleaned form."""
        ...

    def weigh(self, current: Prompt, candidate: Prompt, turns: float = 1.0) -> Verdict:
        """Whether to send ``candidate`` in place of ``current``; its start lasts for so many requests."""
        ...


class Free:
    """Takes every cut; where no price is known."""

    def edits(self, cleaned: Prompt) -> Edits:
        """All of them."""
        return Edits(system=True, talk=True, tail=True)

    def weigh(self, current: Prompt, candidate: Prompt, turns: float = 1.0) -> Verdict:
        """Yes."""
        return Verdict(True, 0.0, "")


@dataclass(frozen=True, slots=True)
class Step:
    """What one strategy did, or would have done; the positions are those of the request."""

    strategy: str
    removed_token_count: int
    reason: str
    before_token_count: int = 0
    saving_nano_usd: float = 0.0
    cut_messages: tuple[int, ...] = ()
    cut_chunks: tuple[int, ...] = ()
    edited_messages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Compressed:
    """The shortened prompt."""

    prompt: Prompt
    chunk_positions: tuple[int, ...]
    original_token_count: int
    token_count: int
    steps: tuple[Step, ...]
    stable_prefix_message_count: int
    declined: tuple[Step, ...] = ()
    """What was not worth its price."""


def compress(
    prompt: Prompt,
    plan: Plan,
    counter: Counter,
    ranking: Ranking | None,
    window_tokens: int,
    max_output_tokens: int | None,
    weigher: Weigher | None = None,
    token_budget: int | None = None,
) -> Compressed:
    """Shorten a prompt for one model. ``ranking`` is needed where ``plan.ranks`` says so; a window of 0 is unknown.

    Room is kept for the wanted answer while messages or chunks can be dropped for it. Raises PROMPT_TOO_LONG when the
    result leaves no room at all, and BUDGET_TOO_SMALL when what must stay is more than ``token_budget``.
    """
    work = _Work(prompt, counter, weigher or Free())
    room = _room(window_tokens, max_output_tokens)
    if token_budget is not None:
        room = token_budget if room is None else min(room, token_budget)
    if plan.runs(CLEANUP):
        _cleanup(work)
    if plan.runs(RETRIEVAL) and prompt.chunks:
        _retrieval(work, plan, ranking, room)
    if plan.runs(HISTORY):
        _history(work, plan, room)
    if plan.strategies and plan.mode is not Mode.OFF:
        _point_out(work)
    if token_budget is not None and work.count > token_budget:
        over = work.count - token_budget
        raise TenthError(
            Code.INVALID_ARGUMENT,
            Reason.BUDGET_TOO_SMALL,
            f"what must stay has {work.count} tokens, {over} more than the budget of {token_budget}",
            "token_budget",
            metadata={"input_token_count": str(work.count), "over_token_count": str(over)},
        )
    # A long answer gives way to the prompt (inference cuts it to what is left), but one token must have room.
    if window_tokens and work.count >= window_tokens:
        raise TenthError(
            Code.INVALID_ARGUMENT,
            Reason.PROMPT_TOO_LONG,
            f"{work.count} prompt tokens leave no room for an answer in a window of {window_tokens}",
            "request.messages",
            metadata={"input_token_count": str(work.count), "context_window_tokens": str(window_tokens)},
        )
    return work.done()


class _Work:
    """A prompt in the making."""

    def __init__(self, prompt: Prompt, counter: Counter, weigher: Weigher) -> None:
        self.original = self.prompt = prompt
        self.counter = counter
        self.weigher = weigher
        self.before = self.count = counter.prompt(prompt)
        self.positions = tuple(range(len(prompt.chunks)))
        self.truncated = False
        self._steps: list[Step] = []
        self._declined: list[Step] = []

    def take(
        self,
        candidate: Prompt,
        strategy: str,
        reason: str,
        *,
        positions: Sequence[int] | None = None,
        must: bool = False,
        turns: float = 1.0,
    ) -> bool:
        """Go on with a candidate where it saves tokens and, unless it must be, money."""
        after = self.counter.prompt(candidate)
        if after >= self.count:
            return False
        verdict = self.weigher.weigh(self.prompt, candidate, turns)
        step = self._step(candidate, strategy, after, verdict, positions)
        if not (verdict.taken or must):
            self._declined.append(replace(step, reason=f"{verdict.reason}: {reason}"))
            return False
        self._steps.append(replace(step, reason=reason))
        self.prompt, self.count = candidate, after
        if positions is not None:
            self.positions = tuple(positions)
        return True

    def decline(self, candidate: Prompt, strategy: str, reason: str) -> None:
        """Note what was not even weighed."""
        after = self.counter.prompt(candidate)
        if after < self.count:
            verdict = Verdict(False, 0.0, reason)
            self._declined.append(replace(self._step(candidate, strategy, after, verdict, None), reason=reason))

    def point_out(self, strategy: str, reason: str) -> None:
        """Note what the caller could do better."""
        self._declined.append(Step(strategy, 0, reason, self.count))

    def done(self) -> Compressed:
        """The result."""
        prefix = _stable_prefix(self.prompt, self.truncated)
        return Compressed(
            self.prompt,
            self.positions,
            self.before,
            self.count,
            tuple(self._steps),
            prefix,
            tuple(self._declined),
        )

    def _step(
        self, candidate: Prompt, strategy: str, after: int, verdict: Verdict, positions: Sequence[int] | None
    ) -> Step:
        now = {message.index: message for message in candidate.messages}
        kept = self.positions if positions is None else positions
        return Step(
            strategy,
            self.count - after,
            "",
            self.count,
            verdict.saving_nano_usd,
            tuple(message.index for message in self.prompt.messages if message.index not in now),
            tuple(at for at in self.positions if at not in set(kept)),
            tuple(
                message.index
                for message in self.prompt.messages
                if message.index in now and now[message.index].texts != message.texts
            ),
        )


def _cleanup(work: _Work) -> None:
    if work.prompt.size() > 5 * MAX_CLEANED_CHARS:
        return
    messages = work.prompt.messages
    cleaned, changed = _clean(messages, work.counter)
    if not changed:
        return
    whole = replace(work.prompt, messages=cleaned)
    may = work.weigher.edits(whole)
    front = next((at for at, message in enumerate(messages) if message.role != SYSTEM), len(messages))
    last = last_user(messages)
    tail = len(messages) if last is None else last
    by_index = {message.index: message for message in cleaned}
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


def _retrieval(work: _Work, plan: Plan, ranking: Ranking | None, room: int | None) -> None:
    chunks = work.original.chunks
    must = room is not None and work.count > room
    if ranking is None or not plan.ranks(chunks) or plan.most_chunks is None:
        if not must:
            return
        # Too few to rank, yet too many for the room: those that came first are taken for the better ones.
        ranking, kept = Ranking(tuple(-float(at) for at in range(len(chunks))), "place"), list(range(len(chunks)))
    else:
        kept = keep_chunks(chunks, ranking, plan.most_chunks, plan.chunk_threshold, plan.least_chunks)
    if room is not None:
        bare = work.counter.prompt(replace(work.prompt, chunks=()))
        kept = _fitting_chunks(kept, chunks, ranking, work.counter, room - bare)
    if len(kept) < len(chunks):
        candidate = replace(work.prompt, chunks=tuple(chunks[at] for at in kept))
        reason = f"{len(kept)} of {len(chunks)} chunks kept by {ranking.method}"
        work.take(candidate, RETRIEVAL, reason, positions=kept, must=must)


def _history(work: _Work, plan: Plan, room: int | None) -> None:
    messages, counter = work.prompt.messages, work.counter
    total = sum(map(counter.message, messages))
    limit = plan.history_tokens
    if limit is not None and total > limit:
        # Whole blocks: while the talk grows by one, the same messages stay dropped.
        standing = sum(counter.message(message) for message in messages if message.role == SYSTEM or message.pinned)
        block = max(1, (limit - standing) // 2)
        budget = max(0, total - -(-(total - limit) // block) * block)
        answered = sum(message.role == USER for message in messages)
        turns = max(1.0, block * answered / max(1, total))
        _drop(work, budget, must=False, turns=turns)
    if room is not None and work.count > room:
        # What is no message (tools, chunks, priming) takes its share of the window first.
        now = sum(map(counter.message, work.prompt.messages))
        _drop(work, max(0, room - max(0, work.count - now)), must=True, turns=1.0)


def _point_out(work: _Work) -> None:
    """Name what makes the start of each request another one. It is never moved: instructions may refer to it."""
    for message in work.prompt.messages:
        if message.role != SYSTEM:
            return
        found = next(filter(None, map(volatile, message.texts)), "")
        if found:
            reason = f"if {found!r} in message {message.index} changes, no prompt cache holds what follows it"
            work.point_out(ORDERING, f"{reason}; put it into the last message")
            return


def _drop(work: _Work, budget: int, *, must: bool, turns: float) -> None:
    messages = work.prompt.messages
    kept = keep_history(messages, budget, work.counter.message)
    dropped = len(messages) - len(kept)
    if dropped:
        shorter = replace(work.prompt, messages=tuple(messages[at] for at in kept))
        reason = f"the {dropped} oldest messages dropped, budget {budget} tokens"
        if work.take(shorter, HISTORY, reason, must=must, turns=turns):
            work.truncated = True


def _room(window_tokens: int, max_output_tokens: int | None) -> int | None:
    """Tokens that the prompt may have beside the answer."""
    if not window_tokens:
        return None
    return max(1, window_tokens - (max_output_tokens or min(DEFAULT_OUTPUT_TOKENS, window_tokens // 4)))


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
