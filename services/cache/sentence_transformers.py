"""Sentence encoders on the sentence-transformers library itself: any folder of its kind, with torch behind it.

Used for models without an ONNX graph. Heavier than ``onnx.py`` (530 MB resident), exact by definition.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from services.cache.folder import KOREAN_PROBE, loses_korean, prompt


class SentenceTransformersEncoder:
    """Texts to L2-normalised vectors, one call at a time: the library's tokenizers are not made for several."""

    precision = "fp32"

    def __init__(self, folder: Path) -> None:
        """Load a folder. Raises ImportError without the library, OSError or ValueError for a broken folder."""
        # Imported here: it brings torch, which nobody should pay for who does not use it.
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(1)
        self._lock = threading.Lock()
        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self.dimension = int(self._model.get_embedding_dimension() or 0)
        self.max_tokens = int(self._model.max_seq_length or 512)
        self._prompt = prompt(folder)
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One row of ``dimension`` float32 per text, L2-normalised."""
        with self._lock:
            found = self._model.encode(
                list(texts), prompt=self._prompt, normalize_embeddings=True, show_progress_bar=False
            )
        return np.asarray(found, np.float32)

    def fits(self, text: str) -> bool:
        """True if the whole text is read; a longer one is cut at ``max_tokens``."""
        return len(self._tokenizer.encode(self._prompt + text).ids) <= self.max_tokens

    def reads_korean(self) -> bool:
        """False when Hangul is lost on the tokenizer."""
        return not loses_korean(self._tokenizer.encode(KOREAN_PROBE).tokens)
