"""The tables of the compressor bench for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.cells import Figures, head, row, with_notes, yes

_SYSTEMS = {
    "bm25_top3": "BM25, best 3 chunks",
    "article": "article's filter, best 3 chunks",
    "ours_safe": "Tenth, safe",
    "ours_balanced": "Tenth, balanced",
    "ours_aggressive": "Tenth, aggressive",
    "ours_at_50": "Tenth, forced to half",
    "ours_at_60": "Tenth, forced to 60%",
    "ours_words_safe": "Tenth, safe, no vectors",
    "ours_words_balanced": "Tenth, balanced, no vectors",
    "ours_words_aggressive": "Tenth, aggressive, no vectors",
    "ours_cold_safe": "Tenth, safe, 5 new vectors",
}
_HISTORY = {"last_n": "newest messages", "ours_words": "Tenth, no vectors", "ours": "Tenth"}
_SHARES = (10, 25, 50, 75)
_STYLES = ("openai_half", "openai_tenth", "anthropic", "anthropic_low", "gemini")
_PROBABILITIES = ("00", "20", "40", "60", "80", "90", "95")
_LEAST_KEPT, _LEAST_SAVED = 0.99, 0.35


@dataclass(frozen=True, slots=True)
class _Goal:
    """One figure that has a reach."""

    what: str
    metric: str
    beside: str
    """What the simple baseline had, as the goals were set."""
    reach: float
    more: bool = True
    form: Callable[[float], str] = "{:.3f}".format


def _dollars(nano: float) -> str:
    return f"{nano / 1e9:+.4f} USD"


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms"


_GOALS = (
    _Goal("nq_gold_passages, 60% saved: answers kept", "nq_gold_passages/ours_at_60/answer_kept", "0.87 at 70%", 0.97),
    _Goal("korquad1_dev_ko, 60% saved: answers kept", "korquad1_dev_ko/ours_at_60/answer_kept", "0.967 at 44%", 0.97),
    _Goal("beerqa_1000, 50% saved: all gold chunks kept", "beerqa_1000/ours_at_50/answer_kept", "", 0.93),
    _Goal("locomo10_history, 50% kept: all evidence", "locomo10_history/ours_at_50/evidence_kept", "0.43", 0.75),
    _Goal("kv_retrieval_75, safe: record kept", "kv_retrieval_75/ours_safe/answer_kept", "", 1.0),
    _Goal("net dollars, worst case", "net_dollars/ours/min_nano_usd", "-2 times the saving", 0.0, form=_dollars),
    _Goal("net dollars, of what hindsight saves", "net_dollars/ours/captured", "0", 0.8),
    _Goal("4k tokens, vectors given, p50", "speed/ours/p50_ms_4k", "", 15.0, more=False, form=_milliseconds),
    _Goal("200k tokens of chunks", "speed/ours_chunks_200k/ms_cold", "", 1000.0, more=False, form=_milliseconds),
    _Goal("200k tokens of history", "speed/ours_history_200k/ms_cold", "", 1000.0, more=False, form=_milliseconds),
    _Goal("200k tokens of chunks, MB", "speed/ours_chunks_200k/mb_cold", "", 400.0, more=False, form="{:.0f}".format),
    _Goal("200k tokens of history, MB", "speed/ours_history_200k/mb_cold", "", 400.0, more=False, form="{:.0f}".format),
)


class _Figures(Figures):
    """Those of the compressor."""

    def sets_with(self, ending: str) -> list[str]:
        """Sets that have a metric of this ending, in the order measured."""
        return list(dict.fromkeys(name.partition("/")[0] for name in self.metrics if name.endswith(ending)))


def compressor_tables(result: Mapping[str, Any]) -> str:
    """Goals, retrieved chunks, history, clean-up, dollars, time, the local model."""
    figures, said = _Figures(result), result["assumptions"]
    parts = [
        _goals(figures),
        _chunks(figures),
        _history(figures),
        _cleanup(figures),
        _applications(figures),
        _styles(figures),
        _other_modes(figures),
        _times(figures),
        _local(figures),
    ]
    machine = result["machine"]
    texts = ["\n".join(part) for part in parts if len(part) > 2]
    texts.append(
        f"Commit {result['commit'][:12]}, rows: {said['rows']}, seed {said['seed']}, embedder {said['embedder']}, "
        f"tokens by {said['tokens']}, {result['seconds']:.0f} s, {machine['cpus']} CPUs ({machine['machine']}), "
        f"Python {machine['python']}."
    )
    return with_notes(texts, result)


def _goals(figures: _Figures) -> list[str]:
    lines = head("what", "simple baseline", "Tenth", "reach", "reached", texts=1)
    for goal in _GOALS:
        value = figures.value(goal.metric)
        if value is None:
            continue
        interval = figures.metrics[goal.metric]["ci95"]
        measured = figures.with_interval(goal.metric) if interval else goal.form(value)
        reached = value >= goal.reach if goal.more else value <= goal.reach
        bound = f"at {'least' if goal.more else 'most'} {goal.form(goal.reach) if not interval else f'{goal.reach:g}'}"
        lines.append(row(goal.what, goal.beside, measured, bound, yes(reached)))
    for name in figures.sets_with("/ours_safe/answer_kept"):
        if name.endswith("_gold_only"):
            continue
        for measure, what, reach in (
            ("answer_kept", "answers kept", _LEAST_KEPT),
            ("tokens_saved", "tokens saved", _LEAST_SAVED),
        ):
            value = figures.value(f"{name}/ours_safe/{measure}")
            if value is None or (name.startswith("kv_") and measure == "tokens_saved"):
                continue
            measured = figures.with_interval(f"{name}/ours_safe/{measure}")
            lines.append(row(f"{name}, safe: {what}", "", measured, f"at least {reach:g}", yes(value >= reach)))
    return lines


def _chunks(figures: _Figures) -> list[str]:
    lines = head("retrieved chunks: set", "rows", "system", "tokens saved", "answers kept", texts=1)
    for name in figures.sets_with("/answer_kept"):
        for system, said in _SYSTEMS.items():
            of = f"{name}/{system}"
            if f"{of}/answer_kept" in figures.metrics:
                cells = [figures.with_interval(f"{of}/{measure}") for measure in ("tokens_saved", "answer_kept")]
                lines.append(row(name, figures.n(f"{of}/answer_kept"), said, *cells))
    return lines


def _history(figures: _Figures) -> list[str]:
    shares = [f"{share}% of tokens" for share in _SHARES]
    lines = head("history: set", "kept", "rows", "system", *shares, texts=2)
    for measure, said in (("evidence_kept", "all evidence"), ("answer_terms_kept", "words of the next answer")):
        for name in figures.sets_with(f"/{measure}"):
            for system, system_said in _HISTORY.items():
                names = [f"{name}/{system}_at_{share}/{measure}" for share in _SHARES]
                if any(each in figures.metrics for each in names) and not name.endswith("_unseen"):
                    cells = [figures.with_interval(each) for each in names]
                    lines.append(row(name.removesuffix("_history"), said, figures.n(names[1]), system_said, *cells))
    return lines


def _cleanup(figures: _Figures) -> list[str]:
    lines = head(
        "clean-up of system prompts: set", "prompts", "tokens saved", "prompts changed", "protected kept", texts=1
    )
    for name in figures.sets_with("/ours_safe/changed"):
        of = f"{name}/ours_safe"
        cells = [figures.with_interval(f"{of}/{each}") for each in ("tokens_saved", "changed", "protected_kept")]
        lines.append(row(name, figures.n(f"{of}/changed"), *cells))
    return lines


def _applications(figures: _Figures) -> list[str]:
    lines = head(
        "input dollars saved by application",
        "Tenth, safe",
        "always cut",
        "hindsight",
        "worst case, Tenth",
        "worst case, always cut",
        texts=1,
    )
    for name in figures.sets_with("/ours/min_nano_usd"):
        saved = [figures.share(f"{name}/{system}/saved") for system in ("ours", "always", "hindsight")]
        if all(saved):
            worst = [_dollars(figures.value(f"{name}/{each}/min_nano_usd") or 0.0) for each in ("ours", "always")]
            lines.append(row(name.removeprefix("net_dollars_"), *saved, *worst))
    return lines


def _styles(figures: _Figures) -> list[str]:
    titles = [f"{int(each)}%" for each in _PROBABILITIES]
    lines = head("saved by style, of hindsight's, at a cache probability of", *titles, texts=1)
    for style in _STYLES:
        cells = []
        for probability in _PROBABILITIES:
            of = f"net_dollars_{style}_h{probability}"
            both = [figures.share(f"{of}/{system}/saved") for system in ("ours", "hindsight")]
            cells.append(" of ".join(both) if all(both) else "")
        if any(cells):
            lines.append(row(style, *cells))
    return lines


def _other_modes(figures: _Figures) -> list[str]:
    lines = head(
        "worst case of a style, application and probability", "dollars", "of its input's price", "requests", texts=1
    )
    for system, said in (
        ("ours", "Tenth, safe"),
        ("ours_balanced", "Tenth, balanced"),
        ("ours_aggressive", "Tenth, aggressive"),
        ("always", "always cut, safe"),
        ("always_balanced", "always cut, balanced"),
        ("always_aggressive", "always cut, aggressive"),
    ):
        of = f"net_dollars/{system}"
        worst = figures.value(f"{of}/min_nano_usd")
        if worst is not None:
            share = figures.value(f"{of}/min_saved")
            cells = [_dollars(worst), "" if share is None else f"{share:+.3f}", figures.n(f"{of}/min_nano_usd")]
            lines.append(row(said, *cells))
    return lines


def _times(figures: _Figures) -> list[str]:
    lines = head("time of the whole path, mode safe", "p50 ms", "p95 ms", "prompts", texts=1)
    for what, middle, high in (
        ("4k tokens, chunks seen before, vectors given", "speed/ours/p50_ms_4k", "speed/ours/p95_ms_4k"),
        ("the same, CPU time", "speed/ours/p50_cpu_ms_4k", "speed/ours/p95_cpu_ms_4k"),
        ("the same, for 1k tokens", "speed/ours/p50_ms_1k_tokens", "speed/ours/p95_ms_1k_tokens"),
        ("4k tokens, all new, no vectors", "speed/ours_words/p50_ms_4k_cold", ""),
        ("4k tokens, all new, every chunk embedded on one thread", "speed/ours/p50_ms_4k_cold", ""),
        ("200k tokens of chunks, all new", "speed/ours_chunks_200k/ms_cold", ""),
        ("200k tokens of history, all new", "speed/ours_history_200k/ms_cold", ""),
        *(
            (f"200k tokens of {shape}, all new, {mode}: CPU time", f"whole/{mode}/ms_200k_{shape}", "")
            for mode in ("safe", "balanced", "aggressive")
            for shape in ("chunks", "history")
        ),
        ("history strategy on LoCoMo, vectors given", "locomo10_history/ours/p50_ms", ""),
    ):
        value, tail = figures.value(middle), figures.value(high)
        if value is not None:
            lines.append(row(what, f"{value:.1f}", "" if tail is None else f"{tail:.1f}", figures.n(middle)))
    return lines


def _local(figures: _Figures) -> list[str]:
    lines = head(
        "the local model, 3 chunks", "answers", "of those answered uncut", "of the others", "questions", texts=1
    )
    for system, said in (
        ("off", "nothing cut"),
        *((f"ours_{mode}", f"Tenth, {mode}") for mode in ("safe", "balanced", "aggressive")),
    ):
        of = f"local_model/{system}"
        if f"{of}/answered" in figures.metrics:
            cells = [figures.with_interval(f"{of}/{each}") for each in ("answered", "answered_of_off", "gained")]
            lines.append(row(said, *cells, figures.n(f"{of}/answered")))
    return lines
