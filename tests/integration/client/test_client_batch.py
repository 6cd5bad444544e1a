"""``tenth batch`` and the typed client over a real connection, against a batch service that answers at once."""

from __future__ import annotations

import gzip
import io
import json
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from rich.console import Console
from tenth.batch.v1 import batch_pb2, batch_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from formats.openai import FormatError, completion_request, parse_json
from tenth_client import Batches, Client, TenthClientError, cli
from tenth_client.batch_files import content_id

API_KEY = "a key for tests"


class StandIn(batch_pb2_grpc.BatchServiceServicer):
    """Keeps batches in memory, answers an item with its own question, and fails what asks to be failed."""

    def __init__(self) -> None:
        self.batches: dict[str, batch_pb2.Batch] = {}
        self.headers: list[batch_pb2.BatchHeader] = []
        self.pieces: list[int] = []
        self.questions: dict[str, list[tuple[str, str]]] = {}
        self.by_request: dict[str, str] = {}
        self.keys: set[str] = set()
        self.steps: list[int] = [0, 1, 2]
        """How many items have ended at each look at a batch; then all have."""
        self.refuse: list[grpc.StatusCode] = []
        """Status codes of the next calls, before any is answered."""
        self.break_after = 0
        """A stream of results breaks once, after so many."""

    async def _enter(self, context: Any) -> None:
        self.keys.add(dict(context.invocation_metadata())["authorization"])
        if self.refuse:
            await context.abort(self.refuse.pop(0), "refused by the test")

    async def CreateBatch(self, request_iterator: Any, context: Any) -> batch_pb2.CreateBatchResponse:
        await self._enter(context)
        header, raw, found, errors = batch_pb2.BatchHeader(), b"", [], []
        async for message in request_iterator:
            if message.WhichOneof("part") == "header":
                header = message.header
            elif message.WhichOneof("part") == "jsonl":
                self.pieces.append(len(message.jsonl))
                raw += message.jsonl
            else:
                found.append((message.item.custom_id, message.item.request.messages[0].parts[0].text))
        self.headers.append(header)
        for number, line in enumerate(raw.split(b"\n"), start=1):
            if not line.strip():
                continue
            custom_id = ""
            try:
                body = parse_json(line)
                custom_id = body["custom_id"]
                request = completion_request(body["body"])
                found.append((custom_id, request.messages[0].parts[0].text))
            except FormatError as error:
                wrong = batch_pb2.LineError(line=number, custom_id=custom_id, reason="INVALID_LINE", field=error.field)
                wrong.message = error.message
                errors.append(wrong)
        if errors:
            return batch_pb2.CreateBatchResponse(line_errors=errors)
        if header.request_id in self.by_request:
            return batch_pb2.CreateBatchResponse(batch=self.batches[self.by_request[header.request_id]])
        batch_id = f"batch-{len(self.batches) + 1}"
        batch = batch_pb2.Batch(
            batch_id=batch_id, state=batch_pb2.BATCH_STATE_RUNNING, item_count=len(found), tags=header.tags, run=1
        )
        batch.create_time.GetCurrentTime()
        batch.deadline_time.FromSeconds(batch.create_time.seconds + header.completion_window.seconds)
        self.batches[batch_id], self.questions[batch_id] = batch, found
        self.by_request[header.request_id] = batch_id
        return batch_pb2.CreateBatchResponse(batch=batch)

    async def GetBatch(self, request: batch_pb2.GetBatchRequest, context: Any) -> batch_pb2.GetBatchResponse:
        await self._enter(context)
        batch = await self._found(request.batch_id, context)
        if batch.state == batch_pb2.BATCH_STATE_RUNNING:
            self._advance(batch)
        return batch_pb2.GetBatchResponse(batch=batch)

    async def ListBatches(self, request: batch_pb2.ListBatchesRequest, context: Any) -> batch_pb2.ListBatchesResponse:
        await self._enter(context)
        newest = list(self.batches.values())[::-1]
        start = int(request.page_token or 0)
        size = min(request.page_size, 2)
        token = str(start + size) if start + size < len(newest) else ""
        return batch_pb2.ListBatchesResponse(batches=newest[start : start + size], next_page_token=token)

    async def StreamBatchResults(
        self, request: batch_pb2.StreamBatchResultsRequest, context: Any
    ) -> AsyncIterator[batch_pb2.StreamBatchResultsResponse]:
        await self._found(request.batch_id, context)
        questions = self.questions[request.batch_id]
        for count, (custom_id, text) in enumerate(questions if request.in_input_order else questions[::-1]):
            if self.break_after and count == self.break_after:
                self.break_after = 0
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken by the test")
            yield result(custom_id, text)

    async def CancelBatch(self, request: batch_pb2.CancelBatchRequest, context: Any) -> batch_pb2.CancelBatchResponse:
        batch = await self._found(request.batch_id, context)
        batch.state = batch_pb2.BATCH_STATE_CANCELLED
        return batch_pb2.CancelBatchResponse(batch=batch)

    async def RetryFailed(self, request: batch_pb2.RetryFailedRequest, context: Any) -> batch_pb2.RetryFailedResponse:
        batch = await self._found(request.batch_id, context)
        if batch.state == batch_pb2.BATCH_STATE_RUNNING:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "it runs")
        batch.state, batch.failed_count, batch.run = batch_pb2.BATCH_STATE_RUNNING, 0, batch.run + 1
        self.questions[batch.batch_id] = [(each, "again") for each, _ in self.questions[batch.batch_id]]
        return batch_pb2.RetryFailedResponse(batch=batch)

    async def EnqueueCompletion(self, request: Any, context: Any) -> Any:
        raise NotImplementedError("for the orchestrator")

    async def GetQueuedCompletion(self, request: Any, context: Any) -> Any:
        raise NotImplementedError("for the orchestrator")

    async def DeleteUserItems(self, request: Any, context: Any) -> Any:
        raise NotImplementedError("for the orchestrator")

    def _advance(self, batch: batch_pb2.Batch) -> None:
        questions = self.questions[batch.batch_id]
        ended = questions[: self.steps.pop(0)] if self.steps else questions
        batch.failed_count = sum(text == "fail" for _, text in ended)
        batch.done_count = len(ended) - batch.failed_count
        batch.actual_nano_usd, batch.baseline_nano_usd = 100 * batch.done_count, 1000 * batch.done_count
        if len(ended) == len(questions):
            batch.state = batch_pb2.BATCH_STATE_DONE
            batch.end_time.GetCurrentTime()

    async def _found(self, batch_id: str, context: Any) -> batch_pb2.Batch:
        if batch_id not in self.batches:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such batch")
        return self.batches[batch_id]


