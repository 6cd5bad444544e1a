"""Quantize a model folder: ``python -m models.quantize MODEL --scheme int8|int4|fp8 [--recipe NAME]``.

Recipes without calibration are computed here, in seconds (`round_to_nearest.py`); those with calibration by
llm-compressor in an environment of its own (`quantize_env.py`), in minutes. The folder appears whole or not at all,
with a stamp that says what made it from what. It is served once `tenth model evaluate` has measured it.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import quantize_env
from models.folders import STAMP, folder_of
from models.round_to_nearest import quantize as round_to_nearest
from models.texts import PROMPTS
from services.inference.model_folder import (
    FolderError,
    Scheme,
    declared_scheme,
    header,
    read_config,
    weight_bytes,
    weights_sha256,
)

RECIPES: dict[str, tuple[str, ...]] = {
    "int8": ("smoothquant-gptq", "gptq", "round-to-nearest"),
    "int4": ("awq-gptq", "awq", "gptq", "round-to-nearest"),
    "fp8": ("dynamic",),
}
"""The recipes of each scheme, the default first."""
DATA_FREE = ("round-to-nearest", "dynamic")
_GROUPS = (128, 32)
"""int4: a scale for so many columns. 128 is what kernels are fastest with; models that it does not divide are small
ones, which lose least with 32."""
SELF = "self"
"""What the stamp says of calibration texts that the model wrote itself."""


class QuantizeError(Exception):
    """A model could not be quantized; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Job:
    """One quantization. ``calibration`` None: the model writes the texts itself. ``group`` 0: chosen by the model's
    shape; ``most_texts`` and ``most_tokens`` (of each text) 0: chosen by the runner."""

    source: Path
    target: Path
    scheme: str
    recipe: str
    calibration: Path | None = None
    group: int = 0
    most_texts: int = 0
    most_tokens: int = 0
    seed: int = 0


