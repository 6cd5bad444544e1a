"""The ``tenth`` commands against real gRPC servers that answer from a table."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from rich.console import Console
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from sandbox.collector import TraceStore, start
from tenth_client import cli
from tenth_client.errors import TenthClientError

SERVICES = {
    "orchestrator": ("tenth.orchestrator.v1.OrchestratorService", orchestrator_pb2_grpc.OrchestratorServiceStub),
    "ledger": ("tenth.ledger.v1.LedgerService", ledger_pb2_grpc.LedgerServiceStub),
    "reads": ("tenth.ledger.v1.LedgerReadService", ledger_pb2_grpc.LedgerReadServiceStub),
    "cache": ("tenth.cache.v1.CacheService", cache_pb2_grpc.CacheServiceStub),
    "inference": ("tenth.inference.v1.InferenceService", inference_pb2_grpc.InferenceServiceStub),
}
TRACE_ID = "ab" * 16


class Recorder(grpc.GenericRpcHandler):
    """Answers every method from a table of messages (a list is a stream) and keeps what it was sent."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"Check": b"\x08\x01"}
        self.requests: list[tuple[str, bytes]] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method.rpartition("/")[2]
        answer = self.answers.get(method)
        if answer is None:
            return None

        async def unary(raw: bytes, context: Any) -> bytes:
            self.requests.append((method, raw))
            return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())

        async def stream(raw: bytes, context: Any) -> AsyncIterator[bytes]:
            self.requests.append((method, raw))
            for item in answer:
                yield item.SerializeToString()

        if isinstance(answer, list):
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    def sent(self, method: str) -> list[bytes]:
        return [raw for name, raw in self.requests if name == method]


@dataclass
class Bench:
    data_dir: Path
    recorder: Recorder
    store: TraceStore
    said: list[str] = field(default_factory=list)

    async def run(self, *arguments: str) -> tuple[int, str]:
        """Run one command; its status and what it printed."""
        parsed = cli.parser().parse_args([*arguments, "--data-dir", str(self.data_dir)])
        file = io.StringIO()
        status = await parsed.run(parsed, Console(file=file, width=200, highlight=False))
        return status, file.getvalue()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    recorder = Recorder()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((recorder,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    store = TraceStore(tmp_path / "traces.db")
    collector, collector_port, _ = await start("127.0.0.1:0", store)
    address = f"127.0.0.1:{port}"
    addresses = dict.fromkeys(("orchestrator", "ledger", "inference"), address)
    addresses |= {"cache": f"ipv4:{address},{address}", "collector": f"127.0.0.1:{collector_port}"}
    (tmp_path / "client.json").write_text(json.dumps({"addresses": addresses, "api_key": "k"}))
    yield Bench(tmp_path, recorder, store)
    await server.stop(None)
    await collector.stop(None)
    store.close()


def receipt(**facts: Any) -> receipt_pb2.Receipt:
    made = receipt_pb2.ReceiptFacts(request_id="r1", baseline_model="opus", model="mini", trace_id=TRACE_ID, **facts)
    hop = made.hops.add(name="cache", outcome=receipt_pb2.HOP_OUTCOME_OK, reason="miss")
    hop.duration.FromMilliseconds(3)
    return receipt_pb2.Receipt(
        facts=made,
        state=receipt_pb2.RECEIPT_STATE_FINAL,
        baseline_nano_usd=1000,
        savings=[receipt_pb2.LayerSaving(layer=receipt_pb2.LAYER_ROUTING, saving_nano_usd=900)],
        overhead_nano_usd=5,
        actual_nano_usd=105,
    )


def completion(text: str) -> chat_pb2.Completion:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text=text)])
    return chat_pb2.Completion(message=message, model="mini")


