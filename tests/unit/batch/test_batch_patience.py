"""Calls that are made again: per item in the halves, per call while the other side is away, and what a stop changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from tenth.orchestrator.v1 import orchestrator_pb2 as pb
from tenth.type.v1 import chat_pb2

from mesh.errors import Code, TenthError
from services.batch.calls import Layers, Stop, Stopped, patiently
from services.batch.halves import PER_CALL, Halves
from services.batch.settings import WorkerSettings


class Orchestrator:
    """Answers as told, and keeps what it was asked."""

    def __init__(self, answer: Callable[[int, str], pb.PrepareOutcome]) -> None:
        self._answer = answer
        self.asked: list[list[str]] = []

    async def PrepareCompletions(
        self, request: pb.PrepareCompletionsRequest, **_: float
    ) -> pb.PrepareCompletionsResponse:
        names = [item.request.request_id for item in request.items]
        self.asked.append(names)
        number = len(self.asked)
        return pb.PrepareCompletionsResponse(outcomes=[self._answer(number, name) for name in names])


def later() -> pb.PrepareOutcome:
    return pb.PrepareOutcome(error=pb.HalfError(reason="LATER", retryable=True))


def ready() -> pb.PrepareOutcome:
    return pb.PrepareOutcome(prepared=pb.PreparedCompletion(state=b"s"))


def halves(orchestrator: Orchestrator, **changes: Any) -> Halves:
    return Halves(cast(Layers, type("Played", (), {"halves": orchestrator})()), WorkerSettings(**changes))


def items(count: int) -> list[pb.CompletionToPrepare]:
    made = [pb.CompletionToPrepare() for _ in range(count)]
    for number, item in enumerate(made):
        item.request.request_id = str(number)
    return made


async def test_only_what_may_go_better_is_asked_again() -> None:
    orchestrator = Orchestrator(lambda number, name: later() if name == "150" and number < 4 else ready())
    outcomes = await halves(orchestrator).prepare(items(PER_CALL + 60), Stop(1))
    assert [len(names) for names in orchestrator.asked] == [100, 60, 1, 1]
    assert {outcome.WhichOneof("outcome") for outcome in outcomes} == {"prepared"}


async def test_in_the_end_it_is_an_error() -> None:
    orchestrator = Orchestrator(lambda _, __: later())
    (outcome,) = await halves(orchestrator, prepare_tries=2).prepare(items(1), Stop(1))
    assert outcome.error.reason == "LATER"
    assert len(orchestrator.asked) == 2


def limited() -> pb.PrepareOutcome:
    outcome = pb.PrepareOutcome(error=pb.HalfError(reason="RATE_LIMITED", retryable=True))
    outcome.error.retry_after.FromMilliseconds(2)
    return outcome


async def test_what_a_limit_per_minute_holds_back_is_no_failure() -> None:
    """Each call lets one more item pass, and the second item is also refused for another passing reason."""

    def one_each_time(number: int, name: str) -> pb.PrepareOutcome:
        if name == "1":
            return later()
        return ready() if int(name) < 2 * number else limited()

    orchestrator = Orchestrator(one_each_time)
    outcomes = await halves(orchestrator, prepare_tries=2).prepare(items(30), Stop(1), 10.0)
    assert [place for place, one in enumerate(outcomes) if one.WhichOneof("outcome") != "prepared"] == [1]
    assert len(orchestrator.asked) == 15
    assert sum("1" in names for names in orchestrator.asked) == 2, "other tries stay few"


async def test_a_limit_is_waited_for_as_long_as_there_is_time() -> None:
    orchestrator = Orchestrator(lambda _, __: limited())
    (outcome,) = await halves(orchestrator).prepare(items(1), Stop(1), 0.05)
    assert (outcome.error.reason, outcome.error.retryable) == ("RATE_LIMITED", True)
    assert len(orchestrator.asked) > 2


async def test_a_stop_makes_no_errors_of_what_could_wait() -> None:
    stop = Stop(1)
    stop.set()
    with pytest.raises(Stopped):
        await halves(Orchestrator(lambda _, __: later())).prepare(items(1), stop)


async def test_patience_is_for_what_may_pass() -> None:
    calls = 0

    async def call(code: Code, until: int) -> str:
        nonlocal calls
        calls += 1
        if calls < until:
            raise TenthError(code, "AWAY", "away", retry_after_seconds=0.001)
        return "answer"

    assert await patiently(lambda: call(Code.UNAVAILABLE, 4), 5) == "answer"
    assert calls == 4
    calls = 0
    with pytest.raises(TenthError):
        await patiently(lambda: call(Code.INVALID_ARGUMENT, 2), 5)
    assert calls == 1
    calls = 0
    with pytest.raises(TenthError):
        await patiently(lambda: call(Code.UNAVAILABLE, 10**6), 0.05)
    assert calls > 1


async def test_calls_are_cut_by_bytes_too() -> None:
    orchestrator = Orchestrator(lambda _, __: ready())
    large = items(7)
    for item in large:
        item.request.messages.add(parts=[chat_pb2.ContentPart(text="x" * 3_000_000)])
    large[3].request.messages.add(parts=[chat_pb2.ContentPart(text="x" * 12_000_000)])
    outcomes = await halves(orchestrator).prepare(large, Stop(1))
    assert orchestrator.asked == [["0", "1"], ["2"], ["3"], ["4", "5"], ["6"]]
    assert {outcome.WhichOneof("outcome") for outcome in outcomes} == {"prepared"}


async def test_an_end_that_could_not_be_kept_is_told_again() -> None:
    told = 0

    class Forgetful:
        async def FinishCompletions(self, request: pb.FinishCompletionsRequest, **_: float) -> Any:
            nonlocal told
            told += 1
            if told < 3:
                raise TenthError(Code.INTERNAL, "INTERNAL", "the disk is full")
            return pb.FinishCompletionsResponse(outcomes=[pb.FinishOutcome(finished=pb.FinishedCompletion())])

    made = Halves(cast(Layers, type("Played", (), {"halves": Forgetful()})()), WorkerSettings())
    (outcome,) = await made.finish([pb.CompletionToFinish()], Stop(1))
    assert outcome.WhichOneof("outcome") == "finished"
    assert told == 3


class Struggling:
    """Finishes the first item at once and the second one from some call on."""

    def __init__(self, until: int) -> None:
        self._until = until
        self.asked: list[list[str]] = []

    async def FinishCompletions(self, request: pb.FinishCompletionsRequest, **_: float) -> Any:
        self.asked.append([item.request.request_id for item in request.items])
        late = pb.FinishOutcome(error=pb.HalfError(reason="LEDGER_AWAY", message="away", retryable=True))
        done = pb.FinishOutcome(finished=pb.FinishedCompletion())
        wait = len(self.asked) < self._until
        outcomes = [late if wait and item.request.request_id == "1" else done for item in request.items]
        return pb.FinishCompletionsResponse(outcomes=outcomes)


def answered() -> list[pb.CompletionToFinish]:
    return [pb.CompletionToFinish(request=item.request) for item in items(2)]


async def test_an_answer_that_was_paid_for_is_finished_however_often_it_takes() -> None:
    played = Struggling(4)
    made = Halves(cast(Layers, type("Played", (), {"halves": played})()), WorkerSettings(prepare_tries=2))
    outcomes = await made.finish(answered(), Stop(1))
    assert [outcome.WhichOneof("outcome") for outcome in outcomes] == ["finished", "finished"]
    assert played.asked == [["0", "1"], ["1"], ["1"], ["1"]]


@pytest.mark.parametrize("stopped", [True, False])
async def test_what_cannot_be_finished_is_no_failed_item(stopped: bool) -> None:
    made = Halves(cast(Layers, type("Played", (), {"halves": Struggling(10**6)})()), WorkerSettings())
    stop = Stop(0)
    if stopped:
        stop.set()
    with pytest.raises(TenthError) as caught:
        await made.finish(answered(), stop, None if stopped else 0.3)
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "LEDGER_AWAY")
