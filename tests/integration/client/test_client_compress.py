"""``tenth compress`` against the real compressor: the diff, the figures, both languages, files that are none."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest
import yaml
from rich.console import Console
from tenth.cache.v1 import cache_pb2_grpc
from tenth.compressor.v1 import compressor_pb2_grpc

from formats.openai import FormatError
from mesh.auth import Authenticator
from mesh.catalog import WatchedFile
from mesh.server import MeshServer
from mesh.settings import MeshSettings
from mesh.testing import KEY, dial, memory_telemetry
from services.compressor.catalog import Model, parse_catalog
from services.compressor.corrections import Corrections
from services.compressor.documents import Documents
from services.compressor.embeddings import Embeddings
from services.compressor.history_weights import history_settings
from services.compressor.modes import plans
from services.compressor.prefixes import PrefixTracker
from services.compressor.servicer import CompressorServicer
from services.compressor.settled import SettledUsage
from services.compressor.summarising import SummaryStep, SummaryTimes
from services.compressor.summary import SummarySettings, SummaryStore
from services.compressor.summary_step import Summaries
from services.compressor.tokens import TokenCounters
from services.compressor.vectors import PromptVectors
from services.compressor.weights import load
from tenth_client import cli
from tenth_client.compress_command import STRATEGIES, read
from tenth_client.errors import TenthClientError

API_KEY = "a key for tests"
SYSTEM = "You are a helpful assistant.\n\n\n\n\nAnswer   briefly, in the language of the customer, without promises."
PASSAGES = [
    "Pasta is boiled.",
    "Refunds are possible within 14 days.",
    "A refund goes to the card.",
    "Bananas.",
    "Tea.",
]
BODY = {
    "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Can I get a refund?"}],
    "tenth": {"retrieved_chunks": PASSAGES},
}


class Mesh:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def run(self, *arguments: str, colour: bool = False) -> str:
        parsed = cli.parser().parse_args(["compress", *arguments, "--data-dir", str(self.folder)])
        file = io.StringIO()
        system: Literal["standard"] | None = "standard" if colour else None
        console = Console(file=file, width=80, highlight=False, force_terminal=colour, color_system=system)
        assert await parsed.run(parsed, console) == 0
        return file.getvalue()

    def write(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text, "utf-8")
        return str(self.folder / name)


def no_summaries(catalog: WatchedFile[dict[str, Model]]) -> SummaryStep:
    """As where no inference service is set."""
    made = Summaries(SummarySettings(), SummaryStore(1), 0.0, lambda: 0.0)
    return SummaryStep(None, "", made, catalog, SummaryTimes(0.0, 1.0), lambda: datetime(2026, 11, 26, tzinfo=UTC), str)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    callers = tmp_path / "callers.yaml"
    caller = {"name": "reader", "tenant_id": "acme", "key_sha256": hashlib.sha256(API_KEY.encode()).hexdigest()}
    allowed = ["tenth.compressor.v1.CompressorService/PreviewCompression"]
    callers.write_text(yaml.safe_dump({"callers": [{**caller, "may_call": allowed}], "services": {}}))
    async with AsyncExitStack() as stack:
        catalog = WatchedFile(Path("deploy/catalog.yaml"), parse_catalog)
        counters = TokenCounters(tmp_path, 1 << 20)
        counters.load(catalog.current.values())
        nowhere = await stack.enter_async_context(dial("127.0.0.1:1"))
        embeddings = Embeddings(cache_pb2_grpc.CacheServiceStub(nowhere), 0.05, 60.0, 10, lambda: 0.0)
        memory = Documents(counters.plain, 1 << 20)
        servicer = CompressorServicer(
            catalog,
            counters,
            plans(8000, 200, history_settings()),
            PromptVectors(embeddings, memory, memory, load(), 8),
            50_000,
            PrefixTracker(lambda: 0.0, 100),
            SettledUsage(Corrections(), None),
            lambda: datetime(2026, 11, 26, tzinfo=UTC),
            no_summaries(catalog),
        )
        settings = MeshSettings(unready_seconds=0, drain_seconds=0.5)
        server = MeshServer(settings, memory_telemetry()[0], Authenticator(callers, KEY), {})
        register = compressor_pb2_grpc.add_CompressorServiceServicer_to_server
        server.add(register, servicer, "tenth.compressor.v1.CompressorService")
        address = f"127.0.0.1:{await server.start()}"
        stack.push_async_callback(server.drain)
        connection = {"addresses": {"compressor": address}, "api_key": API_KEY}
        (tmp_path / "client.json").write_text(json.dumps(connection))
        yield Mesh(tmp_path)


async def test_the_diff_and_the_figures(mesh: Mesh) -> None:
    said = await mesh.run(mesh.write("a.json", json.dumps(BODY)), "--mode", "aggressive", "--lang", "en")
    assert "- You are a helpful assistant." in said
    assert "+ Answer briefly, in the language of the customer, without promises." in said
    assert "[0] chunk  cut\n- Pasta is boiled." in said
    assert "A refund goes" not in said
    assert "gpt-4o: $2.5000 per million input tokens, $1.2500 from the prompt cache" in said
    assert "cleanup" in said
    assert "retrieval" in said
    assert all(len(line) <= 80 for line in said.splitlines())
    coloured = await mesh.run(mesh.write("a.json", json.dumps(BODY)), colour=True)
    assert "\x1b[31m- You are" in coloured


async def test_korean(mesh: Mesh) -> None:
    said = await mesh.run(mesh.write("a.json", json.dumps(BODY)), "--mode", "aggressive", "--lang", "ko")
    assert "토큰" in said
    assert "[0] 시스템" in said
    assert "정리" in said


async def test_figures_as_json_and_switches(mesh: Mesh) -> None:
    path = mesh.write("a.json", json.dumps(BODY))
    found = json.loads(await mesh.run(path, "--mode", "aggressive", "--json", "--model", "gpt-4o-mini"))
    assert [each["strategy"] for each in found["strategies"]] == ["cleanup", "retrieval"]
    removed = found["original_input_token_count"] - found["compressed_input_token_count"]
    assert found["expected_saving_nano_usd"] == 150 * removed > 0
    only = json.loads(await mesh.run(path, "--mode", "aggressive", "--json", "--only", "retrieval"))
    assert [each["strategy"] for each in only["strategies"]] == ["retrieval"]
    without = json.loads(await mesh.run(path, "--json", "--without", "cleanup", "--mode", "balanced"))
    assert "cleanup" not in [each["strategy"] for each in without["strategies"]]
    with pytest.raises(TenthClientError, match="BUDGET_TOO_SMALL"):
        await mesh.run(path, "--budget", "3")


async def test_nothing_to_cut(mesh: Mesh) -> None:
    said = await mesh.run(mesh.write("a.txt", "Can I get a refund?"), "--lang", "en")
    assert "Nothing would be cut." in said


def test_what_a_file_may_hold(tmp_path: Path) -> None:
    def of(name: str, text: str) -> list[str]:
        (tmp_path / name).write_text(text, "utf-8")
        return [message.parts[0].text for message in read(str(tmp_path / name)).messages]

    assert of("a.json", json.dumps(BODY["messages"])) == [SYSTEM, "Can I get a refund?"]
    assert of("a", json.dumps(BODY)) == [SYSTEM, "Can I get a refund?"]
    assert of("a.jsonl", json.dumps(BODY) + "\n") == [SYSTEM, "Can I get a refund?"]
    assert of("a.md", "# Hello\nworld") == ["# Hello\nworld"]
    assert of("data.txt", '[{"a": 1}]') == ['[{"a": 1}]']  # Data, not messages.
    for name, text in (("a.json", "{"), ("a.json", '{"a": 1}'), ("a.txt", "  "), ("a.jsonl", "")):
        with pytest.raises(FormatError):
            of(name, text)
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="not UTF-8 at byte 0"):
        read(str(tmp_path / "b"))


def test_the_strategies_are_the_compressors() -> None:
    from services.compressor.modes import ORDER

    assert STRATEGIES == ORDER