async def test_ask(bench: Bench) -> None:
    stream = orchestrator_pb2.StreamGenerateCompletionResponse
    bench.recorder.answers["StreamGenerateCompletion"] = [
        stream(started=orchestrator_pb2.CompletionStarted(request_id="r1", model="mini")),
        stream(delta=chat_pb2.CompletionDelta(text="[bold]안녕")),
        stream(delta=chat_pb2.CompletionDelta(text="하세요")),
        stream(finished=orchestrator_pb2.CompletionFinished(receipt=receipt(), model="mini")),
    ]
    status, text = await bench.run(
        *("ask", "인사해 줘", "--system", "s", "--model", "mini", "--max-tokens", "9", "--no-cache"),
        *("--namespace", "shop", "--user", "ada"),
    )
    assert status == 0
    assert text.splitlines() == [
        "[bold]안녕하세요",
        "mini · cost $0.000000 · saved $0.000001 (89.5% of opus) · r1",
    ]
    (raw,) = bench.recorder.sent("StreamGenerateCompletion")
    sent = orchestrator_pb2.StreamGenerateCompletionRequest.FromString(raw).request
    assert [message.role for message in sent.messages] == [chat_pb2.ROLE_SYSTEM, chat_pb2.ROLE_USER]
    assert (sent.namespace, sent.user_id) == ("shop", "ada")
    assert sent.sampling.max_output_tokens == 9
    assert sent.policy == chat_pb2.RequestPolicy(model="mini", cache_mode=chat_pb2.CACHE_MODE_OFF)


async def test_trace_by_trace_id_request_id_and_receipt(bench: Bench) -> None:
    request = trace_service_pb2.ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "orchestrator"
    span = resource.scope_spans.add().spans.add(
        trace_id=bytes.fromhex(TRACE_ID), span_id=b"12345678", name="a.B/Generate", start_time_unix_nano=1
    )
    span.attributes.add(key="tenth.request_id").value.string_value = "attributed"
    span.attributes.add(key="tenth.actual_nano_usd").value.int_value = 105
    assert bench.store.add("spans", request.SerializeToString())
    bench.recorder.answers["GetReceipt"] = orchestrator_pb2.GetReceiptResponse(receipt=receipt())
    for wanted in (TRACE_ID, "attributed", "only the receipt knows"):
        status, text = await bench.run("trace", wanted)
        assert status == 0
        assert "orchestrator Generate" in text
        assert "actual=$0.000000105" in text
        assert text.startswith(f"trace {TRACE_ID}")
    status, text = await bench.run("trace", "cd" * 16)
    assert status == 1
    assert "no trace" in text


async def test_replay(bench: Bench, tmp_path: Path) -> None:
    bench.recorder.answers["GenerateCompletion"] = orchestrator_pb2.GenerateCompletionResponse(
        request_id="r1", completion=completion("hi"), receipt=receipt()
    )
    file, out = tmp_path / "in.jsonl", tmp_path / "out.json"
    file.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n' * 3)
    status, text = await bench.run("replay", str(file), "--json", str(out), "--concurrency", "2")
    assert status == 0
    assert "baseline (opus)" in text
    report = json.loads(out.read_text())
    assert (report["requests"], report["failed"], report["baseline_nano_usd"]) == (3, 0, 3000)
    assert report["savings_nano_usd"]["routing"] == 2700
    assert set(report["latency_ms"]) == {"p50", "p95"}

    del bench.recorder.answers["GenerateCompletion"]
    status, text = await bench.run("replay", str(file))
    assert status == 1
    assert "line 1: UNIMPLEMENTED" in text


async def test_status(bench: Bench) -> None:
    bench.recorder.answers["ListServedModels"] = inference_pb2.ListServedModelsResponse(
        models=[inference_pb2.ServedModel(model="mini", provider="openai (sandbox)", healthy=True, backend="openai")]
    )
    bench.recorder.answers["GetBooksStatus"] = ledger_pb2.GetBooksStatusResponse(receipt_count=4)
    status, text = await bench.run("status")
    assert status == 0
    assert text.count("SERVING") == 6
    assert "openai (sandbox)" in text
    assert "4 receipts" in text
    bench.recorder.answers["Check"] = b"\x08\x02"
    status, text = await bench.run("status")
    assert status == 1
    assert "NOT_SERVING" in text


