"""Requests in progress: one run per request id, shared by everybody who asks for it.

A run's work goes on while anybody listens. Listeners see every event from the beginning, so that a retry with the
same request id joins the run instead of paying again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import Code, TenthError
from services.orchestrator.errors import Reason


@dataclass(frozen=True, slots=True)
class Answer:
    """What a finished run delivers."""

    request_id: str
    completion: chat_pb2.Completion
    receipt: receipt_pb2.Receipt
    entry_id: str = ""


Event = orchestrator_pb2.CompletionStarted | chat_pb2.CompletionDelta


_ABANDONED_POLL_SECONDS = 1.0


async def _always() -> bool:
    return True


class Run:
    """One request in progress."""

    def __init__(self, key: tuple[str, str], digest: bytes) -> None:
        self.key = key
        self.digest = digest
        self.events: list[Event] = []
        self.answer: Answer | None = None
        self.error: TenthError | None = None
        self.task: asyncio.Task[None] | None = None
        self.kept = False
        """True for an operation: it goes on although nobody listens."""
        self.may_stop: Callable[[], Awaitable[bool]] = _always
        """Asked when the last listener left; False while others still need the answer."""
        self._listeners = 0
        self._changed = asyncio.Event()

    @property
    def done(self) -> bool:
        """True when there is an answer or an error."""
        return self.answer is not None or self.error is not None

    @property
    def abandoned(self) -> bool:
        """True when nobody listens any more."""
        return self._listeners == 0 and not self.kept

    def emit(self, event: Event) -> None:
        """Give the next event to every listener."""
        self.events.append(event)
        self._changed.set()

    def finish(self, answer: Answer) -> None:
        """End with an answer."""
        self.answer = answer
        self._changed.set()

    def fail(self, error: TenthError) -> None:
        """End with an error."""
        self.error = error
        self._changed.set()

    async def listen(self) -> AsyncGenerator[Event, None]:
        """Every event from the first, then live; raises the run's error. The caller then reads ``answer``.

        To be closed (``aclosing``) before ``Runs.release``: an iterator left open still counts as a listener.
        """
        self._listeners += 1
        seen = 0
        try:
            while True:
                while seen < len(self.events):
                    yield self.events[seen]
                    seen += 1
                if self.error is not None:
                    raise self.error
                if self.answer is not None:
                    return
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._listeners -= 1

    async def result(self) -> Answer:
        """The answer; raises the run's error."""
        async with aclosing(self.listen()) as events:
            async for _ in events:
                continue
        assert self.answer is not None
        return self.answer


class Runs:
    """The runs of this replica by tenant and request id."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], Run] = {}
        self._background: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._runs)

    def find(self, key: tuple[str, str], digest: bytes) -> Run | None:
        """The run of this id, if one is in progress. Raises REQUEST_ID_REUSED for another payload."""
        run = self._runs.get(key)
        if run is not None and run.digest != digest:
            raise reused(key[1])
        return run

    def running(self, key: tuple[str, str]) -> bool:
        """True while this id is in progress here."""
        return key in self._runs

    def start(self, key: tuple[str, str], digest: bytes, work: Callable[[Run], Awaitable[None]]) -> Run:
        """Begin a run; its task inherits the current context (identity, deadline, trace)."""
        run = self._runs[key] = Run(key, digest)
        run.task = asyncio.get_running_loop().create_task(self._work(run, work))
        return run

    def release(self, run: Run) -> None:
        """A listener left; the last one to leave an unfinished run has it stopped."""
        if run.abandoned and not run.done:
            task = asyncio.get_running_loop().create_task(self._abandon(run))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def drain(self, timeout_seconds: float = 10.0) -> None:
        """Wait for the runs in progress; what outlives the wait is cancelled, so that its receipt is kept."""
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout_seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1)

    async def _abandon(self, run: Run) -> None:
        while run.abandoned and not run.done:
            # Somebody may have joined while the cache was asked.
            if await run.may_stop() and run.abandoned:
                if run.task is not None:
                    run.task.cancel()
                return
            await asyncio.sleep(_ABANDONED_POLL_SECONDS)

    async def _work(self, run: Run, work: Callable[[Run], Awaitable[None]]) -> None:
        try:
            await work(run)
        except TenthError as error:
            run.fail(error)
        except asyncio.CancelledError:
            run.fail(TenthError(Code.CANCELLED, "CANCELLED", "nobody waits for this request any more"))
        finally:
            if not run.done:
                # A defect: the listeners must not hang; the exception itself reaches the loop's handler.
                run.fail(TenthError(Code.INTERNAL, "INTERNAL", "internal error; the service's log has it"))
            self._runs.pop(run.key, None)


def reused(request_id: str) -> TenthError:
    """The error for an id that came before with another payload."""
    return TenthError(
        Code.ALREADY_EXISTS,
        Reason.REQUEST_ID_REUSED,
        f"request_id {request_id} was used with another payload",
        "request.request_id",
    )
