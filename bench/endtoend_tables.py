"""The tables of the end-to-end benchmark, for docs/benchmarks.md and for the page; every figure is the result's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.cells import Figures, with_notes
from bench.sheets import Sheet, percent

SYSTEMS = {"ours": "Tenth", "litellm": "LiteLLM", "baseline": "strong model alone"}
LAYERS = ("cache", "routing", "compression", "prompt_cache", "batch", "quantization")
"""In the order in which a receipt takes them off."""
WORKLOADS = ("support", "bulk", "rag", "chat", "reasoning")
ABLATED = "support_heavy"
_SWITCHED = ("routing", "compression", "cache", "batch", "quantization")
_KINDS = {"exact_hit": "exact hit", "semantic_hit": "semantic hit", "miss": "miss"}
_WHATIF = "cost_ratio_if_"
_ALONE = "_reasoning"
_ENDS = "all of them; none of them"
_CAREFUL = "all, but routed only where outcomes are recorded"


def endtoend_tables(result: Mapping[str, Any]) -> str:
    """All tables, then what they rest on."""
    texts: list[str] = [one.markdown() for one in sheets(result) if one.rows]
    texts.insert(1, verdict(result))
    texts += ["What every figure above assumes:", *(one.markdown() for one in assumed(result)), said(result)]
    texts.append(provenance(result))
    return with_notes([text for text in texts if text], result)


def sheets(result: Mapping[str, Any]) -> list[Sheet]:
    """Mixes, layers, workloads, ablation, frontier, latency, hops, checks; those without rows were not measured."""
    figures = Figures(result)
    return [
        mixes(result),
        layers(figures),
        workloads(figures),
        ablation(figures),
        frontier(figures),
        latency(figures),
        hops(figures),
        checks(figures),
    ]


def names(figures: Figures) -> list[str]:
    """The mixes that were asked, in the order measured."""
    found = (name.split("/") for name in figures.metrics if name.endswith("/ours/cost_ratio"))
    return [parts[0] for parts in found if len(parts) == 3]


def whatif(figures: Figures) -> str:
    """The other strong model of the what-if column; empty when there is none."""
    found = (name.rpartition(f"/{_WHATIF}") for name in figures.metrics)
    return next((model for _, mark, model in found if mark), "")


def mixes(result: Mapping[str, Any]) -> Sheet:
    """Cost and quality of each mix by system."""
    figures = Figures(result)
    other = whatif(figures)
    titles = (
        "mix", "system", "requests", "cost of the baseline's", "with the provider's own prompt cache in the baseline",
        "beside the baseline as really asked", *([f"if the strong model were {other}"] if other else []),
        "USD per 1,000 requests", "quality kept", "known of requests",
    )  # fmt: skip
    rows = []
    for mix in names(figures):
        for system, name in SYSTEMS.items():
            of = f"{mix}/{system}/"
            if figures.value(f"{of}cost_ratio") is None:
                continue
            ratios = [f"{of}cost_ratio", f"{of}cost_ratio_prompt_cached", f"{of}cost_ratio_sent"]
            ratios += [f"{of}{_WHATIF}{other}"] if other else []
            usd = figures.value(f"{of}usd_per_1000_requests")
            rows.append((
                mix, name, figures.n(f"{of}cost_ratio"), *map(figures.with_interval, ratios),
                "" if usd is None else f"{usd:.3f}",
                figures.with_interval(f"{of}quality_ratio"), figures.share(f"{of}quality_covered"),
            ))  # fmt: skip
    return Sheet("mixes", titles, 2, rows)


def layers(figures: Figures) -> Sheet:
    """What each layer took off the baseline's bill."""
    rows = []
    for mix in names(figures):
        for system in ("ours", "litellm"):
            of = f"{mix}/{system}/"
            if figures.value(f"{of}saved_by_cache") is None:
                continue
            saved = [percent(figures.value(f"{of}saved_by_{layer}")) for layer in LAYERS]
            paid = percent(figures.value(f"{of}cost_ratio"))
            over = percent(figures.value(f"{of}overhead"), 3)
            rows.append((mix, SYSTEMS[system], *saved, over, paid))
    titles = tuple(layer.replace("_", " ") for layer in LAYERS)
    return Sheet("layers", ("saved of the baseline: mix", "system", *titles, "overhead", "paid"), 2, rows)