async def test_report(bench: Bench) -> None:
    row = ledger_pb2.SpendRow(group=["mini", "2026-11-22"], request_count=3, baseline_nano_usd=3_000_000)
    row.savings.add(layer=receipt_pb2.LAYER_CACHE, saving_nano_usd=2_000_000)
    row.actual_nano_usd = 1_000_000
    bench.recorder.answers["GetSpendReport"] = ledger_pb2.GetSpendReportResponse(rows=[row], baseline_models=["opus"])
    status, text = await bench.run("report", "--by", "model,day", "--since", "2026-11-22", "--tenant", "acme")
    assert status == 0
    assert "baseline: opus" in text
    assert "33.3%" in text
    (raw,) = bench.recorder.sent("GetSpendReport")
    sent = ledger_pb2.GetSpendReportRequest.FromString(raw)
    assert list(sent.group_by) == ["model", "day"]
    assert sent.filter.tenant_id == "acme"
    assert sent.filter.start_time.ToJsonString() == "2026-11-22T00:00:00Z"
    with pytest.raises(ValueError, match="--until"):
        await bench.run("report", "--until", "tomorrow")


async def test_switch_and_budgets(bench: Bench) -> None:
    answers = bench.recorder.answers
    answers["SetLayerSwitch"] = ledger_pb2.SetLayerSwitchResponse(disabled_layers=["cache"])
    status, text = await bench.run("switch", "cache", "off", "--tenant", "demo")
    assert (status, text.strip()) == (0, "layers off for demo: cache")
    sent = ledger_pb2.SetLayerSwitchRequest.FromString(bench.recorder.sent("SetLayerSwitch")[0])
    assert (sent.tenant_id, sent.layer, sent.disabled) == ("demo", "cache", True)

    budget = ledger_pb2.Budget(name="m", tenant_id="demo", window=ledger_pb2.BUDGET_WINDOW_DAY, limit_nano_usd=10**10)
    standing = ledger_pb2.BudgetStatus(budget=budget, spent_nano_usd=10**9)
    answers["SetBudget"] = ledger_pb2.SetBudgetResponse(status=standing)
    answers["ListBudgets"] = ledger_pb2.ListBudgetsResponse(budgets=[standing])
    status, text = await bench.run("budget", "set", "m", "--limit", "10", "--window", "day", "--soft")
    assert "$9.000000" in text
    asked = ledger_pb2.SetBudgetRequest.FromString(bench.recorder.sent("SetBudget")[0]).budget
    assert (asked.limit_nano_usd, asked.hard, asked.window) == (10**10, False, ledger_pb2.BUDGET_WINDOW_DAY)
    status, text = await bench.run("budget", "list")
    assert "soft" in text
    with pytest.raises(ValueError, match="USD"):
        await bench.run("budget", "set", "m", "--limit=-1")
    for deleted, said in ((True, "deleted budget m of acme"), (False, "acme has no budget m")):
        answers["DeleteBudget"] = ledger_pb2.DeleteBudgetResponse(deleted=deleted)
        status, text = await bench.run("budget", "delete", "m", "--tenant", "acme")
        assert (status, text.strip()) == (0, said)
    wanted = ledger_pb2.DeleteBudgetRequest.FromString(bench.recorder.sent("DeleteBudget")[0])
    assert (wanted.tenant_id, wanted.name) == ("acme", "m")


async def test_a_budget_with_everything(bench: Bench) -> None:
    wanted = ledger_pb2.Budget(
        name="search",
        tenant_id="demo",
        window=ledger_pb2.BUDGET_WINDOW_ROLLING,
        time_zone="UTC",
        limit_nano_usd=10**10,
        hard=True,
        model="mini",
        tag_key="team",
        tag_value="a=b",
        alert_percents=[50, 100],
        alert_url="https://alerts.example/",
        ladder=[
            ledger_pb2.LadderRung(step=ledger_pb2.LADDER_STEP_CACHE_ONLY, from_percent=80),
            ledger_pb2.LadderRung(step=ledger_pb2.LADDER_STEP_BATCH, from_percent=90),
            ledger_pb2.LadderRung(step=ledger_pb2.LADDER_STEP_CHEAPER_TIER, from_percent=95),
        ],
    )
    wanted.rolling.FromSeconds(7 * 86_400)
    bench.recorder.answers["SetBudget"] = ledger_pb2.SetBudgetResponse(status=ledger_pb2.BudgetStatus(budget=wanted))
    words = "--limit 10 --window rolling --rolling 7d --model mini --tag team=a=b --alert 50 100"
    words += " --alert-url https://alerts.example/ --ladder cache-only=80,batch=90,cheaper-tier=95"
    _, text = await bench.run("budget", "set", "search", *words.split())
    assert ledger_pb2.SetBudgetRequest.FromString(bench.recorder.sent("SetBudget")[0]).budget == wanted
    for shown in ("mini", "team=a=b", "rolling 7d", "50% alert, 80% cache-only, 90% batch, 95% cheaper-tier, 100%"):
        assert shown in " ".join(text.split())
    for wrong in (["--rolling", "7"], ["--rolling", "x"], ["--ladder", "faster=80"], ["--ladder", "batch"]):
        with pytest.raises(ValueError, match="is not"):
            await bench.run("budget", "set", "search", "--limit", "1", *wrong)
    for option in ("--user", "--project", "--model", "--tag"):
        with pytest.raises(ValueError, match=f"{option}: empty"):
            await bench.run("budget", "set", "search", "--limit", "1", option, "")


