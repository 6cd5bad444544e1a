"""Weighs each cut of a request's prompt against the provider's prompt cache: money.py's rules on prefixes.py's memory.

The order in which a prompt is sent is what counts: tools, messages, and before the last user message the chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.compressor.money import (
    CacheTerms,
    InputPrice,
    Odds,
    Sent,
    expected_saving,
    input_cost,
    may_be_cached,
    stable_edit_safe,
    worst_saving,
)
from services.compressor.prefixes import Chain, PrefixTracker, chain_of
from services.compressor.prompt import SYSTEM, Message, Prompt, last_user
from services.compressor.work import Counter, Edits, Verdict

_COMES_AGAIN = 0.8
"""How likely a list of chunks that came twice comes a third time: documents are asked about again and again."""

_LOOKS_KEPT = 4


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the model that will answer. ``price`` None: no cut is weighed, every one is taken."""

    price: InputPrice | None
    terms: CacheTerms | None
    compute_nano_usd: float = 0.0
    """What the compressor's own work on the prompt costs; a cut must save more."""
    watches: bool = True
    """False takes lists of chunks for new ones without having watched any, as for a look at a single prompt."""


@dataclass(frozen=True, slots=True)
class _Look:
    """A prompt as the cache sees it."""

    chain: Chain
    total: int
    lasting: int
    head: int
    """Tokens before the last user message and its chunks."""


