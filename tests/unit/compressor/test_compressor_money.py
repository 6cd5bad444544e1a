"""Money rules by exhaustion, and played out: what is spent is never more than with nothing cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.compressor_money import STYLES, Provider, Renderer, Style, TokenCounter, Turn, arrivals, play_ours
from services.compressor.history_weights import history_settings
from services.compressor.modes import Mode, plans
from services.compressor.money import (
    CacheTerms,
    InputPrice,
    Odds,
    Purse,
    Sent,
    compute_cost,
    expected_saving,
    input_cost,
    may_be_cached,
    stable_edit_safe,
    worst_saving,
)
from services.compressor.prompt import ASSISTANT, SYSTEM, USER, Message, Prompt
from services.compressor.weighing import Facts

PRICE = InputPrice(1_000_000, 100_000, 1_250_000)
TERMS = CacheTerms(1024, 1024)
PROBABILITIES = [each / 20 for each in range(20)]
PLANS = plans(120, 60)
CHOOSING = plans(240, 120, history_settings())
"""Messages are chosen by relevance, as shipped."""
SMALL = [
    Style(each.name, each.price, max(8, each.minimum_tokens // 32), max(1, each.step_tokens // 32), each.points)
    for each in STYLES
]
"""The providers with a cache of small prompts, so that small talks cross every border."""


def test_fewer_tokens_can_cost_more() -> None:
    """The case that started it: 1,100 cached tokens are cheaper than 900 that nothing caches."""
    cached, short = Sent(1100, 1100, 1100), Sent(900, 900, 900)
    assert input_cost(cached, PRICE, TERMS, held=True) == pytest.approx(110)
    assert input_cost(short, PRICE, TERMS, held=True) == pytest.approx(900)
    assert expected_saving(cached, short, 0, PRICE, TERMS, Odds(1.0, 0.0)) < 0
    assert not stable_edit_safe(1100, 900, PRICE, TERMS)


@pytest.mark.parametrize(("factor", "hit"), [(1.5, 0.5), (2.3, 0.7), (4.7, 0.9), (6.4, 0.95)])
def test_a_prefix_cut_anew_each_time_pays_from_the_known_factor_on(factor: float, hit: float) -> None:
    """1/k < 0.1 h + 1.25 (1 - h), where what is cut is not even written."""

    def saving(k: float) -> float:
        before = Sent(100_000, 100_000, 100_000)
        after = Sent(round(100_000 / k), 0, 0)
        return expected_saving(before, after, 0, PRICE, TERMS, Odds(hit, 0.0))

    assert saving(factor * 0.9) < 0 < saving(factor * 1.1)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_stable_edit_called_safe_never_costs_whatever_follows_it(style: Style) -> None:
    safe = 0
    for before in range(64, 6000, 97):
        for gone in (1, 20, 63, 64, 100, 115, 116, 128, 129, 250, 1152, 2000):
            after = before - gone
            if after < 0 or not stable_edit_safe(before, after, style.price, style.terms):
                continue
            safe += 1
            for talk, held in itertools.product((0, 1, 60, 127, 128, 500, 3000), (True, False)):
                one, other = (Sent(size + talk + 50, size + talk, size + talk) for size in (before, after))
                spent = [input_cost(each, style.price, style.terms, held=held) for each in (one, other)]
                assert spent[1] <= spent[0] + 1e-9, (before, gone, talk, held)
    assert safe > 50


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_a_cut_behind_what_is_cached_saves_at_every_probability(style: Style) -> None:
    for shared, tail, hit in itertools.product((0, 1000, 1024, 5000), (1, 100, 4000), PROBABILITIES):
        before, after = (Sent(shared + size, shared, shared) for size in (tail, tail // 2))
        saving = expected_saving(before, after, shared, style.price, style.terms, Odds(hit, hit))
        assert saving == pytest.approx((tail - tail // 2) * style.price.input / 1e6)
        assert worst_saving(before, after, style.price, style.terms) == pytest.approx(saving)


sizes = st.integers(0, 10_000)


@given(st.sampled_from(STYLES), st.lists(sizes, min_size=6, max_size=6), st.sampled_from(PROBABILITIES))
def test_the_worst_is_the_worse_of_both_states(style: Style, them: list[int], hit: float) -> None:
    """No probability makes a request save less than ``worst_saving`` says."""
    off, ours = (
        Sent(sum(part), sum(part[:1]), sum(part[:2])) for part in (them[:3], them[3:])
    )  # Shared is within lasting, and that within the whole.
    worst = worst_saving(off, ours, style.price, style.terms)
    for held in (True, False):
        now = input_cost(off, style.price, style.terms, held=held) - input_cost(
            ours, style.price, style.terms, held=held
        )
        assert now >= worst
    assert hit * worst + (1 - hit) * worst <= hit * now + (1 - hit) * max(now, worst) + 1e-6


@given(st.lists(st.floats(-1e6, 1e6), max_size=30))
def test_the_purse_pays_for_every_bet(amounts: list[float]) -> None:
    purse = Purse(1e9)
    for amount in amounts:
        if purse.allows(amount):
            purse.settle(amount)
        assert purse.balance >= 0


def test_without_a_cache_a_token_is_a_token() -> None:
    free = InputPrice(1_000_000, 1_000_000, 1_000_000)
    for price, terms in ((PRICE, None), (free, TERMS)):
        assert expected_saving(Sent(2000, 2000, 2000), Sent(500), 0, price, terms, Odds(1, 1)) == 1500
        assert not may_be_cached(10**6, price, terms)
    assert not may_be_cached(1023, PRICE, TERMS)
    assert may_be_cached(1024, PRICE, TERMS)


def test_compute_is_priced_by_the_hour() -> None:
    assert compute_cost(3_600_000_000, 40_000_000) == 40_000_000
    assert compute_cost(15_000, 40_000_000) == pytest.approx(166.67, abs=0.01)


# Played out against a simulated provider.

words = st.integers(0, 40)
talks = st.lists(
    st.tuples(st.sampled_from(["", "a b c d", "x  " * 30, "rule one. " * 12]), st.lists(words, min_size=1, max_size=7)),
    min_size=1, max_size=4,
)  # fmt: skip


def _turns(talks_of: list[tuple[str, list[int]]], chunks: str) -> list[Turn]:
    turns = []
    for number, (system, said) in enumerate(talks_of):
        messages = [Message(0, SYSTEM, (system + f"\n\n\n\nBe brief.   \n{system}",))]
        for at, count in enumerate(said):
            role = USER if at % 2 == 0 else ASSISTANT
            messages.append(Message(len(messages), role, (f"t{number}x{at} " + "word  " * count,)))
            if role == USER:
                turns.append(Turn("test", number, Prompt(tuple(messages), _chunks(chunks, number, at))))
    return turns


def _chunks(kind: str, talk: int, turn: int) -> tuple[str, ...]:
    if kind == "none":
        return ()
    name = f"{talk}" if kind == "fresh" else "all"
    name += f"-{turn}" if kind == "fresh" else ""
    return tuple(f"chunk {name} {number} " + "fact " * 9 for number in range(8))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    talks,
    st.sampled_from(["none", "fresh"]),
    st.sampled_from(SMALL),
    st.sampled_from(PROBABILITIES),
    st.sampled_from([Mode.SAFE, Mode.BALANCED, Mode.AGGRESSIVE]),
)
def test_what_is_spent_is_never_more_than_with_nothing_cut(
    talks_of: list[tuple[str, list[int]]], chunks: str, style: Style, probability: float, mode: Mode
) -> None:
    turns = _turns(talks_of, chunks)
    times = arrivals(turns, probability)
    renderer = Renderer(lambda text: [hash(word) for word in text.split()], 1)
    provider = Provider(style)
    off = sum(provider.bill(renderer(turn.prompt), now)[0] for turn, now in zip(turns, times, strict=True))
    ours = play_ours(turns, times, renderer, TokenCounter(renderer), PLANS[mode], style)
    assert ours.total <= off + 1e-6


@pytest.mark.parametrize("probability", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("style", SMALL, ids=lambda style: style.name)
@pytest.mark.parametrize("mode", [Mode.SAFE, Mode.BALANCED, Mode.AGGRESSIVE])
def test_a_long_talk_never_costs_more_than_untouched(mode: Mode, style: Style, probability: float) -> None:
    """From its first request to each later one; its history is shortened long before it ends."""
    turns = _turns([("rule one. " * 12, [(7 * at) % 23 + 5 for at in range(31)])], "none")
    times = arrivals(turns, probability)
    renderer = Renderer(lambda text: [hash(word) for word in text.split()], 1)
    counter, provider, off = TokenCounter(renderer), Provider(style), 0.0
    for at, (turn, now) in enumerate(zip(turns, times, strict=True), 1):
        off += provider.bill(renderer(turn.prompt), now)[0]
        if at % 4 == 0:
            ours = play_ours(turns[:at], times[:at], renderer, counter, CHOOSING[mode], style)
            assert ours.total <= off + 1e-6, at
    if mode is not Mode.SAFE and style.price.cached * 2 >= style.price.input:
        assert ours.total < 0.99 * off  # It was shortened.


@pytest.mark.parametrize("probability", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("style", SMALL, ids=lambda style: style.name)
def test_a_wrong_belief_costs_at_most_one_document(style: Style, probability: float) -> None:
    """Believing that nothing is ever cached; and that everything is, at once and for ever."""
    turns = _turns([("rule one. " * 12, [5] * 9)] * 4, "again")
    times = arrivals(turns, probability)
    renderer = Renderer(lambda text: [hash(word) for word in text.split()], 1)
    provider = Provider(style)
    bills = [provider.bill(renderer(turn.prompt), now)[0] for turn, now in zip(turns, times, strict=True)]
    ever = Facts(style.price, CacheTerms(1, 1, 1, 1e9))
    cautious = play_ours(turns, times, renderer, TokenCounter(renderer), PLANS[Mode.BALANCED], style, ever)
    assert cautious.total <= sum(bills) + max(bills)
