"""``tenth report`` and ``tenth export`` against a ledger that answers over real gRPC from receipts in memory."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import grpc
import pytest
from rich.console import Console
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from tenth_client import cli
from tenth_client.errors import TenthClientError
from tenth_client.reporting import charts, files, stream
from tests.integration.client.ledger_stand_in import BASELINE, EVIL, RATE, LedgerStandIn, receipts, stand_in

pytest.importorskip("vl_convert", reason="the extra `report` draws the page")
parquet: Any = pytest.importorskip("pyarrow.parquet", reason="the extra `report` writes Parquet")
NANO = Decimal(10**9)


@dataclass
class Desk:
    folder: Path
    ledger: LedgerStandIn

    async def run(self, *arguments: str) -> str:
        parsed = cli.parser().parse_args([*arguments, "--data-dir", str(self.folder)])
        file = io.StringIO()
        assert await parsed.run(parsed, Console(file=file, width=250, highlight=False)) == 0
        return file.getvalue()

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def actual(self) -> int:
        return sum(each.actual_nano_usd for each in self.ledger.receipts)


@asynccontextmanager
async def desk_of(folder: Path, ledger: LedgerStandIn) -> AsyncIterator[Desk]:
    server = grpc.aio.server()
    ledger_pb2_grpc.add_LedgerReadServiceServicer_to_server(ledger, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    (folder / "client.json").write_text(json.dumps({"addresses": {"ledger": f"127.0.0.1:{port}"}, "api_key": "k"}))
    try:
        yield Desk(folder, ledger)
    finally:
        await server.stop(None)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def altered(**methods: Any) -> LedgerStandIn:
    """A ledger some of whose methods do something else."""
    ledger = stand_in(receipts(150))
    for name, method in methods.items():
        setattr(ledger, name, method)
    return ledger


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_of(tmp_path, stand_in(receipts(150))) as opened:
        yield opened


@pytest.fixture
async def old_desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_of(tmp_path, stand_in(receipts(150), old=True)) as opened:
        yield opened


class Parsed(HTMLParser):
    """The elements, the attributes that can load or run something, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in ("style", "svg"):
            self._inside.append(tag)
        self.links += [
            f"{name}={value}"
            for name, value in attributes
            if name.startswith("on") or name in ("src", "href", "xlink:href", "action", "data")
        ]

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self._inside:
            self.text.append(data)


async def test_tables_name_the_baseline_and_show_negative_layers(desk: Desk) -> None:
    text = await desk.run("report", "--by", "model", "--currency", "krw")
    total = desk.ledger.receipts
    hits, failed = (sum(getattr(each.facts, name) for each in total) for name in ("cache_hit", "failed"))
    won = (Decimal(desk.actual) / NANO * RATE).quantize(Decimal(1))
    assert f"150 requests ({failed} failed, {hits} from the cache)" in text
    assert f"% of {BASELINE} (" in text
    assert f"(₩{won:,})" in text
    prompt_cache = sum(each.savings[3].saving_nano_usd for each in total)
    assert prompt_cache < 0
    assert f"-${-prompt_cache / 1e9:,.6f}" in text
    assert "actual KRW" in text
    assert desk.ledger.requests[0].currency == "KRW"


async def test_a_ledger_that_does_not_know_the_currency(old_desk: Desk) -> None:
    text = await old_desk.run("report", "--by", "model", "--currency", "KRW", "--html", str(old_desk.path("r.html")))
    assert "the ledger gave no amounts in KRW" in text
    page = old_desk.path("r.html").read_text("utf-8")
    assert "The ledger gave no amounts in KRW." in page
    assert "₩" not in page


async def test_a_missing_rate_is_an_error_that_names_it(tmp_path: Path) -> None:
    async def refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no rate of KRW on 2026-11-01")

    async with desk_of(tmp_path, altered(GetSpendReport=refuse)) as desk:
        with pytest.raises(TenthClientError, match="no rate of KRW"):
            await desk.run("report", "--currency", "KRW")


@pytest.mark.parametrize("language", ["en", "ko"])
async def test_the_page_loads_and_runs_nothing(desk: Desk, language: str) -> None:
    out = desk.path("report.html")
    await desk.run("report", "--html", str(out), "--lang", language, "--currency", "KRW", "--time-zone", "Asia/Seoul")
    text = out.read_text("utf-8")
    page = Parsed(text)
    assert "script" not in page.tags
    assert not page.tags & {"iframe", "object", "embed", "img", "form"}
    assert page.links == ["href=data:,"]
    assert not re.findall(r"url\(|@import", text)
    assert "default-src 'none'" in text
    # What the ledger says is shown as it is, in tables and in charts.
    assert sum(EVIL in part for part in page.text) >= 2
    assert EVIL not in text
    assert f'lang="{language}"' in text
    assert text.count("<svg") == 10
    won = (Decimal(desk.actual) / NANO * RATE).quantize(Decimal(1))
    assert f"₩{won:,}" in text
    assert BASELINE in text
    assert "NaN" not in text
    assert "undefined" not in text


