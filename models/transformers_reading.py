"""Reading a text with transformers: slow beside the engine, and there wherever folders are built.

Of a folder in compressed-tensors' format it computes with the rounded weights, and rounds the activations where the
scheme says so, as the engine does; only the order of additions differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.evaluation import Reading, compared, windows
from models.texts import held_out
from services.inference.model_folder import declared_scheme, read_config, weight_bytes, weights_sha256

_WINDOW, _STRIDE = 512, 512
"""Tokens. Windows side by side: the shortest run, at a build."""


def read(model: Any, parts: Sequence[tuple[list[int], int]]) -> Reading:
    """What a loaded model says of windows of tokens."""
    import torch

    logprobs: list[float] = []
    likeliest: list[int] = []
    with torch.inference_mode():
        for ids, start in parts:
            said = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].float().log_softmax(-1)
            wanted = torch.tensor(ids[start:]).unsqueeze(-1)
            logprobs += said.gather(-1, wanted).squeeze(-1).tolist()
            likeliest += said.argmax(-1).tolist()
    return Reading(logprobs, likeliest)


def evaluate(folder: Path, reference: Path) -> dict[str, Any]:
    """What a quantized folder lost against its reference on the shipped text, as the evaluation file keeps it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Typed as Any: the library's own types name every shape that a tokenizer could return.
    tokenizer: Any = AutoTokenizer.from_pretrained(reference, local_files_only=True)
    ids = tokenizer(held_out(), add_special_tokens=False)["input_ids"]
    parts = windows(ids, _WINDOW, _STRIDE, tokenizer.bos_token_id or tokenizer.eos_token_id)
    readings = []
    for each in (folder, reference):
        model = AutoModelForCausalLM.from_pretrained(each, dtype="auto", local_files_only=True)
        readings.append(read(model, parts))
    return {
        "scheme": str(declared_scheme(read_config(folder))),
        "measured_by": f"transformers {version('transformers')}",
        "reference": reference.name,
        "reference_weights_sha256": weights_sha256(reference),
        "weights_sha256": weights_sha256(folder),
        "text": "models/texts/held_out.txt",
        "token_count": len(readings[0].logprobs),
        **compared(*readings),
        "weight_bytes": weight_bytes(folder),
        "reference_weight_bytes": weight_bytes(reference),
    }
