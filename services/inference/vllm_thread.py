"""The thread that owns vLLM's engine: takes commands, makes steps, hands outputs to the event loop.

The event loop hands requests to that thread through a queue and gets outputs back through ``call_soon_threadsafe``,
one callback per engine step for all sequences together. The engine is touched by its thread alone.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mesh.errors import Code, TenthError
from services.inference.errors import Reason
from services.inference.vllm_load import EngineOptions, Loaded, load, prompt_of
from services.inference.work import WorkMeter

log = logging.getLogger("tenth.inference.vllm")

_MISSING = (
    "vLLM is not installed here; serve this model from a machine that has it and point the catalogue's provider at its "
    "OpenAI-compatible URL (backend: openai, base_url: http://HOST:8000/v1)"
)


@dataclass(slots=True)
class Job:
    """One sequence: what the engine's thread needs, and where its outputs (or the error that ended it) go."""

    id: str
    prompt_ids: list[int]
    params: Any
    cache_salt: str
    traceparent: str
    outputs: asyncio.Queue[Any]


class EngineThread:
    """Loads a model and steps its engine. ``start`` it, and ``close`` it at the end."""

    def __init__(self, model: str, options: EngineOptions) -> None:
        self.reason = "the engine has not been started"
        """Why the model is not served now, for a person; empty when it is."""
        self.loaded: Loaded | None = None
        self.work = WorkMeter(time.monotonic_ns)
        """How much of the time the engine had work; loading is none."""
        self._model = model
        self._options = options
        self._commands: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._jobs: dict[str, Job] = {}

    def start(self) -> None:
        """Begin loading the model; ``reason`` says how far it is."""
        folder = self._options.folder
        if not (folder / "config.json").is_file():
            self.reason = (
                f"there is no model folder {folder}; `make models` builds the shipped ones, "
                "`python -m models.build ORG/NAME` fetches one from the hub"
            )
            log.error("%s: %s", self._model, self.reason)
            return
        self.reason = "the engine is starting"
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop the engine; running generations fail."""
        self._commands.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 10)

    def runs(self) -> bool:
        """True while the thread is there: loading, idle or at work."""
        return self._thread is not None and self._thread.is_alive()

    async def ping(self) -> None:
        """Raises while the engine is starting, and when it died. An engine that can never start here does not count:
        the other providers are served without it.
        """
        if self._thread is not None and self.reason and self.reason != _MISSING:
            raise TenthError(Code.UNAVAILABLE, Reason.MODEL_UNAVAILABLE, self.reason)

    def add(self, job: Job) -> None:
        """Have a sequence made; it must be ended with ``remove``."""
        self._jobs[job.id] = job
        self._commands.put(lambda engine: self._add(engine, job))

    def remove(self, job: Job, *, finished: bool) -> None:
        """Forget a sequence; one that has not finished is aborted and its KV space freed."""
        del self._jobs[job.id]
        if not finished:
            self._commands.put(lambda engine: engine.abort_request([job.id]))

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        try:
            self.loaded = load(self._model, self._options)
        except ImportError as error:
            self.reason = _MISSING
            log.warning("%s is not served: %s (%s)", self._model, _MISSING, error)
            return
        except Exception:
            self.reason = "the engine did not start; the log has it"
            log.exception("%s is not served", self._model)
            return
        self.reason = ""
        try:
            while self._step(self.loaded.engine):
                pass
        except Exception as error:
            self.reason = "the engine died; the log has it"
            log.exception("%s is not served any more", self._model)
            self._hand_over([(job, error) for job in list(self._jobs.values())])
        finally:
            self.work.working(False)

    def _step(self, engine: Any) -> bool:
        """Take the waiting commands and make one step. False: stop."""
        block = not engine.has_unfinished_requests()
        self.work.working(not block)
        while True:
            try:
                command = self._commands.get(block)
            except queue.Empty:
                break
            if command is None:
                return False
            command(engine)
            block = False
        if not engine.has_unfinished_requests():
            return True
        self.work.working(True)
        made = engine.step()
        self.work.made(sum(len(part.token_ids) for output in made for part in output.outputs))
        outputs = [(self._jobs.get(output.request_id), output) for output in made]
        self._hand_over([(job, output) for job, output in outputs if job is not None])
        return True

    def _add(self, engine: Any, job: Job) -> None:
        headers = {"traceparent": job.traceparent} if job.traceparent else None
        try:
            engine.add_request(job.id, prompt_of(job.prompt_ids, job.cache_salt), job.params, trace_headers=headers)
        except Exception as error:
            # Refused at admission: that sequence's problem alone, the engine goes on.
            self._hand_over([(job, error)])

    def _hand_over(self, outputs: list[tuple[Job, Any]]) -> None:
        def deliver() -> None:
            for job, output in outputs:
                job.outputs.put_nowait(output)

        if outputs and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)
