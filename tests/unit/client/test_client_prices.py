"""The price commands: what they ask of the ledger, and what they show of its answers."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from tenth.ledger.v1 import ledger_pb2 as pb
from tenth.type.v1 import receipt_pb2

from tenth_client import prices
from tenth_client.cli import parser
from tenth_client.rpc import Rpc

DAY = Timestamp(seconds=1_767_225_600)
"""2026-01-01."""


class Ledger:
    """Keeps what it is asked and gives one answer."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[str, Any]] = []

    async def call(self, service: str, stub: Any, method: str, request: Any, *, seconds: float = 15.0) -> Any:
        self.asked.append((method, request))
        return self.answer


async def run(command: Any, ledger: Ledger, line: list[str]) -> tuple[int, str]:
    """The exit status and the text of one command."""
    console = Console(file=io.StringIO(), width=200, highlight=False)
    status = await command(cast(Rpc, ledger), parser().parse_args(line), console)
    return status, cast(io.StringIO, console.file).getvalue()


def price(**changes: Any) -> receipt_pb2.Price:
    """A price of a model."""
    values: dict[str, Any] = {
        "model": "m[1]",
        "input_nano_usd_per_million_tokens": 2_500_000_000,
        "output_nano_usd_per_million_tokens": 10_000_000_000,
        "valid_from_time": DAY,
        "source": "a [map]",
        "confirmed": True,
    }
    return receipt_pb2.Price(**{**values, **changes})


async def test_an_import_sends_the_file_packed_and_shows_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"m": {}}))
    rows = [
        pb.ImportRow(model="fresh", outcome=pb.IMPORT_OUTCOME_NEW, after=price()),
        pb.ImportRow(model="zero", outcome=pb.IMPORT_OUTCOME_UNCONFIRMED, reason="input is 0", after=price()),
        pb.ImportRow(
            model="dear",
            outcome=pb.IMPORT_OUTCOME_CONFLICT,
            reason="input 1 -> 2.5",
            before=price(input_nano_usd_per_million_tokens=10**9),
            after=price(),
        ),
    ]
    ledger = Ledger(pb.ImportPricesResponse(rows=rows, price_book_version=3))
    line = ["prices", "import", str(file), "--source", "s", "--from", "2026-01-01", "--take", "a", "--keep", "*"]
    status, text = await run(prices.import_file, ledger, [*line, "--only", "m"])
    [(method, request)] = ledger.asked
    assert (status, method, gzip.decompress(request.content)) == (0, "ImportPrices", file.read_bytes())
    assert (request.format, request.dry_run, request.source) == (pb.PRICE_FORMAT_LITELLM, True, "s")
    assert (list(request.take), list(request.keep), list(request.models)) == (["a"], ["*"], ["m"])
    assert request.valid_from_time == DAY
    assert "nothing was changed" in text
    assert "1 in conflict" in text
    # What a person must decide stands first; what needs nobody is only counted.
    assert text.index("dear") < text.index("zero")
    assert "input 1 -> 2.5" in text
    assert "fresh" not in text
    status, text = await run(prices.import_file, ledger, [*line, "--apply", "--all"])
    assert not ledger.asked[1][1].dry_run
    assert "price book version 3" in text
    assert "fresh" in text


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.json", "litellm"), ("a.JSON.gz", "litellm"), ("a.yaml", "tenth"), ("a.yml.gz", "tenth"), ("a.csv", "")],
)
async def test_the_format_follows_the_files_name(tmp_path: Path, name: str, form: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"x"))
    ledger = Ledger(pb.ImportPricesResponse())
    line = ["prices", "import", str(tmp_path / name)]
    if not form:
        with pytest.raises(ValueError, match="say --format"):
            await run(prices.import_file, ledger, line)
        return
    await run(prices.import_file, ledger, line)
    request = ledger.asked[0][1]
    assert pb.PriceFormat.Name(request.format) == f"PRICE_FORMAT_{form.upper()}"
    assert request.content == (tmp_path / name).read_bytes()


