"""A BERT sentence encoder on numpy: the forward pass of sentence-transformers folders such as all-MiniLM-L6-v2.

For folders without an ONNX graph. It needs neither torch nor an inference runtime: about 90 MB of weights and one BLAS
thread, at twice the CPU of ``onnx.py``. The linear layers run
over the tokens of all texts of a batch together and attention runs text by text, so that nothing is padded.
Post-norm encoder and exact GELU as in Devlin et al. 2018 (https://arxiv.org/abs/1810.04805); mean pooling and
normalisation as in Reimers and Gurevych 2019 (https://arxiv.org/abs/1908.10084).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from services.cache.folder import loses_korean, max_tokens

Matrix = npt.NDArray[np.float32]


class UnsupportedModelError(ValueError):
    """The folder holds a model that this encoder cannot run exactly; the message says what is different."""


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Matrix
    qkv_bias: Matrix
    attention_out: Matrix
    attention_bias: Matrix
    attention_norm: tuple[Matrix, Matrix]
    up: Matrix
    up_bias: Matrix
    down: Matrix
    down_bias: Matrix
    output_norm: tuple[Matrix, Matrix]


class BertEncoder:
    """Texts to L2-normalised vectors. Not thread-safe by contract: call it from one thread."""

    def __init__(self, folder: Path) -> None:
        """Load a sentence-transformers folder.

        Raises FileNotFoundError when a file is absent and UnsupportedModelError when the model is of another kind.
        """
        config = _read_json(folder / "config.json")
        _check(folder, config)
        self.dimension = int(config["hidden_size"])
        self._heads = int(config["num_attention_heads"])
        self._epsilon = np.float32(config.get("layer_norm_eps", 1e-12))
        self.max_tokens = max_tokens(folder)
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # The folder's own file may pad and cut to other lengths than the model was made for.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        tensors = load_file(folder / "model.safetensors")
        weights = {name.removeprefix("bert."): tensor.astype(np.float32) for name, tensor in tensors.items()}
        embeddings = "embeddings."
        self._words = weights[embeddings + "word_embeddings.weight"]
        # Every token is of type 0: its vector is folded into the positions once.
        self._positions = (
            weights[embeddings + "position_embeddings.weight"] + weights[embeddings + "token_type_embeddings.weight"][0]
        )
        self._embedding_norm = _norm(weights, embeddings + "LayerNorm")
        self._layers = [_layer(weights, index) for index in range(int(config["num_hidden_layers"]))]

    def fits(self, text: str) -> bool:
        """True if the whole text is read; a longer one is cut at ``max_tokens``."""
        return len(self._tokenizer.encode(text).ids) <= self.max_tokens

    def reads_korean(self) -> bool:
        """False when Hangul is lost on the tokenizer."""
        return not loses_korean(self._tokenizer)

    def encode(self, texts: Sequence[str]) -> Matrix:
        """One row of ``dimension`` float32 per text, L2-normalised."""
        ids = [self._ids(text) for text in texts]
        bounds = np.cumsum([0, *(len(item) for item in ids)])
        flat = np.concatenate([np.asarray(item) for item in ids])
        places = np.concatenate([np.arange(len(item)) for item in ids])
        hidden = _layer_norm(self._words[flat] + self._positions[places], self._embedding_norm, self._epsilon)
        for layer in self._layers:
            attended = self._attend(_linear(hidden, layer.qkv, layer.qkv_bias), bounds)
            hidden = _layer_norm(
                hidden + _linear(attended, layer.attention_out, layer.attention_bias),
                layer.attention_norm,
                self._epsilon,
            )
            inner = _gelu(_linear(hidden, layer.up, layer.up_bias))
            hidden = _layer_norm(hidden + _linear(inner, layer.down, layer.down_bias), layer.output_norm, self._epsilon)
        counts = np.diff(bounds)[:, None].astype(np.float32)
        pooled: Matrix = np.asarray(np.add.reduceat(hidden, bounds[:-1], axis=0) / counts, np.float32)
        norms = np.linalg.norm(pooled, axis=1, keepdims=True)
        return np.asarray(pooled / np.maximum(norms, np.float32(1e-12)), np.float32)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        # The last one is the separator, which stays.
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]

    def _attend(self, qkv: Matrix, bounds: npt.NDArray[np.int_]) -> Matrix:
        size = self.dimension // self._heads
        scale = np.float32(1 / np.sqrt(size))
        out = np.empty((len(qkv), self.dimension), np.float32)
        for start, end in itertools.pairwise(bounds.tolist()):
            part = qkv[start:end].reshape(end - start, 3, self._heads, size).transpose(1, 2, 0, 3)
            scores = (part[0] * scale) @ part[1].transpose(0, 2, 1)
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            out[start:end] = (scores @ part[2]).transpose(1, 0, 2).reshape(end - start, self.dimension)
        return out


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def _check(folder: Path, config: dict[str, Any]) -> None:
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        raise UnsupportedModelError(f"model type {config.get('model_type')!r} with {config.get('hidden_act')!r}")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise UnsupportedModelError("positions are not absolute")
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.exists():
        modes = _read_json(pooling)
        mean = modes.get("pooling_mode_mean_tokens", modes.get("pooling_mode") == "mean")
        if not mean:
            raise UnsupportedModelError("pooling is not the mean of the tokens")


def _norm(weights: dict[str, Matrix], name: str) -> tuple[Matrix, Matrix]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _layer(weights: dict[str, Matrix], index: int) -> _Layer:
    prefix = f"encoder.layer.{index}."
    parts = ("query", "key", "value")
    own = f"{prefix}attention.self."
    return _Layer(
        qkv=np.concatenate([weights[f"{own}{part}.weight"] for part in parts]),
        qkv_bias=np.concatenate([weights[f"{own}{part}.bias"] for part in parts]),
        attention_out=weights[f"{prefix}attention.output.dense.weight"],
        attention_bias=weights[f"{prefix}attention.output.dense.bias"],
        attention_norm=_norm(weights, f"{prefix}attention.output.LayerNorm"),
        up=weights[f"{prefix}intermediate.dense.weight"],
        up_bias=weights[f"{prefix}intermediate.dense.bias"],
        down=weights[f"{prefix}output.dense.weight"],
        down_bias=weights[f"{prefix}output.dense.bias"],
        output_norm=_norm(weights, f"{prefix}output.LayerNorm"),
    )


def _linear(rows: Matrix, weight: Matrix, bias: Matrix) -> Matrix:
    """Rows times the weight as the file holds it, [out, in]. BLAS is twice as fast with the wide factor first here."""
    result: Matrix = np.ascontiguousarray((weight @ rows.T).T)
    result += bias
    return result


def _layer_norm(rows: Matrix, norm: tuple[Matrix, Matrix], epsilon: np.float32) -> Matrix:
    centred = rows - rows.mean(axis=1, keepdims=True)
    variance = np.einsum("ij,ij->i", centred, centred)[:, None] / np.float32(rows.shape[1])
    result: Matrix = centred / np.sqrt(variance + epsilon) * norm[0] + norm[1]
    return result


def _gelu(rows: Matrix) -> Matrix:
    """x * Phi(x) with erf after Abramowitz and Stegun 7.1.26, off by less than 1.5e-7: below float32's own noise."""
    scaled = np.abs(rows) * np.float32(0.7071067811865476)
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * scaled)
    tail = np.full_like(t, np.float32(1.061405429))
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail *= t
        tail += np.float32(factor)
    tail *= t
    tail *= np.exp(-scaled * scaled)
    erf = np.copysign(np.float32(1) - tail, rows)
    result: Matrix = np.asarray(rows * np.float32(0.5) * (np.float32(1) + erf), np.float32)
    return result
