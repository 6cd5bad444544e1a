"""Sentence encoders on ONNX Runtime: a sentence-transformers folder with graphs in ``onnx/`` beside its weights.

A graph holds the whole encoder with mean pooling and normalisation (``models/graphs.py`` makes it and its recipe checks
it against the torch model). It needs neither torch nor transformers at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from services.cache.folder import GRAPHS, KOREAN_PROBE, loses_korean, max_tokens, prompt
from services.cache.tokenizing import load_tokenizer


class OnnxEncoder:
    """Texts to L2-normalised vectors, on the threads that call it."""

    def __init__(self, folder: Path, precision: str = "fp32") -> None:
        """Load a folder's graph of that precision. Raises OSError, or what ONNX Runtime raises for a broken graph."""
        options = onnxruntime.SessionOptions()
        # One thread a text. Two that share one need more CPU for it, and several pools on few cores slow each other
        # many times over; two texts on two threads need no more than one by one.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # The arena would keep the largest batch's memory for ever.
        options.enable_cpu_mem_arena = False
        self._session = onnxruntime.InferenceSession(
            str(folder / GRAPHS[precision]), options, providers=["CPUExecutionProvider"]
        )
        self.precision = precision
        self.dimension = int(self._session.get_outputs()[0].shape[-1])
        self.max_tokens = max_tokens(folder)
        self._prompt = prompt(folder)
        self._tokenizer = load_tokenizer(folder)

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One row of ``dimension`` float32 per text, L2-normalised."""
        vectors = np.empty((len(texts), self.dimension), np.float32)
        # One by one: on one thread a batch is no faster, short texts need not wait at the length of long ones, and an
        # int8 graph takes its scales from the whole batch, so that a text's vector would depend on its company.
        for row, text in zip(vectors, texts, strict=True):
            ids = np.array([self._tokenizer.encode(self._prompt + text, self.max_tokens)], np.int64)
            row[:] = self._session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
        return vectors

    def fits(self, text: str) -> bool:
        """True if the whole text is read; a longer one is cut at ``max_tokens``."""
        return self._tokenizer.count(self._prompt + text, self.max_tokens) <= self.max_tokens

    def reads_korean(self) -> bool:
        """False when Hangul is lost on the tokenizer."""
        return not loses_korean(self._tokenizer.pieces(KOREAN_PROBE))
