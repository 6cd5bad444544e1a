"""The commands ``tenth prices`` and ``tenth rate``: the price book and the exchange rates, over RPC alone."""

from __future__ import annotations

import argparse
import gzip
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.type.v1 import receipt_pb2

from tenth_client.rpc import Rpc
from tenth_client.times import parse_time

_READ = ledger_pb2_grpc.LedgerReadServiceStub
_WRITE = ledger_pb2_grpc.LedgerServiceStub
_FORMATS = {"litellm": ledger_pb2.PRICE_FORMAT_LITELLM, "tenth": ledger_pb2.PRICE_FORMAT_TENTH}
FORMATS = tuple(_FORMATS)
"""What a price file can be."""
_IMPORT_SECONDS = 120.0
_SHOWN_ROWS = 200
_QUIET = frozenset({ledger_pb2.IMPORT_OUTCOME_NEW, ledger_pb2.IMPORT_OUTCOME_SAME, ledger_pb2.IMPORT_OUTCOME_SKIPPED})
"""Outcomes that are only counted unless --all asks for their rows."""
_COLOURS = {
    ledger_pb2.IMPORT_OUTCOME_NEW: "green",
    ledger_pb2.IMPORT_OUTCOME_CONFLICT: "bold red",
    ledger_pb2.IMPORT_OUTCOME_TAKEN: "yellow",
    ledger_pb2.IMPORT_OUTCOME_KEPT: "yellow",
    ledger_pb2.IMPORT_OUTCOME_UNCONFIRMED: "magenta",
}
_BOTH = (("input", "input_nano_usd_per_million_tokens"), ("output", "output_nano_usd_per_million_tokens"))
_OF_STEPS = (
    ("cached input", "cached_input_nano_usd_per_million_tokens"),
    ("cache write, 5 minutes", "cache_write_5m_nano_usd_per_million_tokens"),
    ("cache write, 1 hour", "cache_write_1h_nano_usd_per_million_tokens"),
)
_OPTIONAL = (
    *_OF_STEPS,
    ("batch input", "batch_input_nano_usd_per_million_tokens"),
    ("batch output", "batch_output_nano_usd_per_million_tokens"),
    ("flex input", "flex_input_nano_usd_per_million_tokens"),
    ("flex output", "flex_output_nano_usd_per_million_tokens"),
    ("reasoning", "reasoning_output_nano_usd_per_million_tokens"),
    ("quantized input", "quantized_input_nano_usd_per_million_tokens"),
    ("quantized output", "quantized_output_nano_usd_per_million_tokens"),
)
_OTHER = (
    ("a request", "request_fee_nano_usd"),
    ("an hour of a CPU core", "cpu_hour_nano_usd"),
    ("an hour of a GPU", "gpu_hour_nano_usd"),
)


