"""Parts ``schemes`` and ``perplexity``: one model in several precisions, on the same engine with the same settings.

Each engine is a process of its own, one after another, in rounds that go forth and back through the schemes, so that a
machine that gets slower or faster meanwhile does so for all. Ratios are taken within a round.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.inference_engine import Engine, EngineError, EngineOptions, running
from bench.inference_texts import TEXTS, read_text
from bench.inference_windows import Score, perplexity, ratio
from bench.progress import blocks
from bench.result import Result, median

PART = "schemes"
PERPLEXITY = "perplexity"
MODEL = "smollm2-135m-instruct"
BASE = "bf16"
WINDOW, STRIDE = 1024, 512


@dataclass(frozen=True, slots=True)
class Scheme:
    """One precision, made in one way."""

    key: str
    """Its name in the metrics."""
    said: str
    """For people."""
    folder: str
    command: str
    """What makes the folder."""


SCHEMES = (
    Scheme(BASE, "bf16", MODEL, "make models"),
    Scheme("int8", "int8 W8A8, round to nearest, no data", f"{MODEL}-int8", "make models"),
    Scheme(
        "int8_smoothquant_gptq",
        "int8 W8A8, SmoothQuant and GPTQ",
        f"{MODEL}-int8-smoothquant-gptq",
        f"tenth model quantize {MODEL} --scheme int8 --recipe smoothquant-gptq",
    ),
    Scheme(
        "int4",
        "int4 W4A16, AWQ and GPTQ",
        f"{MODEL}-int4-awq-gptq",
        f"tenth model quantize {MODEL} --scheme int4",
    ),
    Scheme(
        "int4_awq",
        "int4 W4A16, AWQ",
        f"{MODEL}-int4-awq",
        f"tenth model quantize {MODEL} --scheme int4 --recipe awq",
    ),
    Scheme(
        "int4_gptq",
        "int4 W4A16, GPTQ",
        f"{MODEL}-int4-gptq",
        f"tenth model quantize {MODEL} --scheme int4 --recipe gptq",
    ),
)


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured."""

    rounds: int
    concurrencies: Sequence[int]
    output_tokens: int
    text_tokens: Mapping[str, int]
    """By text of ``inference_texts.TEXTS``."""


FULL = Load(3, (1, 8, 32, 64), 128, {"": 32_768, "held_out": 16_384})
QUICK = Load(1, (1, 8, 32), 32, {"": 2048, "held_out": 2048})


@dataclass(slots=True)
class Measured:
    """What the rounds gave for one scheme; lists have a value a round."""

    speeds: dict[int, list[float]] = field(default_factory=dict)
    """Output tokens a second, by concurrency."""
    resident: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    scores: dict[str, list[Score]] = field(default_factory=dict)
    """By text, of its windows."""
    ready: Mapping[str, Any] = field(default_factory=dict)


def measure(result: Result, folders: Path, options: EngineOptions, logs: Path, seed: int) -> None:
    """Sizes and speeds of all schemes whose folders are there; of the others it is said what makes them."""
    load = QUICK if result.quick else FULL
    chosen = _chosen(result, folders)
    measured: dict[str, Measured] = {scheme.key: Measured() for scheme in chosen}
    visits = [
        (number, scheme) for number in range(load.rounds) for scheme in (chosen if number % 2 == 0 else chosen[::-1])
    ]
    for [(_, scheme)] in blocks(visits, 1, "schemes"):
        if scheme.key in measured:
            visit = partial(_speeds, measured[scheme.key], load)
            _visit(result, measured, scheme, folders / scheme.folder, options, logs, visit)
    measured = _really_quantized(result, measured, chosen, folders)
    add(result, measured, {scheme.key: weight_bytes(folders / scheme.folder) for scheme in chosen}, seed)
    _assume(result, measured, load, options, {scheme.key: folders / scheme.folder for scheme in chosen})