async def test_a_price_is_shown_whole() -> None:
    step = receipt_pb2.PriceStep(
        above_input_token_count=200_000,
        input_nano_usd_per_million_tokens=5 * 10**9,
        output_nano_usd_per_million_tokens=15 * 10**9,
        cached_input_nano_usd_per_million_tokens=500_000_000,
    )
    whole = price(
        cached_input_nano_usd_per_million_tokens=0,
        flex_output_nano_usd_per_million_tokens=5 * 10**9,
        request_fee_nano_usd=5_000_000,
        steps=[step],
        valid_to_time=Timestamp(seconds=DAY.seconds + 3600),
        confirmed_by="kim",
    )
    ledger = Ledger(pb.ListPricesResponse(prices=[whole]))
    status, text = await run(prices.show, ledger, ["prices", "show", "m[1]", "--at", "2026-01-01"])
    assert status == 0
    assert ledger.asked[0][1] == pb.ListPricesRequest(model="m[1]", at_time=DAY)
    for part in (
        "m[1]",
        "2.5 USD per million tokens",
        "cached input",
        "0 USD per million tokens",
        "flex output",
        "0.005 USD",
        "above 200,000 input tokens",
        "input 5; output 15; cached input 0.5",
        "from 2026-01-01, until 2026-01-01T01:00:00Z",
        "a [map]",
        "by kim",
    ):
        assert part in text
    gpu = receipt_pb2.Price(model="gpu:x", gpu_hour_nano_usd=2_500_000_000, valid_from_time=DAY)
    _, text = await run(prices.show, Ledger(pb.ListPricesResponse(prices=[gpu])), ["prices", "show", "gpu:x"])
    assert "2.5 USD" in text
    assert "per million" not in text
    assert "PRICE_UNKNOWN" in text
    status, text = await run(prices.show, Ledger(pb.ListPricesResponse()), ["prices", "show", "x"])
    assert (status, "no price of x" in text) == (1, True)


async def test_a_list_may_be_narrowed() -> None:
    book = pb.ListPricesResponse(prices=[price(model="Big"), price(model="small", confirmed=False)])
    for arguments, shown in (
        ([], (True, True)),
        (["--match", "big"], (True, False)),
        (["--unconfirmed"], (False, True)),
    ):
        _, text = await run(prices.listing, Ledger(book), ["prices", "list", *arguments])
        assert ("Big" in text, "small" in text) == shown
        assert f"{sum(shown)} prices" in text


async def test_confirming_and_rates() -> None:
    ledger = Ledger(pb.ConfirmPriceResponse(price=price(confirmed_by="me"), price_book_version=9))
    _, text = await run(prices.confirm, ledger, ["prices", "confirm", "a", "b", "--from", "2026-01-01"])
    assert [request.model for _, request in ledger.asked] == ["a", "b"]
    assert ledger.asked[0][1].valid_from_time == DAY
    assert "by me" in text
    line = ["rate", "add", "krw", "1400.5", "--from", "2026-01-01", "--source", "a bank"]
    ledger = Ledger(pb.AddExchangeRateResponse())
    _, text = await run(prices.rate_add, ledger, line)
    expected = pb.ExchangeRate(currency="KRW", units_per_usd="1400.5", valid_from_time=DAY, source="a bank")
    assert ledger.asked == [("AddExchangeRate", pb.AddExchangeRateRequest(rate=expected))]
    ledger = Ledger(pb.ListExchangeRatesResponse(rates=[expected]))
    _, text = await run(prices.rate_list, ledger, ["rate", "list", "--currency", "krw"])
    assert ledger.asked[0][1].currency == "KRW"
    assert all(part in text for part in ("KRW", "1400.5", "2026-01-01", "a bank"))
    with pytest.raises(ValueError, match="--from: 'soon' is no time"):
        await run(prices.rate_add, ledger, [*line[:4], "--from", "soon", "--source", "s"])