def workloads(figures: Figures) -> Sheet:
    """Where the money was and what became of it."""
    rows = []
    for mix in names(figures):
        for workload in WORKLOADS:
            of, peer = f"{mix}/ours/{workload}_", f"{mix}/litellm/{workload}_"
            if figures.value(f"{of}cost_ratio") is None:
                continue
            rows.append((
                mix, workload, figures.n(f"{of}cost_ratio"), percent(figures.value(f"{of}baseline_share")),
                figures.share(f"{of}cost_ratio"), percent(figures.value(f"{of}hit_share")),
                figures.share(f"{of}quality_ratio"),
                figures.share(f"{peer}cost_ratio"), figures.share(f"{peer}quality_ratio"),
            ))  # fmt: skip
    titles = (
        "mix", "workload", "requests", "share of the baseline's bill", "cost", "from the cache", "quality kept",
        "LiteLLM's cost", "LiteLLM's quality",
    )  # fmt: skip
    return Sheet("workloads", titles, 2, rows)


def ablation(figures: Figures) -> Sheet:
    """Each layer alone and each taken out, on one mix."""
    rows = []
    for layer in _SWITCHED:
        alone, out = (f"{ABLATED}/{kind}_{layer}/" for kind in ("only", "without"))
        if figures.value(f"{alone}cost_ratio") is None:
            continue
        cells = [figures.with_interval(f"{of}{what}_ratio") for of in (alone, out) for what in ("cost", "quality")]
        rows.append((layer, figures.n(f"{alone}cost_ratio"), *cells))
    if rows:
        ends = [figures.with_interval(f"{ABLATED}/{run}/{what}_ratio") for run in ("full", "none")
                for what in ("cost", "quality")]  # fmt: skip
        rows.append((_ENDS, figures.n(f"{ABLATED}/full/cost_ratio"), *ends))
        careful = [
            figures.with_interval(f"{ABLATED}/recorded_routing_only/{what}_ratio") for what in ("cost", "quality")
        ]
        if careful[0]:
            rows.append((_CAREFUL, figures.n(f"{ABLATED}/recorded_routing_only/cost_ratio"), *careful, "", ""))
    titles = (f"{ABLATED}: layer", "requests", "cost, this alone", "quality", "cost, this taken out", "quality")
    return Sheet("ablation", titles, 1, rows)


def frontier(figures: Figures) -> Sheet:
    """Cost and quality by the quality that the router was asked to keep."""
    rows = []
    for name in figures.metrics:
        mix, _, rest = name.partition("/")
        run, _, measure = rest.partition("/")
        if measure == "cost_ratio" and run.startswith("frontier_") and not run.endswith(_ALONE):
            of, alone = f"{mix}/{run}/", f"{mix}/{run}{_ALONE}/"
            rows.append((
                mix, f"{run.removeprefix('frontier_')}%", figures.n(f"{of}cost_ratio"),
                *(figures.with_interval(f"{each}{what}_ratio") for each in (of, alone) for what in ("cost", "quality")),
            ))  # fmt: skip
    titles = (
        "mix",
        "asked to keep",
        "requests",
        "cost",
        "quality kept",
        "cost, reasoning alone",
        "quality, reasoning alone",
    )
    return Sheet("frontier", titles, 2, rows)


def latency(figures: Figures) -> Sheet:
    """What is added to the model's time as a direct caller has it, by how the request was answered."""
    rows = []
    for mix in names(figures):
        kinds = [*_KINDS, *(f"miss_{workload}" for workload in WORKLOADS)]
        for kind in kinds:
            cells: list[str] = []
            for system in ("ours", "litellm", "direct"):
                median, late = (f"{mix}/{system}/added_{share}_ms_{kind}" for share in ("p50", "p95"))
                cells += [_ms(figures.value(median)), _ms(figures.value(late)), figures.n(median)]
            if any(cells):
                rows.append((mix, _KINDS.get(kind) or f"miss, {kind.removeprefix('miss_')}", *cells))
    titles = (
        "added ms: mix", "answered by", "p50", "p95", "of", "LiteLLM p50", "p95", "of",
        "model asked directly, beyond its modelled time, p50", "p95", "of",
    )  # fmt: skip
    return Sheet("latency", titles, 2, rows)


def hops(figures: Figures) -> Sheet:
    """What a miss waits for, one after the other."""
    names_of = ("cache", "router", "compressor", "ledger", "inference")
    rows = []
    for mix in names(figures):
        medians = [figures.value(f"{mix}/ours/hop_p50_ms_{hop}") for hop in names_of]
        if any(value is not None for value in medians):
            rows.append((mix, *(_ms(value) for value in medians)))
    return Sheet("hops", ("a miss waits, p50 ms: mix", *names_of[:-1], "inference, without the model"), 1, rows)


