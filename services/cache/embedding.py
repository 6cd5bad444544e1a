"""The one embedder of the mesh: a local sentence encoder on threads of its own.

Texts that arrive while a batch runs form the next batch, so that a lone request never waits for company. Questions go
before passages: somebody waits for a question with nothing else to do, and passages come by the dozen. Vectors of
recent texts are kept: a lookup and the store that follows it embed once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mesh.errors import Code, TenthError
from services.cache.errors import Reason, embedder_missing
from services.cache.folder import GRAPHS

Vector = npt.NDArray[np.float32]
log = logging.getLogger("tenth.cache")
_FORM = 2
"""Version of the text form and of the pooling; a change of either makes old vectors meet no new ones."""


def has_direction(vector: Sequence[float]) -> bool:
    """False for a vector that no cosine can be taken with: of length zero, or with values that are no numbers."""
    values = np.asarray(vector, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.linalg.norm(values))
    return 0 < length < float("inf")


class Encoder(Protocol):
    """A loaded model. Called from the embedder's threads, from several at once; ``fits`` from any."""

    dimension: int
    precision: str
    """``int8`` or ``fp32``: vectors of one are not compared with vectors of the other."""

    def encode(self, texts: Sequence[str]) -> Vector:
        """One L2-normalised float32 row per text."""

    def fits(self, text: str) -> bool:
        """True if the whole text is read."""

    def reads_korean(self) -> bool:
        """False when Hangul is lost on the tokenizer."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors in the order of the texts, and the CPU time they took (0 for remembered ones), microseconds."""

    vectors: tuple[Vector, ...]
    compute_micros: int


class Embedder:
    """Embeds texts in one fixed form. Close it to stop its threads."""

    def __init__(
        self,
        encoder: Encoder,
        name: str,
        batch_count: int = 1,
        memory_count: int = 4096,
        queue_count: int = 8192,
        thread_count: int = 1,
    ) -> None:
        """``batch_count``: most texts that a thread embeds at once; ONNX Runtime is no faster with several."""
        self.version = f"{name}@{_FORM}-{encoder.precision}"
        self.dimension = encoder.dimension
        self.reads_korean = encoder.reads_korean()
        if not self.reads_korean:
            log.warning("%s cannot read Hangul: Korean questions hit by exact key only", name)
        self._encoder = encoder
        self._batch_count = batch_count
        self._memory_count = memory_count
        self._queue_count = queue_count
        self._thread_count = thread_count
        self._threads = ThreadPoolExecutor(thread_count, thread_name_prefix="embedder")
        self._memory: OrderedDict[str, Vector] = OrderedDict()
        self._waiting: OrderedDict[str, asyncio.Future[tuple[Vector, int]]] = OrderedDict()
        self._patient: OrderedDict[str, asyncio.Future[tuple[Vector, int]]] = OrderedDict()
        self._running: dict[str, asyncio.Future[tuple[Vector, int]]] = {}
        self._workers: set[asyncio.Task[None]] = set()

    async def embed(self, texts: Sequence[str], *, patient: bool = False) -> Embedded:
        """Embed texts, ``patient`` ones after the others. Raises RESOURCE_EXHAUSTED when too many wait already."""
        pending: dict[str, asyncio.Future[tuple[Vector, int]]] = {}
        own: set[str] = set()
        found: dict[str, Vector] = {}
        for text in texts:
            if text in found or text in pending:
                continue
            known = self._memory.get(text)
            if known is not None:
                self._memory.move_to_end(text)
                found[text] = known
                continue
            shared = self._running.get(text) or self._waiting.get(text) or self._patient.get(text)
            if shared is None:
                shared = self._enqueue(text, patient=patient)
                own.add(text)
            elif not patient and text in self._patient:
                self._waiting[text] = self._patient.pop(text)
            pending[text] = shared
        micros = 0
        for text, future in pending.items():
            # Shielded, because other requests may wait for the same text.
            found[text], cost = await asyncio.shield(future)
            if text in own:
                micros += cost
        return Embedded(tuple(found[text] for text in texts), micros)

    def remembered(self, text: str) -> bool:
        """True if embedding this text costs nothing now."""
        return text in self._memory

    def fits(self, text: str) -> bool:
        """True if the model reads the whole text. Short texts are not even tokenised."""
        # A token is at least one character, and normalisation makes at most 18 of one.
        return len(text) <= 12 or self._encoder.fits(text)

    async def close(self) -> None:
        """Finish what runs and stop the threads."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _enqueue(self, text: str, *, patient: bool) -> asyncio.Future[tuple[Vector, int]]:
        count = len(self._waiting) + len(self._patient)
        if count >= self._queue_count:
            raise TenthError(
                Code.RESOURCE_EXHAUSTED,
                Reason.EMBED_QUEUE_FULL,
                f"{count} texts wait for the embedder",
                retry_after_seconds=1.0,
            )
        future: asyncio.Future[tuple[Vector, int]] = asyncio.get_running_loop().create_future()
        (self._patient if patient else self._waiting)[text] = future
        self._workers = {worker for worker in self._workers if not worker.done()}
        if len(self._workers) < self._thread_count:
            self._workers.add(asyncio.create_task(self._work()))
        return future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while queue := self._waiting or self._patient:
            count = min(self._batch_count, len(queue))
            batch = dict(queue.popitem(last=False) for _ in range(count))
            self._running |= batch
            try:
                vectors, micros = await loop.run_in_executor(self._threads, self._encode, list(batch))
            except asyncio.CancelledError:
                for future in (*batch.values(), *self._waiting.values(), *self._patient.values()):
                    future.cancel()
                raise
            except Exception as error:
                # One bad text must not leave the others waiting for ever.
                for future in batch.values():
                    future.set_exception(error)
                    future.exception()  # Marks it as seen: all who asked may be gone.
                continue
            finally:
                for text in batch:
                    del self._running[text]
            for (text, future), vector in zip(batch.items(), vectors, strict=True):
                self._remember(text, vector)
                if not future.done():
                    future.set_result((vector, micros // count))

    def _encode(self, texts: list[str]) -> tuple[Vector, int]:
        started = time.thread_time_ns()
        vectors = self._encoder.encode(texts)
        return vectors, (time.thread_time_ns() - started) // 1000

    def _remember(self, text: str, vector: Vector) -> None:
        self._memory[text] = vector
        while len(self._memory) > self._memory_count:
            self._memory.popitem(last=False)


def load_encoder(models_dir: Path, name: str, precision: str = "int8") -> Encoder:
    """The encoder of a model folder: its ONNX graph where there is one, else sentence-transformers itself.

    ``precision`` is ``int8`` or ``fp32``; a folder without an int8 graph is served in fp32, and the encoder says so.
    Raises EMBEDDER_MISSING, EMBEDDER_UNSUPPORTED.
    """
    folder = models_dir / name
    for needed in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / needed).is_file():
            raise embedder_missing(str(folder), needed)
    # Each runtime is imported only by who uses it.
    try:
        for choice in dict.fromkeys((precision, "fp32")):
            if (folder / GRAPHS[choice]).is_file():
                from services.cache.onnx import OnnxEncoder

                return OnnxEncoder(folder, choice)
        from services.cache.sentence_transformers import SentenceTransformersEncoder

        return SentenceTransformersEncoder(folder)
    except Exception as error:
        # A broken graph, a torn file, an absent library: each runtime has errors of its own for them.
        raise TenthError(
            Code.FAILED_PRECONDITION,
            Reason.EMBEDDER_UNSUPPORTED,
            f"{folder}: {error}",
            metadata={"folder": str(folder)},
        ) from error
