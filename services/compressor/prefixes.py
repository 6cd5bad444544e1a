"""Which starts of prompts a provider's cache may hold, by digest, and how far that belief can be trusted.

Two worlds are followed: what was asked (as if nothing were ever compressed) and what was sent. Providers keep a start
for some minutes after its last use. The belief is checked against what providers say they read from their caches
(``record``): two shares with a Beta prior each, one for starts seen here, one for others. Memory is bounded; nothing of
a text is kept but SHA-256 digests.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from services.compressor.money import CacheTerms, Odds, Purse

RULES_VERSION = 1
"""Raise it with every change of what a stable prefix becomes."""
MAX_BOUNDARIES = 256
"""Most places of one prompt that are remembered: where several requests part is near the front or near the end."""
_FRONT_BOUNDARIES = 32
_MAX_SCOPES = 10_000
_MAX_PURSE_NANO_USD = 1e9
"""A dollar: more than any one bet loses."""
_SEEN_PRIOR, _UNSEEN_PRIOR = (8.0, 2.0), (0.5, 9.5)
"""Beta priors: a start seen within the provider's time is mostly held; another one seldom."""
_MEMORY = 200.0
"""Observations that a share remembers: a provider's habits change."""

_VOLATILE = re.compile(
    r"\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}:\d{2}(?::\d{2})?\b|\b\d{4}년\s*\d{1,2}월\s*\d{1,2}일"
    r"|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b",
    re.IGNORECASE,
)
_SEARCHED_CHARS = 20_000


@dataclass(frozen=True, slots=True)
class Chain:
    """The start of a prompt up to each of its places: digests and tokens, both growing."""

    digests: tuple[bytes, ...]
    tokens: tuple[int, ...]

    def common(self, other: Chain) -> int:
        """Tokens of the longest start that both have."""
        alike = 0
        for mine, its, tokens in zip(self.digests, other.digests, self.tokens, strict=False):
            if mine != its:
                break
            alike = tokens
        return alike


def chain_of(units: Iterable[tuple[bytes, int]]) -> Chain:
    """The chain of a prompt's parts in the order they are sent: each its bytes and its tokens."""
    running = hashlib.sha256()
    digests, tokens, total = [], [], 0
    for content, count in units:
        running.update(len(content).to_bytes(8, "big"))
        running.update(content)
        total += count
        digests.append(running.copy().digest()[:16])
        tokens.append(total)
    return Chain(tuple(digests), tuple(tokens))


@dataclass(slots=True)
class _Share:
    """A share by Beta posterior that forgets slowly."""

    yes: float
    no: float

    def note(self, happened: bool) -> None:
        if self.yes + self.no >= _MEMORY:
            keep = 1 - 1 / _MEMORY
            self.yes, self.no = self.yes * keep, self.no * keep
        if happened:
            self.yes += 1
        else:
            self.no += 1

    @property
    def mean(self) -> float:
        return self.yes / (self.yes + self.no)

    @property
    def at_most(self) -> float:
        """Two standard deviations up."""
        count = self.yes + self.no
        return min(1.0, self.mean + 2 * math.sqrt(self.yes * self.no / (count + 1)) / count)


