"""Measure a model against the one it was made from: ``python -m models.evaluate MODEL [--against REFERENCE]``.

Both are loaded by the real engine, one after the other, each in a process of its own (`measure.py`). What is found is
put beside the model's weights, where the inference service's recovery gate reads it, and printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import evaluation
from models.evaluation import Reading, compared
from models.folders import folder_of, stamp_of
from models.texts import held_out, questions
from services.inference.engine_plan import unsupported
from services.inference.hardware import detect
from services.inference.model_folder import (
    FolderError,
    Scheme,
    declared_scheme,
    read_config,
    stored_types,
    weight_bytes,
    weights_sha256,
)

_KV_CACHE_BYTES = 512 * 1024 * 1024
_MEGABYTE = 1e6


class EvaluateError(Exception):
    """A model could not be measured; the message says why and what to do."""


def evaluate(folder: Path, reference: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The evaluation of a folder against another. Raises EvaluateError and FolderError."""
    scheme = declared_scheme(read_config(folder))
    cannot = unsupported(detect(), scheme)
    if cannot:
        raise EvaluateError(cannot)
    if scheme is not Scheme.NONE and declared_scheme(read_config(reference)) is not Scheme.NONE:
        raise EvaluateError(f"{reference.name} is quantized itself: name the unquantized model with --against")
    for each in (folder, reference):
        stored_types(each)  # Damaged weights are told before an engine starts.
    with tempfile.TemporaryDirectory(prefix="tenth-evaluate-") as scratch_name:
        scratch = Path(scratch_name)
        text = scratch / "text"
        text.write_text(options.text.read_text("utf-8") if options.text else held_out(), "utf-8")
        found = measure(folder, text, options, scratch)
        other = found if folder == reference else measure(reference, text, options, scratch)
        digest = hashlib.sha256(text.read_bytes()).hexdigest()
    if scheme is not Scheme.NONE and not found["quantized_layer_count"]:
        raise EvaluateError(f"{folder} claims to be {scheme}, and the engine quantized none of its layers")
    readings = [Reading(each["logprobs"], each["likeliest"]) for each in (found, other)]
    tasks = [right(each["answers"]) for each in (found, other)]
    same = sum(one == two for one, two in zip(found["answers"], other["answers"], strict=True))
    return {
        "scheme": str(scheme),
        "recipe": stamp_of(folder).get("recipe", ""),
        "measured_by": found["engine"],
        "device": found["device"],
        "reference": reference.name,
        "reference_weights_sha256": weights_sha256(reference),
        "weights_sha256": weights_sha256(folder),
        "text": options.text.name if options.text else "models/texts/held_out.txt",
        "text_sha256": digest,
        "token_count": len(readings[0].logprobs),
        "window": options.window,
        "stride": options.stride,
        **compared(*readings),
        "task": {"count": len(tasks[0]), "right": sum(tasks[0]), "reference_right": sum(tasks[1]), "same_answer": same},
        "quantized_layer_count": found["quantized_layer_count"],
        "layer_count": found["layer_count"],
        "weight_bytes": weight_bytes(folder),
        "reference_weight_bytes": weight_bytes(reference),
        "resident_bytes": found["resident_bytes"],
        "reference_resident_bytes": other["resident_bytes"],
        "tokens_per_second": found["tokens_per_second"],
        "reference_tokens_per_second": other["tokens_per_second"],
    }