def checks(figures: Figures) -> Sheet:
    """What must be zero, and the CPU."""
    rows = []
    for mix in names(figures):
        for system, name in SYSTEMS.items():
            of = f"{mix}/{system}/"
            if figures.value(f"{of}failed") is None:
                continue
            cpu = figures.value(f"{of}cpu_ms_per_request")
            counts = [_count(figures.value(f"{of}{what}")) for what in ("failed", "identity_violations")]
            rows.append((mix, name, *counts, _ms(cpu)))
    return Sheet("checks", ("mix", "system", "failed", "receipts that do not add up", "CPU ms per request"), 2, rows)


def assumed(result: Mapping[str, Any]) -> list[Sheet]:
    """Prices, shares and speeds, from the result's assumptions."""
    given = result["assumptions"]
    books = [
        (catalog, str(price["model"]), str(price.get("source", "")), *(str(price.get(field, "")) for field in _PRICES))
        for catalog, prices in given.get("prices", {}).items()
        for price in prices
        if "input" in price
    ]
    shares = [
        (
            name, *(f"{mix['shares'].get(workload, 0):.2f}" for workload in WORKLOADS), str(mix["quality_target"]),
            str(mix["requests"]), str(mix["different_questions"]),
        )
        for name, mix in given.get("mixes", {}).items()
    ]  # fmt: skip
    speeds = [(model, *map(str, speed)) for model, speed in given.get("model_speeds", {}).items()]
    found = [
        Sheet("prices", ("USD per million tokens: catalogue", "model", "source", *_PRICES.values()), 3, books),
        Sheet("shares", ("shares: mix", *WORKLOADS, "quality asked", "requests", "different questions"), 1, shares),
        Sheet("speeds", ("modelled: model", "first token, s", "tokens per second"), 1, speeds),
    ]
    return [sheet for sheet in found if sheet.rows]


_PRICES = {
    "input": "input",
    "output": "output",
    "cached_input": "cached input",
    "cache_write_5m": "cache write",
    "batch_input": "batch input",
    "batch_output": "batch output",
}
_SHOWN = ("prices", "mixes", "model_speeds", "kept")


def said(result: Mapping[str, Any]) -> str:
    """The other assumptions, an item each, in the result's words."""
    return "\n".join(f"- {name.replace('_', ' ')}: {text}" for name, text in assumptions(result))


def assumptions(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of every assumption that has no table of its own."""
    return [(name, _text(value)) for name, value in result["assumptions"].items() if name not in _SHOWN]


def verdict(result: Mapping[str, Any]) -> str:
    """Whether the claim held: a tenth of the price at the quality that was asked for, by mix."""
    figures = Figures(result)
    lines = []
    for mix in names(figures):
        cost, kept = figures.value(f"{mix}/ours/cost_ratio"), figures.value(f"{mix}/ours/quality_ratio")
        target = result["assumptions"].get("mixes", {}).get(mix, {}).get("quality_target")
        if cost is None:
            continue
        low, high = figures.metrics[f"{mix}/ours/cost_ratio"]["ci95"] or (cost, cost)
        tenth = beside_a_tenth(low, high)
        known = percent(figures.value(f"{mix}/ours/quality_covered"), 0)
        quality = "" if kept is None else f", {percent(kept)} of the quality, which is known of {known} of the requests"
        asked = "" if target is None else f" ({percent(target, 0)} was asked for)"
        lines.append(
            f"- {mix}: {percent(cost)} [{percent(low)}, {percent(high)}] of the bill: {tenth}{quality}{asked}."
        )
    additivity = figures.value("additivity/ours/shortfall")
    if additivity is not None:
        lines.append(
            f"- The layers' savings when each is alone sum to {percent(additivity)} of the baseline more than all save "
            "together: they share the same waste."
        )
    return "\n".join(lines)


def beside_a_tenth(low: float, high: float) -> str:
    """What an interval of a cost ratio says of the claim."""
    return "at most a tenth" if high <= 0.1 else "more than a tenth" if low > 0.1 else "a tenth is in the interval"


def provenance(result: Mapping[str, Any]) -> str:
    """Commit, time, machine."""
    machine = result["machine"]
    litellm = result["assumptions"].get("litellm")
    peer = f" LiteLLM's proxy is version {litellm}." if litellm else ""
    return (
        f"Commit {result['commit'][:12]}, {result['seconds']:.0f} s, {machine['cpus']} CPUs ({machine['machine']}), "
        f"Python {machine['python']}.{peer}"
    )


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_text(each)}" for name, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value)) or "none"
    return str(value)