async def test_explain_and_receipt(bench: Bench, tmp_path: Path) -> None:
    bench.recorder.answers["ExplainRequest"] = orchestrator_pb2.ExplainRequestResponse(
        hops=receipt().facts.hops, expected_receipt=receipt(), worst_case_nano_usd=77
    )
    file = tmp_path / "request.json"
    file.write_text('{"messages": [{"role": "user", "content": "hi"}]}')
    for request in (str(file), "hi"):
        status, text = await bench.run("explain", request)
        assert status == 0
        assert "$0.000000077" in text
    first, second = bench.recorder.sent("ExplainRequest")
    assert first == second

    bench.recorder.answers["GetReceipt"] = orchestrator_pb2.GetReceiptResponse(receipt=receipt(failed=True))
    status, text = await bench.run("receipt", "r1")
    assert status == 0
    assert "receipt of r1 (final)" in text
    assert "failed" in text
    assert "-$0.000000900" in text


async def test_cache_filters_reach_every_replica(bench: Bench) -> None:
    answers = bench.recorder.answers
    answers["GetStats"] = cache_pb2.GetStatsResponse(entry_count=2, bypass_counts={"temperature": 1}, embedder="e")
    answers["InvalidateEntries"] = cache_pb2.InvalidateEntriesResponse(entry_count=3)
    _, text = await bench.run("cache", "stats")
    assert "bypassed temperature  2" in text
    filters = ("--namespace-prefix", "shop-", "--question-prefix", "환불", "--document", "d1", "--entry", "e1")
    _, text = await bench.run("cache", "invalidate", *filters, "--tag", "a=b=c", "--dry-run")
    assert text.strip() == "6 entries would be deleted"
    expected = cache_pb2.InvalidateEntriesRequest(
        namespace_prefix="shop-",
        question_prefix="환불",
        document_id="d1",
        entry_ids=["e1"],
        tags={"a": "b=c"},
        dry_run=True,
    )
    sent = bench.recorder.sent("InvalidateEntries")
    assert [cache_pb2.InvalidateEntriesRequest.FromString(raw) for raw in sent] == [expected] * 2


async def test_an_error_is_typed(bench: Bench) -> None:
    with pytest.raises(TenthClientError):
        await bench.run("cache", "stats")


def test_main_ends_with_a_status_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["status", "--data-dir", str(tmp_path)])
    assert caught.value.code == 1
    assert "no mesh found" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"messages": "\xff"}')
    with pytest.raises(SystemExit) as caught:
        cli.main(["replay", str(bad), "--address", "127.0.0.1:1", "--data-dir", str(tmp_path)])
    assert caught.value.code == 1
    assert "line 1: not UTF-8" in capsys.readouterr().err


async def test_up_stops_on_a_signal_while_it_starts(tmp_path: Path) -> None:
    """``tenth up`` as a process: SIGTERM during the start ends it cleanly."""
    import sys

    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "catalog.yaml").write_text("{}")
    (tmp_path / "deploy" / "callers.yaml").write_text("{}")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tenth_client.cli",
        "up",
        "--data-dir",
        str(tmp_path / "data"),
        "--deploy-dir",
        str(tmp_path / "deploy"),
        "--free-ports",
        "--quiet",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    while not (tmp_path / "data" / "client.json").exists():  # noqa: ASYNC110  (another process writes it)
        await asyncio.sleep(0.05)
    process.terminate()
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, output.decode()
    assert b"stopping" in output