def measure_perplexity(
    result: Result, data: Path | None, folders: Path, options: EngineOptions, logs: Path, seed: int
) -> None:
    """Perplexity of the same, on the texts that there are. It does not depend on what else the machine does."""
    load = QUICK if result.quick else FULL
    texts = _texts(result, data)
    chosen = _chosen(result, folders) if texts else ()
    measured: dict[str, Measured] = {scheme.key: Measured() for scheme in chosen}
    for [scheme] in blocks(chosen, 1, "perplexity"):
        visit = partial(_scores, measured[scheme.key], load, texts)
        _visit(result, measured, scheme, folders / scheme.folder, options, logs, visit)
    measured = _really_quantized(result, measured, chosen, folders)
    add(result, measured, {}, seed)
    result.assumptions[PERPLEXITY] = {
        "window": WINDOW,
        "stride": STRIDE,
        "texts": {name or "data": f"{text.file}, {text.field_said}" for name, text in TEXTS.items()},
        "made_by": {key: made_by(folders / scheme.folder) for scheme in chosen if (key := scheme.key) in measured},
    }


def _chosen(result: Result, folders: Path) -> Sequence[Scheme]:
    there = [scheme for scheme in SCHEMES if (folders / scheme.folder / "config.json").is_file()]
    missing = [scheme for scheme in SCHEMES if scheme not in there]
    said = [f"{scheme.key}: no folder {scheme.folder}; `{scheme.command}` makes it" for scheme in missing]
    chosen = there[:2] if result.quick else there
    said += [f"{scheme.key}: a quick run measures two schemes" for scheme in there if scheme not in chosen]
    result.skipped += [each for each in said if each not in result.skipped]
    return chosen


def _really_quantized(
    result: Result, measured: Mapping[str, Measured], chosen: Sequence[Scheme], folders: Path
) -> dict[str, Measured]:
    kept = dict(measured)
    for scheme in chosen:
        if scheme.key in kept:
            problem = quantized_nothing(folders / scheme.folder, kept[scheme.key].ready)
            if problem:
                result.skipped.append(f"{scheme.key}: {problem}")
                del kept[scheme.key]
    return kept


def add(result: Result, measured: Mapping[str, Measured], sizes: Mapping[str, int], seed: int) -> None:
    """The figures of what was measured, ratios to bf16 where that was measured too."""
    base = measured.get(BASE)
    for key, own in measured.items():
        of = f"{key}/vllm"
        if key in sizes:
            result.add(f"{of}/weights_mb", sizes[key] / 1e6, "MB", 1)
        if key in sizes and BASE in sizes:
            result.add(f"{of}/weights_ratio", sizes[key] / sizes[BASE], "ratio", 1)
        if own.resident:
            result.add(f"{of}/resident_mb", median(own.resident) / 1e6, "MB", len(own.resident))
            result.add(f"{of}/start_seconds", median(own.starts), "s", len(own.starts))
        for concurrency, speeds in own.speeds.items():
            result.add(f"{of}/tokens_per_s_c{concurrency}", median(speeds), "tokens/s", len(speeds))
            if base is not None and key != BASE:
                _spread(result, f"{of}/tokens_ratio_c{concurrency}", _by_round(speeds, base.speeds[concurrency]))
            if concurrency > 1:
                gained = _by_round(speeds, own.speeds[1])
                _spread(result, f"{of}/speedup_c{concurrency}", gained)
                if key == BASE:
                    _spread(result, f"batching/vllm/speedup_c{concurrency}", gained)
        for text, scores in own.scores.items():
            suffix = f"_{text}" if text else ""
            tokens = sum(score.tokens for score in scores)
            result.add(f"{of}/perplexity{suffix}", perplexity(scores), "perplexity", tokens)
            if base is not None and key != BASE and text in base.scores:
                value, interval = ratio(scores, base.scores[text], seed)
                result.add(f"{of}/perplexity_ratio{suffix}", value, "ratio", tokens, interval)


