"""The tables of the inference bench for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench import inference_stream
from bench.cells import Figures, head, row, with_notes
from bench.goals import Goal, goals_table, milliseconds, times
from bench.inference_schemes import BASE, PART, PERPLEXITY, SCHEMES

_CONCURRENCIES = (1, 8, 32, 64)
_STREAMS = {"ours": "Tenth, gRPC", "vllm_http": "vLLM's HTTP server", "engine": "the engine alone"}


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


_GOALS = (
    Goal("int8 weights on disk, of bf16's", "int8/vllm/weights_ratio", 0.62),
    Goal("int8 perplexity, of bf16's", "int8/vllm/perplexity_ratio", 1.03),
    Goal("the same on held-out text", "int8/vllm/perplexity_ratio_held_out", 1.03),
    Goal("int8 tokens/s, of bf16's, 32 at once", "int8/vllm/tokens_ratio_c32", 1.1, more=True, form=times),
    Goal("int8 tokens/s, of bf16's, 64 at once", "int8/vllm/tokens_ratio_c64", 1.15, more=True, form=times),
    Goal("int4 weights on disk, of bf16's", "int4/vllm/weights_ratio", 0.45),
    Goal("int4 perplexity, of bf16's", "int4/vllm/perplexity_ratio", 1.10),
    Goal("the same on held-out text", "int4/vllm/perplexity_ratio_held_out", 1.10),
    Goal("batching, bf16: 32 at once over 1", "batching/vllm/speedup_c32", 9, more=True, form=times),
    Goal("prefix cache: first token, second over first", "prefix_cache/vllm/ttft_ratio", 0.12),
    Goal("gRPC stream: added to the first token", "stream/ours/ttft_overhead_ms", 5, form=milliseconds),
    Goal("gRPC stream: CPU per chunk", "stream/ours/cpu_ms_per_chunk", 0.2, form=milliseconds),
    Goal("the same, by thread", "stream/ours/cpu_ms_per_chunk_by_thread", 0.2, form=milliseconds),
    Goal("engine's start to its first token, bf16", f"{BASE}/vllm/start_seconds", 15, form=_seconds),
    Goal("service's start to its first token", "start/ours/first_token_s", 15, form=_seconds),
)


class _Figures(Figures):
    """Those of inference."""

    def number(self, name: str, digits: int = 0) -> str:
        """A figure to so many digits after the point; empty when not measured."""
        value = self.value(name)
        return "" if value is None else f"{value:.{digits}f}"

    def spread(self, name: str) -> str:
        """A ratio that was taken in each round: its median, and the lowest and highest."""
        value, low, high = (self.value(f"{name}{end}") for end in ("", "_low", "_high"))
        if value is None:
            return ""
        return f"{value:.2f}x" + (f" ({low:.2f} to {high:.2f})" if low is not None and low != high else "")

    def interval(self, name: str, digits: int = 2) -> str:
        """A figure with its 95% interval."""
        if name not in self.metrics:
            return ""
        low, high = self.metrics[name]["ci95"] or (0.0, 0.0)
        text = f"{self.metrics[name]['value']:.{digits}f}"
        return text + (f" [{low:.{digits}f}, {high:.{digits}f}]" if low != high else "")


def inference_tables(result: Mapping[str, Any]) -> str:
    """Goals, size and quality by scheme, speed by scheme, streams, and the life of a service."""
    figures, said = _Figures(result), result["assumptions"]
    parts = [
        goals_table(figures, _GOALS),
        _quality(figures, result),
        _speed(figures),
        _gains(figures),
        _streams(figures),
        _life(figures),
    ]
    texts = ["\n".join(part) for part in parts if len(part) > 2]
    texts += [_schemes_said(said[PART])] if PART in said else []
    texts += [_perplexity_said(said[PERPLEXITY])] if PERPLEXITY in said else []
    texts += [_streams_said(said[inference_stream.PART])] if inference_stream.PART in said else []
    machine = result["machine"]
    texts.append(
        f"Commit {result['commit'][:12]}, {_hardware(said.get('hardware', {}))}, {machine['cpus']} CPUs "
        f"({machine['machine']}), Python {machine['python']}, {result['seconds']:.0f} s, seed {said.get('seed')}; "
        f"load average before: {said.get('load_before')}."
    )
    return with_notes(texts, result)


def _quality(figures: _Figures, result: Mapping[str, Any]) -> list[str]:
    lines = head(
        "scheme", "weights MB", "of bf16's", "resident MB", "perplexity", "of bf16's", "held-out text", "of bf16's",
        "start s", texts=1,
    )  # fmt: skip
    absent = {item.partition(":")[0] for item in result["skipped"]}
    for scheme in SCHEMES:
        of = f"{scheme.key}/vllm"
        if f"{of}/weights_mb" in figures.metrics:
            lines.append(
                row(
                    scheme.said,
                    figures.number(f"{of}/weights_mb"),
                    figures.share(f"{of}/weights_ratio"),
                    figures.number(f"{of}/resident_mb"),
                    figures.number(f"{of}/perplexity", 2),
                    figures.with_interval(f"{of}/perplexity_ratio"),
                    figures.number(f"{of}/perplexity_held_out", 2),
                    figures.with_interval(f"{of}/perplexity_ratio_held_out"),
                    figures.number(f"{of}/start_seconds", 1),
                )
            )
        elif scheme.key in absent:
            lines.append(row(scheme.said, "absent", *([""] * 7)))
    return lines if any(each.startswith("| bf16 |") for each in lines) else lines[:2]


def _speed(figures: _Figures) -> list[str]:
    lines = head("tokens a second, sequences at once", *map(str, _CONCURRENCIES), "rounds", texts=1)
    for scheme in SCHEMES:
        names = [f"{scheme.key}/vllm/tokens_per_s_c{count}" for count in _CONCURRENCIES]
        if names[0] in figures.metrics:
            lines.append(row(scheme.said, *map(figures.number, names), figures.n(names[0])))
    return lines


def _gains(figures: _Figures) -> list[str]:
    lines = head(
        "median of rounds (lowest to highest)",
        *(f"over bf16, {count}" for count in _CONCURRENCIES),
        *(f"{count} over 1" for count in _CONCURRENCIES[1:]),
        texts=1,
    )
    for scheme in SCHEMES:
        of = f"{scheme.key}/vllm"
        cells = [figures.spread(f"{of}/tokens_ratio_c{count}") for count in _CONCURRENCIES]
        cells += [figures.spread(f"{of}/speedup_c{count}") for count in _CONCURRENCIES[1:]]
        if any(cells):
            lines.append(row(scheme.said, *cells))
    return lines


def _streams(figures: _Figures) -> list[str]:
    lines = head(
        "stream",
        "first token p50 ms",
        "added ms",
        "streams",
        "CPU ms per chunk",
        "the same by thread",
        "chunks",
        texts=1,
    )
    for system, said in _STREAMS.items():
        of = f"stream/{system}"
        if f"{of}/ttft_p50_ms" in figures.metrics:
            lines.append(
                row(
                    said,
                    figures.number(f"{of}/ttft_p50_ms", 1),
                    figures.interval(f"{of}/ttft_overhead_ms"),
                    figures.n(f"{of}/ttft_p50_ms"),
                    figures.interval(f"{of}/cpu_ms_per_chunk", 3),
                    figures.interval(f"{of}/cpu_ms_per_chunk_by_thread", 3),
                    figures.n(f"{of}/cpu_ms_per_chunk"),
                )
            )
    return lines


def _life(figures: _Figures) -> list[str]:
    lines = head("time to let go, and to begin", "p50 ms", "p95 ms", "of", texts=1)
    for what, middle, high in (
        ("left by its caller: until nothing runs", "cancel/ours/slot_free_p50_ms", "cancel/ours/slot_free_p95_ms"),
        (
            "left by its caller: until the first token of the one that waits",
            "cancel/ours/next_first_token_p50_ms",
            "cancel/ours/next_first_token_p95_ms",
        ),
        (
            "for comparison, a first token with nothing before it",
            "cancel/ours/first_token_alone_p50_ms",
            "cancel/ours/first_token_alone_p95_ms",
        ),
        ("first token after a 2,000-token prefix, read for the first time", "prefix_cache/vllm/first_ttft_ms", ""),
        ("the same, from the prefix cache", "prefix_cache/vllm/second_ttft_ms", ""),
    ):
        if middle in figures.metrics:
            lines.append(row(what, figures.number(middle, 1), figures.number(high, 1), figures.n(middle)))
    return lines


def _schemes_said(said: Mapping[str, Any]) -> str:
    return (
        f"Schemes: the bf16 base is {said['base']}. {said['rounds']} rounds, {said['output_tokens']} tokens a "
        f"sequence, {said['threads']} threads, up to {said['max_running']} sequences."
    )


def _perplexity_said(said: Mapping[str, Any]) -> str:
    texts = "; ".join(f"{name.replace('_', ' ')}: {text}" for name, text in said["texts"].items())
    calibrated = "; ".join(
        f"{key} on {made['calibration_texts']} texts ({made['calibration_tokens']:,} tokens) "
        f"{'that the model wrote' if made['calibration'] == 'self' else 'of ' + made['calibration']}"
        for key, made in said["made_by"].items()
        if made and "calibration" in made
    )
    return (
        f"Perplexity: windows of {said['window']} tokens, {said['stride']} of them scored ({texts}). Calibrated: "
        f"{calibrated or 'none'}."
    )


def _streams_said(said: Mapping[str, Any]) -> str:
    return (
        f"Streams: {said['model']} ({said['dtype']}), {said['threads']} threads; first tokens of {said['turns']} "
        f"single streams each, CPU of {said['rounds']} rounds of {said['concurrency']} streams of up to "
        f"{said['output_tokens']} tokens at once; the service: {said['service']}."
    )


def _hardware(said: Mapping[str, Any]) -> str:
    if "gpu" in said:
        return str(said["gpu"])
    flags = said.get("flags", [])
    return f"{said.get('cpu', 'unknown CPU')} ({', '.join(flags)}{'' if 'amx_tile' in flags else ', no AMX'})"
