"""Data-free quantization: every weight rounded to a value of its scheme, in the format that vLLM loads.

The arithmetic and the format are the `compressed-tensors` package's own, which the engine reads them with; scales are
the largest absolute weight of each output channel (int8, fp8) or of each group of input columns (int4), as its
round-to-nearest observer takes them. Takes seconds, needs no calibration text and no environment of its own, and gives
the same bytes each time. It is computed in the model's own type: in float32 SmolLM2's perplexity was the same to three
digits. The output head and the embedding stay 16-bit.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

PRESETS = {"int8": "W8A8", "int4": "W4A16", "fp8": "FP8_DYNAMIC"}
"""compressed-tensors' name of each scheme: int8 and fp8 round activations too, each token by itself, while running."""


def quantize(source: Path, target: Path, scheme: str, group: int = 0) -> dict[str, str]:
    """Write ``target`` from the model folder ``source``; returns the versions that did it.

    ``group`` is int4's number of input columns that share a scale. Raises KeyError for an unknown scheme, and OSError
    or ValueError when the folder cannot be read or written.
    """
    import torch
    from compressed_tensors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils import is_module_quantized
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments = preset_name_to_scheme(PRESETS[scheme], targets=["Linear"])
    if scheme == "int4":
        arguments.weights.group_size = group
    # Typed as Any: the library's own types do not name what quantization adds to a module.
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto", local_files_only=True)
    config = QuantizationConfig(
        config_groups={"group_0": arguments}, ignore=["lm_head"], quantization_status=QuantizationStatus.FROZEN
    )
    apply_quantization_config(model, config)
    with torch.no_grad():
        for module in model.modules():
            if is_module_quantized(module):
                _set_scales(module, arguments.weights)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(target)
    compressor.update_config(str(target))
    AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(target)
    _with_final_newline(target / "config.json")
    return {name: version(name) for name in ("compressed-tensors", "transformers", "torch")}


def _set_scales(module: Any, arguments: Any) -> None:
    from compressed_tensors.quantization.utils import calculate_qparams

    weight = module.weight
    if arguments.group_size:
        weight = weight.unflatten(-1, (-1, arguments.group_size))
    low, high = weight.amin(dim=-1), weight.amax(dim=-1)
    if not arguments.group_size:
        low, high = low.unsqueeze(-1), high.unsqueeze(-1)
    scale, zero_point = calculate_qparams(low, high, arguments)
    module.weight_scale.data.copy_(scale)
    module.weight_zero_point.data.copy_(zero_point)


def _with_final_newline(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")), indent=2, sort_keys=True) + "\n", "utf-8")
