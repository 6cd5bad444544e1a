"""Sentence encoders on ONNX Runtime: a sentence-transformers folder with an ``onnx/model.onnx`` beside its weights.

The exported graph holds the whole encoder with mean pooling and normalisation (``models/recipes.py`` makes it and
checks it against the torch model). It needs neither torch nor transformers at run time: 170 MB resident instead of
530 MB, and a third of the CPU per sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from services.cache.folder import loses_korean, max_tokens

GRAPH = Path("onnx") / "model.onnx"
"""Where the exported encoder lies in a model folder."""


class OnnxEncoder:
    """Texts to L2-normalised vectors. Called from one thread."""

    def __init__(self, folder: Path, thread_count: int = 1) -> None:
        """Load a folder. Raises OSError, or what ONNX Runtime raises for a broken graph."""
        options = onnxruntime.SessionOptions()
        # One thread a process: several pools on few cores slow each other many times over.
        options.intra_op_num_threads = thread_count
        options.inter_op_num_threads = 1
        # The arena would keep the largest batch's memory for ever.
        options.enable_cpu_mem_arena = False
        self._session = onnxruntime.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
        self.dimension = int(self._session.get_outputs()[0].shape[-1])
        self.max_tokens = max_tokens(folder)
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # The folder's own file may pad and cut to other lengths than the model was made for.
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(self.max_tokens)
        self._whole: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._whole.no_padding()
        self._whole.no_truncation()

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One row of ``dimension`` float32 per text, L2-normalised."""
        encoded = self._tokenizer.encode_batch(list(texts))
        inputs = {
            "input_ids": np.array([item.ids for item in encoded], np.int64),
            "attention_mask": np.array([item.attention_mask for item in encoded], np.int64),
        }
        vectors: npt.NDArray[np.float32] = self._session.run(None, inputs)[0]
        return vectors

    def fits(self, text: str) -> bool:
        """True if the whole text is read; a longer one is cut at ``max_tokens``."""
        return len(self._whole.encode(text).ids) <= self.max_tokens

    def reads_korean(self) -> bool:
        """False when Hangul is lost on the tokenizer."""
        return not loses_korean(self._whole)
