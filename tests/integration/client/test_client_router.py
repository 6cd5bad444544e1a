"""``tenth router`` against the real router: two replicas with a log each, as processes of one mesh would be."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import yaml
from rich.console import Console
from tenth.inference.v1 import inference_pb2_grpc
from tenth.router.v1 import router_pb2, router_pb2_grpc
from tenth.type.v1 import chat_pb2, usage_pb2

from mesh.auth import Authenticator
from mesh.catalog import WatchedFile
from mesh.server import MeshServer
from mesh.settings import MeshSettings
from mesh.testing import KEY, dial, memory_telemetry
from services.router.refit import read_log
from tenth_client import cli
from tests.integration.router.router_parts import parse, router_servicer

API_KEY = "a key for tests"
METADATA = (("authorization", f"Bearer {API_KEY}"),)
HARD = "Prove that there are infinitely many primes, step by step, and analyze where the argument needs choice."
EASY = "What are your opening hours?"


@dataclass
class Mesh:
    folder: Path
    stubs: list[router_pb2_grpc.RouterServiceAsyncStub]
    said: str = field(default="")

    async def status(self, *arguments: str) -> int:
        parsed = cli.parser().parse_args(["router", *arguments, "--data-dir", str(self.folder)])
        file = io.StringIO()
        status: int = await parsed.run(parsed, Console(file=file, width=220, highlight=False))
        self.said = file.getvalue()
        return status

    async def run(self, *arguments: str) -> str:
        """Run a command that succeeds; what it printed."""
        assert await self.status(*arguments) == 0, self.said
        return self.said

    async def select(self, replica: int, request_id: str, text: str) -> router_pb2.SelectModelResponse:
        message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])
        request = chat_pb2.CompletionRequest(request_id=request_id, messages=[message])
        embedding = chat_pb2.Embedding(values=[1.0, 0.0], embedder="words")
        wanted = router_pb2.SelectModelRequest(request=request, embedding=embedding)
        return await self.stubs[replica].SelectModel(wanted, metadata=METADATA)

    async def done(self, replica: int, request_id: str, model: str) -> None:
        usage = usage_pb2.Usage(input_token_count=30, output_token_count=70)
        record = router_pb2.RecordCompletionRequest(request_id=request_id, model=model, usage=usage, cost_nano_usd=5000)
        await self.stubs[replica].RecordCompletion(record, metadata=METADATA)

    async def judge(self, replica: int, request_id: str, score: float) -> None:
        report = router_pb2.ReportOutcomeRequest(request_id=request_id, score=score)
        await self.stubs[replica].ReportOutcome(report, metadata=METADATA)

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text, "utf-8")
        return str(path)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    callers = tmp_path / "callers.yaml"
    caller = {"name": "admin", "tenant_id": "acme", "key_sha256": hashlib.sha256(API_KEY.encode()).hexdigest()}
    may_call = ["tenth.router.v1.RouterService/*"]
    callers.write_text(yaml.safe_dump({"callers": [{**caller, "may_call": may_call}], "services": {}}))
    made = Mesh(tmp_path, [])
    addresses = []
    async with AsyncExitStack() as stack:
        inference = inference_pb2_grpc.InferenceServiceStub(await stack.enter_async_context(dial("127.0.0.1:1")))
        for number in range(2):
            catalog = WatchedFile(Path("deploy/catalog.yaml"), parse)
            servicer, log = router_servicer(tmp_path / f"outcomes-{number}.sqlite", catalog, inference)
            await log.open()
            stack.push_async_callback(log.close)
            settings = MeshSettings(unready_seconds=0, drain_seconds=0.5)
            server = MeshServer(settings, memory_telemetry()[0], Authenticator(callers, KEY), {})
            server.add(router_pb2_grpc.add_RouterServiceServicer_to_server, servicer, "tenth.router.v1.RouterService")
            addresses.append(f"127.0.0.1:{await server.start()}")
            stack.push_async_callback(server.drain)
            channel = grpc.aio.insecure_channel(addresses[-1])
            stack.push_async_callback(channel.close)
            made.stubs.append(router_pb2_grpc.RouterServiceStub(channel))
        connection = {"addresses": {"router": ",".join(addresses)}, "api_key": API_KEY}
        (tmp_path / "client.json").write_text(json.dumps(connection))
        yield made


async def test_an_export_holds_what_all_replicas_know_once(mesh: Mesh) -> None:
    first = await mesh.select(0, "r1", EASY)
    await mesh.done(0, "r1", first.model)
    await mesh.judge(1, "r1", 0.75)  # The load balancer sent the feedback elsewhere.
    await mesh.select(1, "r2", HARD)
    lines = [json.loads(line) for line in (await mesh.run("export")).splitlines()]
    assert [line["requestId"] for line in lines] == ["r1", "r2"]
    assert (lines[0]["model"], lines[0]["score"], lines[0]["completion"]["costNanoUsd"]) == (first.model, 0.75, "5000")
    assert lines[0]["embedding"]["values"] == [1.0, 0.0]
    # The refit reads the same file.
    assert next(outcome.answered_by for outcome in read_log(mesh.said.splitlines(), "log")) == first.model
    assert "embedding" not in await mesh.run("export", "--without-embeddings")
    assert await mesh.run("export", "--since", "2100-01-01") == ""
    with pytest.raises(ValueError, match="--since"):
        await mesh.status("export", "--since", "yesterday")


CATALOG = """
providers: { local: { backend: vllm } }
models:
  small: {provider: local, tier: simple, context_window_tokens: 8000}
  big: {provider: local, tier: complex, context_window_tokens: 8000}
