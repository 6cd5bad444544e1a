"""Prices, imports and exchange rates between the wire and the books."""

from __future__ import annotations

from dataclasses import dataclass

from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2

from mesh.errors import invalid_argument, required
from mesh.wire import price_from_proto, price_to_proto
from services.ledger.exchange import Rate, parse_rate
from services.ledger.importing import Choice, FileRow, Line, choice_of, only
from services.ledger.price_files import Format, read_file
from services.ledger.prices import DatedPrice
from services.ledger.receipts import check_name, instant

_FORMATS = {
    ledger_pb2.PRICE_FORMAT_LITELLM: Format.LITELLM,
    ledger_pb2.PRICE_FORMAT_TENTH: Format.TENTH,
}
_LONGEST_SOURCE = 1000


@dataclass(frozen=True, slots=True)
class Import:
    """What a caller asked to import."""

    file: list[FileRow]
    choice: Choice


def price_message(row: DatedPrice) -> receipt_pb2.Price:
    """A dated price for the wire."""
    message = price_to_proto(row.price)
    message.valid_from_time.FromNanoseconds(row.valid_from_ns)
    if row.valid_to_ns is not None:
        message.valid_to_time.FromNanoseconds(row.valid_to_ns)
    message.source = row.source
    message.confirmed_by = row.confirmed_by
    return message


def dated_price(message: receipt_pb2.Price, field: str) -> DatedPrice:
    """A price of the wire. Who confirmed it is not the caller's to say."""
    check_name(message.model, f"{field}.model")
    return DatedPrice(
        price_from_proto(message),
        valid_from_ns=instant(message.valid_from_time, f"{field}.valid_from_time"),
        source=message.source,
        valid_to_ns=(
            instant(message.valid_to_time, f"{field}.valid_to_time") if message.HasField("valid_to_time") else None
        ),
    )


def read_import(request: ledger_pb2.ImportPricesRequest) -> Import:
    """Read the file of a request: some hundredths of a second for each thousand models.

    Raises PRICE_FILE_INVALID for a file that cannot be read, REQUIRED_FIELD and INVALID_FIELD for everything else.
    """
    if request.format not in _FORMATS:
        raise invalid_argument("none of litellm, tenth", field="request.format")
    if not request.content:
        raise required("request.content")
    form = _FORMATS[request.format]
    has_date = request.HasField("valid_from_time")
    valid_from_ns = instant(request.valid_from_time, "request.valid_from_time") if has_date else None
    if len(request.source) > _LONGEST_SOURCE:
        raise invalid_argument(f"longer than {_LONGEST_SOURCE} characters", field="request.source")
    if form is Format.LITELLM:
        if not request.source.strip():
            raise required("request.source")
        if valid_from_ns is None or valid_from_ns <= 0:
            raise required("request.valid_from_time")
    elif has_date:
        raise invalid_argument("the rows of this format carry their own dates", field="request.valid_from_time")
    file = only(read_file(request.content, form, request.source, valid_from_ns), request.models)
    return Import(file, choice_of(file, request.take, request.keep))


def import_row(line: Line) -> ledger_pb2.ImportRow:
    """One line of a diff for the wire."""
    return ledger_pb2.ImportRow(
        model=line.model,
        outcome=ledger_pb2.ImportOutcome.ValueType(line.outcome.value),
        reason=line.reason,
        before=price_message(line.before) if line.before is not None else None,
        after=price_message(line.after) if line.after is not None else None,
    )


def rate_of(request: ledger_pb2.AddExchangeRateRequest) -> Rate:
    """The rate of a request. Raises REQUIRED_FIELD or INVALID_FIELD."""
    if not request.HasField("rate"):
        raise required("request.rate")
    message, field = request.rate, "request.rate"
    if len(message.source) > _LONGEST_SOURCE:
        raise invalid_argument(f"longer than {_LONGEST_SOURCE} characters", field=f"{field}.source")
    starts = instant(message.valid_from_time, f"{field}.valid_from_time")
    return parse_rate(message.currency, message.units_per_usd, starts, message.source, field)


def rate_message(rate: Rate) -> ledger_pb2.ExchangeRate:
    """A rate for the wire."""
    message = ledger_pb2.ExchangeRate(currency=rate.currency, units_per_usd=rate.units_per_usd, source=rate.source)
    message.valid_from_time.FromNanoseconds(rate.valid_from_ns)
    return message
