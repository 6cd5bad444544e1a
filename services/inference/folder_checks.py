"""Whether a model folder can be served here at all, found out before an engine is started on it.

An engine that meets a truncated file or runs out of memory while it loads dies with a message about tensors, or is
killed by the kernel without any. These checks read headers only and say what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.errors import Code, TenthError
from services.inference.errors import Reason
from services.inference.model_folder import AGAIN, FolderError, header, quantization_of, read_config, read_object

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.gguf")
_ONLY_CUDA = frozenset({"bitsandbytes", "gguf", "modelopt", "modelopt_fp4", "fp8", "fbgemm_fp8", "mxfp4", "exl3"})
"""Methods of ``quantization_config`` for which vLLM has no CPU kernel (fp8: none that is of use, 1.6 tokens/s)."""


@dataclass(frozen=True, slots=True)
class Folder:
    """What is known of a folder that looks whole."""

    weight_bytes: int
    config: Mapping[str, Any]


def read_folder(path: Path) -> Folder:
    """Check that a folder holds a whole model. Raises MODEL_CORRUPT and MODEL_INCOMPLETE."""
    weights = sorted(path.glob("*.safetensors"))
    try:
        config = read_config(path)
        _check_index(path, {file.name for file in weights})
        for file in weights:
            header(file)
    except FolderError as error:
        raise TenthError(Code.UNAVAILABLE, Reason.MODEL_CORRUPT, str(error)) from error
    if not weights:
        weights = [file for pattern in _OTHER_WEIGHTS for file in path.glob(pattern)]
    if not weights:
        raise TenthError(Code.UNAVAILABLE, Reason.MODEL_INCOMPLETE, f"{path} has no weight file; {AGAIN}")
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise TenthError(
            Code.UNAVAILABLE, Reason.MODEL_INCOMPLETE, f"{path} has no tokenizer (tokenizer.json); {AGAIN}"
        )
    return Folder(sum(file.stat().st_size for file in weights), config)


def check_scheme(folder: Folder, *, on_cpu: bool) -> None:
    """Refuse a quantization that this hardware has no kernel for. Raises SCHEME_UNSUPPORTED."""
    scheme = scheme_of(folder.config)
    if on_cpu and (scheme in _ONLY_CUDA or scheme.endswith("float8")):
        raise TenthError(
            Code.UNAVAILABLE,
            Reason.SCHEME_UNSUPPORTED,
            f"the weights are quantized as {scheme}, which needs a GPU; on the CPU serve an int8 (W8A8), int4 (AWQ, "
            "GPTQ) or unquantized folder of the model, or point the catalogue at a GPU server (backend: openai)",
        )


def scheme_of(config: Mapping[str, Any]) -> str:
    """How the weights are quantized, e.g. "awq", "compressed-tensors int8"; empty when they are not."""
    quantization = quantization_of(config)
    if quantization is None:
        return ""
    method = str(quantization.get("quant_method", "unknown"))
    groups = quantization.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            return f"{method} {weights.get('type', 'int')}{weights.get('num_bits', '')}"
    return method


def check_memory(
    folder: Folder, kv_cache_bytes: int, overhead_bytes: int, growth: float, available: int | None
) -> None:
    """Refuse a model that does not fit, instead of being killed for it. Raises MODEL_TOO_LARGE with the figures.

    ``growth``: bytes in memory for each byte of weights on disk (2 where 16-bit weights run as float32).
    ``available`` None: not known, nothing is refused.
    """
    weights = int(folder.weight_bytes * growth)
    needed = weights + kv_cache_bytes + overhead_bytes
    if available is None or needed <= available:
        return
    raise TenthError(
        Code.UNAVAILABLE,
        Reason.MODEL_TOO_LARGE,
        f"about {_mib(needed)} are needed ({_mib(weights)} of weights, {_mib(kv_cache_bytes)} of KV cache, "
        f"{_mib(overhead_bytes)} for the engine) and {_mib(available)} are available; lower "
        "TENTH_INFERENCE_KV_CACHE_BYTES, serve a quantized folder, or give the process more memory",
    )


def available_bytes(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory that this process may still take: the machine's, or the container's where that is less; None: not known.

    Sources: MemAvailable (proc(5)), memory.max and memory.current (cgroup v2), of which reclaimable file pages
    (inactive_file) do not count.
    """
    found = []
    try:
        lines = proc.read_text("ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        pass
    try:
        most = int((cgroup / "memory.max").read_text("ascii"))  # "max": no limit
        used = int((cgroup / "memory.current").read_text("ascii"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text("ascii").splitlines())
        found.append(most - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        pass
    return max(min(found), 0) if found else None


def _check_index(path: Path, present: set[str]) -> None:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return
    shards = read_object(index).get("weight_map")
    missing = sorted(set(shards.values()) - present) if isinstance(shards, Mapping) else []
    if missing:
        raise TenthError(Code.UNAVAILABLE, Reason.MODEL_INCOMPLETE, f"{path} lacks {', '.join(missing)}; {AGAIN}")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