prices:
  - {model: small, input: "1", output: "2", valid_from: 2020-01-01, source: a test}
  - {model: big, input: "10", output: "20", valid_from: 2020-01-01, source: a test}
"""


async def test_a_replay_under_another_target_and_another_catalogue(mesh: Mesh) -> None:
    for number in range(3):
        await mesh.select(0, f"easy{number}", EASY)
    await mesh.select(0, "hard", HARD)
    await mesh.judge(1, "unknown", 1.0)
    log = mesh.write("log.jsonl", await mesh.run("export"))
    said = await mesh.run("replay", log, "--policy", mesh.write("same.yaml", ""))
    assert "4 decisions again, 0 of them change (0.0%)" in said
    assert "no decision of them (feedback alone): 1" in said
    lower = mesh.write("lower.yaml", "quality_target: 0.05\nstrategy: features\n")
    sums = mesh.folder / "sums.json"
    said = await mesh.run("replay", log, "--policy", lower, "--json", str(sums))
    assert "4 decisions again, 1 of them change (25.0%)" in said
    assert "hard" in said
    found = json.loads(sums.read_text())
    assert (found["changed_count"], found["refused_count"]) == (1, 0)
    assert found["cost_after_nano_usd"] < found["cost_before_nano_usd"]
    assert found["quality_after"] < found["quality_before"]
    mesh.write("other.catalog.yaml", CATALOG)
    other = mesh.write("other.yaml", "catalog: other.catalog.yaml\n")
    said = await mesh.run("replay", log, "--policy", other, "--lang", "ko")
    assert "4건을 다시 결정, 그중 4건이 바뀜" in said
    assert "가격을 모르는 모델" in said
    # It changed nothing: the log is what it was.
    assert await mesh.run("export") == (mesh.folder / "log.jsonl").read_text()


async def test_wrong_files_are_named_with_their_line(mesh: Mesh) -> None:
    await mesh.select(0, "r1", EASY)
    log = mesh.write("log.jsonl", await mesh.run("export"))
    broken = mesh.write("broken.yaml", "models:\n  a: {provider: p, teir: simple}\n")
    policy = mesh.write("policy.yaml", "catalog: broken.yaml\n")
    with pytest.raises(ValueError, match=f"{broken}:2: models.a.teir: unknown key"):
        await mesh.status("replay", log, "--policy", policy)
    with pytest.raises(ValueError, match=r"policy\.yaml:2: color: unknown key"):
        await mesh.status("replay", log, "--policy", mesh.write("policy.yaml", "quality_target: 0.9\ncolor: red\n"))
    empty = mesh.write("empty.jsonl", "")
    assert await mesh.status("replay", empty, "--policy", mesh.write("policy.yaml", "")) == 1
    assert "holds no decision" in mesh.said


async def test_the_report_of_each_replica(mesh: Mesh) -> None:
    for number in range(60):
        chosen = await mesh.select(0, f"r{number}", EASY)
        await mesh.done(0, f"r{number}", chosen.model)
        await mesh.judge(0, f"r{number}", 0.0)
    said = await mesh.run("report")
    assert "60 decisions: features 60" in said
    assert f"{chosen.model} answers worse than predicted" in said
    assert "no decision is recorded" in said, "the other replica"
    assert "예측보다 나쁩니다" in await mesh.run("report", "--lang", "ko")
    first, second = (json.loads(line) for line in (await mesh.run("report", "--json")).splitlines())
    assert (first["decision_count"], first["models"][0]["scored_count"]) == ("60", "60")
    assert "decision_count" not in second


async def test_the_catalogue_with_its_prices(mesh: Mesh) -> None:
    said = await mesh.run("models")
    assert "gpt-4o-mini" in said
    assert "$0.1500" in said
    assert "healthy" in said
    assert "catalogue " in said
