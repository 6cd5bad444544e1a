"""What ``tenth cache`` shows: the explanation of a lookup, statistics, namespaces. Fits 80 columns, Hangul too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from tenth.cache.v1 import cache_pb2

from tenth_client.cache_words import feature, mode, reason, text, tier, verdict

_BAR = 6
"""Longest bar to a side, characters."""
_MOST_FEATURES = 8
_COUNTS = ("entry_count", "entry_bytes", "private_entry_count")
_LOOKUPS = ("exact_hit_count", "semantic_hit_count", "follow_count", "miss_count")


def explanation(answer: cache_pb2.InspectLookupResponse, lang: str, everything: bool = False) -> Group:
    """Why a lookup would or would not hit: the verdict, the request's identity, then each candidate.

    Of the features only the strongest are shown unless ``everything`` is wanted.
    """
    colour = {"hit": "green", "miss": "yellow", "bypass": "magenta"}.get(answer.outcome, "")
    head = text(answer.outcome, lang) if colour else answer.outcome
    lines: list[RenderableType] = [Text(head, style=f"bold {colour}".strip())]
    facts = [(text("why", lang), verdict(answer.reason, lang))]
    facts.append((text("asked", lang), answer.embedded_text or "-"))
    if answer.mode:
        words = f"{answer.mode} ({mode(answer.mode, lang)})" if mode(answer.mode, lang) else answer.mode
        if answer.needed_probability > 1:
            words += f", {text('never', lang)}"
        elif answer.needed_probability:
            words += f", {text('needs', lang, value=f'{answer.needed_probability:.3f}')}"
        facts.append((text("mode", lang), words))
    facts.append((text("key", lang), answer.exact_key))
    lines.append(_facts(facts))
    if not answer.candidates:
        lines.append(Text(f"\n{text('none', lang)}"))
    for number, found in enumerate(answer.candidates, start=1):
        lines += ["", *_candidate(number, found, lang, everything)]
    return Group(*lines)


def _facts(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _candidate(number: int, found: cache_pb2.Candidate, lang: str, everything: bool) -> Iterator[RenderableType]:
    served = found.would_serve
    verdict_of = Text(text("served" if served else "refused", lang), style="green" if served else "red")
    yield Text.assemble((f"{number}. ", "bold"), (found.question, "bold"), "  ", verdict_of)
    sure = text("similarity", lang, value=f"{found.similarity:.4f}")
    if found.probability or found.features:
        sure += ", " + text("probability", lang, value=f"{found.probability:.3f}")
    yield _indented(Text(sure))
    for line in found.reasons:
        refused = line.startswith("refused: ")
        mark = Text("x " if refused else "+ ", style="red" if refused else "green")
        # What passed is a matter of course beside what did not.
        yield _indented(_hanging(mark, Text(verdict(line, lang), style="" if refused else "dim")))
    if found.features:
        shown = found.features if everything else found.features[:_MOST_FEATURES]
        yield _indented(_features(shown, lang))
        more = len(found.features) - len(shown)
        said = [text("legend", lang)] + ([text("smaller", lang, count=more)] if more else [])
        yield _indented(Text("; ".join(said), style="dim"))
    for line in provenance(found.provenance, lang) if found.HasField("provenance") else ():
        yield _indented(Text(line, style="dim"))
    yield _indented(Text(text("entry", lang, id=found.entry_id), style="dim"))


def _features(features: Sequence[cache_pb2.FeatureContribution], lang: str) -> Table:
    """Name, value, what it adds to the log-odds, and that as a bar to the side it speaks for."""
    most = max((abs(each.contribution) for each in features), default=0.0)
    table = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(text("feature", lang), overflow="fold", max_width=34)
    table.add_column(text("value", lang), justify="right", no_wrap=True)
    table.add_column(text("adds", lang), justify="right", no_wrap=True)
    table.add_column(text("bar", lang), no_wrap=True)
    for each in features:
        label, meaning = feature(each.name, lang)
        cell = Text(label)
        if meaning:
            cell.append(f"\n{meaning}", style="dim")
        bad = each.contribution < 0
        adds = Text(f"{each.contribution:+.2f}", style="red" if bad else "green" if each.contribution else "dim")
        table.add_row(cell, f"{each.value:.3g}", adds, bar(each.contribution, most))
    return table


def bar(contribution: float, most: float) -> Text:
    """A signed bar: ``-`` to the left speaks against the answer, ``+`` to the right for it."""
    length = round(_BAR * abs(contribution) / most) if most > 0 else 0
    if contribution and not length:
        length = 1
    left, right = ("-" * length, "") if contribution < 0 else ("", "+" * length)
    return Text.assemble((left.rjust(_BAR), "red"), ("|", "dim"), (right.ljust(_BAR), "green"))


def provenance(found: cache_pb2.Provenance, lang: str) -> list[str]:
    """Where an answer comes from and how it has done, in two lines."""
    first = text("answered", lang, model=found.model or "-", tier=tier(found.tier, lang))
    second = [
        text("hits", lang, count=found.hit_count),
        text("reports", lang, right=found.right_count, wrong=found.wrong_count),
    ]
    third = text("shared" if found.shared else "private", lang)
    if found.HasField("expire_time"):
        third += ", " + text("until", lang, time=_time(found.expire_time.ToNanoseconds()))
    return [f"{first}; {third}", "; ".join(second)]


def totals(answers: Sequence[cache_pb2.GetStatsResponse], shared: bool) -> dict[str, Any]:
    """The statistics of all replicas as one. ``shared``: they have one store, whose entries are counted once."""
    found: dict[str, Any] = {"replica_count": len(answers)}
    for name in _COUNTS:
        values = [int(getattr(answer, name)) for answer in answers]
        found[name] = max(values, default=0) if shared else sum(values)
    for name in _LOOKUPS:
        found[name] = sum(int(getattr(answer, name)) for answer in answers)
    asked = sum(found[name] for name in _LOOKUPS)
    found["lookup_count"] = asked
    for name in _LOOKUPS[:3]:
        found[name.replace("_count", "_rate")] = found[name] / asked if asked else None
    for name in ("bypass_counts", "not_stored_counts"):
        found[name] = _summed(getattr(answer, name) for answer in answers)
    found["embedders"] = sorted({answer.embedder for answer in answers})
    found["stores"] = sorted({answer.store for answer in answers})
    return found


def stats(found: Mapping[str, Any], lang: str = "en") -> Group:
    """The statistics as a table, then the reasons in words."""
    table = Table.grid(padding=(0, 3))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    for name, field in (
        ("entries", "entry_count"),
        ("  private, wait for a second user", "private_entry_count"),
        ("  size", "entry_bytes"),
        ("lookups", "lookup_count"),
        ("  exact hits", "exact_hit_count"),
        ("  semantic hits", "semantic_hit_count"),
        ("  followed an identical request", "follow_count"),
        ("  misses", "miss_count"),
    ):
        rate = found.get(f"{field.removesuffix('_count')}_rate")
        value = bytes_text(found[field]) if field == "entry_bytes" else f"{found[field]:,}"
        table.add_row(name, value, "" if rate is None else f"{100 * rate:.1f}%")
    lines: list[RenderableType] = [table]
    for title, field in (("bypassed", "bypass_counts"), ("not stored", "not_stored_counts")):
        lines += ["", counts(title, found[field], lang)]
    where = f"{found['replica_count']} replica" + ("s" if found["replica_count"] != 1 else "")
    lines.append(Text(f"\nembedder {', '.join(found['embedders'])}; store {', '.join(found['stores'])}; {where}"))
    return Group(*lines)


def counts(title: str, found: Mapping[str, int], lang: str = "en") -> Table | Text:
    """Counts by reason with the reason in words, most frequent first."""
    if not found:
        return Text(f"{title}: none")
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(overflow="fold", style="dim")
    for name, count in sorted(found.items(), key=lambda item: (-item[1], item[0])):
        meaning = reason(name, lang)
        table.add_row(f"{title} {name}", f"{count:,}", "" if meaning == name else meaning)
    return table


def merged(answers: Sequence[cache_pb2.ListNamespacesResponse]) -> list[cache_pb2.Namespace]:
    """The namespaces of all replicas by name: evidence added up, suspended where any replica has it so."""
    found: dict[str, cache_pb2.Namespace] = {}
    for answer in answers:
        for each in answer.namespaces:
            known = found.get(each.namespace)
            if known is None:
                known = found[each.namespace] = cache_pb2.Namespace()
                known.CopyFrom(each)
                continue
            for name in ("lookup_count", "semantic_hit_count", "right_count", "wrong_count"):
                setattr(known, name, getattr(known, name) + getattr(each, name))
            if each.suspended and not known.suspended:
                known.suspended, known.suspended_reason = True, each.suspended_reason
    return [found[name] for name in sorted(found)]


def namespace(found: cache_pb2.Namespace) -> Group:
    """The rules and the evidence of one namespace, in sentences."""
    lines: list[RenderableType] = [Text(found.namespace, style="bold")]
    meaning = mode(found.mode, "en")
    rules = [f"{found.mode}: {meaning}" if meaning else found.mode]
    if found.mode != "off":
        rules.append(f"at most {found.max_wrong_hits_per_thousand:g} wrong hits per 1,000 lookups")
    users = found.sharing_user_count
    shared = "shared at once" if users <= 1 else f"for its own user until {users} users got the same answer"
    rules.append(f"an answer is served for {duration(found.ttl)}, {shared}")
    share = f" ({100 * found.semantic_hit_count / found.lookup_count:.1f}%)" if found.lookup_count else ""
    rules.append(
        f"evidence: {found.lookup_count:,} lookups by meaning, {found.semantic_hit_count:,} hits{share}; reported "
        f"right {found.right_count:,}, wrong {found.wrong_count:,}"
    )
    lines += [_indented(Text(line)) for line in rules]
    if found.suspended:
        why = f"SUSPENDED, serves exact hits alone: {found.suspended_reason or 'no reason given'}"
        lines.append(_indented(Text(why, style="bold red")))
        lines.append(_indented(Text(f"tenth cache restore {found.namespace}   lets it serve by meaning again")))
    return Group(*lines)


def duration(found: Duration) -> str:
    """A length of time in its largest whole unit."""
    seconds = found.ToNanoseconds() / 1e9
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            return _plural(round(seconds / length), unit)
    return f"{seconds:g} s"


def bytes_text(count: int) -> str:
    """Bytes in a unit that people read."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _summed(maps: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in maps:
        for name, count in each.items():
            found[name] = found.get(name, 0) + int(count)
    return found


def _indented(what: RenderableType) -> Padding:
    return Padding(what, (0, 0, 0, 3))


def _hanging(mark: Text, line: Text) -> Table:
    table = Table.grid()
    table.add_column(width=2, no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(mark, line)
    return table


def _time(nanoseconds: int) -> str:
    try:
        return datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return "-"
