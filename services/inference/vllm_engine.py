"""What both ways of running vLLM's engine have in common: its sequences, why it is not served, when it starts again.

``vllm_thread.py`` steps an engine in this process, ``vllm_async.py`` has one in a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mesh.errors import TenthError
from services.inference.admission import Speed
from services.inference.errors import Reason
from services.inference.restarts import Restarts
from services.inference.vllm_load import EngineOptions, Loaded
from services.inference.work import WorkMeter

log = logging.getLogger("tenth.inference.vllm")

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
    """One sequence: what the engine needs, and where its outputs (or the error that ended it) go."""

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
    """What several threads change, under the lock: a job is either known before a failure, and fails, or not taken."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    jobs: dict[str, Job] = field(default_factory=dict)
    unserved: Unserved | None = field(
        default_factory=lambda: Unserved(Reason.MODEL_UNAVAILABLE, "the engine has not been started", unready=False)
    )


class SupervisedEngine(ABC):
    """A model's engine that is started again after a failure."""

    reload_seconds: float
    """What a caller is told to wait for a model that is loaded again."""

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
        """When the step that runs now began, by the clock; 0: none does."""
        self.hung = False
        """True when a step did not come back and only the end of this process helps."""
        self.stopping = threading.Event()
        self._model = model
        self._options = options
        self._signals = signals or Signals()
        self._clock = clock
        self._restarts = Restarts(options.restart)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shared = _Shared()

    @abstractmethod
    def _spawn(self, wait_seconds: float) -> None:
        """Begin to load the model after this time."""

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

    def _put(self, unserved: Unserved | None) -> None:
        with self._shared.lock:
            self._shared.unserved = unserved
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._signals.changed)

    def _put_ready(self) -> None:
        with self._shared.lock:
            if self.stopping.is_set():
                return  # A replica that drains takes nothing, though its engine has just come up.
            self._shared.unserved = None
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._signals.changed)

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
            self.fail(Unserved(Reason.ENGINE_RESTARTING, text, wait + self.reload_seconds))
        return wait

    def _load_failed(self, error: Exception) -> float | None:
        """The model could not be loaded: seconds to wait before the next try; None: trying again is of no use."""
        if isinstance(error, ImportError):
            self._put(Unserved(Reason.MODEL_UNAVAILABLE, _MISSING, unready=False))
            log.warning("%s is not served: %s (%s)", self._model, _MISSING, error)
            return None
        if isinstance(error, TenthError):  # Somebody must do something first.
            if error.reason == Reason.MODEL_TOO_LARGE and self._restarts.count:
                return self._next_try()  # It was here before: something else has its memory for now.
            # A model that is only not proven takes no other model of this replica down with it.
            proven = error.reason not in (Reason.QUANTIZATION_UNPROVEN, Reason.QUANTIZATION_INEFFECTIVE)
            self._put(Unserved(error.reason, error.message, unready=proven))
            log.error("%s is not served: %s", self._model, error)
            return None
        log.error("%s did not start", self._model, exc_info=error)
        return self._next_try()

    def _hand_over(self, outputs: list[tuple[Job, Any]]) -> None:
        def deliver() -> None:
            for job, output in outputs:
                job.outputs.put_nowait(output)

        if outputs and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)