@dataclass(slots=True)
class _Scope:
    """What is known of one tenant's use of one model."""

    purse: Purse
    seen: _Share = field(default_factory=lambda: _Share(*_SEEN_PRIOR))
    unseen: _Share = field(default_factory=lambda: _Share(*_UNSEEN_PRIOR))


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the provider was believed to read for one request, tokens."""

    scope: str
    shared: int
    lasting: int
    saved: float = 0.0
    """Nano-USD that it saves for certain, once it is sent."""


class PrefixTracker:
    """Starts seen by tenant and model. Safe to use from several threads."""

    def __init__(self, now: Callable[[], float], capacity: int) -> None:
        """``now`` is a monotonic clock in seconds; ``capacity`` is the number of starts kept in each of both worlds."""
        self._now = now
        self._capacity = capacity
        self._asked: OrderedDict[tuple[str, bytes], float] = OrderedDict()
        self._sent: OrderedDict[tuple[str, bytes], float] = OrderedDict()
        self._scopes: OrderedDict[str, _Scope] = OrderedDict()
        self._reuse: OrderedDict[tuple[str, bytes], _Share] = OrderedDict()
        self._pending: OrderedDict[tuple[str, str], _Expected] = OrderedDict()
        self._lock = threading.Lock()

    def shared(self, scope: str, asked: Chain, terms: CacheTerms) -> int:
        """Tokens of the start that an earlier request asked with, within the provider's time."""
        with self._lock:
            return self._longest(self._asked, scope, asked, terms)

    def sent(self, scope: str, sent: Chain, terms: CacheTerms) -> int:
        """Tokens of the start that was sent before, within the provider's time."""
        with self._lock:
            return self._longest(self._sent, scope, sent, terms)

    def odds(self, scope: str) -> Odds:
        """How likely the provider has a start."""
        with self._lock:
            found = self._scope(scope)
            return Odds(found.seen.mean, found.unseen.mean, found.seen.at_most)

    def reuse(self, scope: str, application: bytes) -> tuple[float, float]:
        """How likely an application's list of chunks comes again within the provider's time, and how likely at most."""
        with self._lock:
            found = self._reuse.get((scope, application)) or _Share(1.0, 1.0)
            return found.mean, found.at_most

    def allows(self, scope: str, worst: float) -> bool:
        """True when earlier savings pay for what a request can lose; nano-USD."""
        with self._lock:
            return self._scope(scope).purse.allows(worst)

    def note(
        self, scope: str, request_id: str, asked: Chain, sent: Chain, expected: tuple[int, int], worst: float
    ) -> None:
        """Remember a request that is on its way.

        ``expected`` are the tokens believed shared and those that later requests may share, ``worst`` the nano-USD it
        saves at worst.
        """
        with self._lock:
            now = self._now()
            for world, chain in ((self._asked, asked), (self._sent, sent)):
                for digest in _places(chain.digests):
                    world[scope, digest] = now
                    world.move_to_end((scope, digest))
                while len(world) > self._capacity:
                    world.popitem(last=False)
            found = self._scope(scope)
            # A loss counts at once, a gain when the provider has billed it: what is compressed need not be sent.
            found.purse.settle(min(worst, 0.0) if request_id else worst)
            if request_id:
                self._pending[scope, request_id] = _Expected(scope, *expected, max(worst, 0.0))
                while len(self._pending) > self._capacity:
                    self._pending.popitem(last=False)

    def note_chunks(self, scope: str, application: bytes, *, again: bool) -> None:
        """Remember whether an application's list of chunks had come before."""
        with self._lock:
            found = self._reuse.setdefault((scope, application), _Share(1.0, 1.0))
            self._reuse.move_to_end((scope, application))
            found.note(again)
            while len(self._reuse) > _MAX_SCOPES:
                self._reuse.popitem(last=False)

    def record(self, scope: str, request_id: str, cached_tokens: int, terms: CacheTerms) -> bool:
        """Learn from what a provider said it read from its cache; False for a request not known, or reported before."""
        with self._lock:
            expected = self._pending.pop((scope, request_id), None)
            if expected is None:
                return False
            found = self._scope(expected.scope)
            found.purse.settle(expected.saved)
            if terms.readable(expected.shared):
                # Half of it is a hit: token counts here and there differ, and the step rounds down.
                found.seen.note(2 * cached_tokens >= terms.readable(expected.shared))
            elif terms.readable(expected.lasting):
                found.unseen.note(cached_tokens > 0)
            return True

    def _longest(
        self, world: OrderedDict[tuple[str, bytes], float], scope: str, chain: Chain, terms: CacheTerms
    ) -> int:
        oldest = self._now() - terms.ttl_seconds
        for at in range(len(chain.digests) - 1, -1, -1):
            if world.get((scope, chain.digests[at]), -1e300) >= oldest:
                return chain.tokens[at]
        return 0

    def _scope(self, scope: str) -> _Scope:
        found = self._scopes.get(scope)
        if found is None:
            found = self._scopes[scope] = _Scope(Purse(_MAX_PURSE_NANO_USD))
            while len(self._scopes) > _MAX_SCOPES:
                self._scopes.popitem(last=False)
        else:
            self._scopes.move_to_end(scope)
        return found


def _places(digests: Sequence[bytes]) -> Sequence[bytes]:
    if len(digests) <= MAX_BOUNDARIES:
        return digests
    return [*digests[:_FRONT_BOUNDARIES], *digests[_FRONT_BOUNDARIES - MAX_BOUNDARIES :]]


def prefix_version(*facts: object) -> str:
    """A short name for the rules and facts that decide what a stable prefix becomes."""
    return hashlib.sha256(repr((RULES_VERSION, *facts)).encode()).hexdigest()[:12]


def volatile(text: str) -> str:
    """The first date, time or id in an instruction, which makes each request's start another one; empty: none.

    It is only pointed out: moving a line to the end can change what it refers to, and instructions are never edited.
    """
    found = _VOLATILE.search(text[:_SEARCHED_CHARS])
    return found.group() if found else ""
