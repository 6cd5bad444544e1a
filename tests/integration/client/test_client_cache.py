"""``tenth cache`` against the real cache: two replicas with a store each, as processes of one mesh would be."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from rich.console import Console
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.type.v1 import chat_pb2

from formats.openai import FormatError
from mesh.auth import Authenticator
from mesh.server import MeshServer
from mesh.settings import MeshSettings
from mesh.testing import KEY, memory_telemetry
from services.cache.answers import AnswerCache
from services.cache.embedding import Embedder
from services.cache.feedback import Evidence
from services.cache.feedback_journal import FeedbackJournal
from services.cache.flights import FlightBoard
from services.cache.namespaces import NamespacePolicy, Namespaces
from services.cache.policy import CachePolicy
from services.cache.qdrant_edge import QdrantEdgeStore
from services.cache.reports import Reports
from services.cache.servicer import Board, CacheServicer, piece_size
from tenth_client import cli
from tenth_client.errors import TenthClientError
from tests.cache_verifier import VERIFIER
from tests.integration.cache.test_cache_service import WordEncoder, answer, ask

API_KEY = "a key for tests"
RESET = "How do I reset the alarm?"
NAMESPACE = "tenth.cache.v1.CacheService"


class Replica(CacheServicer):
    """A real replica, whose namespaces and their evidence are told by the test."""

    shown: cache_pb2.Namespace = cache_pb2.Namespace()

    async def ListNamespaces(self, request: Any, context: Any) -> cache_pb2.ListNamespacesResponse:
        return cache_pb2.ListNamespacesResponse(namespaces=[self.shown])

    async def RestoreNamespace(self, request: Any, context: Any) -> cache_pb2.RestoreNamespaceResponse:
        restored = cache_pb2.Namespace()
        restored.CopyFrom(self.shown)
        restored.suspended = restored.namespace != request.namespace
        return cache_pb2.RestoreNamespaceResponse(namespace=restored)


@dataclass
class Mesh:
    folder: Path
    stubs: list[Any]
    replicas: list[Replica]
    stores: list[QdrantEdgeStore]
    said: str = field(default="")

    async def run(self, *arguments: str, width: int = 120) -> str:
        """Run a command that succeeds; what it printed, white space folded."""
        status = await self.status(*arguments, width=width)
        assert status == 0, self.said
        return " ".join(self.said.split())

    async def status(self, *arguments: str, width: int = 120) -> int:
        parsed = cli.parser().parse_args(["cache", *arguments, "--data-dir", str(self.folder)])
        file = io.StringIO()
        status: int = await parsed.run(parsed, Console(file=file, width=width, highlight=False))
        self.said = file.getvalue()
        return status

    def write(self, name: str, *lines: Mapping[str, object] | str) -> str:
        path = self.folder / name
        texts = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
        path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
        return str(path)

    async def lookup(self, replica: int, request: chat_pb2.CompletionRequest) -> cache_pb2.LookupCompletionResponse:
        call = cache_pb2.LookupCompletionRequest(request=request, dry_run=True)
        metadata = (("authorization", f"Bearer {API_KEY}"),)
        found: cache_pb2.LookupCompletionResponse = await self.stubs[replica].LookupCompletion(call, metadata=metadata)
        return found

    async def store(self, replica: int, request: chat_pb2.CompletionRequest) -> None:
        call = cache_pb2.StoreCompletionRequest(request=request, completion=answer())
        metadata = (("authorization", f"Bearer {API_KEY}"),)
        assert (await self.stubs[replica].StoreCompletion(call, metadata=metadata)).entry_id


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    callers = tmp_path / "callers.yaml"
    caller = {"name": "admin", "tenant_id": "acme", "key_sha256": hashlib.sha256(API_KEY.encode()).hexdigest()}
    callers.write_text(yaml.safe_dump({"callers": [{**caller, "may_call": ["*"]}], "services": {}}))
    made = Mesh(tmp_path, [], [], [])
    addresses = []
    async with AsyncExitStack() as stack:
        for number in range(2):
            encoder = WordEncoder()
            embedder = Embedder(encoder, "words")
            stack.push_async_callback(embedder.close)
            store = QdrantEdgeStore(tmp_path / f"cache-{number}", encoder.dimension, 5.0)
            await store.open()
            stack.push_async_callback(store.close)
            policy, evidence = CachePolicy(), Evidence()
            answers = AnswerCache(
                store, embedder, policy, lambda: 1_700_000_000.0, namespaces=Namespaces(NamespacePolicy()),
                verifier=VERIFIER, error_factor=evidence.error_factor, max_entry_count=1000, memory_entry_count=10,
                memory_bytes=10**6, memory_seconds=0,
            )  # fmt: skip
            board: Board = FlightBoard(30.0, lambda: "lease", piece_size)
            stack.callback(board.close)
            settings = MeshSettings(unready_seconds=0, drain_seconds=0.5)
            server = MeshServer(settings, memory_telemetry()[0], Authenticator(callers, KEY), {})
            journal = FeedbackJournal(tmp_path / f"cache-{number}", evidence)
            await journal.open()
            stack.push_async_callback(journal.close)
            reports = Reports(answers, evidence, journal, answers.namespaces.of, memory_telemetry("cache")[0].meter)
            replica = Replica(answers, board, policy, store.name, reports)
            server.add(cache_pb2_grpc.add_CacheServiceServicer_to_server, replica, NAMESPACE)
            addresses.append(f"127.0.0.1:{await server.start()}")
            stack.push_async_callback(server.drain)
            channel = grpc.aio.insecure_channel(addresses[-1])
            stack.push_async_callback(channel.close)
            made.stubs.append(cache_pb2_grpc.CacheServiceStub(channel))
            made.replicas.append(replica)
            made.stores.append(store)
        connection = {"addresses": {"cache": ",".join(addresses)}, "api_key": API_KEY}
        (tmp_path / "client.json").write_text(json.dumps(connection))
        yield made


async def test_a_faq_is_served_by_every_replica_after_an_import(mesh: Mesh) -> None:
    path = mesh.write(
        "faq.jsonl",
        {"question": RESET, "answer": "Hold the button.", "tags": {"source": "faq"}},
        {"question": "What is the weather?", "answer": "Fine."},
        {"question": "환불되나요?", "answer": "네.", "namespace": "shop"},
    )
    said = await mesh.run("import", path, "--dry-run")
    assert "2 new" in said
    assert "1 would be refused" in said
    assert "line 2: time_bound (it asks about now" in said
    assert [await store.count(()) for store in mesh.stores] == [0, 0]
    said = await mesh.run("import", path)
    assert said.count("2 of 3 stored on 127.0.0.1:") == 2
    assert "not stored time_bound 1" in said
    for replica in (0, 1):
        looked = await mesh.lookup(replica, ask("How can I reset the alarm?"))
        assert looked.hit.completion.message.parts[0].text == "Hold the button."
        strong = chat_pb2.RequestPolicy(tier_floor=chat_pb2.TIER_COMPLEX)
        looked = await mesh.lookup(replica, ask("Can I reset the alarm?", policy=strong))
        assert looked.HasField("hit"), "a person's answer is good enough for every tier"
    assert "1 would replace a stored answer" in (
        await mesh.run("import", mesh.write("one.jsonl", {"question": RESET, "answer": "x"}), "--dry-run")
    )


async def test_a_csv_is_taken_in_with_the_namespace_asked_for(mesh: Mesh) -> None:
    path = mesh.folder / "faq.csv"
    with path.open("w", newline="", encoding="cp949") as file:
        csv.writer(file).writerows([("question", "answer"), ("환불은 어떻게 하나요?", "여기서 합니다.")])
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["cache", "import"])
    assert await mesh.status("import", str(path)) == 1
    assert "--encoding cp949" in mesh.said
    await mesh.run("import", str(path), "--encoding", "cp949", "--namespace", "shop")
    looked = await mesh.lookup(0, ask("환불은 어떻게 하나요?", namespace="shop"))
    assert looked.hit.completion.message.parts[0].text == "여기서 합니다."


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
async def test_an_export_holds_every_replicas_entries_once_and_comes_back(mesh: Mesh, name: str) -> None:
    await mesh.store(0, ask(RESET))
    await mesh.store(1, ask(RESET))
    await mesh.store(1, ask("Explain apples", namespace="fruit"))
    path = str(mesh.folder / name)
    assert "2 entries written" in await mesh.run("export", path)
    assert "1 entry written" in await mesh.run("export", str(mesh.folder / "fruit.jsonl"), "--namespace", "fruit")
    assert "deleted" in await mesh.run("invalidate", "--all")
    assert not (await mesh.lookup(0, ask(RESET))).HasField("hit")
    said = await mesh.run("import", path)
    assert said.count("2 of 2 stored") == 2
    for replica in (0, 1):
        assert (await mesh.lookup(replica, ask("How can I reset the alarm?"))).HasField("hit")
        assert (await mesh.lookup(replica, ask("Explain apples", namespace="fruit"))).HasField("hit")
    assert "not stored already_stored 2" in await mesh.run("import", path)


async def test_an_export_to_standard_output_is_nothing_but_entries(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await mesh.store(0, ask(RESET))

    class Standard:
        buffer = io.BytesIO()

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdout", Standard())
    await mesh.run("export", "-")
    assert mesh.said == ""
    (line,) = Standard.buffer.getvalue().splitlines()
    assert json.loads(line)["entry"]["question"] == RESET
    assert "1 entry written" in capsys.readouterr().err


async def test_a_wrong_file_is_refused_before_anything_is_taken_in(mesh: Mesh) -> None:
    good = {"question": "Explain pears", "answer": "Sweet."}
    path = mesh.write("bad.jsonl", good, {"question": "Explain plums"})
    assert await mesh.status("import", path) == 1
    assert "line 2: answer: is required" in mesh.said
    assert "nothing was taken in" in mesh.said
    assert not (await mesh.lookup(0, ask("Explain pears"))).HasField("hit")
    assert await mesh.status("import", mesh.write("empty.jsonl", "")) == 1
    # What only the cache can see is named by line and field too.
    await mesh.store(0, ask(RESET))
    await mesh.run("export", str(mesh.folder / "all.jsonl"))
    entry = json.loads((mesh.folder / "all.jsonl").read_text())
    entry["entry"]["turn"] = ""
    with pytest.raises(FormatError, match=r"line 2: entry.turn: entry.turn is required"):
        await mesh.run("import", mesh.write("forged.jsonl", good, entry))
    assert (await mesh.lookup(0, ask("Explain pears"))).HasField("hit"), "those before it are taken in"
    with pytest.raises(FileNotFoundError):
        await mesh.run("import", str(mesh.folder / "none.jsonl"))
    with pytest.raises(ValueError, match="unknown"):
        await mesh.run("import", path, "--encoding", "klingon")


async def test_entries_of_another_embedder_and_expired_ones(mesh: Mesh) -> None:
    await mesh.store(0, ask(RESET))
    path = mesh.folder / "all.jsonl"
    await mesh.run("export", str(path))
    line = json.loads(path.read_text())
    line["entry"]["embedding"]["embedder"] = "older@1"
    line["entry"]["provenance"]["expire_time"] = "2020-01-01T00:00:00Z"
    old = mesh.write("old.jsonl", line)
    await mesh.run("invalidate", "--all")
    said = await mesh.run("import", old)
    assert "1 entry was embedded by older@1, the cache uses words@2-fp32" in said
    assert "not stored expired 1" in said
    assert (await mesh.run("import", old, "--renew")).count("1 of 1 stored") == 2
    assert (await mesh.lookup(1, ask("How can I reset the alarm?"))).HasField("hit")


async def test_stats_and_invalidation_reach_every_replica(mesh: Mesh) -> None:
    await mesh.store(0, ask(RESET, tags={"team": "a"}))
    await mesh.store(1, ask("Explain apples"))
    said = await mesh.run("stats")
    assert "entries 2" in said
    assert "embedder words@2-fp32; store qdrant_edge; 2 replicas" in said
    await mesh.run("stats", "--json")
    found = json.loads(mesh.said)
    assert (found["entry_count"], found["replica_count"], found["exact_hit_rate"]) == (2, 2, None)
    assert await mesh.run("invalidate", "--tag", "team=a", "--dry-run") == "1 entry would be deleted"
    assert await mesh.run("invalidate", "--all", "--dry-run") == "2 entries would be deleted"
    assert await mesh.run("invalidate", "--tag", "team=a") == "1 entry deleted"
    with pytest.raises(ValueError, match="KEY=VALUE"):
        await mesh.run("invalidate", "--tag", "a")
    with pytest.raises(TenthClientError, match="no filter"):
        await mesh.run("invalidate")


async def test_one_store_of_all_replicas_is_asked_and_counted_once(mesh: Mesh) -> None:
    for replica in mesh.replicas:
        replica._store_name = "qdrant_server"
    path = mesh.write("faq.jsonl", {"question": RESET, "answer": "Hold the button."})
    assert await mesh.run("import", path) == "1 of 1 stored"
    assert [await store.count(()) for store in mesh.stores] == [1, 0], "the second's own store stands for the same one"
    assert await mesh.run("invalidate", "--all", "--dry-run") == "1 entry would be deleted"
    assert "entries 1" in await mesh.run("stats")
    await mesh.store(1, ask("Explain apples"))
    assert "1 entry written" in await mesh.run("export", str(mesh.folder / "all.jsonl"))
    assert await mesh.run("invalidate", "--all") == "2 entries deleted", "each forgets what is in its memory"


async def test_inspect_explains_with_the_system_prompt_and_namespace_asked_for(mesh: Mesh) -> None:
    system = chat_pb2.ChatMessage(role=chat_pb2.ROLE_SYSTEM, parts=[chat_pb2.ContentPart(text="Be brief.")])
    request = ask(RESET, namespace="shop")
    request.messages.insert(0, system)
    await mesh.store(1, request)
    how = ("--namespace", "shop", "--system", "Be brief.", "--lang", "en")
    said = await mesh.run("inspect", "How do I not reset the alarm?", *how)
    assert said.startswith("MISS")
    assert RESET in said
    assert "negation" in said
    assert "would not be served" in said
    assert (await mesh.run("inspect", RESET, *how)).startswith("HIT")
    korean = await mesh.run("inspect", "How do I not reset the alarm?", *how[:-1], "ko")
    assert "적중 없음" in korean
    assert "부정: 한쪽만 부정함" in korean
    assert "비교할 수 있는 저장된 질문이 없습니다." in await mesh.run("inspect", RESET, "--lang", "ko")
    body = mesh.folder / "request.json"
    body.write_text(json.dumps({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}))
    with pytest.raises(ValueError, match="system message already"):
        await mesh.run("inspect", str(body), "--system", "t")


async def test_namespaces_and_their_restoration(mesh: Mesh) -> None:
    for replica in mesh.replicas:
        replica.shown = cache_pb2.Namespace(
            namespace="shop", mode="strict", max_wrong_hits_per_thousand=5, sharing_user_count=2, wrong_count=2
        )
    mesh.replicas[1].shown.suspended = True
    mesh.replicas[1].shown.suspended_reason = "2 of 9 hits were wrong"
    said = await mesh.run("namespaces")
    assert "strict: the same question in other words" in said
    assert "reported right 0, wrong 4" in said
    assert "SUSPENDED, serves exact hits alone: 2 of 9 hits were wrong" in said
    await mesh.run("namespaces", "--json")
    assert json.loads(mesh.said)[0]["suspended"] is True
    said = await mesh.run("restore", "shop")
    assert "SUSPENDED" not in said
    assert "it serves by meaning again" in said
    mesh.replicas[1].shown.suspended = False
    assert "it was not suspended" in await mesh.run("restore", "shop")
    assert "nothing was asked or stored in a namespace of this name" in await mesh.run("restore", "shpo")
