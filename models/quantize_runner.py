"""Calibrated quantization by llm-compressor: ``python quantize_runner.py JOB``, run by the interpreter that has it.

A file by itself: that environment has nothing of this project (models/quantize_env.py). JOB is a JSON file:

    source, target     folders; target is made
    scheme             int8 | int4
    recipe             smoothquant-gptq | gptq | awq
    group              int4: weights that share a scale, by input columns
    texts              JSON lines: a string, {"text": ...}, or {"messages": [...]} which gets the chat template
    most_texts         texts that are used at most, from the first
    most_tokens        tokens of a text that are used at most
    seed

Writes progress to standard output, one line each, and the versions that did it as JSON on the last.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any


def main(job_file: str) -> int:
    """Do one job. Returns the exit status: 3 when a calibration text cannot be used."""
    job: dict[str, Any] = json.loads(Path(job_file).read_text("utf-8"))
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    if not torch.cuda.is_available():
        # AWQ pins the memory that it would copy to a GPU; without one there is nobody to pin for, and torch refuses.
        torch.Tensor.pin_memory = lambda self, *_, **__: self  # type: ignore[method-assign]
    set_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["source"], local_files_only=True)
    try:
        rows = calibration(Path(job["texts"]), tokenizer, job["most_texts"], job["most_tokens"])
    except ValueError as error:
        print(f"calibration: {error}", file=sys.stderr)
        return 3
    tokens = sum(len(row["input_ids"]) for row in rows)
    print(f"calibration: {len(rows)} texts, {tokens} tokens", flush=True)
    model = AutoModelForCausalLM.from_pretrained(job["source"], dtype="auto", local_files_only=True)
    started = time.monotonic()
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=modifiers(job["scheme"], job["recipe"], job["group"]),
        max_seq_length=job["most_tokens"],
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
    )
    print(f"{job['recipe']}: {time.monotonic() - started:.0f} s", flush=True)
    model.save_pretrained(job["target"], save_compressed=True)
    tokenizer.save_pretrained(job["target"])
    names = ("llmcompressor", "compressed-tensors", "transformers", "torch")
    versions = {name: importlib.metadata.version(name) for name in names}
    print(json.dumps({"versions": versions, "calibration_texts": len(rows), "calibration_tokens": tokens}), flush=True)
    return 0


def calibration(path: Path, tokenizer: Any, most_texts: int, most_tokens: int) -> list[dict[str, list[int]]]:
    """Token ids of the first texts. Raises ValueError naming the line that is wrong."""
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            item = {"text": item} if isinstance(item, str) else item
            if "messages" in item:
                text = tokenizer.apply_chat_template(item["messages"], tokenize=False)
            else:
                text = item["text"]
            ids = tokenizer(text, truncation=True, max_length=most_tokens)["input_ids"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} is no text, {{'text'}} or {{'messages'}}: {error!r}") from None
        if ids:
            rows.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
        if len(rows) == most_texts:
            break
    if not rows:
        raise ValueError("there is no text in it")
    return rows


def modifiers(scheme: str, recipe: str, group: int) -> list[Any]:
    """llm-compressor's steps. The output head stays as it is (of small models it is the embedding too)."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier, SmoothQuantModifier

    ignore = ["lm_head"]
    if scheme == "int8":
        # 0.8 moves most of an activation's outliers into the weights: SmoothQuant (arXiv 2211.10438), section 5.
        smooth = [SmoothQuantModifier(smoothing_strength=0.8)] if recipe == "smoothquant-gptq" else []
        return [*smooth, GPTQModifier(targets=["Linear"], scheme="W8A8", ignore=ignore)]
    # AWQ gains by zero points; GPTQ's kernels on GPU are fastest without.
    weights = QuantizationArgs(
        num_bits=4, type="int", strategy="group", group_size=group, symmetric=recipe != "awq", dynamic=False
    )
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    if recipe == "awq":
        return [AWQModifier(duo_scaling=True), QuantizationModifier(config_groups=groups, ignore=ignore)]
    return [GPTQModifier(config_groups=groups, ignore=ignore)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
