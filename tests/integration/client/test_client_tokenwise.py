"""``tenth compress --tokenwise`` against a compressor to which long words are surprising: the diff, the sum, both
languages.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from rich.console import Console
from tenth.compressor.v1 import compressor_pb2, compressor_pb2_grpc

from formats.openai import FormatError
from mesh.auth import Authenticator
from mesh.server import MeshServer
from mesh.settings import MeshSettings
from mesh.testing import KEY, memory_telemetry
from services.compressor.tokenwise import Surprisal, budget_of, prune
from tenth_client import cli
from tenth_client.compress_command import documents

API_KEY = "a key for tests"
TEXT = "Lindqvist climbed up very steep stairs.\nNobody saw it.\nNothing else.\nHe lit an old lamp overhead.\n"
CHUNKS = {"messages": [{"role": "user", "content": "Why?"}], "tenth": {"retrieved_chunks": [TEXT, "No."]}}
_TOKEN = re.compile(r"\s*\S+")


class Compressor(compressor_pb2_grpc.CompressorServiceServicer):
    """The real pruning with made-up scores: long words are the more surprising."""

    price = 2_500_000_000

    async def PruneText(
        self, request: compressor_pb2.PruneTextRequest, context: Any
    ) -> compressor_pb2.PruneTextResponse:
        def count(text: str) -> int:
            return len(text.split())

        tokens = [Surprisal(m.start(), m.end(), float(len(m[0].strip()))) for m in _TOKEN.finditer(request.text)]
        done = prune(request.text, tokens, budget_of(count(request.text), request.share), count)
        return compressor_pb2.PruneTextResponse(
            text=done.text,
            removed=[compressor_pb2.RemovedText(start_character=r.start, end_character=r.end) for r in done.removed],
            original_token_count=done.before_tokens,
            pruned_token_count=done.after_tokens,
            reached=done.reached,
            input_nano_usd_per_million_tokens=self.price,
            saving_nano_usd=(done.before_tokens - done.after_tokens) * self.price // 1_000_000,
            scoring_model="small",
            scoring_cost_nano_usd=11_000,
        )


class Mesh:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compressor = Compressor()  # type: ignore[abstract]  # Only what is called is played.

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


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    callers = tmp_path / "callers.yaml"
    caller = {"name": "reader", "tenant_id": "acme", "key_sha256": hashlib.sha256(API_KEY.encode()).hexdigest()}
    callers.write_text(yaml.safe_dump({"callers": [{**caller, "may_call": ["*"]}], "services": {}}))
    async with AsyncExitStack() as stack:
        made = Mesh(tmp_path)
        settings = MeshSettings(unready_seconds=0, drain_seconds=0.5)
        server = MeshServer(settings, memory_telemetry()[0], Authenticator(callers, KEY), {})
        register = compressor_pb2_grpc.add_CompressorServiceServicer_to_server
        server.add(register, made.compressor, "tenth.compressor.v1.CompressorService")
        address = f"127.0.0.1:{await server.start()}"
        stack.push_async_callback(server.drain)
        connection = {"addresses": {"compressor": address}, "api_key": API_KEY}
        (tmp_path / "client.json").write_text(json.dumps(connection))
        yield made


async def test_the_words_that_went_stand_in_marks_and_in_red(mesh: Mesh) -> None:
    said = await mesh.run(mesh.write("a.md", TEXT), "--tokenwise", "0.2", "--lang", "en")
    assert "  Lindqvist climbed [-up-] very steep stairs." in said
    assert "  ... 2 unchanged lines" in said
    assert "  [-He-] lit [-an-] old lamp overhead.\n\n" in said
    assert "17 -> 14 tokens (17.6% less)" in said
    assert "$2.5000 per million input tokens" in said
    assert "asking small cost about $0.000011, once; paid back after 2 uses" in said
    assert all(len(line) <= 80 for line in said.splitlines())
    assert "\x1b[31m[-up-]" in await mesh.run(mesh.write("a.md", TEXT), "--tokenwise", "0.2", colour=True)


async def test_of_a_request_only_chunks_are_pruned(mesh: Mesh) -> None:
    said = await mesh.run(mesh.write("a.json", json.dumps(CHUNKS)), "--tokenwise", "0.9", "--lang", "ko")
    assert "[0] 문서 조각" in said
    assert "[1] 문서 조각\n지울 수 있는 것이 없습니다." in said
    assert "Why?" not in said
    assert "목표에 못 미침" in said
    mesh.compressor.price = 0
    unpriced = await mesh.run(mesh.write("a.json", json.dumps(CHUNKS)), "--tokenwise", "0.2", "--lang", "en")
    assert "its price is not known here" in unpriced
    assert "paid back" not in unpriced


async def test_what_is_left_as_json(mesh: Mesh) -> None:
    said = json.loads(await mesh.run(mesh.write("a.md", TEXT), "--tokenwise", "0.2", "--json"))
    (found,) = said["texts"]
    assert found["text"].startswith("Lindqvist climbed very steep stairs.\nNobody saw it.\n")
    assert found["removed"][0][:2] == [18, 21]
    assert found["pruned_token_count"] < found["original_token_count"] == 17


async def test_it_goes_alone_and_a_request_without_chunks_is_refused(mesh: Mesh) -> None:
    path = mesh.write("a.md", TEXT)
    for others in (["--mode", "safe"], ["--budget", "3"], ["--only", "cleanup"], ["--without", "cleanup"]):
        with pytest.raises(FormatError, match="no other way"):
            await mesh.run(path, "--tokenwise", "0.2", *others)
    with pytest.raises(FormatError, match="only retrieved chunks"):
        await mesh.run(mesh.write("b.json", json.dumps({"messages": CHUNKS["messages"]})), "--tokenwise", "0.2")
    assert documents(path) == [("", TEXT)]
