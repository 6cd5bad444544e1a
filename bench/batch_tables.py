"""The tables of the batch bench for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.batch_kills import KILLS, VICTIMS
from bench.batch_local import LOCAL, PREFIX
from bench.batch_memory import MEMORY
from bench.batch_overhead import APART, OURS, OVERHEAD
from bench.cells import Figures, head, row, with_notes
from bench.goals import Goal, goals_table, milliseconds, times

_ARMS = {
    "local_lane/one_at_a_time": "online path, one at a time",
    "local_lane/online_c8": "online path, eight at once",
    "local_lane/batch": "batch, local lane",
    "prefix_order/input_order": "small KV cache, input's order",
    "prefix_order/ordered": "small KV cache, alike side by side",
}
_SERVICES = ("orchestrator", "cache", "router", "compressor", "inference", "ledger")
_LANES = ("provider", "online")
_WRONGS = {
    "lost": "items without a result",
    "billed_twice": "billed twice",
    "identity_violations": "receipts whose savings do not add up",
    "sums_differ": "rounds in which receipts are not the sums of batch and ledger",
    "report_behind": "rounds in which the ledger booked more after the batch's report",
    "open_reservations": "reservations open at the end",
}


def _megabytes(value: float) -> str:
    return f"{value:.0f} MB"


def _count(value: float) -> str:
    return f"{value:.0f}"


_GOALS = (
    Goal("local lane over one at a time", "local_lane/ours/speedup_vs_one_at_a_time", 3, more=True, form=times),
    Goal("prompts that begin alike side by side", "prefix_order/ours/speedup", 1.3, more=True, form=times),
    Goal("CPU of the batch layer for an item, dearer lane", "overhead/ours/cpu_ms_per_item", 2, form=milliseconds),
    Goal("memory, batch service", "memory_100k/service/rss_mb", 300, form=_megabytes),
    Goal("memory, worker", "memory_100k/worker/rss_mb", 300, form=_megabytes),
    *(Goal(f"kills: {said}", f"kills/ours/{name}", 0, form=_count) for name, said in _WRONGS.items()),
    Goal("kills: chunks done again, at most", "kills/ours/repeated_chunks_max", 1, form=_count),
)


class _Figures(Figures):
    """Those of batches."""

    def number(self, name: str, digits: int = 0) -> str:
        """A figure to so many digits after the point; empty when not measured."""
        value = self.value(name)
        return "" if value is None else f"{value:.{digits}f}"


def batch_tables(result: Mapping[str, Any]) -> str:
    """Goals, the local engine's arms, CPU by process, memory, kills by victim."""
    figures, said = _Figures(result), result["assumptions"]
    parts = (goals_table(figures, _GOALS), _arms(figures), _overhead(figures), _memory(figures), _kills(figures))
    texts = ["\n".join(part) for part in parts if len(part) > 2]
    for name, words in ((LOCAL, _local_said), (PREFIX, _prefix_said), (OVERHEAD, _overhead_said)):
        if name in said:
            texts.append(words(said[name]))
    if MEMORY in said:
        texts.append(f"Memory: {said[MEMORY]['items']} items, {said[MEMORY]['lanes']}; {said[MEMORY]['layers']}.")
    if KILLS in said:
        texts.append(_kills_said(said[KILLS]))
    machine = result["machine"]
    seconds = ", ".join(f"{part} {value:.0f} s" for part, value in said.get("part_seconds", {}).items())
    texts.append(
        f"Commit {result['commit'][:12]}, {machine['cpus']} CPUs ({machine['machine']}), Python {machine['python']}, "
        f"seed {said.get('seed')}; {seconds}; load average before: {said.get('load_before')}."
    )
    return with_notes(texts, result)


def _arms(figures: _Figures) -> list[str]:
    lines = head(
        "local engine", "items a second", "prompt tokens", "of them in the prefix cache", "output tokens", texts=1
    )
    for of, said in _ARMS.items():
        if f"{of}/items_per_s" in figures.metrics:
            lines.append(
                row(
                    said,
                    figures.number(f"{of}/items_per_s", 2),
                    figures.number(f"{of}/input_tokens_per_item"),
                    figures.share(f"{of}/cached_share"),
                    figures.number(f"{of}/output_tokens_per_item", 1),
                )
            )
    return lines


def _overhead(figures: _Figures) -> list[str]:
    lines = head(
        "process", "CPU ms an item, provider's lane", "CPU ms an item, online lane", "most MB resident", texts=1
    )
    if "overhead/ours/cpu_ms_per_item" not in figures.metrics:
        return lines
    cells = (figures.number(f"overhead/ours/cpu_ms_per_item_{lane}", 2) for lane in _LANES)
    lines.append(row("batch layer together", *cells, ""))
    for name in (*OURS, *_SERVICES, *APART):
        of = f"overhead/ours/{name}"
        if f"{of}_peak_rss_mb" in figures.metrics:
            cells = (figures.number(f"{of}_cpu_ms_per_item_{lane}", 2) for lane in _LANES)
            lines.append(row(name, *cells, figures.number(f"{of}_peak_rss_mb")))
    cells = (figures.number(f"overhead/ours/seconds_{lane}") for lane in _LANES)
    lines.append(row("seconds from upload to end", *cells, ""))
    return lines


def _memory(figures: _Figures) -> list[str]:
    lines = head("memory", "MB idle", "MB at most", texts=1)
    for side in ("service", "worker"):
        of = f"memory_100k/{side}"
        if f"{of}/rss_mb" in figures.metrics:
            lines.append(row(side, figures.number(f"{of}/idle_rss_mb"), figures.number(f"{of}/rss_mb")))
    return lines


def _kills(figures: _Figures) -> list[str]:
    lines = head("killed", "rounds", "items done again, at most", "seconds to the end, at most", texts=1)
    if "kills/nobody/seconds" in figures.metrics:
        again = figures.number("kills/nobody/repeated_items_max")
        lines.append(row("nobody", "1", again, figures.number("kills/nobody/seconds", 1)))
    for victim in VICTIMS:
        of = f"kills/{victim}"
        if f"{of}/rounds" in figures.metrics:
            names = (f"{of}/rounds", f"{of}/repeated_items_max")
            lines.append(row(victim, *map(figures.number, names), figures.number(f"{of}/seconds_max", 1)))
    return lines


def _local_said(said: Mapping[str, Any]) -> str:
    return (
        f"Local lane: {said['model']}, {said['items']} items in each of {said['rounds']} rounds, at most "
        f"{said['max_output_tokens']} tokens; prefix cache {said['prefix_cache']}; {said['output']}."
    )


def _prefix_said(said: Mapping[str, Any]) -> str:
    return (
        f"Order: {said['items']} items under {said['instructions']} instructions in turn, {said['rounds']} rounds, a "
        f"KV cache of {said['kv_cache_bytes'] // 1_048_576} MiB; prefix cache {said['prefix_cache']}."
    )


def _overhead_said(said: Mapping[str, Any]) -> str:
    items = ", ".join(f"{count} items in the {lane} lane" for lane, count in said["items"].items())
    return f"CPU: {items}, {said['model']}, cache and near-same questions on, tracing of {said['tracing']}."


def _kills_said(said: Mapping[str, Any]) -> str:
    models = ", ".join(f"{number} for {model}" for model, number in said["models"].items())
    return (
        f"Kills: batches of {said['items']} items ({models}; the last {said['twins']} repeat the first), sandbox: "
        f"{said['sandbox']}; the moment lies {said['moment']}; a chunk is {said['chunk_items']} items."
    )
