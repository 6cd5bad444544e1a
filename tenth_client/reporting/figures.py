"""What the charts show, made of sums and of the sample: pure, apart from the drawing itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo

from formats.openai_answers import LAYERS
from tenth_client.replay import quantile
from tenth_client.reporting import charts, shadow
from tenth_client.reporting.charts import Point, Spec, Step
from tenth_client.reporting.numbers import decimals_for, money, short_day
from tenth_client.reporting.periods import Periods, parse_day, periods
from tenth_client.reporting.stream import Sample, latency
from tenth_client.reporting.sums import Spend, Sums, add

_NANO = 1e9


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart, drawn for a wide and for a narrow screen."""

    wide: str
    narrow: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """The days of a report grouped by day and model, in buckets, with the buckets' names on the axis."""

    periods: Periods
    labels: tuple[str, ...]
    cells: Mapping[tuple[int, str], Sums]

    def totals(self) -> list[Sums]:
        """The sums of each bucket."""
        found: list[list[Sums]] = [[] for _ in self.labels]
        for (index, _), sums in self.cells.items():
            found[index].append(sums)
        return [add(sums) for sums in found]


def timeline(spend: Spend, language: str) -> Timeline:
    """The buckets of a report grouped by ``day`` and ``model``."""
    days = {text: day for text in {group.values[0] for group in spend.groups} if (day := parse_day(text)) is not None}
    axis = periods(days.values())
    collected: dict[tuple[int, str], list[Sums]] = {}
    for group in spend.groups:
        day = days.get(group.values[0])
        if day is not None:
            collected.setdefault((axis.index(day), group.values[1]), []).append(group.sums)
    return Timeline(
        axis,
        _labels(axis.starts, language),
        {key: add(sums) for key, sums in collected.items()},
    )


def totals(line: Timeline, days: Spend) -> list[Sums]:
    """The sums of each bucket, from a report grouped by ``day``."""
    found: list[list[Sums]] = [[] for _ in line.labels]
    for group in days.groups:
        day = parse_day(group.values[0])
        if day is not None and line.periods.starts and 0 <= line.periods.index(day) < len(found):
            found[line.periods.index(day)].append(group.sums)
    return [add(sums) for sums in found]


def waterfall(total: Sums, names: Mapping[str, str]) -> Figure:
    """From the baseline through every layer and the overhead to what was spent."""
    places = decimals_for([total.baseline, total.actual])
    level = total.baseline
    steps = [Step(names["baseline"], 0, level / _NANO, money(level, places), "total")]
    for layer, saved in total.savings.items():
        steps.append(_step(names[layer], level, -saved, places))
        level -= saved
    steps.append(_step(names["overhead"], level, total.overhead, places))
    steps.append(Step(names["actual"], 0, total.actual / _NANO, money(total.actual, places), "total"))
    return _both(lambda width: charts.waterfall(steps, width))


def _step(label: str, level: int, change: int, places: int) -> Step:
    sign = "+" if change > 0 else ""
    text = f"{sign}{money(change, places)}".replace("-", "−")
    return Step(label, level / _NANO, (level + change) / _NANO, text, "up" if change > 0 else "down")


def daily(line: Timeline, names: Mapping[str, str]) -> Figure:
    """Cost by bucket and model, the dearest models with a colour of their own."""
    spent: Counter[str] = Counter()
    for (_, model), sums in line.cells.items():
        spent[model] += sums.actual
    ranked = [model for model, _ in sorted(spent.items(), key=lambda item: (-item[1], item[0]))]
    own = ranked[: charts.MODEL_COLOURS]
    shown = {model: model or names["no_model"] for model in own}
    order = list(dict.fromkeys(shown.values()))
    colours = charts.palette(order, "model")
    if len(ranked) > len(own):
        colours[names["other"]] = "var(--other)"
    collected: dict[tuple[int, str], int] = {}
    for (index, model), sums in line.cells.items():
        key = (index, shown.get(model, names["other"]))
        collected[key] = collected.get(key, 0) + sums.actual
    points = [Point(line.labels[index], series, value / _NANO) for (index, series), value in collected.items()]
    return _both(lambda width: charts.stacked(points, colours, line.labels, width))


