"""The thread that owns vLLM's engine: takes commands, makes steps, hands outputs to the event loop.

The event loop hands requests to that thread through a queue and gets outputs back through ``call_soon_threadsafe``,
one callback per engine step for all sequences together. The engine is touched by its thread alone.

An exception out of the engine ends every sequence at once and has the model loaded again in the same thread, which
leaves the rest of the service alone. A step that does not come back cannot be ended from outside (it is in C++): it is
told to whoever owns the process, which must end it (``watch`` in vllm_watch.py notices).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from services.inference.errors import Reason
from services.inference.vllm_engine import EngineCounts, Job, Signals, SupervisedEngine, Unserved
from services.inference.vllm_load import EngineOptions, Loaded, load, lora_of, prompt_of, release

log = logging.getLogger("tenth.inference.vllm")

_RELOAD_SECONDS = 8.0
"""Measured: 4 to 8 s to load the shipped model again, two cores."""
_GONE = Unserved(Reason.ENGINE_RESTARTING, "the engine failed", _RELOAD_SECONDS)


class EngineThread(SupervisedEngine):
    """Loads a model and steps its engine, again after a failure. ``start`` it, and ``close`` it at the end."""

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
        self._commands: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = False

    async def close(self) -> None:
        """Stop the engine; running generations fail."""
        self.stopping.set()
        self._commands.put(None)
        if self._thread is not None and not self.hung:
            await asyncio.to_thread(self._thread.join, 10)

    def runs(self) -> bool:
        """True while the thread is there: loading, idle or at work."""
        return self._thread is not None and self._thread.is_alive()

    def add(self, job: Job) -> bool:
        """Have a sequence made; it must be ended with ``remove``. False: the engine has gone meanwhile."""
        with self._shared.lock:
            if self._shared.unserved is not None:
                return False
            self._shared.jobs[job.id] = job
        self._commands.put(lambda engine: self._add(engine, job))
        return True

    def remove(self, job: Job, *, finished: bool) -> None:
        """Forget a sequence; one that has not finished is aborted and its KV space freed."""
        job.over = True
        with self._shared.lock:
            self._shared.jobs.pop(job.id, None)
        if not finished:
            self._commands.put(lambda engine: engine.abort_request([job.id]))

    def died(self) -> bool:
        """True when the thread is not there any more, although nobody told it to end."""
        return self._thread is not None and not self._thread.is_alive() and not self._ended

    def respawn(self) -> None:
        """The thread died: end its sequences and start another, while the restarts last."""
        log.error("%s: the engine's thread is dead", self._model)
        wait = self._next_try()
        if wait is not None:
            self._spawn(wait)

    def hang(self) -> None:
        """A step does not come back: end every sequence, and have the process ended."""
        text = f"a step of the engine has not come back for {self._options.step_seconds:g} s; the process ends"
        log.critical("%s: %s", self._model, text)
        self.hung = True
        self.totals.failures += 1
        self.stopping.set()
        self.fail(Unserved(Reason.ENGINE_RESTARTING, text, self.reload_seconds))
        self._signals.hung()

    def _spawn(self, wait_seconds: float) -> None:
        self._thread = threading.Thread(target=self._run, args=(wait_seconds,), name="vllm-engine", daemon=True)
        self._ended = False
        self._thread.start()

    # What follows runs in the engine's thread.

    def _run(self, wait_seconds: float) -> None:
        self._load_and_serve(wait_seconds)
        self._ended = True

    def _load_and_serve(self, wait_seconds: float) -> None:
        wait: float | None = wait_seconds
        while wait is not None and not self.stopping.wait(wait):
            try:
                loaded = load(self._model, self._options)
            except Exception as error:
                wait = self._load_failed(error)
                continue
            wait = self._serve(loaded)
            del loaded  # Else its weights and KV cache are still there while the next one is loaded.
            gc.collect()

    def _serve(self, loaded: Loaded) -> float | None:
        """Step the engine until it fails: seconds to wait before the next start; None: it was told to stop."""
        self.loaded = loaded
        try:
            self._put_ready()
            while self._step(loaded.engine):
                self.counts = EngineCounts(*loaded.counts())
        except Exception:
            log.exception("%s: the engine failed", self._model)
            return self._next_try()  # Ends the sequences at once, and not after the engine has been put away.
        except BaseException:  # The thread dies of it; ``respawn`` is called then.
            self.fail(_GONE)
            raise
        finally:
            self.busy_since = 0.0
            self.work.working(False)
            self.counts = EngineCounts()
            self.loaded = None
            if not self.stopping.is_set():  # Before the end of the process it would only take time.
                release(loaded)
        return None

    def _step(self, engine: Any) -> bool:
        """Take the waiting commands and make one step. False: stop."""
        block = not engine.has_unfinished_requests()
        self.work.working(not block)
        self.busy_since = 0.0 if block else self._clock()
        while True:
            try:
                command = self._commands.get(block)
            except queue.Empty:
                break
            if command is None:
                return False
            self.busy_since = self._clock()
            command(engine)
            block = False
        if not engine.has_unfinished_requests():
            return True
        self.work.working(True)
        began = self.busy_since = self._clock()
        made = engine.step()
        tokens = sum(len(part.token_ids) for output in made for part in output.outputs)
        self.work.made(tokens)
        self.speed.note(tokens, self._clock() - began)
        self.totals.output_tokens += tokens
        with self._shared.lock:
            outputs = [(self._shared.jobs.get(output.request_id), output) for output in made]
        self._hand_over([(job, output) for job, output in outputs if job is not None])
        return True

    def _add(self, engine: Any, job: Job) -> None:
        if job.over:
            return
        headers = {"traceparent": job.traceparent} if job.traceparent else None
        prompt = prompt_of(job.prompt_ids, job.cache_salt)
        try:
            lora = lora_of(self._options.adapters, job.adapter)
            engine.add_request(
                job.id, prompt, job.params, lora_request=lora, trace_headers=headers, priority=job.priority
            )
        except Exception as error:
            # Refused at admission: that sequence's problem alone, the engine goes on.
            self._hand_over([(job, error)])
