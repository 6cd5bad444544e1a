"""Runs in progress: joining, replay, leaving, and the races between them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, cast

import pytest
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import Code, TenthError
from services.orchestrator.runs import Answer, Event, Run, Runs
from services.orchestrator.servicer import OrchestratorServicer

KEY = ("acme", "request-1")
ANSWER = Answer("request-1", chat_pb2.Completion(), receipt_pb2.Receipt())


def delta(text: str) -> chat_pb2.CompletionDelta:
    return chat_pb2.CompletionDelta(text=text)


async def heard(run: Run) -> str:
    async with aclosing(run.listen()) as events:
        return "".join([cast(chat_pb2.CompletionDelta, event).text async for event in events])


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_late_listener_hears_everything() -> None:
    runs, gate = Runs(), asyncio.Event()

    async def work(run: Run) -> None:
        run.emit(delta("a"))
        await gate.wait()
        run.emit(delta("b"))
        run.finish(ANSWER)

    run = runs.start(KEY, b"d", work)
    early = asyncio.create_task(heard(run))
    await settle()
    late = asyncio.create_task(heard(run))
    await settle()
    gate.set()
    assert await early == await late == "ab"
    assert await run.result() is ANSWER
    assert len(runs) == 0


async def test_no_event_is_lost_between_listeners_of_different_speed() -> None:
    runs = Runs()

    async def work(run: Run) -> None:
        for number in range(200):
            run.emit(delta(str(number % 10)))
            await asyncio.sleep(0)
        run.finish(ANSWER)

    run = runs.start(KEY, b"d", work)

    async def slow(every: int) -> str:
        texts: list[str] = []
        async with aclosing(run.listen()) as events:
            async for event in events:
                texts.append(cast(chat_pb2.CompletionDelta, event).text)
                for _ in range(len(texts) % every):
                    await asyncio.sleep(0)
        return "".join(texts)

    async with asyncio.timeout(5):
        assert set(await asyncio.gather(*(slow(every) for every in range(1, 8)))) == {"0123456789" * 20}


async def test_the_same_id_finds_the_run_and_another_payload_does_not() -> None:
    runs, gate = Runs(), asyncio.Event()

    async def work(run: Run) -> None:
        await gate.wait()
        run.finish(ANSWER)

    run = runs.start(KEY, b"d", work)
    assert runs.find(KEY, b"d") is run
    assert runs.running(KEY)
    with pytest.raises(TenthError) as raised:
        runs.find(KEY, b"other")
    assert (raised.value.code, raised.value.reason) == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert runs.find(("other", KEY[1]), b"other") is None
    gate.set()
    await run.result()
    await settle()
    assert runs.find(KEY, b"d") is None


async def endless(run: Run) -> None:
    await asyncio.sleep(60)


async def cancelled(run: Run) -> bool:
    await settle()
    await settle()
    return run.error is not None and run.error.code is Code.CANCELLED


async def leave(runs: Runs, run: Run, listener: asyncio.Task[Any]) -> None:
    await settle()
    listener.cancel()
    await asyncio.wait([listener])
    runs.release(run)


async def test_the_last_to_leave_stops_the_work() -> None:
    runs = Runs()
    run = runs.start(KEY, b"d", endless)
    first, second = asyncio.create_task(run.result()), asyncio.create_task(run.result())
    await leave(runs, run, first)
    assert not await cancelled(run)
    await leave(runs, run, second)
    assert await cancelled(run)
    assert len(runs) == 0


async def test_an_operation_goes_on_alone() -> None:
    runs = Runs()
    run = runs.start(KEY, b"d", endless)
    run.kept = True
    await leave(runs, run, asyncio.create_task(run.result()))
    assert not await cancelled(run)
    await runs.drain(0.01)
    assert await cancelled(run)


async def test_work_that_others_follow_goes_on_until_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.orchestrator.runs._ABANDONED_POLL_SECONDS", 0.001)
    runs, followed = Runs(), [False, False, True]

    async def may_stop() -> bool:
        return followed.pop(0)

    run = runs.start(KEY, b"d", endless)
    run.may_stop = may_stop
    await leave(runs, run, asyncio.create_task(run.result()))
    assert not await cancelled(run)
    await asyncio.sleep(0.05)
    assert await cancelled(run)
    assert followed == []


async def test_somebody_who_joins_while_the_cache_is_asked_keeps_the_run() -> None:
    runs, asked = Runs(), asyncio.Event()

    async def may_stop() -> bool:
        await asked.wait()
        return True

    run = runs.start(KEY, b"d", endless)
    run.may_stop = may_stop
    await leave(runs, run, asyncio.create_task(run.result()))
    joined = asyncio.create_task(run.result())
    await settle()
    asked.set()
    assert not await cancelled(run)
    run.finish(ANSWER)
    assert await joined is ANSWER


async def test_a_defect_does_not_leave_listeners_hanging() -> None:
    runs = Runs()
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(str(context["message"])))

    async def broken(run: Run) -> None:
        raise RuntimeError("a secret")

    run = runs.start(KEY, b"d", broken)
    with pytest.raises(TenthError) as raised:
        await run.result()
    assert raised.value.code is Code.INTERNAL
    assert "secret" not in raised.value.message
    assert run.task is not None
    await asyncio.wait([run.task])
    assert isinstance(run.task.exception(), RuntimeError)


async def test_everybody_gets_the_error() -> None:
    runs = Runs()
    error = TenthError(Code.UNAVAILABLE, "NO_MODEL_AVAILABLE", "none")

    async def failing(run: Run) -> None:
        run.emit(delta("a"))
        raise error

    run = runs.start(KEY, b"d", failing)
    results = await asyncio.gather(run.result(), heard(run), return_exceptions=True)
    assert all(result is error for result in results)


async def test_drain_waits_for_what_ends_in_time() -> None:
    runs = Runs()

    async def short(run: Run) -> None:
        await asyncio.sleep(0.01)
        run.finish(ANSWER)

    run = runs.start(KEY, b"d", short)
    await runs.drain()
    assert run.answer is ANSWER
    await runs.drain()


async def test_a_client_that_leaves_during_a_write_counts_no_more() -> None:
    """The servicer's generator is closed at its ``yield``: the run must be stopped then, not some time later."""
    runs = Runs()
    run = runs.start(KEY, b"d", endless)
    run.emit(cast(Event, orchestrator_pb2.CompletionStarted(request_id=KEY[1])))

    class Servicer(OrchestratorServicer):
        def _begin(
            self, request: chat_pb2.CompletionRequest, *, streaming: bool, why_here: receipt_pb2.Hop | None = None
        ) -> Run | Answer:
            return run

    servicer = object.__new__(Servicer)  # Its neighbours play no part here.
    servicer._runs = runs
    stream = cast(Any, servicer.StreamGenerateCompletion(orchestrator_pb2.StreamGenerateCompletionRequest(), None))
    assert (await anext(stream)).started.request_id == KEY[1]
    await stream.aclose()
    assert await cancelled(run)
