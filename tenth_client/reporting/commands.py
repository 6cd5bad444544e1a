"""``tenth report`` and ``tenth export``: their arguments, and what they do. Each returns the process's exit status."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from rich.console import Console
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2

from tenth_client.reporting import columns, figures, focus, shadow, tables
from tenth_client.reporting.files import Row, save
from tenth_client.reporting.page import Content, page
from tenth_client.reporting.stream import receipts, sample
from tenth_client.reporting.sums import Spend, fetch
from tenth_client.reporting.texts import LANGUAGES
from tenth_client.rpc import Rpc
from tenth_client.times import parse_time

Add = Callable[[str, Callable[[Rpc, argparse.Namespace, Console], Awaitable[int]], str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add both commands; ``add`` makes a connected command of a name, what runs, and a help text."""
    shown = add("report", report, "what was spent and saved, from the ledger")
    shown.add_argument(
        "--by",
        default="",
        help="model, tier, tenant, user, project, hour, day, week, month, cache, baseline, tag:KEY; comma-separated",
    )
    _which(shown)
    shown.add_argument("--time-zone", default="UTC", help="of days, weeks and months; IANA name (default: %(default)s)")
    shown.add_argument("--currency", default="", help="amounts in it beside USD, by the ledger's dated rates; e.g. KRW")
    shown.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page (extra `report`)")
    shown.add_argument("--lang", choices=LANGUAGES, default="en", help="the page's language (default: %(default)s)")
    shown.add_argument("--csv", type=Path, metavar="FILE", help="write the sums as CSV")
    shown.add_argument("--parquet", type=Path, metavar="FILE", help="write the sums as Parquet (extra `report`)")
    exported = add("export", export, "receipts as CSV, Parquet or FOCUS, one by one")
    _which(exported)
    exported.add_argument("--csv", type=Path, metavar="FILE", help="one row per receipt, as CSV")
    exported.add_argument("--parquet", type=Path, metavar="FILE", help="the same as Parquet (extra `report`)")
    exported.add_argument(
        "--focus", type=Path, metavar="FILE", help=f"FOCUS {focus.VERSION}, one row per charge: CSV, or FILE.parquet"
    )
    exported.add_argument("--issuer", default="Tenth", help="FOCUS: who sends the invoice (default: %(default)s)")
    exported.add_argument(
        "--catalog", type=Path, metavar="FILE", help="FOCUS: catalog.yaml, for the providers' names by model"
    )


def _which(command: argparse.ArgumentParser) -> None:
    command.add_argument("--since", default="", metavar="DATE", help="from this time (ISO 8601; in UTC by default)")
    command.add_argument("--until", default="", metavar="DATE", help="before this time (ISO 8601; in UTC by default)")
    command.add_argument("--tenant", default="", help="only this tenant")