def layers(line: Timeline, names: Mapping[str, str]) -> Figure:
    """Savings by bucket and layer; negative ones stay negative."""
    colours = {names[layer]: f"var(--layer-{layer.replace('_', '-')})" for layer in LAYERS.values()}
    points = [
        Point(line.labels[index], names[layer], saved / _NANO)
        for index, sums in enumerate(line.totals())
        for layer, saved in sums.savings.items()
        if layer in names
    ]
    return _both(lambda width: charts.stacked(points, colours, line.labels, width))


def hit_rate(line: Timeline, names: Mapping[str, str]) -> Figure:
    """Cache hits by requests, by bucket."""
    points = [
        Point(label, names["hits"], sums.hits / sums.requests if sums.requests else None)
        for label, sums in zip(line.labels, line.totals(), strict=True)
    ]
    colours = {names["hits"]: "var(--layer-cache)"}
    axis: Spec = {"format": "~%", "tickCount": 5, "scale": {"domain": [0, 1]}}
    return _both(lambda width: charts.lines(points, colours, line.labels, width, axis={**axis}))


def latencies(line: Timeline, sample: Sample, zone: tzinfo, names: Mapping[str, str]) -> tuple[Figure | None, int]:
    """The median and the 95th percentile of the sample by bucket, and how many requests they are of."""
    found: dict[int, list[float]] = {}
    for receipt in sample.receipts:
        took = latency(receipt)
        if took is None:
            continue
        day = receipt.facts.create_time.ToDatetime(UTC).astimezone(zone).date()
        if line.periods.starts and 0 <= line.periods.index(day) < len(line.labels):
            found.setdefault(line.periods.index(day), []).append(took.total_seconds())
    count = sum(map(len, found.values()))
    if not count:
        return None, 0
    points = [
        Point(label, names[name], quantile(found[index], share) if index in found else None)
        for name, share in (("p50", 0.5), ("p95", 0.95))
        for index, label in enumerate(line.labels)
    ]
    colours = {names["p50"]: "var(--model1)", names["p95"]: "var(--model2)"}
    axis: Spec = {"labelExpr": f"format(datum.value, ',.3~f') + '{names['seconds']}'", "tickCount": 5}
    return _both(lambda width: charts.lines(points, colours, line.labels, width, axis={**axis})), count


def newest_failures(
    sample: Sample, count: int, names: Mapping[str, str]
) -> list[tuple[datetime, str, str, str, int, str]]:
    """The newest failed requests: time (UTC), tenant, project, request, what it spent in nano-USD, and on what."""
    # A shadow check delivers no answer either, and is no request that failed.
    failed = [each for each in sample.receipts if each.facts.failed and shadow.TAG not in each.facts.tags]
    failed.sort(key=lambda receipt: receipt.facts.create_time.ToNanoseconds(), reverse=True)
    rows = []
    for receipt in failed[:count]:
        facts = receipt.facts
        kinds = Counter(
            " · ".join(filter(None, (names.get(f"kind_{item.kind}", item.kind), item.model)))
            for item in facts.overheads
        )
        spent_on = ", ".join(f"{name} ×{times}" if times > 1 else name for name, times in kinds.items())
        when = facts.create_time.ToDatetime(UTC)
        rows.append(
            (when, facts.tenant_id, facts.project_id, facts.request_id, receipt.actual_nano_usd, spent_on or "–")
        )
    return rows


def _labels(starts: Sequence[date], language: str) -> tuple[str, ...]:
    labels = [short_day(start, language) for start in starts]
    if len(set(labels)) < len(labels):
        # Over a year the same day comes twice.
        labels = [f"{start:%y}/{start.month}/{start.day}" for start in starts]
    return tuple(labels)


def _both(spec: charts.Maker) -> Figure:
    return Figure(charts.svg(spec(charts.WIDE)), charts.svg(spec(charts.NARROW)))