async def test_no_page_is_half_translated(desk: Desk) -> None:
    out = desk.path("report.html")
    await desk.run("report", "--html", str(out), "--lang", "ko", "--time-zone", "Asia/Seoul")
    shown = " ".join(Parsed(out.read_text("utf-8")).text)
    known = {"claude-opus-4-7", "acme", "helpdesk", "mini", "haiku", "USD", "Asia/Seoul", "Tenth", "script", "alert"}
    words = set(re.findall(r"[A-Za-z][A-Za-z/\d-]*", shown))
    assert {word for word in words if word not in known and not re.fullmatch(r"r\d+", word)} == set()
    assert "2026년 11월 1일" in shown


async def test_the_pages_days_are_of_the_time_zone(desk: Desk) -> None:
    out = desk.path("report.html")
    await desk.run(
        "report", "--html", str(out), "--since", "2026-11-03", "--until", "2026-11-05", "--time-zone", "Asia/Seoul"
    )
    sent = [each.filter for each in desk.ledger.requests if isinstance(each, ledger_pb2.GetSpendReportRequest)]
    assert {each.start_time.ToJsonString() for each in sent} == {"2026-11-02T15:00:00Z"}
    text = out.read_text("utf-8")
    assert "Nov 3, 2026 00:00 to Nov 5, 2026 00:00" in text
    assert "Nov 6" not in text


async def test_a_page_without_any_request(tmp_path: Path) -> None:
    async with desk_of(tmp_path, stand_in([])) as desk:
        await desk.run("report", "--html", str(desk.path("r.html")))
        text = desk.path("r.html").read_text("utf-8")
    assert "No requests in this period." in text
    assert "<svg" not in text