def quantize(job: Job, say: Callable[[str], None], venv: Path) -> None:
    """Make the folder. Raises QuantizeError, FolderError or EnvironmentFailed; nothing is left behind then."""
    scheme = declared_scheme(read_config(job.source))
    if scheme is not Scheme.NONE:
        raise QuantizeError(f"{job.source} is quantized already ({scheme}): start from the unquantized model")
    if job.target.exists():
        raise QuantizeError(f"{job.target} is there already: remove it, or name another --output")
    group = (job.group or group_of(job.source)) if job.scheme == "int4" else 0
    parent = job.target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    needed, free = weight_bytes(job.source) + 100_000_000, shutil.disk_usage(parent).free
    if free < needed:
        raise QuantizeError(f"{parent} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB may be needed: make room")
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix=f".{job.target.name}-", dir=parent) as scratch_name:
            scratch = Path(scratch_name)
            made = scratch / "made"
            if job.recipe in DATA_FREE:
                facts: dict[str, Any] = {"versions": round_to_nearest(job.source, made, job.scheme, group)}
            else:
                facts = _calibrated(job, made, group, scratch, say, venv)
            stamp = {
                "source_folder": job.source.name,
                "source_weights_sha256": weights_sha256(job.source),
                "scheme": job.scheme,
                "recipe": job.recipe,
                **({"group": group} if group else {}),
                **facts,
            }
            (made / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", "utf-8")
            for path in made.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes 0600: services run as other users.
            made.chmod(0o755)
            made.rename(job.target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise QuantizeError(f"the disk of {parent} is full: make room and start again") from error
        raise
    size, before = weight_bytes(job.target), weight_bytes(job.source)
    say(
        f"{job.target}: {size / 1e6:.0f} MB of {before / 1e6:.0f} MB, in {time.monotonic() - started:.0f} s; "
        f"next: tenth model evaluate {job.target}"
    )


def group_of(folder: Path) -> int:
    """int4's columns for a scale: the largest of 128 and 32 that divides every linear layer. Raises QuantizeError."""
    widths = {
        int(tensor["shape"][1])
        for path in folder.glob("*.safetensors")
        for name, tensor in header(path).items()
        if name.endswith("proj.weight") and len(tensor["shape"]) == 2
    }
    for group in _GROUPS:
        if all(width % group == 0 for width in widths):
            return group
    raise QuantizeError(
        f"{folder} has layers of {sorted(widths)} columns, which no group of {_GROUPS} divides: use int8"
    )


def recipe_of(scheme: str, wanted: str) -> str:
    """The recipe, or the scheme's default. Raises QuantizeError."""
    if not wanted:
        return RECIPES[scheme][0]
    if wanted not in RECIPES[scheme]:
        raise QuantizeError(f"there is no recipe {wanted!r} for {scheme}; there are: {', '.join(RECIPES[scheme])}")
    return wanted


def _calibrated(
    job: Job, made: Path, group: int, scratch: Path, say: Callable[[str], None], venv: Path
) -> dict[str, Any]:
    """Run llm-compressor; returns what the stamp says of it."""
    python = quantize_env.interpreter(venv, say)
    wanted = {
        "source": str(job.source.absolute()),
        "target": str(made),
        "scheme": job.scheme,
        "recipe": job.recipe,
        "group": group,
        "texts": str(job.calibration.absolute()) if job.calibration else "",
        "most_texts": job.most_texts,
        "most_tokens": job.most_tokens,
        "prompts": str(PROMPTS.absolute()),
        "seed": job.seed,
    }
    (scratch / "job.json").write_text(json.dumps(wanted), "utf-8")
    runner = Path(__file__).with_name("quantize_runner.py")
    log = scratch / "log"
    last = ""
    # -I: nothing of this project's environment reaches that one.
    command = [str(python.absolute()), "-I", str(runner), str(scratch / "job.json")]
    pipe = subprocess.PIPE
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (
        log.open("w", encoding="utf-8") as said,
        subprocess.Popen(command, stdout=pipe, stderr=said, text=True, env=environment, cwd=scratch) as child,  # noqa: S603
    ):
        assert child.stdout is not None
        for line in child.stdout:
            last = line.strip() or last
            if not last.startswith("{") and " | " not in last:  # llm-compressor's own log goes by.
                say(last)
    if child.returncode:
        words = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
        if any("No space left on device" in line for line in words):
            raise OSError(errno.ENOSPC, "No space left on device")
        why = words[-1] if words else f"status {child.returncode}"
        raise QuantizeError(f"llm-compressor did not finish {job.recipe} of {job.source.name}: {why}")
    facts: dict[str, Any] = json.loads(last)
    return {**facts, "calibration": job.calibration.name if job.calibration else SELF, "seed": job.seed}


def parser() -> argparse.ArgumentParser:
    """The command's arguments; `tenth model quantize` hands on the same."""
    result = argparse.ArgumentParser(prog="tenth model quantize", description=__doc__)
    result.add_argument("model", help="a folder, or its name under the models directory")
    result.add_argument("--scheme", required=True, choices=tuple(RECIPES))
    result.add_argument(
        "--recipe", default="", help="; ".join(f"{key}: {', '.join(of)}" for key, of in RECIPES.items())
    )
    result.add_argument(
        "--calibration", type=Path, help="JSON lines of text or messages (default: the model writes its own)"
    )
    result.add_argument("--output", type=Path, help="the new folder (default: MODEL-SCHEME-RECIPE beside the model)")
    result.add_argument("--group", type=int, default=0, help="int4: columns for a scale (default: 128, else 32)")
    result.add_argument(
        "--most-texts",
        type=int,
        default=0,
        help="for calibration (default: 256 of a file; the model writes 64 on a CPU, 256 on a GPU)",
    )
    result.add_argument(
        "--most-tokens",
        type=int,
        default=0,
        help="of each text (default: 512 of a file or where a GPU writes them, 256 where a CPU does)",
    )
    result.add_argument("--seed", type=int, default=0, help="of the texts that the model writes (default: %(default)s)")
    result.add_argument("--models-dir", type=Path, default=Path(os.environ.get("TENTH_MODELS_DIR", ".models")))
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parser().parse_args(arguments)
    try:
        source = folder_of(options.model, options.models_dir)
        recipe = recipe_of(options.scheme, options.recipe)
        if recipe not in DATA_FREE and options.calibration and not options.calibration.is_file():
            raise QuantizeError(f"there is no calibration file {options.calibration}")
        target = options.output or source.with_name(f"{source.name}-{options.scheme}-{recipe}")
        job = Job(
            source, target, options.scheme, recipe, options.calibration,
            options.group, options.most_texts, options.most_tokens, options.seed,
        )  # fmt: skip
        quantize(job, lambda line: print(line, flush=True), quantize_env.default_directory())
    except (QuantizeError, FolderError, quantize_env.EnvironmentFailed, OSError, ValueError) as error:
        print(f"tenth model quantize: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