async def import_file(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Show what a price file would change; with --apply, add it."""
    request = ledger_pb2.ImportPricesRequest(
        # The map is two megabytes of text; a ledger takes it packed.
        content=_packed(arguments.file.read_bytes()),
        format=_FORMATS[arguments.format or _format_of(arguments.file)],
        source=arguments.source,
        dry_run=not arguments.apply,
        take=arguments.take,
        keep=arguments.keep,
        models=arguments.only,
    )
    if arguments.start:
        request.valid_from_time.CopyFrom(parse_time(arguments.start, "--from"))
    response = await rpc.call("ledger", _WRITE, "ImportPrices", request, seconds=_IMPORT_SECONDS)
    console.print(outcome_counts(response.rows))
    differing = [row for row in response.rows if arguments.all or row.outcome not in _QUIET]
    differing.sort(key=lambda row: row.outcome != ledger_pb2.IMPORT_OUTCOME_CONFLICT)
    if differing:
        console.print()
        console.print(diff(differing[:_SHOWN_ROWS]))
    if len(differing) > _SHOWN_ROWS:
        console.print(f"... and {len(differing) - _SHOWN_ROWS} more; --only MODEL shows one")
    conflicts = sum(row.outcome == ledger_pb2.IMPORT_OUTCOME_CONFLICT for row in response.rows)
    if conflicts:
        console.print(f"{conflicts} in conflict: say --take MODEL or --keep MODEL for each, or '*' for all")
    if arguments.apply:
        console.print(f"imported; price book version {response.price_book_version}")
    else:
        console.print("nothing was changed: this is the diff; --apply imports")
    return 0


async def show(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Print everything that the book says of a model at a time; 1 when it says nothing."""
    response = await _prices(rpc, arguments.model, arguments.at)
    for price in response.prices:
        console.print(price_table(price))
        return 0
    when = arguments.at or "now"
    console.print(f"the price book has no price of {arguments.model} at that time ({when})", markup=False)
    return 1


async def listing(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Print the prices that hold at a time, one a line."""
    response = await _prices(rpc, "", arguments.at)
    table = _table("model", "input", "output", "cached", "from", "confirmed", "source")
    shown = 0
    for price in response.prices:
        if arguments.match.lower() not in price.model.lower() or (arguments.unconfirmed and price.confirmed):
            continue
        cached = price.cached_input_nano_usd_per_million_tokens
        hour = price.cpu_hour_nano_usd or price.gpu_hour_nano_usd
        table.add_row(
            Text(price.model),
            f"{decimal(hour)}/h" if hour else decimal(price.input_nano_usd_per_million_tokens),
            "" if hour else decimal(price.output_nano_usd_per_million_tokens),
            decimal(cached) if price.HasField("cached_input_nano_usd_per_million_tokens") else "",
            _date(price.valid_from_time),
            _confirmation(price),
            Text(price.source),
        )
        shown += 1
    console.print(table)
    console.print(f"{shown} prices, USD per million tokens; version {response.price_book_version}")
    return 0


async def confirm(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Vouch for the price of each model."""
    for model in arguments.model:
        request = ledger_pb2.ConfirmPriceRequest(model=model)
        if arguments.start:
            request.valid_from_time.CopyFrom(parse_time(arguments.start, "--from"))
        response = await rpc.call("ledger", _WRITE, "ConfirmPrice", request)
        console.print(price_table(response.price))
        console.print(f"price book version {response.price_book_version}")
    return 0


async def rate_add(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Add a dated exchange rate."""
    rate = ledger_pb2.ExchangeRate(
        currency=arguments.currency.upper(),
        units_per_usd=arguments.units,
        valid_from_time=parse_time(arguments.start, "--from"),
        source=arguments.source,
    )
    await rpc.call("ledger", _WRITE, "AddExchangeRate", ledger_pb2.AddExchangeRateRequest(rate=rate))
    console.print(_rates([rate]))
    return 0


async def rate_list(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Print the dated exchange rates."""
    request = ledger_pb2.ListExchangeRatesRequest(currency=arguments.currency.upper())
    response = await rpc.call("ledger", _READ, "ListExchangeRates", request)
    console.print(_rates(response.rates))
    return 0


def outcome_counts(rows: Sequence[ledger_pb2.ImportRow]) -> Table:
    """How many rows there are of each outcome."""
    counts = Counter(row.outcome for row in rows)
    table = _table("outcome", "rows")
    for outcome in ledger_pb2.ImportOutcome.values():
        if counts[outcome]:
            table.add_row(_outcome(outcome), str(counts[outcome]))
    return table


def diff(rows: Sequence[ledger_pb2.ImportRow]) -> Table:
    """The rows, with what stands in the book and in the file."""
    table = _table("model", "outcome", "in / out, book", "in / out, file", "what differs, or why")
    for row in rows:
        sides = [_in_out(getattr(row, side)) if row.HasField(side) else "" for side in ("before", "after")]
        table.add_row(Text(row.model), _outcome(row.outcome), *sides, Text(row.reason))
    return table


def price_table(price: receipt_pb2.Price) -> Table:
    """Everything that a price says."""
    table = Table(show_header=False, show_edge=False, pad_edge=False, title=Text(price.model), title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    hardware = price.HasField("cpu_hour_nano_usd") or price.HasField("gpu_hour_nano_usd")
    for name, field in _BOTH if not hardware else ():
        table.add_row(name, f"{decimal(getattr(price, field))} USD per million tokens")
    for name, nano in _given(price, _OPTIONAL):
        table.add_row(name, f"{decimal(nano)} USD per million tokens")
    for name, nano in _given(price, _OTHER):
        table.add_row(name, f"{decimal(nano)} USD")
    for step in price.steps:
        amounts = [(name, getattr(step, field)) for name, field in _BOTH] + _given(step, _OF_STEPS)
        parts = (f"{name} {decimal(nano)}" for name, nano in amounts)
        table.add_row(f"above {step.above_input_token_count:,} input tokens", "; ".join(parts))
    until = f"until {_date(price.valid_to_time)}" if price.HasField("valid_to_time") else "open"
    table.add_row("holds", f"from {_date(price.valid_from_time)}, {until}")
    table.add_row("source", Text(price.source))
    table.add_row("confirmed", _confirmation(price))
    return table


def decimal(nano: int) -> str:
    """Nano-USD as the shortest decimal string."""
    return f"{Decimal(nano).scaleb(-9).normalize():f}"


async def _prices(rpc: Rpc, model: str, at: str) -> ledger_pb2.ListPricesResponse:
    request = ledger_pb2.ListPricesRequest(model=model)
    if at:
        request.at_time.CopyFrom(parse_time(at, "--at"))
    response: ledger_pb2.ListPricesResponse = await rpc.call("ledger", _READ, "ListPrices", request, seconds=60)
    return response


def _given(message: Any, fields: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
    return [(name, getattr(message, field)) for name, field in fields if message.HasField(field)]


def _packed(content: bytes) -> bytes:
    return content if content.startswith(b"\x1f\x8b") else gzip.compress(content)


def _format_of(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".json"):
        return "litellm"
    if name.endswith((".yaml", ".yml")):
        return "tenth"
    raise ValueError(f"{path}: neither .json nor .yaml; say --format")


def _outcome(outcome: ledger_pb2.ImportOutcome.ValueType) -> Text:
    name = ledger_pb2.ImportOutcome.Name(outcome).removeprefix("IMPORT_OUTCOME_").lower()
    return Text(name, style=_COLOURS.get(outcome, ""))


def _in_out(price: receipt_pb2.Price) -> str:
    sides = (price.input_nano_usd_per_million_tokens, price.output_nano_usd_per_million_tokens)
    return " / ".join(map(decimal, sides))


def _confirmation(price: receipt_pb2.Price) -> Text:
    if not price.confirmed:
        return Text("no: PRICE_UNKNOWN until a person confirms it", style="magenta")
    return Text(f"by {price.confirmed_by}" if price.confirmed_by else "yes")


def _rates(rates: Sequence[ledger_pb2.ExchangeRate]) -> Table:
    table = _table("currency", "for one USD", "from", "source")
    for rate in rates:
        table.add_row(rate.currency, rate.units_per_usd, _date(rate.valid_from_time), Text(rate.source))
    return table


def _date(moment: Timestamp) -> str:
    text = moment.ToJsonString()
    return text.removesuffix("T00:00:00Z")


def _table(*columns: str) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    numbers = {"rows", "input", "output", "cached", "in / out, book", "in / out, file", "for one USD"}
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table