def weight_bytes(folder: Path) -> int:
    """Bytes of a model folder's weights on disk."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def quantized_nothing(folder: Path, ready: Mapping[str, Any]) -> str:
    """Why an engine's figures are not those of its folder's scheme, else nothing: vLLM can load a quantized model and
    multiply it as an unquantized one, without a word."""
    configuration = json.loads((folder / "config.json").read_text("utf-8"))
    layers = ready.get("layers", {})
    if "quantization_config" in configuration and not set(layers) - {"UnquantizedLinearMethod"}:
        return f"the engine quantized nothing: its linear layers are {layers}"
    return ""


def _visit(
    result: Result,
    measured: dict[str, Measured],
    scheme: Scheme,
    folder: Path,
    options: EngineOptions,
    logs: Path,
    ask: Callable[[Engine], None],
) -> None:
    """An engine of its own for some questions; a scheme whose engine fails is out, and named."""
    try:
        with running(folder, options, logs / f"{scheme.key}.log") as engine:
            measured[scheme.key].ready = engine.ready
            ask(engine)
    except EngineError as error:
        result.skipped.append(f"{scheme.key}: {error}")
        del measured[scheme.key]


def _speeds(own: Measured, load: Load, engine: Engine) -> None:
    own.starts.append(engine.ready["start_seconds"])
    for concurrency in load.concurrencies:
        # One stream alone is over soon: measured longer.
        waves = 2 if concurrency == 1 else 1
        made = engine.ask("speed", concurrency=concurrency, output_tokens=load.output_tokens, waves=waves)
        own.speeds.setdefault(concurrency, []).append(made["tokens"] / made["seconds"])
    own.resident.append(engine.ask("resident")["bytes"])


def _scores(own: Measured, load: Load, texts: Mapping[str, str], engine: Engine) -> None:
    for name, text in texts.items():
        asked = {"text": text, "tokens": load.text_tokens[name], "window": WINDOW, "stride": STRIDE}
        own.scores[name] = [Score(*pair) for pair in engine.ask("score", **asked)["scores"]]


def _texts(result: Result, data: Path | None) -> dict[str, str]:
    if data is None:
        result.skipped.append("perplexity: no --data")
        return {}
    found = {}
    for name, text in TEXTS.items():
        try:
            found[name] = read_text(data, text)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            result.skipped.append(f"perplexity on {text.file}: {error or type(error).__name__}")
    return found


def _by_round(own: Sequence[float], base: Sequence[float]) -> list[float]:
    return [mine / others for mine, others in zip(own, base, strict=True)]


def _spread(result: Result, name: str, values: Sequence[float]) -> None:
    """The median of the rounds, and how far they lie apart: too few for an interval."""
    result.add(name, median(values), "ratio", len(values))
    if len(values) > 1:
        result.add(f"{name}_low", min(values), "ratio", len(values))
        result.add(f"{name}_high", max(values), "ratio", len(values))


def _assume(
    result: Result,
    measured: Mapping[str, Measured],
    load: Load,
    options: EngineOptions,
    folders: Mapping[str, Path],
) -> None:
    result.assumptions[PART] = {
        "base": "SmolLM2-135M-Instruct dequantized from Q4_1: what a scheme loses, it loses of that",
        "rounds": load.rounds,
        "output_tokens": load.output_tokens,
        "threads": options.threads,
        "kv_cache_mb": round(options.kv_cache_bytes / 1e6),
        "max_running": options.max_running,
        "compiled": options.compile,
        "dtype": {key: own.ready.get("dtype") for key, own in measured.items()},
        "layers": {key: own.ready.get("layers") for key, own in measured.items()},
        "made_by": {key: made_by(folders[key]) for key in measured},
    }


def made_by(folder: Path) -> Any:
    """What the folder says of how it was made; nothing where it does not say."""
    try:
        return json.loads((folder / "tenth-model.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
