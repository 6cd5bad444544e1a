"""The summary strategy for one request: worth first, made once, waited for so long, failure is plain truncation."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mesh import deadlines
from services.compressor.modes import SUMMARY, Mode, overridden, plans
from services.compressor.money import CacheTerms, InputPrice
from services.compressor.prompt import ASSISTANT, SYSTEM, USER, Message, Prompt
from services.compressor.summarising import due
from services.compressor.summary import NEW, SummaryAnswer, SummaryRequest, SummarySettings, SummaryStore
from services.compressor.summary_step import Case, Summaries, Told
from services.compressor.summary_worth import MakingPrice, Offer, expected_turns, making_cost, summary_worth

SETTINGS = SummarySettings(keep_turn_count=2, step_turn_count=2, least_covered_tokens=10, most_output_tokens=20)
DEAR, CHEAP = InputPrice(5_000_000_000, 5_000_000_000, 5_000_000_000), MakingPrice(100_000_000, 400_000_000)
OPENAI = CacheTerms(1024, 1024, 128)
CACHED = InputPrice(2_500_000_000, 250_000_000, 2_500_000_000)
TEXT = "We spoke at length of the matter, and of this and that beside it, as one does"


class Counts:
    """A token for every four characters."""

    def text(self, text: str) -> int:
        return len(text) // 4

    def message(self, message: Message) -> int:
        return 4 + sum(map(len, message.texts)) // 4

    def chunk(self, text: str) -> int:
        return 4 + len(text) // 4

    def prompt(self, prompt: Prompt) -> int:
        return 3 + sum(map(self.message, prompt.messages)) + sum(map(self.chunk, (*prompt.chunks, *prompt.tools)))


class Model:
    """Answers with what it is given, once it may, and keeps what it was asked."""

    def __init__(self, *answers: SummaryAnswer) -> None:
        self.answers = list(answers)
        self.asked: list[SummaryRequest] = []
        self.time_left: list[float | None] = []
        self.may = asyncio.Event()
        self.may.set()
        self.began = asyncio.Event()

    async def summarize(self, request: SummaryRequest) -> SummaryAnswer:
        self.asked.append(request)
        self.began.set()
        self.time_left.append(deadlines.remaining())
        await self.may.wait()
        return self.answers.pop(0)


def chat(turns: int, text: str = TEXT) -> Prompt:
    talk = [Message(0, SYSTEM, ("Be kind.",))]
    for turn in range(turns):
        talk += [Message(0, USER, (f"{text}, part {turn}.",)), Message(0, ASSISTANT, (f"{text}, answer {turn}.",))]
    talk.append(Message(0, USER, ("And now?",)))
    return Prompt(tuple(replace(message, index=at) for at, message in enumerate(talk)))


def case(turns: int = 5, scope: str = "acme", **more: object) -> Case:
    made = Case(chat(turns), Counts(), scope, DEAR, None, 0.0, "small", CHEAP)
    return replace(made, **more)  # type: ignore[arg-type]  # Fields by name.


def summaries(now: list[float] | None = None) -> Summaries:
    clock = now or [0.0]
    return Summaries(SETTINGS, SummaryStore(10_000), 60.0, lambda: clock[0])


async def apply(made: Summaries, asked: Case, model: Model, wait: float = 5.0) -> Told:
    return await made.finish(made.decide(asked), model, wait)


async def test_a_summary_is_made_once_and_stands_while_the_conversation_grows() -> None:
    made, model = summaries(), Model(SummaryAnswer("They met.", "", ("item",)))
    first = await apply(made, case(5), model)
    assert first.overheads == ("item",)
    assert [message.role for message in first.prompt.messages[:3]] == [SYSTEM, SYSTEM, USER]
    assert first.prompt.messages[1] == Message(NEW, SYSTEM, ("Summary of the earlier conversation:\nThey met.",))
    (step,) = first.steps
    counts = Counts()
    assert step.removed_token_count == counts.prompt(chat(5)) - counts.prompt(first.prompt)
    assert step.cut_messages == tuple(range(1, 9))
    assert step.saving_nano_usd > 0
    later = await apply(made, case(6), model)
    assert later.overheads == ()
    assert later.prompt.messages[:3] == first.prompt.messages[:3]
    assert len(model.asked) == 1


async def test_tenants_do_not_share() -> None:
    made, model = summaries(), Model(SummaryAnswer("They met."), SummaryAnswer("Others met."))
    await apply(made, case(scope="acme"), model)
    other = await apply(made, case(scope="globex"), model)
    assert "Others met." in other.prompt.messages[1].texts[0]
    assert len(model.asked) == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (SummaryAnswer("", "small failed (UNREACHABLE)", ("item",)), "small failed (UNREACHABLE)"),
        (SummaryAnswer(" \n"), "the model said nothing"),
        (SummaryAnswer("long " * 500, "", ("item",)), "the summary is no shorter than what it stands for"),
    ],
)
async def test_failure_leaves_the_prompt_and_is_billed(answer: SummaryAnswer, reason: str) -> None:
    made, model = summaries(), Model(answer)
    told = await apply(made, case(), model)
    assert told.prompt == case().prompt
    assert told.steps == ()
    assert [step.reason for step in told.declined] == [reason]
    assert told.overheads == answer.overheads
    again = await apply(made, case(), model)  # Not asked again at once.
    assert [step.reason for step in again.declined] == ["it failed before"]
    assert again.overheads == ()
    assert len(model.asked) == 1


async def test_a_model_that_failed_is_asked_again_later_and_a_useless_summary_never() -> None:
    now = [0.0]
    made = summaries(now)
    model = Model(SummaryAnswer("", "down"), SummaryAnswer("", "cut off", ("item",), useless=True))
    await apply(made, case(), model)
    now[0] = 61.0
    assert (await apply(made, case(), model)).overheads == ("item",)
    now[0] = 1e9
    await apply(made, case(), model)
    assert len(model.asked) == 2


async def test_a_failure_leaves_the_summary_before() -> None:
    made, model = summaries(), Model(SummaryAnswer("They met."), SummaryAnswer("", "down", ("item",)))
    first = await apply(made, case(4), model)
    grown = await apply(made, case(6), model)
    assert grown.prompt.messages[1] == first.prompt.messages[1]
    assert [step.reason for step in grown.declined] == ["down"]
    assert grown.steps[0].cut_messages == first.steps[0].cut_messages
    assert grown.overheads == ("item",)


async def test_a_late_summary_serves_the_next_turn_and_whoever_waits_along_does_not_pay() -> None:
    made, model = summaries(), Model(SummaryAnswer("They met.", "", ("item",)))
    model.may.clear()
    deadlines.set_remaining(0.5)
    late = await apply(made, case(), model, wait=0.0)
    assert late.prompt == case().prompt
    assert late.overheads == ()
    assert "later turn" in late.declined[0].reason
    along = asyncio.create_task(apply(made, case(), model))
    await asyncio.sleep(0)
    model.may.set()
    told = await along
    assert told.steps
    assert told.overheads == ()
    assert len(model.asked) == 1
    assert model.time_left == [None]  # The request's deadline is not the summary's.


async def test_a_request_that_is_cancelled_leaves_its_summary_to_the_next() -> None:
    made, model = summaries(), Model(SummaryAnswer("They met."))
    model.may.clear()
    asking = asyncio.create_task(apply(made, case(), model))
    await model.began.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    model.may.set()
    assert (await apply(made, case(), model)).steps
    assert len(model.asked) == 1
    await made.close()


async def test_close_stops_what_is_being_made() -> None:
    made, model = summaries(), Model(SummaryAnswer("They met."))
    model.may.clear()
    await apply(made, case(), model, wait=0.0)
    await made.close()
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_a_look_asks_no_model_and_says_so() -> None:
    made, model = summaries(), Model(SummaryAnswer("They met."))
    looked = made.decide(case(), preview=True)
    assert looked.plan is None
    assert "asks no model" in looked.told.declined[0].reason
    await apply(made, case(), model)
    assert made.decide(case(), preview=True).told.steps  # One that is there is shown.


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (case(2), "too little in old turns"),
        (case(price=None), "has no price"),
        (case(making=None), "has no price"),
        (case(window_tokens=100), "do not fit the window of small"),
        (case(making=MakingPrice(50_000_000_000, 50_000_000_000)), "USD more than it saves"),
        (case(price=InputPrice(1_000_000, 1_000_000, 1_000_000)), "USD more than it saves"),
    ],
)
def test_what_does_not_pay_is_not_made_and_says_so(asked: Case, reason: str) -> None:
    decision = summaries().decide(asked)
    assert decision.plan is None
    (step,) = decision.told.declined
    assert step.strategy == "summary"
    assert reason in step.reason


@pytest.mark.parametrize(
    ("mode", "also", "switch", "over"),
    [
        (Mode.BALANCED, [], None, None),
        (Mode.BALANCED, [SUMMARY], None, 8000),
        (Mode.AGGRESSIVE, [SUMMARY], None, 3000),
        (Mode.AGGRESSIVE, [], True, 3000),
        (Mode.BALANCED, [SUMMARY], False, None),
        (Mode.OFF, [SUMMARY], None, None),
        (Mode.OFF, [], True, 8000),
        (Mode.SAFE, [], True, 8000),
    ],
)
def test_it_runs_where_it_is_turned_on(mode: Mode, also: list[str], switch: bool | None, over: int | None) -> None:
    modes = plans(8000, 3000, None, also)
    plan = overridden(modes[mode], {} if switch is None else {SUMMARY: switch}, modes)
    assert plan.runs(SUMMARY) == (over is not None)
    if over is not None:
        assert plan.summary_over_tokens == over
    assert modes[Mode.SAFE].history_tokens is None, "safe drops no turn that fits the window"


@pytest.mark.parametrize(
    ("over", "room", "is_due"),
    [(None, None, False), (10_000, 10_000, False), (100, None, True), (None, 100, True), (10_000, 100, True)],
)
def test_it_is_due_over_the_budget_or_the_room(over: int | None, room: int | None, is_due: bool) -> None:
    plan = replace(plans(8000, 3000)[Mode.SAFE], summary_over_tokens=over)
    assert due(chat(5), plan, Counts(), room) is is_due


OFFER = Offer(front_tokens=500, covered_tokens=6000, summary_tokens=300, rest_tokens=2000)


@pytest.mark.parametrize(
    ("offer", "making", "price", "terms", "held", "turns", "worth_usd"),
    [
        # Without a cache: 5,700 tokens at $5 a million, once and four times, less the making.
        (OFFER, 0, DEAR, None, 0.0, 1, 0.0285),
        (OFFER, 1_000_000, DEAR, None, 0.0, 4, 0.113),
        (OFFER, 200_000_000, DEAR, None, 0.0, 4, -0.086),
        # A cold cache saves as much: 5,700 tokens at $2.50.
        (OFFER, 0, CACHED, OPENAI, 0.0, 1, 0.01425),
        # A warm one: 8,448 tokens were read at $0.25, 52 paid; the front of 500 is too short to be read.
        (OFFER, 0, CACHED, OPENAI, 1.0, 1, -0.004758),
        # Later 2,688 of 2,800 are read: 5,760 cached tokens less, 60 uncached ones more. Four turns do not pay it back.
        (OFFER, 0, CACHED, OPENAI, 1.0, 4, -0.000888),
        (OFFER, 0, CACHED, OPENAI, 1.0, 5, 0.000402),
        # Nothing is saved by a summary that is as long as what it stands for.
        (Offer(500, 300, 300, 2000), 1000, DEAR, None, 0.0, 4, -0.000001),
    ],
)
def test_worth(
    offer: Offer,
    making: float,
    price: InputPrice,
    terms: CacheTerms | None,
    held: float,
    turns: float,
    worth_usd: float,
) -> None:
    worth = summary_worth(offer, making, price, terms, held, turns)
    assert worth / 1e9 == pytest.approx(worth_usd, abs=1e-9)


def test_the_price_of_making_and_the_turns_to_come() -> None:
    assert making_cost(8000, 300, MakingPrice(150_000_000, 600_000_000)) == 1_380_000
    assert expected_turns(0, 1) == 1
    assert expected_turns(9, 4) == pytest.approx(1 + 10 / 11 + 10 / 12 + 10 / 13)
