"""What a model folder says of itself: its scheme, how its weights are stored, how it was evaluated.

Reads JSON and the headers of safetensors files alone, so it needs neither torch nor the engine; `models/` writes what
is read here.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

EVALUATION = "tenth-evaluation.json"
"""File beside the weights with what `tenth model evaluate` measured."""
AGAIN = "build or fetch the folder again (`make models`, or `python -m models.build ORG/NAME`)"
"""What to do about a damaged folder."""
_MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit."""
_ROUNDED = {"I8": 8, "U8": 8, "I16": 16, "I32": 32, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4}
"""Stored types that hold rounded or packed weights, and their bits."""


class FolderError(ValueError):
    """A model folder cannot be used; the message says which file and what to do."""


class Scheme(StrEnum):
    """How weights are stored."""

    NONE = "none"
    """As they were trained: 32- or 16-bit floats."""
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"
    FP4 = "fp4"
    OTHER = "other"
    """Quantized in a way that is not known here."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a quantized model lost against the one it was made from.

    ``perplexity_ratio`` is its perplexity over the reference's on the same text, ``agreement`` the share of that text's
    positions at which both think the same token the likeliest (0 to 1); ``weights_sha256`` says of which weights.
    """

    perplexity_ratio: float
    agreement: float
    weights_sha256: str


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``. Raises FolderError."""
    config = read_object(folder / "config.json")
    if quantization_of(config) is None and (folder / "hf_quant_config.json").is_file():
        config["quantization_config"] = {"quant_method": "modelopt"}  # vLLM reads it from there.
    return config


def read_object(file: Path) -> dict[str, Any]:
    """A file's JSON object. Raises FolderError."""
    try:
        read = json.loads(file.read_text("utf-8"))
        if not isinstance(read, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise FolderError(f"{file} cannot be read ({error}); {AGAIN}") from error
    return read


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a configuration says of its quantization, in each place where vLLM looks for it."""
    places = ((config, "quantization_config"), (config.get("text_config"), "quantization_config"))
    for holder, key in (*places, (config, "compression_config")):
        found = holder.get(key) if isinstance(holder, Mapping) else None
        if isinstance(found, Mapping):
            return found
    return None


def declared_scheme(config: Mapping[str, Any]) -> Scheme:
    """The scheme that a configuration claims."""
    said = quantization_of(config)
    if said is None:
        return Scheme.NONE
    method = str(said.get("quant_method", "")).lower()
    if method == "compressed-tensors":
        groups = said.get("config_groups")
        groups = list(groups.values()) if isinstance(groups, Mapping) else []
        weights = [group["weights"] for group in groups if isinstance(group, Mapping) and group.get("weights")]
        found = {_of_bits(str(item.get("type", "int")), item.get("num_bits")) for item in weights}
        return found.pop() if len(found) == 1 else Scheme.OTHER
    if method == "fp8":
        return Scheme.FP8
    if method in ("mxfp4", "nvfp4"):
        return Scheme.FP4
    return _of_bits("int", said.get("bits", said.get("w_bit")))


def stored_types(folder: Path) -> dict[str, str]:
    """The stored type of every tensor, as safetensors names it ("BF16", "I8", ...). Raises FolderError for a file that
    is cut off or is none."""
    found: dict[str, str] = {}
    for path in _weight_files(folder):
        for name, tensor in header(path).items():
            found[name] = str(tensor["dtype"])
    return found


def header(path: Path) -> dict[str, dict[str, Any]]:
    """A safetensors file's tensors: name -> dtype, shape, data_offsets. Raises FolderError.

    The format: eight bytes with the length of a JSON header, the header, the data.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEADER_BYTES, size):
                raise ValueError("its header is longer than the file")
            tensors = json.loads(file.read(length))
        tensors.pop("__metadata__", None)
        ends = [tensor["data_offsets"][1] for tensor in tensors.values()]
        expected = 8 + length + max(ends, default=0)
        if size != expected:
            raise ValueError(f"it has {size} bytes, its header says {expected}")
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise FolderError(f"the weights {path} are damaged ({error}); {AGAIN}") from error
    return dict(tensors)


def holds_rounded_weights(types: Mapping[str, str]) -> bool:
    """True when some weights are stored rounded or packed."""
    return any(kind in _ROUNDED for name, kind in types.items() if "weight" in name.rpartition(".")[2])


def weight_bytes(folder: Path) -> int:
    """Size of the weight files, bytes."""
    return sum(path.stat().st_size for path in _weight_files(folder))


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the weight files in the order of their names, which stand in it too. Reads them all: about a second
    for a gigabyte."""
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        with path.open("rb") as file:
            digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def read_evaluation(folder: Path) -> Evaluation | None:
    """What was measured of the folder; None when nothing was. Raises FolderError for a file that says nothing."""
    path = folder / EVALUATION
    try:
        found = json.loads(path.read_text("utf-8"))
        return Evaluation(
            perplexity_ratio=float(found["perplexity_ratio"]),
            agreement=float(found["agreement"]),
            weights_sha256=str(found["weights_sha256"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{path} is damaged ({error!r}): evaluate the model again") from error


def _of_bits(kind: str, bits: Any) -> Scheme:
    known = {("int", 8): Scheme.INT8, ("int", 4): Scheme.INT4, ("float", 8): Scheme.FP8, ("float", 4): Scheme.FP4}
    return known.get((kind, bits), Scheme.OTHER)


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
