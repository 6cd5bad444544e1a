"""Whether a summary of old turns is expected to pay. Pure; amounts in nano-USD.

Its price is the summarising model's: the turns that it reads, and the longest text that it may write. What it saves are
the answering model's input tokens, in each request that it is expected to stand in. The provider's prompt cache is
counted in: where it holds the start of the prompt, a token less saves the cached price only, and the first request with
the summary reads what stands behind it anew. Measured against sending the turns whole, not against dropping them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.money import TOKENS_PER_PRICE
from services.compressor.money import CacheTerms, InputPrice, Odds, Sent, expected_saving


@dataclass(frozen=True, slots=True)
class Offer:
    """A prompt in parts, tokens of the answering model."""

    front_tokens: int
    """Before the place of the summary."""
    covered_tokens: int
    """What the summary stands for."""
    summary_tokens: int
    rest_tokens: int
    """What follows."""


@dataclass(frozen=True, slots=True)
class MakingPrice:
    """Of the summarising model, nano-USD per million tokens."""

    input: int
    output: int


def making_cost(input_tokens: int, output_tokens: int, price: MakingPrice) -> float:
    """Nano-USD of one call of the summarising model."""
    return (input_tokens * price.input + output_tokens * price.output) / TOKENS_PER_PRICE


def expected_turns(past_turns: int, lasting_turns: int) -> float:
    """How many of the next ``lasting_turns`` requests will come, this one included.

    Of a talk that has gone on ``past_turns`` times nothing else is known, so that Laplace's rule of succession says how
    likely it goes on once more: (n + 1) / (n + 2).
    """
    return sum((past_turns + 1) / (past_turns + 1 + more) for more in range(lasting_turns))


def saving_a_request(
    offer: Offer, price: InputPrice, terms: CacheTerms | None, held: float, turns: float, *, again: bool = False
) -> float:
    """The mean over ``turns`` requests of what the summary saves, its making aside; negative: it costs.

    ``held`` is how likely the provider's prompt cache holds the start of the prompt, 0 to 1; ``again``: an earlier
    request had the summary as well.
    """
    whole = offer.front_tokens + offer.covered_tokens + offer.rest_tokens
    told = offer.front_tokens + offer.summary_tokens + offer.rest_tokens
    before = Sent(whole, shared=whole, lasting=whole)
    after = Sent(told, shared=told if again else offer.front_tokens, lasting=told)
    return expected_saving(before, after, offer.front_tokens, price, terms, Odds(held, held), turns)


def summary_worth(
    offer: Offer, making_nano_usd: float, price: InputPrice, terms: CacheTerms | None, held: float, turns: float
) -> float:
    """What a summary saves over all its requests, less what it costs to make; it is made where that is above 0."""
    return turns * saving_a_request(offer, price, terms, held, turns) - making_nano_usd