async def test_the_sample_is_bounded_and_said(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WHOLE_UP_TO", 10)
    monkeypatch.setattr(stream, "PER_SLICE", 1)
    out = desk.path("report.html")
    await desk.run("report", "--html", str(out))
    text = out.read_text("utf-8")
    found = re.search(r"From a sample of (\d+) answered requests", text)
    assert found is not None
    assert 20 < int(found[1]) <= stream.SLICES * 10
    streamed = [each for each in desk.ledger.requests if isinstance(each, ledger_pb2.StreamReceiptsRequest)]
    assert len(streamed) == stream.SLICES * len({each.facts.create_time.ToDatetime().date() for each in receipts(150)})


async def test_report_files_hold_the_same_sums(desk: Desk) -> None:
    one, two = desk.path("r.csv"), desk.path("r.parquet")
    arguments = ("report", "--by", "tenant,project", "--currency", "KRW", "--csv", str(one), "--parquet", str(two))
    await desk.run(*arguments)
    rows = read(one)
    table = parquet.read_table(two)
    assert sum(int(row["actual_nano_usd"]) for row in rows) == desk.actual
    assert sum(Decimal(row["actual_usd"]) for row in rows) * NANO == desk.actual
    assert sum(table["actual_nano_usd"].to_pylist()) == desk.actual
    assert [row["actual_krw"] for row in rows] == [f"{value:f}" for value in table["actual_krw"].to_pylist()]
    assert table.column_names == list(rows[0])
    assert not [field.name for field in table.schema if "float" in str(field.type) or "double" in str(field.type)]


async def test_exported_receipts_add_up_and_are_no_formulas(desk: Desk) -> None:
    one, two = desk.path("r.csv"), desk.path("r.parquet")
    text = await desk.run("export", "--csv", str(one), "--parquet", str(two))
    assert "r.csv: 150 receipts" in text.replace("\n", "")
    rows = read(one)
    table = parquet.read_table(two).to_pylist()
    assert [row["request_id"] for row in rows] == [f"r{index}" for index in range(150)]
    assert {row["project_id"] for row in rows} == {EVIL, "'=1+1", "helpdesk", ""}
    assert {row["project_id"] for row in table} == {EVIL, "=1+1", "helpdesk", ""}
    assert {row["user_id"] for row in rows} == {"", "'@user"}
    layers = ("cache", "routing", "compression", "prompt_cache", "batch", "quantization")
    for row, kept, receipt in zip(rows, table, desk.ledger.receipts, strict=True):
        saved = sum(int(row[f"saving_{layer}_nano_usd"]) for layer in layers)
        assert int(row["baseline_nano_usd"]) - saved + int(row["overhead_nano_usd"]) == receipt.actual_nano_usd
        for name in ("baseline", "actual", "saving_prompt_cache"):
            assert Decimal(row[f"{name}_usd"]) * NANO == int(row[f"{name}_nano_usd"]) == kept[f"{name}_nano_usd"]
            assert kept[f"{name}_usd"] * NANO == kept[f"{name}_nano_usd"]
        assert datetime.fromisoformat(row["create_time"]) == kept["create_time"]
        assert kept["create_time"] == receipt.facts.create_time.ToDatetime(UTC)
        assert json.loads(kept["tags"]) == dict(receipt.facts.tags)


async def test_focus_adds_up_to_the_ledgers_actual(desk: Desk) -> None:
    one, two = desk.path("f.csv"), desk.path("f.parquet")
    catalog = desk.path("catalog.yaml")
    catalog.write_text("models: {mini: {provider: openai}}")
    await desk.run("export", "--focus", str(one), "--issuer", "Finance", "--catalog", str(catalog))
    await desk.run("export", "--focus", str(two))
    rows = read(one)
    for name in ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"):
        assert sum(Decimal(row[name]) for row in rows) * NANO == desk.actual
    assert sum(row["BilledCost"] for row in parquet.read_table(two).to_pylist()) * NANO == desk.actual
    assert {row["ProviderName"] for row in rows if row["SkuId"] == "mini"} == {"openai"}
    assert {row["InvoiceIssuerName"] for row in rows} == {"Finance"}


async def test_an_older_ledger_exports_in_pages(old_desk: Desk) -> None:
    out = old_desk.path("r.csv")
    await old_desk.run("export", "--csv", str(out), "--tenant", "acme")
    expected = [each for each in old_desk.ledger.receipts if each.facts.tenant_id == "acme"]
    rows = read(out)
    assert [row["request_id"] for row in rows] == [each.facts.request_id for each in reversed(expected)]
    assert sum(isinstance(each, ledger_pb2.ListReceiptsRequest) for each in old_desk.ledger.requests) == 2


async def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    async def cut(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        yield ledger_pb2.StreamReceiptsResponse(receipts=receipts(3))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async with desk_of(tmp_path, altered(StreamReceipts=cut)) as desk:
        out = desk.path("r.csv")
        out.write_text("of yesterday")
        with pytest.raises(TenthClientError, match="gone"):
            await desk.run("export", "--csv", str(out))
        assert out.read_text() == "of yesterday"
        assert [path.name for path in desk.folder.iterdir() if path.suffix == ".part"] == []


async def test_without_the_extra_the_message_names_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    for module in (charts, files):
        monkeypatch.setattr(module, "import_module", absent)
    with pytest.raises(LookupError, match=r"tenth-client\[report\]"):
        await desk.run("report", "--html", str(desk.path("r.html")))
    with pytest.raises(LookupError, match=r"tenth-client\[report\]"):
        await desk.run("export", "--parquet", str(desk.path("r.parquet")))
    assert not desk.path("r.html").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("export",), "say where to"),
        (("report", "--time-zone", "Mars/Olympus"), "--time-zone"),
        (("report", "--since", "yesterday"), "--since"),
        (("export", "--focus", "x", "--catalog", "client.json"), "no catalogue"),
    ],
)
async def test_wrong_arguments_are_named(
    desk: Desk, arguments: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk.folder)
    with pytest.raises(ValueError, match=problem):
        await desk.run(*arguments)


async def test_leaving_a_stream_early_cancels_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    async def endless(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield ledger_pb2.StreamReceiptsResponse(receipts=receipts(60))
                await asyncio.sleep(0.01)
        finally:
            ended.append(True)

    monkeypatch.setattr(stream, "WHOLE_UP_TO", 10)
    days = {each.facts.create_time.ToDatetime().date() for each in receipts(150)}
    async with desk_of(tmp_path, altered(StreamReceipts=endless)) as desk:
        await desk.run("report", "--html", str(desk.path("r.html")))
        for _ in range(100):
            if len(ended) == stream.SLICES * len(days):
                break
            await asyncio.sleep(0.05)
        assert len(ended) == stream.SLICES * len(days)
