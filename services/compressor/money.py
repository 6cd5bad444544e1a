"""What a cut of a prompt is worth, the provider's prompt cache counted in. Pure; amounts in nano-USD.

A prompt is paid in three parts: what the provider reads from its prompt cache (cheap), what it writes to it (dearer
than input at Anthropic), and the rest. A cut that changes the start of a prompt makes the provider read nothing behind
it, so fewer tokens can cost more: of 10,000 cached tokens at a tenth of the price, a cut to 3,000 uncached ones triples
the bill. Three rules follow; ``tests/unit/compressor/test_compressor_money.py`` proves each by exhaustion.

1. Behind what could be cached, every cut saves, whatever the cache does.
2. Text that is changed once and for all, by its own letters alone, is shared by all later requests as well: it saves
   where it stays long enough to be cached and gives up no more steps of the cache than it saves (``stable_edit_safe``).
   A prompt that is too short to be cached at all may be changed freely.
3. Any other change of the start is a bet. It is taken when it is expected to pay, and when what the request can lose at
   worst is in the purse: what earlier requests have saved for certain. So a wrong belief costs no more than was saved
   (the rule of conservative bandits: Wu, Shariff, Lattimore and Szepesvari, 2016).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mesh.money import TOKENS_PER_PRICE

_TRUST = 0.9
_MICROS_PER_HOUR = 3_600_000_000


@dataclass(frozen=True, slots=True)
class CacheTerms:
    """When a provider caches the start of a prompt.

    Providers state the least length by model and change it; where only a range is known, ``possible_tokens`` is its low
    end, from which a prompt may be cached, and ``certain_tokens`` its high end, from which it is.
    """

    possible_tokens: int
    certain_tokens: int
    step_tokens: int = 1
    """Cached lengths are multiples of this."""
    ttl_seconds: float = 300.0
    marked: bool = False
    """True where only marked places are cached, as at Anthropic: the end of a list of chunks is not one of them."""

    def readable(self, tokens: int) -> int:
        """How much of a shared start of this length is read from the cache."""
        return tokens // self.step_tokens * self.step_tokens if tokens >= self.certain_tokens else 0


@dataclass(frozen=True, slots=True)
class InputPrice:
    """Nano-USD per million input tokens: uncached, read from the prompt cache, written to it."""

    input: int
    cached: int
    written: int

    @property
    def caches(self) -> bool:
        """True when a cached token is cheaper."""
        return self.cached < self.input


@dataclass(frozen=True, slots=True)
class Sent:
    """A prompt as the provider's cache sees it, tokens.

    ``shared`` is how much of its start an earlier request had, ``lasting`` how much a later one will likely have, which
    is what is written.
    """

    total: int
    shared: int = 0
    lasting: int = 0


def input_cost(sent: Sent, price: InputPrice, terms: CacheTerms | None, *, held: bool) -> float:
    """Nano-USD of a prompt's input; ``held``: the provider still has what an earlier request wrote."""
    if terms is None or not price.caches:
        return sent.total * price.input / TOKENS_PER_PRICE
    read = min(terms.readable(sent.shared), sent.total) if held else 0
    written = max(0, sent.lasting - read) if sent.lasting >= terms.certain_tokens else 0
    plain = sent.total - read - written
    return (read * price.cached + written * price.written + plain * price.input) / TOKENS_PER_PRICE


@dataclass(frozen=True, slots=True)
class Odds:
    """How likely the provider still has the start that an earlier request shared, 0 to 1."""

    seen: float
    """Where an earlier request with that start is known here, within the time that the provider keeps it."""
    unseen: float
    """Where none is known: another replica, or a restart."""
    seen_at_most: float = 1.0
    """``seen`` with what is not known of it on the dear side."""


def expected_saving(
    before: Sent, after: Sent, common: int, price: InputPrice, terms: CacheTerms | None, odds: Odds, turns: float = 1.0
) -> float:
    """What sending ``after`` in place of ``before`` is expected to save, nano-USD; negative: it costs.

    ``common`` is how long their starts are alike, tokens. ``turns`` is how many requests the change will last for, this
    one included: from the second on its start is shared as that of ``before`` would be; the answer is the mean of them.
    """
    if terms is None or not price.caches:
        return (before.total - after.total) * price.input / TOKENS_PER_PRICE

    def gap(one: Sent, other: Sent, *, held: bool) -> float:
        return input_cost(one, price, terms, held=held) - input_cost(other, price, terms, held=held)

    cold = gap(before, after, held=False)
    if before.shared or after.shared:
        chance, warm = odds.seen, gap(before, after, held=True)
    else:
        # Nobody is known here to have sent it, but another replica may have: then all that lasts of it is held.
        likely = replace(before, shared=before.lasting)
        chance, warm = odds.unseen, gap(likely, replace(after, shared=min(common, after.lasting)), held=True)
    now = chance * warm + (1 - chance) * cold
    if turns <= 1:
        return now
    usual = gap(replace(before, shared=before.lasting), replace(after, shared=after.lasting), held=True)
    later = odds.seen * usual + (1 - odds.seen) * cold
    return (now + (turns - 1) * later) / turns


def worst_saving(off: Sent, ours: Sent, price: InputPrice, terms: CacheTerms | None) -> float:
    """What a request saves at worst, nano-USD, whether the provider still has both starts or neither.

    ``off`` is the prompt untouched in a world where every earlier prompt was sent untouched; ``ours`` is what is sent,
    in the world where earlier ones were sent as they were.
    """
    both = (
        input_cost(off, price, terms, held=held) - input_cost(ours, price, terms, held=held) for held in (True, False)
    )
    return min(both)


def may_be_cached(tokens: int, price: InputPrice | None, terms: CacheTerms | None) -> bool:
    """True when a provider may cache a prompt of this length."""
    return price is not None and terms is not None and price.caches and tokens >= terms.possible_tokens


def stable_edit_safe(before: int, after: int, price: InputPrice, terms: CacheTerms) -> bool:
    """Whether a start may be changed once and for all from so many tokens to fewer, whatever follows it.

    It must be long enough for the cache in both forms, or else a longer prompt that begins with it could be cached
    before the change only. And the tokens gone must be worth the most steps of the cache that they can cost: a
    provider that caches in steps of 128 may lose two of them to a cut of 130.
    """
    gone = before - after
    if after < terms.certain_tokens or gone <= 0:
        return False
    steps = -(-gone // terms.step_tokens) * terms.step_tokens if terms.step_tokens > 1 else gone
    return gone * price.input >= steps * (price.input - price.cached)


def compute_cost(micros: int, cpu_hour_nano_usd: int) -> float:
    """Nano-USD of CPU time."""
    return micros * cpu_hour_nano_usd / _MICROS_PER_HOUR


class Purse:
    """What earlier requests have saved for certain, nano-USD: what a bet may lose."""

    __slots__ = ("_most", "balance")

    def __init__(self, most: float) -> None:
        """Nothing is in it; never more than ``most`` is, so that a good month cannot pay for a bad one."""
        self._most = most
        self.balance = 0.0

    def allows(self, worst: float) -> bool:
        """True when it pays for a request that at worst saves so much; negative: costs."""
        return worst >= 0 or self.balance + worst >= 0

    def settle(self, worst: float) -> None:
        """Note what a request saved at worst."""
        # Counts here and there differ by some tokens: a gain counts for less than it is, a loss in full.
        self.balance = min(self._most, self.balance + (worst * _TRUST if worst > 0 else worst))
