"""Each distinct text is embedded once, in batches by length, and kept in a file: most of a run is embedding.

A file is named after the set and what makes its vectors: every file of the model folder, the precision, the encoder's
sources. Texts stand in it as digests only.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.progress import blocks
from services.cache.embedding import Encoder, Vector

FOLDER = Path(".data") / "bench" / "vectors"
BATCH = 64
_DIGEST_BYTES = 16
_SOURCES = ("folder.py", "tokenizing.py", "unigram.py")
"""What stands beside an encoder and decides, with it, what its vectors are."""


class KeptEncoder:
    """An encoder with a memory for vectors that it made before, in this run or an earlier one."""

    def __init__(self, encoder: Encoder, model: Path, folder: Path = FOLDER) -> None:
        """``model`` is the encoder's model folder. Raises OSError when it cannot be read."""
        self.dimension = encoder.dimension
        self.precision = encoder.precision
        self._encoder = encoder
        self._folder = folder
        self._made_by = _made_by(encoder, self.precision, model)
        self._known: dict[bytes, Vector] = {}
        self._new = 0

    def encode(self, texts: Sequence[str]) -> Vector:
        """One L2-normalised float32 row per text."""
        digests = [_digest(text) for text in texts]
        missing = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in self._known}
        if missing:
            self._new += len(missing)
            made = self._encoder.encode(list(missing.values()))
            self._known.update(zip(missing, made, strict=True))
        return np.stack([self._known[digest] for digest in digests])

    def fits(self, text: str) -> bool:
        """As the encoder says."""
        return self._encoder.fits(text)

    def reads_korean(self) -> bool:
        """As the encoder says."""
        return self._encoder.reads_korean()

    def load(self, name: str) -> None:
        """Know the vectors of a set, if it was embedded before, and nothing else."""
        self._known, self._new = {}, 0
        file = self._file(name)
        if file.is_file():
            with np.load(file) as content:
                digests = content["digests"].tobytes()
                self._known = {
                    digests[place * _DIGEST_BYTES : (place + 1) * _DIGEST_BYTES]: vector
                    for place, vector in enumerate(content["vectors"])
                }

    def save(self, name: str) -> None:
        """Keep what is known as a set's."""
        if not self._new:
            return
        file = self._file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_name(f"{file.stem}.{os.getpid()}.half.npz")
        digests = np.frombuffer(b"".join(self._known), np.uint8)
        np.savez(half, digests=digests, vectors=np.stack(list(self._known.values())))
        half.replace(file)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}-{self._made_by}.npz"


def batches(texts: Iterable[str], what: str) -> Iterator[Sequence[str]]:
    """Distinct texts in batches of about the same length."""
    return blocks(sorted(set(texts), key=lambda text: (len(text), text)), BATCH, what)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_DIGEST_BYTES]


def _made_by(encoder: Encoder, precision: str, model: Path) -> str:
    digest = hashlib.sha256(precision.encode())
    own = Path(inspect.getfile(type(encoder)))
    sources = [own, *(own.with_name(name) for name in _SOURCES)]
    for file in (*sources, *sorted(model.rglob("*"))):
        if file.is_file():
            with file.open("rb") as content:
                digest.update(f"{file.name} ".encode() + hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]