class Scales:
    """The scales for one request; ``policy.Weigher``."""

    def __init__(self, facts: Facts, tracker: PrefixTracker, scope: str, prompt: Prompt, counter: Counter) -> None:
        """``scope`` names tenant and model."""
        self._facts = facts
        self._tracker = tracker
        self._scope = scope
        self._prompt = prompt
        self._counter = counter
        # Without a cache every cut behind which nothing is shared is plain arithmetic: no digests are made.
        self._caching = facts.price is not None and facts.terms is not None and facts.price.caches
        self._odds = tracker.odds(scope) if self._caching else Odds(0, 0)
        self._looks: list[tuple[Prompt, _Look]] = []
        self._raw = self._look(prompt)
        # An application is what its prompts begin with.
        self._application = self._raw.chain.digests[0] if self._raw.chain.digests else b""
        self._reuse = tracker.reuse(scope, self._application) if facts.watches else (0.0, 0.0)
        shared = tracker.shared(scope, self._raw.chain, facts.terms) if self._caching and facts.terms else 0
        # Whether the chunks came before, and what of them the provider can have.
        self._again = bool(prompt.chunks) and shared > self._raw.head
        self._shared_raw = self._cacheable(self._raw, shared)

    @property
    def probability(self) -> float:
        """How likely the provider has the start of the prompt as it was asked."""
        terms = self._facts.terms
        if not self._caching or terms is None or not terms.readable(self._shared_raw or self._raw.lasting):
            return 0.0
        return self._odds.seen if self._shared_raw else self._odds.unseen

    def edits(self, cleaned: Prompt) -> Edits:
        """Which of the messages may be replaced by their cleaned form, which follows from their own text."""
        price, terms = self._facts.price, self._facts.terms
        if price is None or terms is None or not may_be_cached(self._raw.total, price, terms):
            return Edits(system=True, talk=True, tail=True)
        before, after = self._system(self._prompt), self._system(cleaned)
        system = stable_edit_safe(before, after, price, terms)
        # What is left of the system messages must be long enough by itself, or the talk after it passes the least
        # length a turn later than it would have.
        long = (after if system else before) >= terms.certain_tokens
        return Edits(system=system, talk=long and terms.step_tokens == 1, tail=bool(self._prompt.chunks))

    def weigh(self, current: Prompt, candidate: Prompt, *, anew: bool = False) -> Verdict:
        """Whether a cut is worth taking; ``anew``: of a talk whose next request will be cut in another way."""
        price, terms = self._facts.price, self._facts.terms
        if price is None:
            return Verdict(True, 0.0, "no price is known")
        before, after = self._look(current), self._look(candidate)
        one, other = self._sent(before), self._sent(after)
        common = before.chain.common(after.chain)
        saving = expected_saving(one, other, common, price, terms, self._odds)
        worst, now = self._worst(other), self._worst(one)
        regret = self._regret(before, common)
        if regret:
            likely, at_most = self._reuse
            if self._again:
                likely, at_most = max(likely, _COMES_AGAIN), 1.0
            saving -= likely * self._odds.seen * regret
            worst -= at_most * self._odds.seen_at_most * regret
        if anew and not self._less_anew(after):
            return Verdict(False, saving, "the prompt cache may hold the whole talk for less")
        if self._too_short(before, after):
            return Verdict(False, saving, "would leave too little for the prompt cache to hold")
        if saving <= self._facts.compute_nano_usd:
            return Verdict(False, saving, "would lose what the prompt cache saves" if saving < 0 else "too little")
        if self._caching and worst < now and not self._tracker.allows(self._scope, worst):
            return Verdict(False, saving, "could lose more than earlier cuts have saved")
        return Verdict(True, saving, "")

    def finish(self, result: Prompt, request_id: str) -> None:
        """Remember what is sent."""
        if not self._caching:
            return
        sent = self._look(result)
        seen = self._sent(sent)
        self._tracker.note(
            self._scope, request_id, self._raw.chain, sent.chain, (seen.shared, sent.head), self._worst(seen)
        )
        if self._prompt.chunks:
            self._tracker.note_chunks(self._scope, self._application, again=self._again)

    def _worst(self, ours: Sent) -> float:
        price = self._facts.price
        assert price is not None
        off = Sent(self._raw.total, self._shared_raw, self._raw.lasting)
        return worst_saving(off, ours, price, self._facts.terms)

    def _less_anew(self, after: _Look) -> bool:
        """True when a prompt that is written anew each time costs less than the whole one, often read from the cache.

        Once a talk was cut, the provider has lost the whole of it: no later request can take a cut back.
        """
        price, terms = self._facts.price, self._facts.terms
        if price is None or terms is None or not may_be_cached(self._raw.lasting, price, terms):
            return True
        whole = Sent(self._raw.total, self._raw.lasting, self._raw.lasting)
        held, cold = (input_cost(whole, price, terms, held=each) for each in (True, False))
        chance = self._odds.seen_at_most
        part = Sent(after.total, 0, after.lasting)
        return input_cost(part, price, terms, held=False) <= chance * held + (1 - chance) * cold

    def _too_short(self, before: _Look, after: _Look) -> bool:
        """True when later requests of a talk would pay more for what is left than for all of it from the cache.

        The whole talk may be cached where what is left certainly is not, and it grows up to the least length first.
        """
        price, terms = self._facts.price, self._facts.terms
        if price is None or terms is None or not may_be_cached(self._raw.lasting, price, terms):
            return False
        if after.lasting >= min(before.lasting, terms.certain_tokens):
            return False
        grown = self._raw.lasting + terms.certain_tokens - after.lasting
        return terms.certain_tokens * price.input > grown * price.cached

    def _regret(self, before: _Look, common: int) -> float:
        """What a next request with the same chunks would have read from the cache, had this one been sent uncut.

        Nano-USD.
        """
        price, terms = self._facts.price, self._facts.terms
        if not self._caching or price is None or terms is None or not self._prompt.chunks or common < before.head:
            return 0.0
        whole = Sent(before.total, self._cacheable(before, before.total), before.lasting)
        part = Sent(before.total, common, before.lasting)
        return input_cost(part, price, terms, held=True) - input_cost(whole, price, terms, held=True)

    def _sent(self, look: _Look) -> Sent:
        terms = self._facts.terms
        shared = self._tracker.sent(self._scope, look.chain, terms) if self._caching and terms is not None else 0
        return Sent(look.total, self._cacheable(look, shared), look.lasting)

    def _cacheable(self, look: _Look, shared: int) -> int:
        """How much of a shared start the provider can have."""
        terms = self._facts.terms
        marked = terms is not None and terms.marked and bool(self._prompt.chunks)
        return min(shared, look.head) if marked else shared

    def _look(self, prompt: Prompt) -> _Look:
        for known, look in self._looks:
            if known.messages is prompt.messages and known.chunks is prompt.chunks and known.tools is prompt.tools:
                return look
        look = self._looked(prompt)
        # The prompt as it stands is looked at with every candidate, and in the end.
        self._looks = [(prompt, look), *self._looks[: _LOOKS_KEPT - 1]]
        return look

    def _looked(self, prompt: Prompt) -> _Look:
        total = self._counter.prompt(prompt)
        if not self._caching:
            return _Look(Chain((), ()), total, 0, 0)
        last = last_user(prompt.messages)
        front = prompt.messages if last is None else prompt.messages[:last]
        chain = chain_of(self._units(prompt, last))
        # Tools are one unit, before all messages.
        places = len(front) + bool(prompt.tools)
        head = chain.tokens[places - 1] if places else 0
        # The next request has the last user message as it was written, without the chunks.
        return _Look(chain, total, head if prompt.chunks else total, head)

    def _units(self, prompt: Prompt, last: int | None) -> Iterator[tuple[bytes, int]]:
        if prompt.tools:
            text = "\0".join(prompt.tools)
            yield _bytes(text), sum(map(self._counter.chunk, prompt.tools))
        for at, message in enumerate(prompt.messages):
            if at == last:
                for chunk in prompt.chunks:
                    yield _bytes("chunk\0" + chunk), self._counter.chunk(chunk)
            yield _message_bytes(message), self._counter.message(message)

    def _system(self, prompt: Prompt) -> int:
        total = sum(map(self._counter.chunk, prompt.tools))
        for message in prompt.messages:
            if message.role != SYSTEM:
                break
            total += self._counter.message(message)
        return total


def _message_bytes(message: Message) -> bytes:
    calls = tuple((call.id, call.name, call.arguments) for call in message.calls)
    return _bytes(repr((message.role, message.name, message.texts, message.image_details, calls, message.answers)))


def _bytes(text: str) -> bytes:
    # A lone surrogate has no UTF-8; it must not stop a prompt here.
    return text.encode("utf-8", "surrogatepass")
