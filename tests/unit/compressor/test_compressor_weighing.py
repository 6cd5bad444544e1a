"""What is taken and what is declined, with the provider's prompt cache in mind; switches, budgets, blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import TenthError
from services.compressor.choosing import fitted_chunks
from services.compressor.documents import Documents
from services.compressor.modes import HISTORY, Mode, overridden, plans
from services.compressor.money import CacheTerms, InputPrice
from services.compressor.policy import Compressed, compress
from services.compressor.prefixes import PrefixTracker
from services.compressor.prompt import ASSISTANT, SYSTEM, USER, Message, Prompt
from services.compressor.weighing import Facts, Scales
from services.compressor.weights import load

PLANS = plans(4000, 1000)
PRICE = InputPrice(1_000_000, 100_000, 1_250_000)
OPENAI, ANTHROPIC = CacheTerms(1024, 1024, 128), CacheTerms(1024, 1024, marked=True)
RULES = ("Answer politely. " * 75).strip()
UNTIDY = "Always answer politely, in the language of the customer, always.\n\n\n\n" * 40


@dataclass(frozen=True)
class Characters:
    """Every character is a token."""

    def text(self, text: str) -> int:
        return len(text)

    def message(self, message: Message) -> int:
        return 3 + sum(map(len, message.texts))

    def chunk(self, text: str) -> int:
        return 4 + len(text)

    def prompt(self, prompt: Prompt) -> int:
        return sum(map(self.message, prompt.messages)) + sum(map(self.chunk, prompt.chunks))


COUNTER = Characters()
MEMORY, FITTED = Documents(len, 1 << 20), load()


class Case:
    """One tenant's use of one model."""

    def __init__(self, terms: CacheTerms = OPENAI, price: InputPrice = PRICE) -> None:
        self.now = 0.0
        self.terms, self.price = terms, price
        self.tracker = PrefixTracker(lambda: self.now, 10_000)

    def run(
        self, prompt: Prompt, mode: Mode = Mode.BALANCED, *, watches: bool = True, budget: int | None = None
    ) -> Compressed:
        scales = Scales(Facts(self.price, self.terms, watches=watches), self.tracker, "t", prompt, COUNTER)
        plan = PLANS[mode]
        choice = fitted_chunks(prompt.messages, prompt.chunks, MEMORY, FITTED) if prompt.chunks else None
        done = compress(prompt, plan, COUNTER, choice, 0, None, scales, budget)
        scales.finish(done.prompt, "")
        return done


def talk(*texts: str, system: str = RULES) -> Prompt:
    roles = (SYSTEM, *(USER if at % 2 == 0 else ASSISTANT for at in range(len(texts))))
    return Prompt(tuple(Message(at, roles[at], (text,)) for at, text in enumerate((system, *texts))))


def test_a_short_prompt_is_cleaned_whole() -> None:
    done = Case().run(talk("How  are   you?", system="Be   brief."))
    assert [message.texts[0] for message in done.prompt.messages] == ["Be brief.", "How are you?"]
    (step,) = done.steps
    assert (step.edited_messages, step.before_token_count) == ((0, 1), done.original_token_count)
    assert step.saving_nano_usd == pytest.approx(step.removed_token_count)


def test_a_long_system_prompt_is_cleaned_once_and_stays_the_same() -> None:
    untidy = RULES + "\n\n" + UNTIDY
    first = Case().run(talk("one", system=untidy))
    assert len(first.prompt.messages[0].texts[0]) < len(untidy)
    # Another replica, another question, a longer talk: the same bytes.
    again = Case().run(talk("one", "two", "three", system=untidy))
    assert again.prompt.messages[0] == first.prompt.messages[0]
    assert again.stable_prefix_message_count == 2


def test_a_start_is_never_cut_below_the_least_length() -> None:
    untidy = UNTIDY[:1500]
    done = Case().run(talk("one", system=untidy))
    assert done.prompt.messages[0].texts == (untidy,)
    assert [step.strategy for step in done.declined] == ["cleanup"]
    assert done.steps == ()


def test_a_talk_that_the_cache_holds_keeps_its_blanks() -> None:
    done = Case().run(talk("one   two", "three   four", "five   six"))
    assert done.prompt == talk("one   two", "three   four", "five   six")


def turns(count: int, size: int = 300, system: int = 1200) -> Prompt:
    return talk(*(f"{at} " + "x" * size for at in range(2 * count + 1)), system="s" * system)


