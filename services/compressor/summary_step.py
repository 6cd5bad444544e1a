"""The ``summary`` strategy: decides for one request, and makes each summary once.

A summary that is there is used. One that is not is made where ``summary_worth.py`` says that it pays, is waited for at
most so long, and made to its end for the next turn when it is late; until then, and when it fails, the one before
stands, or none: then ``history`` truncates.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace

from mesh import deadlines
from services.compressor.modes import SUMMARY
from services.compressor.money import CacheTerms, InputPrice
from services.compressor.prompt import SYSTEM, Message, Prompt
from services.compressor.summary import (
    Summarizer,
    SummaryAnswer,
    SummaryPlan,
    SummarySettings,
    SummaryStore,
    plan_summary,
    with_summary,
)
from services.compressor.summary_worth import (
    MakingPrice,
    Offer,
    expected_turns,
    making_cost,
    saving_a_request,
    summary_worth,
)
from services.compressor.work import Compressed, Counter, Step

_MOST_FAILED = 10_000
_SPARE = 1.25
"""The summarising model may count that much more tokens than the answering one, by whose tokenizer both are counted."""


@dataclass(frozen=True, slots=True)
class Case:
    """A request whose history is over its budget, and what is known for weighing a summary of it."""

    prompt: Prompt
    counter: Counter
    scope: str
    """Whose it is: summaries are shared within a scope alone."""
    price: InputPrice | None
    """Of the answering model."""
    terms: CacheTerms | None
    held: float
    """How likely the provider's prompt cache holds the start of the prompt, 0 to 1."""
    model: str
    """That makes summaries."""
    making: MakingPrice | None
    window_tokens: int = 0
    """Of that model; 0: not known."""


@dataclass(frozen=True, slots=True)
class Told:
    """The prompt with its summary, or as it was, and why."""

    prompt: Prompt
    steps: tuple[Step, ...] = ()
    declined: tuple[Step, ...] = ()
    overheads: tuple[object, ...] = ()
    """What was spent, whether there is a summary or not."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do without a model, and the plan of the summary to ask for; None: none."""

    case: Case
    told: Told
    plan: SummaryPlan | None = None
    turns: float = 1.0


