"""How much work the local engine takes on: a queue bounded by its length and by the KV cache. Pure; one thread.

The engine itself never runs out of memory (its KV cache is one block, allocated at the start), but a queue without a
bound would let every request wait past its deadline. A request is therefore counted at its worst case (prompt and most
output) until it ends, and refused when the promises pass a multiple of what the cache holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mesh.errors import Code, TenthError
from services.inference.errors import Reason

_SMOOTH_SECONDS = 10.0
"""Time constant of the measured speed: long against a step, short against a change of load."""
_SHORTEST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 0.1, 60.0
_UNMEASURED_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of the queue; see the settings of the same names."""

    max_running: int
    """Sequences that the engine works on at once."""
    max_waiting: int = 128
    """Sequences beyond those."""
    kv_promise: float = 4.0
    """Tokens that may be promised at once, as a multiple of the KV cache's; 1 or more."""
    batch_share: float = 0.5
    """Share of the waiting room that batch work may fill, 0 to 1: interactive work always finds the rest."""
    queue_seconds: float = 60.0
    """Longest wait for a first token, whatever the deadline."""


class Speed:
    """Output tokens per second of working time: an exponential average. One thread writes, others read."""

    def __init__(self) -> None:
        self.tokens_per_second = 0.0
        """0: nothing measured yet."""

    def note(self, tokens: int, seconds: float) -> None:
        """A step took this long and made this many tokens."""
        if seconds <= 0:
            return
        if not self.tokens_per_second:
            self.tokens_per_second = tokens / seconds
            return
        weight = -math.expm1(-seconds / _SMOOTH_SECONDS)
        self.tokens_per_second += weight * (tokens / seconds - self.tokens_per_second)


@dataclass(slots=True, eq=False)
class Ticket:
    """One admitted sequence."""

    prompt: int
    output: int
    made: int = 0
    begun: bool = False
    """True from its first token."""

    @property
    def tokens(self) -> int:
        """Tokens at the worst case."""
        return self.prompt + self.output


class Admission:
    """Counts what was promised, and refuses what would be too much."""

    def __init__(self, model: str, limits: QueueLimits, speed: Speed) -> None:
        self._model = model
        self._limits = limits
        self._speed = speed
        self._tickets: set[Ticket] = set()
        self._tokens = 0
        self.kv_tokens = 0
        """Tokens that the KV cache holds; 0: not known, no bound by it."""
        self.refused_count = 0
        """Requests refused since the start."""

    @property
    def running_count(self) -> int:
        """Sequences that have made a token."""
        return sum(ticket.begun for ticket in self._tickets)

    @property
    def waiting_count(self) -> int:
        """Sequences that have not."""
        return len(self._tickets) - self.running_count

    def admit(self, prompt_tokens: int, output_tokens: int, *, batch: bool = False) -> Ticket:
        """A place for a sequence; to be given back with ``leave``. Raises QUEUE_FULL saying when to come back.

        A sequence that is alone is always taken: that it fits the KV cache was proved when the engine started.
        """
        ticket = Ticket(prompt_tokens, output_tokens)
        limits = self._limits
        share = limits.batch_share if batch else 1.0
        places = limits.max_running + int(limits.max_waiting * share)
        promise = int(self.kv_tokens * (1 + (limits.kv_promise - 1) * share))
        if self._tickets:
            if len(self._tickets) >= places:
                raise self._full(f"{len(self._tickets)} sequences run and wait, at most {places} may", 0)
            excess = self._tokens + ticket.tokens - promise
            if self.kv_tokens and excess > 0:
                said = f"{self._tokens} tokens are promised, {ticket.tokens} more would pass {promise}"
                raise self._full(f"{said} (the KV cache holds {self.kv_tokens})", excess)
        self._tickets.add(ticket)
        self._tokens += ticket.tokens
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The sequence has ended. Giving a ticket back twice changes nothing."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            self._tokens -= ticket.tokens

    def retry_seconds(self, excess_tokens: int = 0) -> float:
        """When a place is likely to be free, by the measured speed: until an average sequence has made the rest of its
        output, or the excess is worked off. An upper estimate: answers mostly end before their limit."""
        speed = self._speed.tokens_per_second
        if not speed or not self._tickets:
            return _UNMEASURED_RETRY_SECONDS
        left = sum(ticket.output - ticket.made for ticket in self._tickets) / len(self._tickets)
        seconds = max(left, excess_tokens) / speed
        return min(max(seconds, _SHORTEST_RETRY_SECONDS), _LONGEST_RETRY_SECONDS)

    def waited_out(self, seconds: float) -> TenthError:
        """The refusal of a request that waited as long as the service lets it."""
        self.refused_count += 1
        return TenthError(
            Code.RESOURCE_EXHAUSTED,
            Reason.QUEUE_FULL,
            f"{self._model}: no first token within {seconds:g} s in the queue; nothing was spent",
            metadata={"waiting_count": str(self.waiting_count), "running_count": str(self.running_count)},
            retry_after_seconds=self.retry_seconds(),
        )

    def too_late(self) -> TenthError:
        """The refusal of a request whose deadline passes while it waits."""
        self.refused_count += 1
        return TenthError(
            Code.DEADLINE_EXCEEDED,
            Reason.QUEUE_DEADLINE,
            f"{self._model}: the deadline passed before the first token; nothing was spent",
            metadata={"waiting_count": str(self.waiting_count), "running_count": str(self.running_count)},
        )

    def _full(self, message: str, excess_tokens: int) -> TenthError:
        self.refused_count += 1
        return TenthError(
            Code.RESOURCE_EXHAUSTED,
            Reason.QUEUE_FULL,
            f"{self._model}: {message}",
            metadata={"waiting_count": str(self.waiting_count), "running_count": str(self.running_count)},
            retry_after_seconds=self.retry_seconds(excess_tokens),
        )