def test_history_is_shortened_where_even_written_anew_it_costs_less_than_the_whole_from_the_cache() -> None:
    case = Case()
    done = case.run(turns(25, 100, 100))
    # 4,000 of some 5,500 tokens at the full price, or all of them at a tenth: no later request could take the cut back.
    assert [step.strategy for step in done.declined] == [HISTORY]
    assert done.prompt == turns(25, 100, 100)
    # At half the price the whole is dearer from twice the length on.
    half = Case(price=replace(PRICE, cached=PRICE.input // 2, written=PRICE.input))
    assert half.run(turns(30, 100, 100)).steps == ()
    assert [step.strategy for step in half.run(turns(45, 100, 100)).steps] == [HISTORY]
    # Where a cached token costs as much as any other, nothing can be lost.
    free = Case(price=replace(PRICE, cached=PRICE.input, written=PRICE.input))
    assert [step.strategy for step in free.run(turns(25, 100, 100)).steps] == [HISTORY]


CHUNKS = tuple(
    f"Passage {number} about {topic}. " * 12 for number, topic in enumerate(["tax", "tea", "law", "sea"] * 2)
)


def with_chunks(asked: str, chunks: tuple[str, ...] = CHUNKS) -> Prompt:
    return replace(talk(asked), chunks=chunks)


def test_fresh_chunks_are_cut_once_it_is_known_that_they_do_not_come_again() -> None:
    case = Case()
    cuts = []
    for at in range(6):
        case.now += 10
        done = case.run(with_chunks(f"What of tea {at}?", tuple(f"{at} {chunk}" for chunk in CHUNKS)))
        cuts.append(sum(map(len, done.prompt.chunks)) / sum(map(len, CHUNKS)))
    assert cuts[0] > 1  # Whole, with its number.
    assert cuts[-1] < 0.9
    assert Case().run(with_chunks("What of tea?"), watches=False).prompt.chunks != CHUNKS


def test_a_document_that_is_asked_about_again_and_again_stays_whole() -> None:
    case = Case()
    for at in range(12):
        case.now += 10
        done = case.run(with_chunks(f"What of tea {at}?"))
    assert done.prompt.chunks == CHUNKS
    (declined,) = done.declined
    assert declined.strategy == "retrieval"
    # Where only marked places are cached, its chunks are not among them.
    marked = Case(ANTHROPIC)
    assert marked.run(with_chunks("What of tea?")).prompt.chunks != CHUNKS


def test_strategies_are_switched() -> None:
    prompt = talk("How  are   you?", system="Be   brief.")
    off = overridden(PLANS[Mode.SAFE], {"cleanup": False}, PLANS)
    assert compress(prompt, off, COUNTER, None, 0, None).prompt == prompt
    alone = overridden(PLANS[Mode.OFF], {"cleanup": True, "history": False}, PLANS)
    assert compress(prompt, alone, COUNTER, None, 0, None).token_count < COUNTER.prompt(prompt)
    assert overridden(PLANS[Mode.OFF], {"cleanup": False}, PLANS) == PLANS[Mode.OFF]
    assert overridden(PLANS[Mode.SAFE], {"history": True}, PLANS).history_tokens == 4000
    with pytest.raises(TenthError) as caught:
        overridden(PLANS[Mode.SAFE], {"magic": True}, PLANS)
    assert (caught.value.reason, caught.value.field) == ("UNKNOWN_STRATEGY", "strategy_overrides")


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=9), st.integers(1, 2500), st.integers(0, 8))
def test_a_budget_holds_or_says_by_how_much_it_does_not(sizes: list[int], budget: int, chunks: int) -> None:
    prompt = replace(talk(*("x" * size for size in sizes), system="rule"), chunks=CHUNKS[:chunks])
    protected = [prompt.messages[0], *prompt.messages[len(prompt.messages) - 1 - (len(sizes) + 1) % 2 :]]
    least = sum(map(COUNTER.message, protected))
    if budget >= least:
        assert Case().run(prompt, budget=budget).token_count <= budget
        return
    with pytest.raises(TenthError) as caught:
        Case().run(prompt, budget=budget)
    assert caught.value.reason == "BUDGET_TOO_SMALL"
    count, over = (int(caught.value.metadata[key]) for key in ("input_token_count", "over_token_count"))
    assert count - over == budget
    assert count >= least


def test_a_date_in_the_instructions_is_pointed_out_and_stays() -> None:
    prompt = talk("hi", system="It is 2026-11-26. " + RULES)
    done = Case().run(prompt)
    assert done.prompt == prompt
    (hint,) = done.declined
    assert hint.strategy == "order"
    assert "2026-11-26" in hint.reason


def test_a_million_tokens_are_weighed_in_no_time() -> None:
    prompt = talk(*("word " * 2000 for _ in range(401)), system="rule")
    done = Case().run(prompt, Mode.SAFE)
    assert done.token_count == done.original_token_count > 4_000_000