class Summaries:
    """Makes and keeps summaries."""

    def __init__(
        self, settings: SummarySettings, store: SummaryStore, pause_seconds: float, now: Callable[[], float]
    ) -> None:
        """One whose model failed is tried again after ``pause_seconds``; one that was no use, never."""
        self._settings = settings
        self._store = store
        self._pause_seconds = pause_seconds
        self._now = now
        self._running: dict[str, asyncio.Task[SummaryAnswer]] = {}
        self._failed: OrderedDict[str, float] = OrderedDict()

    def decide(self, case: Case, *, preview: bool = False) -> Decision:
        """What a request gets at once, and whether a summary is worth asking for; a preview never asks."""
        messages = case.prompt.messages
        known = self._store.look if preview else self._store.get
        plan = plan_summary(messages, self._settings, case.counter.message, known, case.scope)
        if not plan.digest:
            return Decision(case, _declined(case, Told(case.prompt), "too little in old turns to be worth a call"))
        if plan.text:
            return Decision(case, self._with(case, Told(case.prompt), plan, plan.text, "kept"))
        told = Told(case.prompt)
        if plan.older is not None:
            told = self._with(case, told, plan.older, plan.older.text, "the one before")
        why, turns = self._why_not(case, told.prompt, plan)
        if why or preview:
            return Decision(case, _declined(case, told, why or f"a look asks no model: {case.model} would be asked"))
        return Decision(case, told, plan, turns)

    async def finish(self, decision: Decision, summarizer: Summarizer, wait_seconds: float) -> Told:
        """The prompt with the summary that was decided on, waited for at most ``wait_seconds``."""
        case, told, plan = decision.case, decision.told, decision.plan
        if plan is None:
            return told
        # Another request may have had it made, or failed, since it was decided on.
        if text := self._store.get(plan.digest):
            return self._with(case, Told(case.prompt), plan, text, "kept")
        if self._failed.get(plan.digest, -math.inf) > self._now() and plan.digest not in self._running:
            return _declined(case, told, "it failed before")
        task, own = self._running.get(plan.digest), False
        if task is None:
            # As the request that asks, for whom it is recorded, but with a deadline of its own.
            context = copy_context()
            context.run(deadlines.set_remaining, None)
            own, task = True, asyncio.create_task(self._make(case, plan, summarizer), context=context)
            self._running[plan.digest] = task
            task.add_done_callback(lambda _: self._running.pop(plan.digest, None))
        # Not cancelled with the request: it is paid for, and the next turn needs it.
        done, _ = await asyncio.wait({task}, timeout=max(0.0, wait_seconds))
        if not done:
            return _declined(case, told, f"{case.model} is not done yet: the summary will serve a later turn")
        answer = task.result()
        # Who asked pays; another request that waited along does not.
        overheads = answer.overheads if own else ()
        if answer.failure:
            return replace(_declined(case, told, answer.failure), overheads=overheads)
        found = self._with(case, Told(case.prompt), plan, answer.text, f"by {case.model}", decision.turns)
        return replace(found, overheads=overheads)

    async def close(self) -> None:
        """Stop what is being made."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, case: Case, plan: SummaryPlan, summarizer: Summarizer) -> SummaryAnswer:
        assert plan.request is not None
        answer = await summarizer.summarize(plan.request)
        text = answer.text.strip()
        failure = answer.failure or ("" if text else "the model said nothing")
        messages = case.prompt.messages
        if not failure and _tokens(case, with_summary(messages, plan, text)) >= _tokens(case, messages):
            failure = "the summary is no shorter than what it stands for"
        if failure:
            # What was paid for once and was no use is not paid for again at every turn.
            useless = answer.useless or not answer.failure
            self._failed[plan.digest] = math.inf if useless else self._now() + self._pause_seconds
            while len(self._failed) > _MOST_FAILED:
                self._failed.popitem(last=False)
            return SummaryAnswer("", failure, answer.overheads)
        return SummaryAnswer(self._store.keep(plan.digest, text), "", answer.overheads)

    def _why_not(self, case: Case, base: Prompt, plan: SummaryPlan) -> tuple[str, float]:
        """Why no summary is asked for (empty: one is), and in how many requests it is expected to stand."""
        if case.price is None or case.making is None:
            return "what it costs or saves is not known: a model has no price", 1.0
        if self._failed.get(plan.digest, -math.inf) > self._now():
            return "it failed before", 1.0
        assert plan.request is not None
        turns = expected_turns(plan.turn_count - 1, plan.lasting_turn_count)
        count, most = case.counter.text, plan.request.most_output_tokens
        read = count(plan.request.system) + count(plan.request.user)
        if case.window_tokens and read * _SPARE + most > case.window_tokens:
            return f"the old turns do not fit the window of {case.model}", 1.0
        cost = making_cost(read, most, case.making)
        worth = summary_worth(self._offer(case, base, plan), cost, case.price, case.terms, case.held, turns)
        if worth > 0:
            return "", turns
        return f"a summary by {case.model} would cost {-worth / 1e9:.6f} USD more than it saves", turns

    def _offer(self, case: Case, base: Prompt, plan: SummaryPlan, text: str | None = None) -> Offer:
        """What a summary changes of ``base``, the prompt that would be sent without it."""
        counter, told = case.counter, with_summary(case.prompt.messages, plan, text or "")
        size = self._settings.most_output_tokens if text is None else 0
        left = sum(map(counter.message, told)) + size
        now = sum(map(counter.message, base.messages))
        front = sum(map(counter.chunk, base.tools))
        for message in case.prompt.messages:
            if message.role != SYSTEM:
                break
            front += counter.message(message)
        place = next(at for at, message in enumerate(told) if message.index < 0)
        summary = counter.message(told[place]) + size
        rest = max(0, counter.prompt(base) - now + left - front - summary)
        return Offer(front, max(0, now - left + summary), summary, rest)

    def _with(self, case: Case, told: Told, plan: SummaryPlan, text: str, how: str, turns: float = 0.0) -> Told:
        """The prompt with a summary that is there; as it was where that is not shorter for the answering model.

        ``turns``: how many requests a new one will stand in; 0: an earlier request had it.
        """
        prompt = replace(case.prompt, messages=with_summary(case.prompt.messages, plan, text))
        before, after = case.counter.prompt(case.prompt), case.counter.prompt(prompt)
        if after >= before:
            return _declined(case, told, "the summary is no shorter than what it stands for")
        saving = 0.0
        if case.price is not None:
            offer = self._offer(case, case.prompt, plan, text)
            saving = saving_a_request(offer, case.price, case.terms, case.held, turns or 1.0, again=not turns)
        reason = f"{len(plan.covered)} older messages as a summary, {how}"
        cut = tuple(case.prompt.messages[at].index for at in plan.covered)
        step = Step(SUMMARY, before - after, reason, before, saving, cut)
        return replace(told, prompt=prompt, steps=(step,))


def with_summary_step(done: Compressed, told: Told) -> Compressed:
    """What became of the prompt, the summary included."""
    before = told.steps[0].before_token_count if told.steps else done.original_token_count
    return replace(
        done,
        original_token_count=before,
        steps=(*told.steps, *done.steps),
        declined=(*told.declined, *done.declined),
    )


def _tokens(case: Case, messages: Sequence[Message]) -> int:
    return sum(map(case.counter.message, messages))


def _declined(case: Case, told: Told, reason: str) -> Told:
    return replace(told, declined=(*told.declined, Step(SUMMARY, 0, reason, case.counter.prompt(told.prompt))))
