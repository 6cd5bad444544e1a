"""A prompt in the making: what counts and weighs it, what was done to it and what was not. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.compressor.prompt import ASSISTANT, SYSTEM, Message, Prompt


class Counter(Protocol):
    """Counts tokens as the answering model does."""

    def text(self, text: str) -> int:
        """Tokens of a bare text."""
        ...

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

    def weigh(self, current: Prompt, candidate: Prompt, *, anew: bool = False) -> Verdict:
        """Whether to send ``candidate`` in place of ``current``; ``anew``: the next request begins in another way."""
        ...


class Free:
    """Takes every cut; where no price is known."""

    def edits(self, cleaned: Prompt) -> Edits:
        """All of them."""
        return Edits(system=True, talk=True, tail=True)

    def weigh(self, current: Prompt, candidate: Prompt, *, anew: bool = False) -> Verdict:
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
    edited_chunks: tuple[int, ...] = ()


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
    tool_positions: tuple[int, ...] = ()
    max_output_tokens: int | None = None
    """A limit on the answer that the ``output`` strategy sets; None: none but the request's own."""


class Work:
    """A prompt in the making."""

    def __init__(self, prompt: Prompt, counter: Counter, weigher: Weigher) -> None:
        self.original = self.prompt = prompt
        self.counter = counter
        self.weigher = weigher
        self.before = self.count = counter.prompt(prompt)
        self.positions = tuple(range(len(prompt.chunks)))
        self.tool_positions = tuple(range(len(prompt.tools)))
        self.max_output_tokens: int | None = None
        self.chosen = prompt.settled
        """Whether the chunks are a choice that stands."""
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
        anew: bool = False,
    ) -> bool:
        """Go on with a candidate where it saves tokens and, unless it must be, money."""
        after = self.counter.prompt(candidate)
        if after >= self.count:
            return False
        verdict = self.weigher.weigh(self.prompt, candidate, anew=anew)
        step = self._step(candidate, strategy, after, verdict, positions)
        if not (verdict.taken or must):
            self._declined.append(replace(step, reason=f"{verdict.reason}: {reason}"))
            return False
        self._steps.append(replace(step, reason=reason))
        self.prompt, self.count = candidate, after
        if positions is not None:
            self.positions = tuple(positions)
        return True

    def add(self, candidate: Prompt, strategy: str, reason: str) -> None:
        """Go on with a candidate that is longer, but no longer than the prompt was at first."""
        after = self.counter.prompt(candidate)
        if after <= self.before:
            self._steps.append(
                replace(self._step(candidate, strategy, after, Verdict(True, 0.0, ""), None), reason=reason)
            )
            self.prompt, self.count = candidate, after

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
        # What comes out may come in again: chunks that were chosen once are not chosen from again.
        prompt = replace(self.prompt, settled=True) if self.chosen and self._steps else self.prompt
        return Compressed(
            prompt,
            self.positions,
            self.before,
            self.count,
            tuple(self._steps),
            prefix,
            tuple(self._declined),
            self.tool_positions,
            self.max_output_tokens,
        )

    def _step(
        self, candidate: Prompt, strategy: str, after: int, verdict: Verdict, positions: Sequence[int] | None
    ) -> Step:
        now = {message.index: message for message in candidate.messages}
        kept = self.positions if positions is None else positions
        staying = set(kept)
        texts = dict(zip(self.positions, self.prompt.chunks, strict=True))
        return Step(
            strategy,
            self.count - after,
            "",
            self.count,
            verdict.saving_nano_usd,
            tuple(message.index for message in self.prompt.messages if message.index not in now),
            tuple(at for at in self.positions if at not in staying),
            tuple(
                message.index
                for message in self.prompt.messages
                if message.index in now and now[message.index].texts != message.texts
            ),
            tuple(at for at, text in zip(kept, candidate.chunks, strict=True) if text != texts.get(at)),
        )


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
