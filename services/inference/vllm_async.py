"""vLLM's AsyncLLM behind the interface of the stepping thread: its core is a process of its own.

Each sequence has a task in the event loop that passes its outputs on. A core that dies (AsyncLLM raises
EngineDeadError, and says ``errored`` while nobody asks it anything) ends every sequence at once, and another one is
started. A step that hangs is ended from outside: the core is killed, and the service goes on.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Callable
from contextlib import aclosing
from multiprocessing.process import BaseProcess
from typing import Any

from services.inference.errors import Reason
from services.inference.vllm_engine import EngineCounts, Job, Signals, SupervisedEngine, Unserved
from services.inference.vllm_load import EngineOptions, Loaded, load_async, lora_of, prompt_of, release

log = logging.getLogger("tenth.inference.vllm")

_RELOAD_SECONDS = 20.0
"""Measured with the shipped model: 13 s on two idle cores, 38 to 46 s on two that others kept busy."""
_CORE = "EngineCore"
"""How vLLM names the core's process."""


class AsyncEngine(SupervisedEngine):
    """Loads a model into AsyncLLM, again after a failure. ``start`` it, and ``close`` it at the end."""

    reload_seconds = _RELOAD_SECONDS

    def __init__(
        self,
        model: str,
        options: EngineOptions,
        signals: Signals | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` in seconds, never going back."""
        super().__init__(model, options, signals, clock)
        self._passing: dict[str, asyncio.Task[None]] = {}
        """By sequence; those that the engine works on."""
        self._bringing_up: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._stepped_at = 0.0

    async def close(self) -> None:
        """Stop the engine, and its process; running generations fail."""
        self.stopping.set()
        self._closing.set()
        self.fail(self.unserved or Unserved(Reason.MODEL_UNAVAILABLE, "the engine has been stopped"))
        for task in (passing := list(self._passing.values())):
            task.cancel()
        if passing:
            await asyncio.wait(passing, timeout=5)
        while self._bringing_up is not None and not self._bringing_up.done():
            # It waits in a thread for a core that starts, which only the core's end can cut short.
            _kill_cores()
            await asyncio.wait([self._bringing_up], timeout=0.2)
        loaded, self.loaded = self.loaded, None
        if loaded is not None:
            if loaded.engine.output_handler is not None:
                loaded.engine.output_handler.cancel()  # It would log the end of the core as an error.
            await asyncio.to_thread(release, loaded)
        for process in _cores():
            await asyncio.to_thread(process.join, 5)  # vLLM kills one that takes long, and does not wait for its end.

    def runs(self) -> bool:
        """True while the core is there, loading, idle or at work, or will be started again."""
        return self.loaded is not None or (self._bringing_up is not None and not self._bringing_up.done())

    def add(self, job: Job) -> bool:
        """Have a sequence made; it must be ended with ``remove``. False: the engine has gone meanwhile."""
        loaded = self.loaded
        if self.unserved is not None or loaded is None:
            return False
        with self._shared.lock:
            self._shared.jobs[job.id] = job
        if not self._passing:
            self.busy_since = self._stepped_at = self._clock()
            self.work.working(True)
        task = asyncio.create_task(self._pass_on(loaded.engine, job))
        self._passing[job.id] = task
        task.add_done_callback(lambda _: self._passed(job))
        return True

    def remove(self, job: Job, *, finished: bool) -> None:
        """Forget a sequence; one that has not finished is aborted and its KV space freed."""
        job.over = True
        with self._shared.lock:
            self._shared.jobs.pop(job.id, None)
        task = self._passing.get(job.id)
        if task is not None and not finished:
            task.cancel()

    def died(self) -> bool:
        """True when the core is gone, although nobody told it to end."""
        return self.loaded is not None and bool(self.loaded.engine.errored)

    def respawn(self) -> None:
        """The core died: end its sequences and start another, while the restarts last."""
        if self.loaded is not None:
            self._lost(self.loaded.engine)

    def hang(self) -> None:
        """A step does not come back: end every sequence, kill the core and start another."""
        seconds = self._options.step_seconds
        log.critical("%s: a step has not come back for %g s; the core is killed", self._model, seconds)
        _kill_cores()
        self.respawn()

    def _spawn(self, wait_seconds: float) -> None:
        self._bringing_up = asyncio.create_task(self._bring_up(wait_seconds, None))

    def _lost(self, engine: Any) -> None:
        """This engine's core is gone. Said by every sequence, and by the watch: only the first matters."""
        loaded = self.loaded
        if loaded is None or loaded.engine is not engine:
            return
        log.error("%s: the engine's process is dead", self._model)
        self.loaded = None
        self._rest()
        self.counts = EngineCounts()
        self._bringing_up = asyncio.create_task(self._bring_up(self._next_try(), loaded))

    async def _bring_up(self, wait_seconds: float | None, old: Loaded | None) -> None:
        """Put the old engine away and load another, until one is there or trying again is of no use (None)."""
        if old is not None:
            await asyncio.to_thread(release, old)
        wait = wait_seconds
        while wait is not None and not self.stopping.is_set():
            try:
                async with asyncio.timeout(wait):
                    await self._closing.wait()
            except TimeoutError:
                pass
            if self.stopping.is_set():
                return
            try:
                loaded = await load_async(self._model, self._options, self._stepped)
            except Exception as error:
                wait = None if self.stopping.is_set() else self._load_failed(error)
                continue
            self.loaded = loaded
            self._put_ready()
            return

    async def _pass_on(self, engine: Any, job: Job) -> None:
        """Have one sequence made, and hand its outputs over as they come."""
        finished = False
        try:
            outputs = engine.generate(
                prompt_of(job.prompt_ids, job.cache_salt),
                job.params,
                job.id,
                lora_request=lora_of(self._options.adapters, job.adapter),
                trace_headers={"traceparent": job.traceparent} if job.traceparent else None,
                priority=job.priority,
            )
            async with aclosing(outputs):
                async for output in outputs:
                    finished = output.finished
                    job.outputs.put_nowait(output)
        except Exception as error:
            if engine.errored:
                self._lost(engine)  # It ends the other sequences too.
            else:
                # Refused at admission: that sequence's problem alone. What vLLM does not know it wraps.
                job.outputs.put_nowait(error.__cause__ if _is_wrapper(error) else error)
        finally:
            if not finished and not engine.errored:
                await self._abort(engine, job)

    async def _abort(self, engine: Any, job: Job) -> None:
        """vLLM's own abort leaves out a sequence that is cancelled while it is being sent to the core."""
        try:
            await engine.abort(job.id)
        except Exception:
            log.exception("%s: %s could not be aborted", self._model, job.id)

    def _stepped(self, counts: tuple[int, int, float] | None, tokens: int) -> None:
        """A step of the core has ended."""
        if self.loaded is None:
            return  # While it warms up.
        if counts is not None:
            self.counts = EngineCounts(*counts)
        now = self._clock()
        if tokens and self._stepped_at:
            self.speed.note(tokens, now - self._stepped_at)
        self.work.made(tokens)
        self.totals.output_tokens += tokens
        self._stepped_at = self.busy_since = now if self._passing else 0.0

    def _passed(self, job: Job) -> None:
        """The engine is done with a sequence; whoever asked for it may still be reading."""
        self._passing.pop(job.id, None)
        if not self._passing:
            self._rest()

    def _rest(self) -> None:
        """There is nothing to work on."""
        self.busy_since = 0.0
        self.work.working(False)


def _is_wrapper(error: Exception) -> bool:
    from vllm.v1.engine.exceptions import EngineGenerateError

    return isinstance(error, EngineGenerateError) and error.__cause__ is not None


def _cores() -> list[BaseProcess]:
    """A process has one local engine: all cores are this one's."""
    return [process for process in multiprocessing.active_children() if process.name.startswith(_CORE)]


def _kill_cores() -> None:
    for process in _cores():
        process.kill()
