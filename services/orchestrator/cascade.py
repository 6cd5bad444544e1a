"""A cascade: the cheap model's whole answer is checked by the router, and a stronger model asked if it does not pass.

    hops 2 to 4 as always -> 5 first answer, held back -> router.CheckAnswer -> accepted: given
                                                          rejected: 3 to 5 again for the escalation model

Both attempts are billed: until the first answer is given, what it cost stands on the receipt as an overhead of kind
"cascade", whatever becomes of the request. The first answer is better than none: it is given, marked, when it could
not be checked, when the budget refuses the second attempt and when the second attempt fails before its first piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from tenth.ledger.v1 import ledger_pb2
from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh import deadlines
from mesh.errors import Code, TenthError
from services.orchestrator.call import DEGRADED, Call, Generated, Prompt, Route
from services.orchestrator.choice import refused
from services.orchestrator.generation import Emit, Generation, whole_delta
from services.orchestrator.steps import Steps

_KEPT_SECONDS, _KEPT_SHARE = 0.25, 0.1
"""Most of the deadline that is kept back for giving the first answer, and the share of what is left."""

Start = Callable[[str], None]
"""Tells a stream which model answers, before its first piece."""


class Cascade:
    """Answers with the first model of a plan, or with its second."""

    def __init__(self, steps: Steps, generation: Generation) -> None:
        self._steps = steps
        self._generation = generation

    async def answer(
        self,
        call: Call,
        route: Route,
        prompt: Prompt,
        embedding: chat_pb2.Embedding | None,
        start: Start,
        emit: Emit,
    ) -> tuple[Route, Prompt, Generated]:
        """The answer that is given, with its model and prompt. Funds for the first model are reserved.

        Raises what the first attempt raises; and what the second one does when the caller has pieces of it already.
        """
        plan = route.cascade
        assert plan is not None
        first = await self._first(call, route, prompt, emit, plan.top_logprobs_count)
        spent = receipt_pb2.OverheadItem(
            kind="cascade",
            model=route.model,
            usage=first.completion.usage,
            attempt=first.attempt,
            quantized=first.quantized,
        )
        call.overheads.append(spent)
        with _time_to_answer():
            accepted = await self._steps.check(call, plan, first.completion)
            if accepted is False:
                call.escalated_from = route.model
                try:
                    return await self._escalate(call, plan, embedding, start, emit)
                except TenthError as error:
                    if call.began:
                        raise
                    call.skip("cascade", DEGRADED, f"first answer, not {plan.escalation_model}'s: {error.reason}")
        call.unaccepted = not accepted
        call.overheads.remove(spent)
        _keep_logprobs(first.completion, call.request.sampling.top_logprobs_count)
        if call.streaming:
            start(route.model)
            delta = whole_delta(first.completion)
            call.note_sent(delta.text, delta)
            emit(delta)
        return route, prompt, first

    async def _first(self, call: Call, route: Route, prompt: Prompt, emit: Emit, logprobs: int) -> Generated:
        try:
            return await self._generation.generate(call, route, prompt, emit, logprobs)
        except TenthError as error:
            if error.code is not Code.INVALID_ARGUMENT or logprobs <= call.request.sampling.top_logprobs_count:
                raise
            # It may be our own wish for log probabilities that the model refuses: the next one is asked, as when a
            # model cannot do what a request needs. A request that is wrong by itself is refused there again.
            raise TenthError(
                Code.FAILED_PRECONDITION, error.reason, error.message, error.field, details=error.details
            ) from error

    async def _escalate(
        self,
        call: Call,
        plan: router_pb2.CascadePlan,
        embedding: chat_pb2.Embedding | None,
        start: Start,
        emit: Emit,
    ) -> tuple[Route, Prompt, Generated]:
        route = replace(self._steps.known_route(plan.escalation_model), tier=plan.escalation_tier)
        prompt = await self._steps.compress(call, route, embedding)
        funds = await self._steps.reserve(call, route, prompt)
        if funds.decision != ledger_pb2.RESERVE_DECISION_OK:
            raise refused(call, funds)
        try:
            second = await self._generation.generate(call, route, prompt, _starting(route.model, start, emit))
        except TenthError:
            call.excluded.append(route.model)
            raise
        start(route.model)  # An answer without a piece began nothing.
        return route, prompt, second


@contextmanager
def _time_to_answer() -> Iterator[None]:
    """Keep some of the deadline back: a check or a second attempt that is late must leave the first answer in time."""
    left = deadlines.remaining()
    kept = 0.0 if left is None else min(_KEPT_SECONDS, left * _KEPT_SHARE)
    if left is not None:
        deadlines.set_remaining(left - kept)
    try:
        yield
    finally:
        now_left = deadlines.remaining()
        if now_left is not None:
            deadlines.set_remaining(now_left + kept)


def _starting(model: str, start: Start, emit: Emit) -> Emit:
    """Emits with the start before the first piece: until then the answer may still be the first model's."""

    def begin(delta: chat_pb2.CompletionDelta) -> None:
        start(model)
        emit(delta)

    return begin


def _keep_logprobs(completion: chat_pb2.Completion, wanted: int) -> None:
    """Leave the caller the log probabilities that it asked for, and no others."""
    if not wanted:
        completion.ClearField("logprobs")
    for token in completion.logprobs:
        del token.alternatives[wanted:]