def measure(folder: Path, text: Path, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """One model's figures, by the engine in a process of its own. Raises EvaluateError."""
    job, result = scratch / "job.json", scratch / "result.json"
    result.unlink(missing_ok=True)
    wanted = {
        "folder": str(folder),
        "text": str(text),
        "most_tokens": options.most_tokens,
        "window": options.window,
        "stride": options.stride,
        "concurrency": options.concurrency,
        "output_tokens": options.output_tokens,
        "threads": options.threads,
        "kv_cache_bytes": _KV_CACHE_BYTES,
        "result": str(result),
    }
    job.write_text(json.dumps(wanted), "utf-8")
    print(f"measuring {folder.name}", flush=True)
    command = [sys.executable, "-m", "models.measure", str(job)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603  (ours)
    if done.returncode or not result.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()]
        if any("No module named 'vllm'" in line for line in said):
            raise EvaluateError("vLLM is not installed here, and a model is measured by the engine that serves it")
        raise EvaluateError(f"the engine could not measure {folder}: {said[-1] if said else 'it said nothing'}")
    found: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return found


def right(answers: Sequence[str]) -> list[bool]:
    """Which answers to the shipped questions hold an accepted word."""
    pairs = zip(answers, questions(), strict=True)
    return [any(word in answer.lower() for word in accept) for answer, (_, accept) in pairs]


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    task = result["task"]
    rows = [
        ("scheme", result["scheme"], f"{result['quantized_layer_count']} of {result['layer_count']} layers"),
        (
            "perplexity",
            f"{result['perplexity']:.3f}",
            f"{result['perplexity_ratio']:.4f} x {result['reference_perplexity']:.3f} ({result['token_count']} tokens)",
        ),
        ("agreement", f"{result['agreement']:.2%}", "of tokens: both think the same the likeliest"),
        (
            "task",
            f"{task['right']}/{task['count']}",
            f"reference {task['reference_right']}, {task['same_answer']} answers word for word the same",
        ),
        (
            "weights",
            f"{result['weight_bytes'] / _MEGABYTE:.0f} MB",
            f"of {result['reference_weight_bytes'] / _MEGABYTE:.0f} MB",
        ),
        (
            "resident",
            f"{result['resident_bytes'] / _MEGABYTE:.0f} MB",
            f"reference {result['reference_resident_bytes'] / _MEGABYTE:.0f} MB, KV cache included",
        ),
    ]
    for count, speed in result["tokens_per_second"].items():
        other = result["reference_tokens_per_second"][count]
        rows.append((f"tokens/s at {count}", f"{speed:.0f}", f"reference {other:.0f} on {result['device']}"))
    return "\n".join(f"{name:<16} {value:>10}  {note}" for name, value, note in rows)


def parser() -> argparse.ArgumentParser:
    """The command's arguments; `tenth model evaluate` hands on the same."""
    result = argparse.ArgumentParser(prog="tenth model evaluate", description=__doc__)
    result.add_argument("model", help="a folder, or its name under the models directory")
    result.add_argument("--against", default="", help="the unquantized model (default: what it was made from)")
    result.add_argument("--text", type=Path, help="a file of text (default: the shipped one, 1,300 tokens)")
    result.add_argument("--json", type=Path, help="write the result there as well")
    result.add_argument("--models-dir", type=Path, default=Path(os.environ.get("TENTH_MODELS_DIR", ".models")))
    result.add_argument("--window", type=int, default=1024, help="tokens read at once (default: %(default)s)")
    result.add_argument("--stride", type=int, default=512, help="tokens scored of each (default: %(default)s)")
    result.add_argument("--most-tokens", type=int, default=32_768, help="of the text (default: %(default)s)")
    result.add_argument("--concurrency", type=int, nargs="+", default=[1, 8], help="sequences at once (default: 1 8)")
    result.add_argument("--output-tokens", type=int, default=64, help="of each (default: %(default)s)")
    result.add_argument("--threads", type=int, default=2, help="of the CPU engine (default: %(default)s)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parser().parse_args(arguments)
    try:
        if not 0 < options.stride <= options.window:
            raise EvaluateError(f"--stride {options.stride} does not fit --window {options.window}")
        folder = folder_of(options.model, options.models_dir)
        against = options.against or str(stamp_of(folder).get("source_folder") or options.model)
        result = evaluate(folder, folder_of(against, options.models_dir), options)
        path = evaluation.write(folder, result)
        if options.json:
            options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    except (EvaluateError, FolderError, OSError) as error:
        print(f"tenth model evaluate: {error}", file=sys.stderr)
        return 1
    print(table(result))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
