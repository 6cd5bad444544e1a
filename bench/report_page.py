"""The page's HTML: tables and drawings of results, every word of theirs escaped; no script, nothing loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from bench import endtoend_plots as plots
from bench.cells import Figures
from bench.claims import CLAIMS, Results, claims
from bench.endtoend_arms import ABLATED, FRONTIERS, TARGETS, frontier_name
from bench.endtoend_tables import assumed, assumptions, beside_a_tenth, names, provenance, sheets
from bench.endtoend_warming import warming
from bench.report_words import INTRO, KOREAN, QUALITY, REDUCED, REPRINT, SECTIONS, TITLE
from bench.sheets import Sheet, percent
from tenth_client.reporting.charts import svg
from tenth_client.reporting.style import CSS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_RULES = """
input.language{position:absolute;opacity:0}
label{border:1px solid var(--line);border-radius:.4rem;padding:.15rem .6rem;margin-right:.4rem;cursor:pointer;
font-size:.9375rem}
#en:checked~main [lang=ko],#ko:checked~main [lang=en]{display:none}
#en:checked~main label[for=en],#ko:checked~main label[for=ko]{background:var(--ink);color:var(--paper)}
input.language:focus-visible~main label{outline:2px solid var(--accent)}
figure{overflow-x:auto}
figure svg{min-width:38rem;max-width:60rem}
.card span span{display:inline}
main{max-width:80rem}
.cards{grid-template-columns:repeat(auto-fit,minmax(12rem,1fr))}
td.text:nth-child(n+3){white-space:normal;min-width:13rem;max-width:26rem}
th{white-space:normal;min-width:5.5rem;vertical-align:bottom;overflow-wrap:normal;word-break:keep-all}
"""
_CONFIG: Mapping[str, Any] = {
    "font": "system-ui, -apple-system, 'Noto Sans KR', 'Noto Sans CJK KR', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 13, "titleFontSize": 13, "labelColor": "var(--ink)", "titleColor": "var(--soft)",
        "gridColor": "var(--line)", "domainColor": "var(--line-strong)", "tickColor": "var(--line-strong)",
    },
    "legend": {"labelFontSize": 13, "labelColor": "var(--ink)", "titleColor": "var(--soft)"},
    "range": {"category": [f"var(--model{number})" for number in range(1, 8)]},
    "text": {"color": "var(--ink)"},
    "rule": {"color": "var(--ink)"},
}  # fmt: skip
_HEIGHT = 300
"""Of a drawing, CSS pixels."""
_DOWN, _BILL = "from the baseline's bill to ours", "of the strong model's bill"
_WORDS = {**KOREAN, **{claim.why: claim.why_korean for claim in CLAIMS}} | {
    claim.article: claim.article_korean for claim in CLAIMS
}


def page(results: Results) -> str:
    """The whole page. Raises KeyError without an end-to-end result, LookupError without the drawing library."""
    result = results["endtoend"]
    tables = {sheet.name: sheet for sheet in sheets(result)}
    drawn = pictures(result["metrics"])
    body = [_section("claim", [_cards(result), f"<p>{both(QUALITY)}</p>"])]
    for name in ("mixes", "layers", "workloads", "ablation", "frontier", "warming", "latency", "hops"):
        parts = drawn.get(name, []) + ([html(tables[name])] if name in tables and tables[name].rows else [])
        body += [_section(name, parts)] if parts else []
    body.append(_section("claims", [html(claims(results))]))
    body.append(_section("checks", [html(tables["checks"])]))
    body.append(_section("assumptions", [*map(html, assumed(result)), _items(assumptions(result)), _skipped(result)]))
    body.append(_section("reprint", [f"<p>{both(REPRINT)}</p>", f"<p class='soft'>{escape(provenance(result))}</p>"]))
    reduced = f'<p class="note">{both(REDUCED)}</p>\n' if result["quick"] else ""
    head = (
        '<p><label for="en">English</label><label for="ko">한국어</label></p>\n'
        f'<h1>{both(TITLE)}</h1>\n<p class="soft">{both(INTRO)}</p>\n'
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{TITLE} · Tenth</title>\n<style>{CSS}{_RULES}</style>\n</head>\n<body>\n"
        '<input class="language" type="radio" name="language" id="en" aria-label="English" checked>\n'
        '<input class="language" type="radio" name="language" id="ko" aria-label="한국어">\n'
        f"<main>\n{head}{reduced}{''.join(body)}</main>\n</body>\n</html>\n"
    )


def pictures(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The drawings by section."""
    found: dict[str, list[str]] = {}
    for mix in names(Figures({"metrics": metrics})):
        if f"{mix}/ours/saved_by_quantization" in metrics:
            said = f"{escape(mix)}: {both(_DOWN)}"
            found.setdefault("layers", []).append(_figure(plots.waterfall(metrics, mix), said))
    if any(f"{mix}/{frontier_name(TARGETS[0])}/cost_ratio" in metrics for mix in FRONTIERS):
        said = both("the router's target from low to high; diamonds: as the mix was run")
        found["frontier"] = [_figure(plots.frontier(metrics), said)]
    if f"{ABLATED}/full/cost_ratio" in metrics:
        said = f"{ABLATED}; {both('dashed: all layers')}"
        found["ablation"] = [_figure(plots.ablation(metrics), said)]
    points = warming(metrics)
    if points:
        said = both("share of a window of requests, from a cold cache")
        found["warming"] = [_figure(plots.warm(points), said)]
    return found


