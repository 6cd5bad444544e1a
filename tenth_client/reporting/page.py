"""The HTML page: one file, no script, nothing loaded; every word of the ledger's escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from decimal import Decimal
from html import escape

from tenth_client.money import percent
from tenth_client.reporting import figures, shadow
from tenth_client.reporting.figures import Figure, Timeline
from tenth_client.reporting.numbers import day, decimals_for, local, moment, money
from tenth_client.reporting.stream import Sample
from tenth_client.reporting.style import CSS
from tenth_client.reporting.sums import Spend, Sums
from tenth_client.reporting.texts import TEXTS

_FAILURES = 20
# The second line of defence: even if something were let through, the browser would neither run nor load it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True)
class Content:
    """What the page is made of."""

    spend: Spend
    """Grouped by day and model."""
    days: Spend
    """Grouped by day: the other currency's amounts are rounded once per group, so sums of groups are not used."""
    models: Spend
    """Grouped by model."""
    projects: Spend
    """Grouped by tenant and project."""
    sample: Sample
    language: str
    zone: tzinfo
    zone_name: str
    made: datetime
    since: datetime | None = None
    until: datetime | None = None
    tenant: str = ""
    wanted_currency: str = ""
    checks: Sequence[shadow.Checks] | None = ()
    """Shadow checks by mode and model; None when single receipts of that time are deleted."""


def page(content: Content) -> str:
    """The whole page. Raises LookupError naming the extra when the drawing library is absent."""
    return _Page(content).render()


