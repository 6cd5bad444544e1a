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
from dataclasses import dataclass, field
from typing import Any

from mesh.errors import TenthError
from services.inference.admission import Speed
from services.inference.errors import Reason
from services.inference.restarts import Restarts
from services.inference.vllm_load import EngineOptions, Loaded, load, lora_of, prompt_of, release
from services.inference.work import WorkMeter

log = logging.getLogger("tenth.inference.vllm")

RELOAD_SECONDS = 8.0
"""What a caller is told to wait for a model that is loaded again; measured: 4 to 8 s, the shipped one, two cores."""
_MISSING = (
    "vLLM is not installed here; serve this model from a machine that has it and point the catalogue's provider at its "
    "OpenAI-compatible URL (backend: openai, base_url: http://HOST:8000/v1)"
)


class EngineFailedError(Exception):
    """Given to every sequence that the engine had when it failed."""


@dataclass(frozen=True, slots=True)
class Unserved:
    """Why the model is not served now. ``unready``: the service is not ready until that changes."""

    reason: str
    message: str
    retry_after_seconds: float | None = None
    unready: bool = True


@dataclass(slots=True)
class Job:
    """One sequence: what the engine's thread needs, and where its outputs (or the error that ended it) go."""

    id: str
    prompt_ids: list[int]
    params: Any
    cache_salt: str
    traceparent: str
    outputs: asyncio.Queue[Any]
    adapter: str = ""
    """The LoRA adapter to put on; empty: none."""
    priority: int = 0
    """vLLM's: the lower, the earlier."""
    begun: bool = False
    """True from its first output."""
    over: bool = False
    """True when it was ended from our side: the engine need not begin it."""


@dataclass(frozen=True, slots=True)
class EngineCounts:
    """The engine's own figures after its last step."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    """Share of the KV cache in use, 0 to 1."""


@dataclass(slots=True)
class Totals:
    """Since the service started; each is written by one thread."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of these, found in the prefix cache."""
    output_tokens: int = 0
    failures: int = 0
    """Times that the engine failed or did not start."""


def _nothing() -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What the owner of the process wants to hear; called in the event loop."""

    changed: Callable[[], None] = _nothing
    """The model is served now, or not any more."""
    hung: Callable[[], None] = _nothing
    """A step does not come back: the process must end."""


@dataclass(slots=True)
class _Shared:
    """What both sides change, under the lock: a job is either known before a failure, and fails, or not taken."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    jobs: dict[str, Job] = field(default_factory=dict)
    unserved: Unserved | None = field(
        default_factory=lambda: Unserved(Reason.MODEL_UNAVAILABLE, "the engine has not been started", unready=False)
    )


_GONE = Unserved(Reason.ENGINE_RESTARTING, "the engine failed", RELOAD_SECONDS)