def result(custom_id: str, text: str) -> batch_pb2.StreamBatchResultsResponse:
    if text == "fail":
        return batch_pb2.StreamBatchResultsResponse(
            custom_id=custom_id, error_reason="BUDGET_EXCEEDED", error_message="nothing left"
        )
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text=text)])
    return batch_pb2.StreamBatchResultsResponse(
        custom_id=custom_id,
        completion=chat_pb2.Completion(message=message, model="mini"),
        receipt=receipt_pb2.Receipt(baseline_nano_usd=1000, actual_nano_usd=100),
    )


@dataclass
class Bench:
    service: StandIn
    address: str
    folder: Path
    said: str = field(default="")

    async def status(self, *arguments: str, terminal: bool = False) -> int:
        parsed = cli.parser().parse_args(["batch", *arguments, "--data-dir", str(self.folder)])
        file = io.StringIO()
        console = Console(file=file, width=200, highlight=False, force_terminal=terminal)
        status: int = await parsed.run(parsed, console)
        self.said = file.getvalue()
        return status

    async def run(self, *arguments: str) -> str:
        """Run a command that succeeds; what it printed."""
        assert await self.status(*arguments) == 0, self.said
        return self.said

    def file(self, *questions: str, name: str = "in.jsonl") -> str:
        lines = [
            {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": body(text)}
            for number, text in enumerate(questions)
        ]
        path = self.folder / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        return str(path)

    def lines(self, *lines: str) -> str:
        path = self.folder / "lines.jsonl"
        path.write_text("\n".join(lines), "utf-8")
        return str(path)


def body(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("LANG", "C.UTF-8")
    service = StandIn()
    server = grpc.aio.server()
    batch_pb2_grpc.add_BatchServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    (tmp_path / "client.json").write_text(json.dumps({"addresses": {"batch": address}, "api_key": API_KEY}))
    yield Bench(service, address, tmp_path)
    await server.stop(None)


async def test_submit_sends_the_file_and_what_was_said_of_it(bench: Bench) -> None:
    said = await bench.run(
        "submit", bench.file("one", "two"), "--deadline", "90m", "--lane", "local", "--lane", "openai",
        "--project", "search", "--user", "ada", "--tag", "team=core",
    )  # fmt: skip
    (header,) = bench.service.headers
    assert header.completion_window.seconds == 5400
    assert list(header.lanes) == ["local", "openai"]
    assert (header.project_id, header.user_id, dict(header.tags)) == ("search", "ada", {"team": "core"})
    assert header.request_id == content_id(bench.folder / "in.jsonl")
    assert bench.service.questions == {"batch-1": [("q0", "one"), ("q1", "two")]}
    assert bench.service.keys == {f"Bearer {API_KEY}"}
    assert "batch-1" in said
    assert f"request id {header.request_id}: submitting the same content again gives this batch" in said
    assert "next: tenth batch watch batch-1" in said


async def test_the_same_content_is_the_same_batch(bench: Bench) -> None:
    path = bench.file("one")
    await bench.run("submit", path)
    # As an hour later: two clocks may differ, but not by that.
    bench.service.batches["batch-1"].create_time.seconds -= 3600
    assert "submitted before" in await bench.run("submit", path)
    await bench.run("submit", path, "--new")
    await bench.run("submit", path, "--request-id", str(uuid.uuid4()))
    assert len(bench.service.batches) == 3
    with pytest.raises(ValueError, match="--request-id"):
        await bench.status("submit", path, "--request-id", "mine")


async def test_errors_are_all_shown_and_nothing_is_made(bench: Bench) -> None:
    hot = json.dumps({"custom_id": "[bold]x", "body": {**body("a"), "temperature": 9}})
    path = bench.lines(json.dumps({"custom_id": "q", "body": body("one")}), hot, "{")
    assert await bench.status("submit", path) == 1
    rows = bench.said.splitlines()
    assert any("2" in row and "[bold]x" in row and "temperature" in row and "not within 0 to 2" in row for row in rows)
    assert any("3" in row and "not JSON" in row for row in rows)
    assert f"{path}: 2 errors; no batch was made, nothing was spent" in bench.said
    assert not bench.service.batches
    assert await bench.status("submit", bench.lines("{"), "--lang", "ko") == 1
    assert "비용도 들지 않음" in bench.said


async def test_plain_bodies_gzip_and_standard_input(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = b"".join(json.dumps(body(text)).encode() + b"\n" for text in ("one", "two"))
    (bench.folder / "plain.jsonl.gz").write_bytes(gzip.compress(raw))
    await bench.run("submit", str(bench.folder / "plain.jsonl.gz"))
    assert bench.service.questions["batch-1"] == [("line-1", "one"), ("line-2", "two")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    await bench.run("submit", "-")
    assert bench.service.questions["batch-2"] == [("line-1", "one"), ("line-2", "two")]


async def test_a_large_file_goes_in_pieces(bench: Bench) -> None:
    await bench.run("submit", bench.file(*("x" * 1000 for _ in range(1000))))
    assert bench.service.batches["batch-1"].item_count == 1000
    assert len(bench.service.pieces) >= 4
    assert max(bench.service.pieces) <= 256 * 1024


async def test_watch_where_nothing_can_move(bench: Bench, quick: None) -> None:
    assert await bench.status("submit", bench.file("one", "fail", "three"), "--watch") == 1
    lines = [line for line in bench.said.splitlines() if " of 3" in line]
    assert [line.partition(";")[0] for line in lines] == [
        "running, 0 of 3", "running, 1 of 3", "running, 2 of 3", "done, 3 of 3",
    ]  # fmt: skip
    assert "saved $0.000002 (90.0%)" in lines[-1]
    assert "tenth batch retry batch-1 runs them again" in bench.said
    assert await bench.status("retry", "batch-1", "--watch") == 0
    assert bench.service.batches["batch-1"].run == 2


async def test_watch_on_a_terminal(bench: Bench, quick: None) -> None:
    await bench.run("submit", bench.file("one", "two"))
    assert await bench.status("watch", "batch-1", terminal=True) == 0
    assert "2 of 2" in bench.said
    assert "━" in bench.said


async def test_show_list_and_cancel(bench: Bench) -> None:
    for number in range(5):
        await bench.run("submit", bench.file(f"question {number}"))
    said = await bench.run("list", "--count", "3")
    assert [line.split()[0] for line in said.splitlines()[2:]] == ["batch-5", "batch-4", "batch-3"], "over two pages"
    lines = (await bench.run("list", "--json")).splitlines()
    assert [json.loads(line)["batch_id"] for line in lines] == [f"batch-{number}" for number in (5, 4, 3, 2, 1)]
    assert "1,000" not in await bench.run("show", "batch-2")
    assert json.loads(await bench.run("show", "batch-2", "--json"))["item_count"] == "1"
    assert "cancelled" in await bench.run("cancel", "batch-2")
    assert "취소됨" in await bench.run("show", "batch-2", "--lang", "ko")
    with pytest.raises(ValueError, match="--count"):
        await bench.status("list", "--count", "0")


async def test_results_in_openais_format_as_they_come_and_in_order(bench: Bench) -> None:
    await bench.run("submit", bench.file("one", "two", "three"))
    as_they_come = [json.loads(line)["custom_id"] for line in (await bench.run("results", "batch-1")).splitlines()]
    assert as_they_come == ["q2", "q1", "q0"]
    out = bench.folder / "out.jsonl"
    said = await bench.run("results", "batch-1", "--in-order", "--out", str(out))
    assert f"3 results written to {out}, 0 of them errors" in said
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    contents = [line["response"]["body"]["choices"][0]["message"]["content"] for line in lines]
    assert contents == ["one", "two", "three"]
    assert lines[0]["tenth"]["actual_nano_usd"] == 100


async def test_results_with_errors_and_everything(bench: Bench) -> None:
    await bench.run("submit", bench.file("one", "fail"))
    assert await bench.status("results", "batch-1", "--in-order", "--format", "full") == 1
    lines = [json.loads(line) for line in bench.said.splitlines()]
    assert lines[0]["receipt"]["baseline_nano_usd"] == "1000"
    assert lines[1] == {"custom_id": "q1", "error_reason": "BUDGET_EXCEEDED", "error_message": "nothing left"}


async def test_a_file_of_results_appears_whole_or_not_at_all(bench: Bench) -> None:
    out = bench.folder / "out.jsonl"
    with pytest.raises(TenthClientError, match="no such batch"):
        await bench.status("results", "nowhere", "--out", str(out))
    assert not list(bench.folder.glob("*out.jsonl*"))


async def test_a_broken_stream_of_results_goes_on_where_it_broke(bench: Bench) -> None:
    await bench.run("submit", bench.file(*(f"question {number}" for number in range(10))))
    bench.service.break_after = 4
    async with Batches(bench.address, API_KEY) as batches:
        found = [each.custom_id async for each in batches.results("batch-1", in_input_order=True)]
    assert found == [f"q{number}" for number in range(10)]


async def test_an_upload_is_sent_again_while_nobody_answers(bench: Bench) -> None:
    def item(text: str) -> batch_pb2.BatchItem:
        return batch_pb2.BatchItem(custom_id=text, request=completion_request(body(text)))

    def once() -> Iterator[batch_pb2.BatchItem]:
        yield item("two")

    async with Client(bench.address, API_KEY) as client, client.batches(bench.address) as batches:
        bench.service.refuse = [grpc.StatusCode.UNAVAILABLE]
        created = await batches.create([item("one")], request_id=str(uuid.uuid4()))
        assert bench.service.questions[created.batch.batch_id] == [("one", "one")]
        assert created.batch.deadline_time.seconds - created.batch.create_time.seconds == 86_400
        bench.service.refuse = [grpc.StatusCode.UNAVAILABLE]
        # What can be read once cannot be sent twice: half a batch must not pass for a whole one.
        with pytest.raises(TenthClientError, match="refused by the test"):
            await batches.create(once())
        bench.service.refuse = [grpc.StatusCode.UNAVAILABLE]
        assert (await batches.create(once)).batch.item_count == 1


async def test_a_mesh_without_the_batch_layer_says_what_to_set(bench: Bench) -> None:
    (bench.folder / "client.json").write_text(json.dumps({"addresses": {"orchestrator": "127.0.0.1:1"}}))
    with pytest.raises(LookupError, match="TENTH_BATCH_ADDRESS"):
        await bench.status("list")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at a batch come one after the other, without a second between them."""
    watch = Batches.watch
    monkeypatch.setattr(Batches, "watch", lambda self, batch_id: watch(self, batch_id, interval_seconds=0.0))
