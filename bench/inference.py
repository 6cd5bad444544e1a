"""What the local engine costs and gives: precisions, batching, prefix cache, our stream, cancelling, starting.

- **start**: a service's start to its first token;
- **schemes**: bf16, int8 and int4 of one model: megabytes, tokens a second;
- **perplexity**: of the same, on the evaluation data's texts;
- **prefix**: time to the first token of a prompt whose first 2,000 tokens were read before;
- **stream**: our gRPC stream and vLLM's own HTTP server over the engine alone;
- **cancel**: from a caller's leaving to a free slot.

Model folders that are absent are named with the command that makes them. On a machine with a GPU the engine runs
there, and the result has the GPU's name.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import inference_life, inference_plots, inference_schemes, inference_stream
from bench.inference_engine import EngineError, EngineOptions
from bench.kept import NOT_ASKED, keep
from bench.pictures import draw_all
from bench.result import Result, arguments
from mesh.errors import TenthError
from services.inference.serving import read_catalog
from services.inference.settings import InferenceSettings

PARTS = (
    inference_life.START,
    inference_schemes.PART,
    inference_schemes.PERPLEXITY,
    inference_life.PREFIX,
    inference_stream.PART,
    inference_life.CANCEL,
)
_DEFAULT_SEQUENCES = 32
"""The service's own choice on a CPU where its setting leaves it open."""
_SCHEME_SEQUENCES = 64
"""The schemes' engines work on up to so many sequences; the service's default is a setting."""
_ASK_GPU = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")


@dataclass(frozen=True, slots=True)
class Bench:
    """One run: what it measures, and where."""

    result: Result
    data: Path | None
    folders: Path
    model: str
    """The catalogue's name of the model that the service serves by default."""
    provider_model: str
    options: EngineOptions
    logs: Path
    seed: int

    def run(self, part: str) -> None:
        """Measure a part, or note why not."""
        schemes_options = replace(self.options, max_running=_SCHEME_SEQUENCES)
        known: Mapping[str, Callable[[], None]] = {
            inference_life.START: lambda: self._wait(
                inference_life.start(self.result, self.model, self.folders, self.logs)
            ),
            inference_schemes.PART: lambda: inference_schemes.measure(
                self.result, self.folders, schemes_options, self.logs, self.seed
            ),
            inference_schemes.PERPLEXITY: lambda: inference_schemes.measure_perplexity(
                self.result, self.data, self.folders, schemes_options, self.logs, self.seed
            ),
            inference_life.PREFIX: lambda: inference_life.prefix(
                self.result, self.folders / self.provider_model, self.options, self.logs, self.seed
            ),
            inference_stream.PART: lambda: self._wait(
                inference_stream.measure(
                    self.result, self.model, self.folders, self.provider_model, self.options, self.logs, self.seed
                )
            ),
            inference_life.CANCEL: lambda: self._wait(
                inference_life.cancel(self.result, self.model, self.folders, self.logs)
            ),
        }
        of_schemes = part in (inference_schemes.PART, inference_schemes.PERPLEXITY)
        if not of_schemes and not (self.folders / self.provider_model / "config.json").is_file():
            self.result.skipped.append(f"{part}: no folder {self.provider_model}; `make models` makes it")
            return
        try:
            known[part]()
        except (EngineError, TenthError, OSError, TimeoutError) as error:
            self.result.skipped.append(f"{part}: {error or type(error).__name__}")

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run(work)


def main() -> int:
    """Run the benchmark; exit code 1 when it could not measure."""
    parser = arguments("inference", (__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", type=parts, default=PARTS, metavar="PART,...", help=", ".join(PARTS))
    parser.add_argument("--keep", action="store_true", help="keep what the --json file has of the other parts")
    parser.add_argument("--folders", type=Path, default=Path(".models"), help="the folder of the model folders")
    options = parser.parse_args()
    result = Result("inference", options.quick)
    settings = InferenceSettings()
    _, local = read_catalog(settings)
    result.assumptions |= {"seed": options.seed, "hardware": hardware(), "load_before": round(os.getloadavg()[0], 2)}
    result.skipped += [f"{part}{NOT_ASKED}" for part in PARTS if part not in options.only]
    if find_spec("vllm") is None or local is None:
        result.skipped.append("everything: vLLM is not installed here, or the catalogue has no local model")
    else:
        engine = EngineOptions(
            context_window=local.context_window,
            threads=settings.threads,
            spin_count=settings.spin_count,
            kv_cache_bytes=settings.kv_cache_bytes,
            max_running=settings.max_running or _DEFAULT_SEQUENCES,
            compile=settings.compile,
        )
        with tempfile.TemporaryDirectory(prefix="tenth-bench-") as made:
            bench = Bench(
                result,
                options.data,
                options.folders.absolute(),
                local.name,
                local.provider_model,
                engine,
                Path(made),
                options.seed,
            )
            for part in PARTS:
                if part in options.only:
                    bench.run(part)
    measured = bool(result.metrics)
    if options.keep and options.json is not None:
        said = keep(result, options.json, options.only, part_of, ("seed", "hardware"))
        if said:
            result.skipped.append(said)
    if options.plots is not None:
        result.skipped += draw_all(options.plots, "inference", inference_plots.pictures(result.metrics))
    result.write(options.json)
    return 0 if measured else 1


def part_of(name: str) -> str:
    """The part that a metric, or what was skipped, belongs to."""
    first = name.partition("/")[0]
    if "/perplexity" in name:
        return inference_schemes.PERPLEXITY
    return {"prefix_cache": inference_life.PREFIX}.get(first, first if first in PARTS else inference_schemes.PART)


def hardware() -> dict[str, Any]:
    """What the engine runs on: the GPU's name where there is one, else what the CPU can multiply."""
    # In a process of its own: this one times streams, and torch would make it a slower caller.
    asked = subprocess.run([sys.executable, "-c", _ASK_GPU], capture_output=True, text=True, check=False)  # noqa: S603  (the command is ours)
    if asked.stdout.strip():
        return {"gpu": asked.stdout.strip()}
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return {"cpu": "unknown"}
    fields = dict(line.split("\t", 1) for line in text.partition("\n\n")[0].splitlines() if "\t" in line)
    said = {name.strip(): value.lstrip("\t: ") for name, value in fields.items()}
    flags = said.get("flags", "").split()
    return {"cpu": said.get("model name", "unknown"), "flags": [flag for flag in _CPU_FLAGS if flag in flags]}


def parts(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated list, for argparse."""
    names = tuple(name for name in text.split(",") if name)
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"{text!r} is not of {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