class EngineThread:
    """Loads a model and steps its engine, again after a failure. ``start`` it, and ``close`` it at the end."""

    def __init__(
        self,
        model: str,
        options: EngineOptions,
        signals: Signals | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` in seconds, never going back."""
        self.loaded: Loaded | None = None
        self.work = WorkMeter(time.monotonic_ns)
        """How much of the time the engine had work; loading is none."""
        self.speed = Speed()
        self.counts = EngineCounts()
        self.totals = Totals()
        self.busy_since = 0.0
        """When the command or step that runs now began, by the clock; 0: none does."""
        self.hung = False
        """True when a step did not come back: only the end of the process helps."""
        self.stopping = threading.Event()
        self._model = model
        self._options = options
        self._signals = signals or Signals()
        self._clock = clock
        self._restarts = Restarts(options.restart)
        self._commands: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended = False
        self._shared = _Shared()

    @property
    def unserved(self) -> Unserved | None:
        """Why the model is not served now; None when it is."""
        return self._shared.unserved

    def start(self) -> None:
        """Begin loading the model; ``unserved`` says how far it is."""
        folder = self._options.folder
        self._loop = asyncio.get_running_loop()
        if not (folder / "config.json").is_file():
            text = (
                f"there is no model folder {folder}; `make models` builds the shipped ones, "
                "`python -m models.build ORG/NAME` fetches one from the hub"
            )
            self._put(Unserved(Reason.MODEL_UNAVAILABLE, text, unready=False))
            log.error("%s: %s", self._model, text)
            return
        self._put(Unserved(Reason.MODEL_UNAVAILABLE, "the engine is starting"))
        self._spawn(0.0)

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

    def jobs(self) -> list[Job]:
        """The sequences that have not ended."""
        with self._shared.lock:
            return list(self._shared.jobs.values())

    def refuse(self, unserved: Unserved) -> None:
        """Take no more sequences, and do not start the engine again; those that run go on."""
        self.stopping.set()
        self._put(unserved)

    def fail(self, unserved: Unserved) -> None:
        """The engine is lost: end every sequence with EngineFailedError. From any thread."""
        self._put(unserved)
        self._hand_over([(job, EngineFailedError()) for job in self.jobs()])

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
        self.fail(Unserved(Reason.ENGINE_RESTARTING, text, RELOAD_SECONDS))
        self._signals.hung()

    def _put(self, unserved: Unserved | None) -> None:
        with self._shared.lock:
            self._shared.unserved = unserved
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._signals.changed)

    def _spawn(self, wait_seconds: float) -> None:
        self._thread = threading.Thread(target=self._run, args=(wait_seconds,), name="vllm-engine", daemon=True)
        self._ended = False
        self._thread.start()

    def _next_try(self) -> float | None:
        """Seconds to wait before the next start; None: it stays down. Every sequence is ended either way."""
        self.totals.failures += 1
        if self.stopping.is_set():
            self.fail(self.unserved or Unserved(Reason.ENGINE_RESTARTING, "the engine failed while it was stopped"))
            return None
        wait = self._restarts.wait_seconds(self._clock())
        if wait is None:
            self.fail(Unserved(Reason.MODEL_UNAVAILABLE, self._restarts.gave_up))
            log.error("%s: %s", self._model, self._restarts.gave_up)
        else:
            text = f"the engine failed and starts again (restart {self._restarts.count})"
            self.fail(Unserved(Reason.ENGINE_RESTARTING, text, wait + RELOAD_SECONDS))
        return wait

    # What follows runs in the engine's thread.

    def _run(self, wait_seconds: float) -> None:
        self._load_and_serve(wait_seconds)
        self._ended = True

    def _load_and_serve(self, wait_seconds: float) -> None:
        wait: float | None = wait_seconds
        while wait is not None and not self.stopping.wait(wait):
            try:
                loaded = load(self._model, self._options)
            except ImportError as error:
                self._put(Unserved(Reason.MODEL_UNAVAILABLE, _MISSING, unready=False))
                log.warning("%s is not served: %s (%s)", self._model, _MISSING, error)
                return
            except TenthError as error:  # Somebody must do something first: trying again is of no use.
                if error.reason == Reason.MODEL_TOO_LARGE and self._restarts.count:
                    wait = self._next_try()  # It was here before: something else has its memory for now.
                    continue
                # A model that is only not proven takes no other model of this replica down with it.
                proven = error.reason not in (Reason.QUANTIZATION_UNPROVEN, Reason.QUANTIZATION_INEFFECTIVE)
                self._put(Unserved(error.reason, error.message, unready=proven))
                log.error("%s is not served: %s", self._model, error)
                return
            except Exception:
                log.exception("%s did not start", self._model)
                wait = self._next_try()
                continue
            wait = self._serve(loaded)
            del loaded  # Else its weights and KV cache are still there while the next one is loaded.
            gc.collect()

    def _put_ready(self) -> None:
        with self._shared.lock:
            if self.stopping.is_set():
                return  # A replica that drains takes nothing, though its engine has just come up.
            self._shared.unserved = None
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._signals.changed)

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

    def _hand_over(self, outputs: list[tuple[Job, Any]]) -> None:
        def deliver() -> None:
            for job, output in outputs:
                job.outputs.put_nowait(output)

        if outputs and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)