async def report(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """The ledger's sums by dimension, on the terminal and in the files asked for."""
    zone = _zone(arguments.time_zone)
    which = _filter(arguments, zone)
    group_by = [name.strip() for name in arguments.by.split(",") if name.strip()]
    currency = arguments.currency.upper()
    spend = await fetch(rpc, which, group_by, time_zone=arguments.time_zone, currency=currency)
    tables.show(spend, console)
    # Only then: what they say stands in single receipts, which a report otherwise need not read.
    checks = await shadow.fetch_checks(rpc, which) if spend.total.checks else ()
    tables.show_checks(checks, console)
    if currency and not spend.currency and spend.groups:
        console.print(f"the ledger gave no amounts in {currency}", style="yellow", markup=False)
    for path, parquet in ((arguments.csv, False), (arguments.parquet, True)):
        if path is not None:
            count = await save(path, columns.group_columns(spend), _groups(spend), parquet=parquet)
            _wrote(console, path, count, "rows")
    if arguments.html is not None:
        content = await gather(rpc, arguments, which, zone, checks)
        arguments.html.write_text(page(content), "utf-8")
        console.print(f"wrote {arguments.html}", markup=False, soft_wrap=True)
    return 0


async def gather(
    rpc: Rpc,
    arguments: argparse.Namespace,
    which: ledger_pb2.ReceiptFilter,
    zone: tzinfo,
    checks: Sequence[shadow.Checks] | None = (),
) -> Content:
    """Everything that the page shows."""
    currency = arguments.currency.upper()
    spend, days, models, projects = [
        await fetch(rpc, which, group_by, time_zone=arguments.time_zone, currency=currency)
        for group_by in (("day", "model"), ("day",), ("model",), ("tenant", "project"))
    ]
    edges = figures.timeline(spend, arguments.lang).periods.edges(zone)
    return Content(
        spend=spend,
        days=days,
        models=models,
        projects=projects,
        sample=await sample(rpc, which, spend.total.requests, edges),
        language=arguments.lang,
        zone=zone,
        zone_name=arguments.time_zone,
        made=datetime.now(UTC),
        since=which.start_time.ToDatetime(UTC) if which.HasField("start_time") else None,
        until=which.end_time.ToDatetime(UTC) if which.HasField("end_time") else None,
        tenant=arguments.tenant,
        wanted_currency=currency,
        checks=checks,
    )


async def export(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Receipts one by one into files."""
    which = _filter(arguments, UTC)
    if not (arguments.csv or arguments.parquet or arguments.focus):
        raise ValueError("say where to: --csv FILE, --parquet FILE or --focus FILE")
    for path, parquet in ((arguments.csv, False), (arguments.parquet, True)):
        if path is not None:
            async with aclosing(receipts(rpc, which)) as stream:
                count = await save(path, columns.RECEIPT, _receipts(stream), parquet=parquet)
            _wrote(console, path, count, "receipts")
    if arguments.focus is not None:
        parties = focus.Parties(arguments.issuer, _providers(arguments.catalog) if arguments.catalog else {})
        path = arguments.focus
        async with aclosing(receipts(rpc, which)) as stream:
            lines = _charges(stream, parties)
            count = await save(path, focus.COLUMNS, lines, parquet=path.suffix == ".parquet", text=focus.text)
        _wrote(console, path, count, "charges")
    return 0


async def _groups(spend: Spend) -> AsyncIterator[Row]:
    for group in spend.groups:
        yield columns.group_row(spend, group)


async def _receipts(stream: AsyncIterator[receipt_pb2.Receipt]) -> AsyncIterator[Row]:
    async for receipt in stream:
        yield columns.receipt_row(receipt)


async def _charges(stream: AsyncIterator[receipt_pb2.Receipt], parties: focus.Parties) -> AsyncIterator[Row]:
    async for receipt in stream:
        for row in focus.rows(receipt, parties):
            yield row


def _wrote(console: Console, path: Path, count: int, what: str) -> None:
    console.print(f"wrote {path}: {count} {what}", markup=False, soft_wrap=True)


def _filter(arguments: argparse.Namespace, zone: tzinfo) -> ledger_pb2.ReceiptFilter:
    which = ledger_pb2.ReceiptFilter(tenant_id=arguments.tenant)
    if arguments.since:
        which.start_time.CopyFrom(parse_time(arguments.since, "--since", zone))
    if arguments.until:
        which.end_time.CopyFrom(parse_time(arguments.until, "--until", zone))
    return which


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError(f"--time-zone: {name!r} is no IANA time zone, such as Asia/Seoul") from None


def _providers(path: Path) -> dict[str, str]:
    """Each model's provider, from a catalogue file."""
    content = yaml.safe_load(path.read_text("utf-8"))
    models = content.get("models") if isinstance(content, dict) else None
    if not isinstance(models, dict):
        raise ValueError(f"{path} is no catalogue: it has no `models:`")
    return {
        str(name): str(entry["provider"])
        for name, entry in models.items()
        if isinstance(entry, dict) and "provider" in entry
    }