class _Page:
    def __init__(self, content: Content) -> None:
        self._content = content
        self._words = TEXTS[content.language]
        self._total = content.spend.total
        self._baseline = content.spend.baseline or self._words["none"]
        self._places = decimals_for([self._total.baseline, self._total.actual])

    def render(self) -> str:
        content, total = self._content, self._total
        line = figures.timeline(content.spend, content.language)
        body = self._head(line)
        if total.requests:
            body += self._cards() + self._cached() + self._figures(line) + self._tables(line)
        body += self._checks() + self._failures() + self._how()
        title = escape(self._words["title"])
        return (
            f'<!doctype html>\n<html lang="{content.language}">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
            f"<title>{title} · Tenth</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}</main>\n"
            "</body>\n</html>\n"
        )

    def _say(self, name: str, **values: object) -> str:
        """A text with its values, escaped as a whole."""
        return escape(self._words[name].format(**values))

    def _money(self, nano: int) -> str:
        return money(nano, self._places).replace("-", "−")

    def _count(self, count: int) -> str:
        return f"{count:,}"

    def _share(self, part: int, whole: int) -> str:
        return percent(part, whole).replace("-", "–" if not whole else "−")

    def _local(self, amount: Decimal | None) -> str:
        return local(amount, self._content.spend.currency).replace("-", "−") if self._content.spend.currency else ""

    def _head(self, line: Timeline) -> str:
        content, starts = self._content, line.periods.starts
        scope = self._say("scope_one", tenant=content.tenant) if content.tenant else self._say("scope_all")
        when = self._say("no_period")
        if starts:
            first = content.since.astimezone(content.zone) if content.since else None
            until = content.until.astimezone(content.zone) if content.until else None
            edges = line.periods.edges(content.zone)
            when = self._say(
                "period",
                start=moment(first, content.language) if first else day(starts[0], content.language),
                end=moment(until, content.language) if until else self._last_day(edges),
                zone=content.zone_name,
            )
        baseline = self._say("baseline_is", models=self._baseline)
        verdict = "" if self._total.adds_up else f'<p class="bad">{self._say("adds_not")}</p>\n'
        return (
            f"<header>\n<h1>{self._say('title')}</h1>\n"
            f'<p class="soft">{when} · {scope}</p>\n</header>\n{verdict}<p>{baseline}</p>\n'
        )

    def _last_day(self, edges: Sequence[datetime]) -> str:
        days = [text for text in {group.values[0] for group in self._content.spend.groups} if text[:4].isdigit()]
        last = datetime.fromisoformat(max(days)).date() if days else edges[-1].date()
        return day(last, self._content.language)

    def _cards(self) -> str:
        total = self._total
        net = total.baseline - total.actual
        failed = self._say("failed_of", count=self._count(total.failed))
        hits = self._say("hits_of", count=self._count(total.hits), share=self._share(total.hits, total.requests))
        cards = (
            (self._say("spent"), self._money(total.actual), self._local(total.actual_local), self._of(total.actual)),
            (
                self._say("would_have"),
                self._money(total.baseline),
                self._local(total.baseline_local),
                escape(self._baseline),
            ),
            (self._say("saved_net"), self._money(net), self._local(self._net_local()), self._of(net)),
            (self._say("requests"), self._count(total.requests), "", f"{failed}<br>{hits}"),
        )
        return (
            '<section class="cards">\n'
            + "".join(
                f'<div class="card"><span>{name}</span><b>{value}</b>'
                f"{f'<span>{other}</span>' if other else ''}<span>{note}</span></div>\n"
                for name, value, other, note in cards
            )
            + "</section>\n"
        )

    def _net_local(self) -> Decimal | None:
        baseline, actual = self._total.baseline_local, self._total.actual_local
        return None if baseline is None or actual is None else baseline - actual

    def _of(self, part: int) -> str:
        return self._say("of_baseline", share=self._share(part, self._total.baseline), models=self._baseline)

    def _cached(self) -> str:
        total = self._total
        text = self._say(
            "cached_text",
            models=self._baseline,
            baseline=self._money(total.baseline_prompt_cached),
            share=self._share(total.actual, total.baseline_prompt_cached),
        )
        return f'<section class="note"><h2>{self._say("cached_title")}</h2><p>{text}</p></section>\n'

    def _figures(self, line: Timeline) -> str:
        words, content = self._words, self._content
        found = [
            ("waterfall", figures.waterfall(self._total, words), self._say("waterfall_note")),
            ("daily_week" if line.periods.weekly else "daily", figures.daily(line, words), self._say("daily_note")),
            ("layers", figures.layers(line, words), self._say("layers_note")),
            ("hit_rate", figures.hit_rate(line, words), self._say("hit_rate_note")),
        ]
        text = "".join(self._figure(*each) for each in found)
        latencies, count = figures.latencies(line, content.sample, content.zone, words)
        sample = self._say("sample_whole" if content.sample.whole else "sample_part", count=self._count(count))
        if latencies is None:
            return text + f'<h2>{self._say("latency")}</h2>\n<p class="soft">{self._say("no_latency")}</p>\n'
        return text + self._figure("latency", latencies, f"{self._say('latency_note')} {sample}")

    def _figure(self, title: str, figure: Figure, note: str) -> str:
        name = self._say(title)
        label = self._say("aria_chart", title=self._words[title])
        return (
            f"<section>\n<h2>{name}</h2>\n<figure>\n<figcaption>{note}</figcaption>\n"
            f'<div class="wide" role="img" aria-label="{label}">{figure.wide}</div>\n'
            f'<div class="narrow" role="img" aria-label="{label}">{figure.narrow}</div>\n</figure>\n</section>\n'
        )

    def _tables(self, line: Timeline) -> str:
        content = self._content
        models = sorted(content.models.groups, key=lambda group: (-group.sums.actual, group.values))
        by_model = [((group.values[0] or self._words["no_model"],), group.sums) for group in models]
        projects = sorted(content.projects.groups, key=lambda group: (-group.sums.actual, group.values))
        by_project = [(tuple(value or self._words["none"] for value in group.values), group.sums) for group in projects]
        by_time = [
            ((day(start, content.language),), sums)
            for start, sums in zip(line.periods.starts, figures.totals(line, content.days), strict=True)
        ]
        week = line.periods.weekly
        return (
            f"<h2>{self._say('numbers')}</h2>\n"
            + self._waterfall_table()
            + f"<h2>{self._say('by_model')}</h2>\n"
            + self._sums_table(("model",), by_model)
            + f"<h2>{self._say('by_project')}</h2>\n"
            + self._sums_table(("tenant", "project"), by_project)
            + f"<details>\n<summary>{self._say('by_week' if week else 'by_time')}</summary>\n"
            + self._sums_table(("week" if week else "date",), by_time)
            + "</details>\n"
        )

    def _waterfall_table(self) -> str:
        total = self._total
        changes = [(layer, -saved) for layer, saved in total.savings.items()] + [("overhead", total.overhead)]
        rows = [("baseline", total.baseline), *changes, ("actual", total.actual)]
        text = "".join(self._step_row(name, amount) for name, amount in rows)
        head = f'<tr><th class="text">{self._say("step")}</th><th>USD</th>{self._share_head()}</tr>\n'
        note = f'<p class="soft">{self._say("adds_up")}</p>\n' if total.adds_up else ""
        return f'<div class="box" tabindex="0"><table>\n{head}{text}</table></div>\n{note}'

    def _step_row(self, name: str, amount: int) -> str:
        whole = name in ("baseline", "actual")
        raises = amount > 0 and not whole
        row, cell = ' class="sum"' if whole else "", ' class="minus"' if raises else ""
        plus = "+" if raises else ""
        share = self._share(amount, self._total.baseline)
        return (
            f'<tr{row}><td class="text">{self._say(name)}</td>'
            f"<td{cell}>{plus}{self._money(amount)}</td><td>{plus}{share}</td></tr>\n"
        )

    def _share_head(self) -> str:
        return f'<th class="share">{self._say("share", models=self._baseline)}</th>'

    def _sums_table(self, names: Sequence[str], rows: Iterable[tuple[tuple[str, ...], Sums]]) -> str:
        kinds = {"model": "text name", "project": "text name", "tenant": "text who"}
        # The most wanted first: a phone shows few columns before one has to scroll.
        numbers = ("baseline", "saved", "overhead", "requests", "failed", "hits")
        head = "".join(f'<th class="text">{self._say(name)}</th>' for name in names)
        head += f"<th>{self._say('actual')}</th>{self._share_head()}"
        head += "".join(f"<th>{self._say(name)}</th>" for name in numbers)
        # Not on paper: it is narrower than that.
        head += "".join(f'<th class="extra">{self._say(name)}</th>' for name in ("tokens_in", "tokens_out"))
        text = "".join(
            self._sums_row(values, sums, [kinds.get(name, "text") for name in names]) for values, sums in rows
        )
        return f'<div class="box" tabindex="0"><table>\n<tr>{head}</tr>\n{text}</table></div>\n'

    def _sums_row(self, values: Sequence[str], sums: Sums, kinds: Sequence[str]) -> str:
        cells = "".join(f'<td class="{kind}">{escape(value)}</td>' for kind, value in zip(kinds, values, strict=True))
        cells += self._amount(sums.actual, sums.actual_local)
        cells += f"<td>{self._share(sums.actual, sums.baseline)}</td>"
        cells += self._amount(sums.baseline, sums.baseline_local) + self._amount(sums.saved)
        cells += self._amount(sums.overhead)
        cells += "".join(f"<td>{self._count(count)}</td>" for count in (sums.requests, sums.failed, sums.hits))
        tokens = (sums.input_tokens, sums.output_tokens)
        cells += "".join(f'<td class="extra">{self._count(count)}</td>' for count in tokens)
        return f"<tr>{cells}</tr>\n"

    def _amount(self, nano: int, other: Decimal | None = None) -> str:
        second = self._local(other)
        mark = ' class="minus"' if nano < 0 else ""
        return f"<td{mark}>{self._money(nano)}{f'<small>{second}</small>' if second else ''}</td>"

    def _checks(self) -> str:
        checks = self._content.checks
        if not checks:
            return "" if checks is not None else self._check_frame(f'<p class="soft">{self._say("checks_gone")}</p>\n')
        numbers = ("checks_worse_share", "compared", "same", "worse", "better", "undecided", "cost")
        head = "".join(f'<th class="text">{self._say(name)}</th>' for name in ("mode", "model"))
        head += "".join(f"<th>{self._say(name)}</th>" for name in numbers)
        rows = "".join(self._check_row(each) for each in checks)
        if len(checks) > 1:
            rows += self._check_row(replace(shadow.total(checks), mode=self._words["all"]), ' class="sum"')
        note = f'<p class="soft">{self._say("checks_note")}</p>\n'
        return self._check_frame(
            f'{note}<div class="box" tabindex="0"><table>\n<tr>{head}</tr>\n{rows}</table></div>\n'
        )

    def _check_frame(self, text: str) -> str:
        return f"<h2>{self._say('checks')}</h2>\n{text}"

    def _check_row(self, checks: shadow.Checks, row: str = "") -> str:
        low, high = (f"{100 * bound:.1f}%" for bound in shadow.wilson(checks.worse, checks.compared))
        share = percent(checks.worse, checks.compared)
        worse = self._say("share_range", share=share, low=low, high=high) if checks.compared else "–"
        counts = (checks.compared, checks.same, checks.worse, checks.better, checks.undecided)
        return (
            f'<tr{row}><td class="text">{escape(checks.mode)}</td><td class="text name">{escape(checks.model)}</td>'
            f"<td>{worse}</td>{''.join(f'<td>{self._count(count)}</td>' for count in counts)}"
            f"<td>{money(checks.cost, decimals_for([checks.cost]))}</td></tr>\n"
        )

    def _failures(self) -> str:
        content, count = self._content, self._total.failed
        title = f"<h2>{self._say('failures')}</h2>\n"
        if not count:
            return f'{title}<p class="soft">{self._say("no_failures")}</p>\n'
        rows = figures.newest_failures(content.sample, _FAILURES, self._words)
        places = decimals_for(row[4] for row in rows)
        which = "failures_part" if content.sample.whole else "failures_sample"
        shown = self._say(which, shown=self._count(len(rows)), count=self._count(count))
        head = "".join(f'<th class="text">{self._say(name)}</th>' for name in ("time", "tenant", "project", "request"))
        head += f'<th>{self._say("actual")}</th><th class="text">{self._say("attempts")}</th>'
        text = "".join(
            f'<tr><td class="text">{escape(moment(when.astimezone(content.zone), content.language))}</td>'
            f'<td class="text who">{escape(tenant)}</td>'
            f'<td class="text name">{escape(project or self._words["none"])}</td>'
            f'<td class="text code">{escape(request)}</td><td>{money(spent, places)}</td>'
            f'<td class="text name">{escape(on)}</td></tr>\n'
            for when, tenant, project, request, spent, on in rows
        )
        table = f'<div class="box" tabindex="0"><table>\n<tr>{head}</tr>\n{text}</table></div>\n' if rows else ""
        return f'{title}<p class="soft">{self._say("failures_note")} {shown}</p>\n{table}'

    def _how(self) -> str:
        content = self._content
        items = [self._say("how_prices")]
        if content.spend.currency:
            items.append(self._say("how_currency", currency=content.spend.currency))
        elif content.wanted_currency and self._total.requests:
            items.append(self._say("no_currency", currency=content.wanted_currency))
        items += [self._say(name) for name in ("how_traffic", "how_engineering", "how_quality")]
        made = self._say("made", time=moment(content.made.astimezone(content.zone), content.language))
        text = "".join(f"<li>{item}</li>\n" for item in items)
        return f"<h2>{self._say('how')}</h2>\n<ul>\n{text}</ul>\n<footer>{made}</footer>\n"