def html(sheet: Sheet) -> str:
    """A table."""
    kinds = ['class="text"' if at < sheet.texts else "" for at in range(len(sheet.titles))]
    head = "".join(f"<th {kind}>{both(title)}</th>" for kind, title in zip(kinds, sheet.titles, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td {kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds, cells, strict=True)) + "</tr>\n"
        for cells in sheet.rows
    )
    return f'<div class="box"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n'


def both(text: str) -> str:
    """The text in both languages, of which the page shows one; backquotes are code."""
    korean = _WORDS.get(text)
    if korean is None:
        return _inline(text)
    return f'<span lang="en">{_inline(text)}</span><span lang="ko">{_inline(korean)}</span>'


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _cell(text: str) -> str:
    """A cell; figures of several sets stand one beneath the other."""
    parts = text.split("; ")
    return "<br>".join(map(both, parts)) if len(parts) > 1 and text not in _WORDS else both(text)


def _section(name: str, parts: Iterable[str]) -> str:
    english, korean = SECTIONS[name]
    title = f'<span lang="en">{escape(english)}</span><span lang="ko">{escape(korean)}</span>'
    return f'<section id="{name}">\n<h2>{title}</h2>\n{"".join(parts)}</section>\n'


def _cards(result: Mapping[str, Any]) -> str:
    """Per mix: what is paid, and what is known of the quality."""
    figures = Figures(result)
    cards = []
    for mix in names(figures):
        kept, known = (percent(figures.value(f"{mix}/ours/quality_{what}")) for what in ("ratio", "covered"))
        quality = f"{both('quality kept')} {kept}, {both('known of requests')} {known}" if kept else both("not known")
        metric = figures.metrics[f"{mix}/ours/cost_ratio"]
        low, high = metric["ci95"] or (metric["value"], metric["value"])
        spread = f" [{percent(low)}, {percent(high)}]" if low != high else ""
        said = f"{both(_BILL)}{spread}: {both(beside_a_tenth(low, high))}"
        cards.append(
            f'<div class="card"><span>{escape(mix)}</span><b>{percent(metric["value"])}</b><span>{said}</span>'
            f"<span>{quality}</span></div>\n"
        )
    return f'<div class="cards">\n{"".join(cards)}</div>\n'


def _figure(picture: Mapping[str, Any], said: str) -> str:
    """A picture in the page's colours, which are its reader's; its title is what is said beneath."""
    spec = {name: value for name, value in picture.items() if name != "title"}
    drawn = svg({**spec, "height": _HEIGHT, "background": "transparent", "config": dict(_CONFIG)})
    return f"<figure>{drawn}<figcaption>{said}</figcaption></figure>\n"


def _items(items: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<li><b>{escape(name.replace('_', ' '))}</b>: {_inline(text)}</li>\n" for name, text in items)
    return f"<ul>\n{rows}</ul>\n"


def _skipped(result: Mapping[str, Any]) -> str:
    if not result["skipped"]:
        return ""
    rows = "".join(f"<li>{_inline(item)}</li>" for item in result["skipped"])
    return f"<h3>{both('Not measured')}</h3>\n<ul>{rows}</ul>\n"
