"""Bad input through the whole mesh: each kind gets its typed error, costs nothing, and leaves the mesh serving."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import secrets
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import spending
import yaml
from google.protobuf.message import Message
from tenth.cache.v1 import cache_pb2
from tenth.compressor.v1 import compressor_pb2
from tenth.inference.v1 import inference_pb2
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from formats.openai import text_message
from tenth_client import Client, FormatError, TenthClientError, read_jsonl
from tenth_client.connection import dial
from tenth_client.errors import decode
from tenth_client.rpc import Rpc
from tenth_client.up import Mesh

pytestmark = pytest.mark.asyncio(loop_scope="session")

Request = chat_pb2.CompletionRequest
Change = Callable[[Request], Any]
ORCHESTRATOR = "/tenth.orchestrator.v1.OrchestratorService/"
CALLS: dict[str, Callable[[Request], Message]] = {
    "GenerateCompletion": lambda request: orchestrator_pb2.GenerateCompletionRequest(request=request),
    "StreamGenerateCompletion": lambda request: orchestrator_pb2.StreamGenerateCompletionRequest(request=request),
    "ExplainRequest": lambda request: orchestrator_pb2.ExplainRequestRequest(request=request),
}


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def at_rest(mesh: Mesh) -> None:
    """What earlier tests left on its way arrives before this module counts."""
    await spending.rest(mesh)


@asynccontextmanager
async def nothing_spent(mesh: Mesh) -> AsyncIterator[None]:
    """The ledger's sums, open reservations and the provider's books are the same afterwards; the mesh answers."""
    before = await spending.read(mesh)
    yield
    after = await spending.read(mesh)
    assert after == before


def good() -> Request:
    return Request(
        request_id=str(uuid.uuid4()), messages=[text_message(chat_pb2.ROLE_USER, f"A question {uuid.uuid4().hex}?")]
    )


def same(raw: bytes) -> bytes:
    return raw


async def refused(
    mesh: Mesh, method: str, payload: bytes, key: str | None = None, seconds: float = 30
) -> TenthClientError:
    """The typed error of a raw call: what is sent are bytes, so that they need not be a message."""
    service = method[1:].split(".")[1]
    channel = dial(mesh.address(service))
    metadata = (("authorization", f"Bearer {mesh.api_key if key is None else key}"),)
    try:
        if "/Stream" in method:
            stream = channel.unary_stream(method, request_serializer=same, response_deserializer=same)
            async for _ in stream(payload, timeout=seconds, metadata=metadata):
                raise AssertionError(f"{method} answers")
        else:
            call = channel.unary_unary(method, request_serializer=same, response_deserializer=same)
            await call(payload, timeout=seconds, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return decode(error)
    finally:
        await channel.close()
    raise AssertionError(f"{method} answers")


# The form of a request: change, the error's reason, its field.

FORM: dict[str, tuple[Change, str, str]] = {
    "no messages": (lambda r: r.ClearField("messages"), "REQUIRED_FIELD", "request.messages"),
    "no content": (lambda r: r.messages[0].ClearField("parts"), "REQUIRED_FIELD", "request.messages[0].parts"),
    "empty part": (
        lambda r: r.messages[0].parts[0].ClearField("text"),
        "REQUIRED_FIELD",
        "request.messages[0].parts[0].content",
    ),
    "no role": (lambda r: r.messages[0].ClearField("role"), "INVALID_FIELD", "request.messages[0].role"),
    "role 99": (lambda r: setattr(r.messages[0], "role", 99), "INVALID_FIELD", "request.messages[0].role"),
    "assistant last": (
        lambda r: r.messages.append(text_message(chat_pb2.ROLE_ASSISTANT, "Yes.")),
        "INVALID_FIELD",
        "request.messages[1].role",
    ),
    "orphaned tool result": (
        lambda r: r.messages.add(role=chat_pb2.ROLE_TOOL, tool_call_id="none").parts.add(text="42"),
        "INVALID_FIELD",
        "request.messages[1].tool_call_id",
    ),
    "10 MB prompt": (
        lambda r: r.messages[0].parts.add(text="word " * 2_000_000),
        "PROMPT_TOO_LARGE",
        "request.messages",
    ),
    "request id": (lambda r: setattr(r, "request_id", "first"), "INVALID_FIELD", "request.request_id"),
    "tool schema": (
        lambda r: r.tools.add(name="find", parameters_json_schema='{"type": "object"'),
        "INVALID_FIELD",
        "request.tools[0].parameters_json_schema",
    ),
    "tool schema, no object": (
        lambda r: r.tools.add(name="find", parameters_json_schema="[1]"),
        "INVALID_FIELD",
        "request.tools[0].parameters_json_schema",
    ),
    "tool schema, too deep": (
        lambda r: r.tools.add(name="find", parameters_json_schema='{"a":' * 100_000),
        "INVALID_FIELD",
        "request.tools[0].parameters_json_schema",
    ),
    "tool choice": (
        lambda r: setattr(r.tool_choice, "mode", chat_pb2.TOOL_CHOICE_MODE_REQUIRED),
        "INVALID_FIELD",
        "request.tool_choice.mode",
    ),
    "answer schema": (
        lambda r: r.response_format.MergeFrom(
            chat_pb2.ResponseFormat(kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA, name="x", json_schema="{]")
        ),
        "INVALID_FIELD",
        "request.response_format.json_schema",
    ),
    "temperature NaN": (
        lambda r: setattr(r.sampling, "temperature", math.nan),
        "INVALID_FIELD",
        "request.sampling.temperature",
    ),
    "temperature infinite": (
        lambda r: setattr(r.sampling, "temperature", math.inf),
        "INVALID_FIELD",
        "request.sampling.temperature",
    ),
    "top_p NaN": (lambda r: setattr(r.sampling, "top_p", math.nan), "INVALID_FIELD", "request.sampling.top_p"),
    "top_p zero": (lambda r: setattr(r.sampling, "top_p", 0.0), "INVALID_FIELD", "request.sampling.top_p"),
    "penalty": (
        lambda r: setattr(r.sampling, "presence_penalty", -math.inf),
        "INVALID_FIELD",
        "request.sampling.presence_penalty",
    ),
    "output tokens overflow": (
        lambda r: setattr(r.sampling, "max_output_tokens", 2**63 - 1),
        "INVALID_FIELD",
        "request.sampling.max_output_tokens",
    ),
    "no output tokens": (
        lambda r: setattr(r.sampling, "max_output_tokens", 0),
        "INVALID_FIELD",
        "request.sampling.max_output_tokens",
    ),
    "negative output tokens": (
        lambda r: setattr(r.sampling, "max_output_tokens", -(2**63)),
        "INVALID_FIELD",
        "request.sampling.max_output_tokens",
    ),
    "log probabilities": (
        lambda r: setattr(r.sampling, "top_logprobs_count", 2**31 - 1),
        "INVALID_FIELD",
        "request.sampling.top_logprobs_count",
    ),
    "quality NaN": (
        lambda r: setattr(r.policy, "quality_target", math.nan),
        "INVALID_FIELD",
        "request.policy.quality_target",
    ),
    "tier 99": (lambda r: setattr(r.policy, "tier_floor", 99), "INVALID_FIELD", "request.policy.tier_floor"),
    "bounds": (
        lambda r: r.policy.MergeFrom(
            chat_pb2.RequestPolicy(tier_floor=chat_pb2.TIER_COMPLEX, tier_ceiling=chat_pb2.TIER_SIMPLE)
        ),
        "INVALID_FIELD",
        "request.policy.tier_floor",
    ),
    "negative window": (
        lambda r: r.policy.completion_window.FromSeconds(-5),
        "INVALID_FIELD",
        "request.policy.completion_window",
    ),
    "chunk score": (
        lambda r: r.retrieved_chunks.add(text="A passage.", score=math.nan),
        "INVALID_FIELD",
        "request.retrieved_chunks[0].score",
    ),
    "namespace": (lambda r: setattr(r, "namespace", "../other"), "INVALID_FIELD", "request.namespace"),
    "tags": (lambda r: r.tags.update({"": "empty"}), "INVALID_FIELD", "request.tags"),
}


@pytest.mark.parametrize("case", FORM)
async def test_a_request_of_bad_form(mesh: Mesh, client: Client, case: str) -> None:
    change, reason, field = FORM[case]
    request = good()
    change(request)
    async with nothing_spent(mesh):
        for method, wrap in CALLS.items():
            error = await refused(mesh, ORCHESTRATOR + method, wrap(request).SerializeToString())
            assert (error.code, error.reason, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, reason, field), method
    with pytest.raises(TenthClientError) as caught:
        await client.receipt(request.request_id)
    assert caught.value.reason == "NOT_FOUND", "nothing was begun"


# Bytes that are no message, at every service.

ASKS: dict[str, Message] = {
    ORCHESTRATOR + "GenerateCompletion": orchestrator_pb2.GenerateCompletionRequest(request=good()),
    ORCHESTRATOR + "StreamGenerateCompletion": orchestrator_pb2.StreamGenerateCompletionRequest(request=good()),
    "/tenth.cache.v1.CacheService/LookupCompletion": cache_pb2.LookupCompletionRequest(request=good()),
    "/tenth.router.v1.RouterService/SelectModel": router_pb2.SelectModelRequest(request=good()),
    "/tenth.compressor.v1.CompressorService/CompressPrompt": compressor_pb2.CompressPromptRequest(request=good()),
    "/tenth.inference.v1.InferenceService/GenerateText": inference_pb2.GenerateTextRequest(messages=good().messages),
    "/tenth.inference.v1.InferenceService/StreamGenerateText": inference_pb2.StreamGenerateTextRequest(
        generation=inference_pb2.GenerateTextRequest(messages=good().messages)
    ),
    "/tenth.ledger.v1.LedgerService/ReserveFunds": ledger_pb2.ReserveFundsRequest(model="A question "),
    "/tenth.ledger.v1.LedgerReadService/GetReceipt": ledger_pb2.GetReceiptRequest(request_id="A question "),
}


@pytest.mark.parametrize("method", ASKS)
async def test_bytes_that_are_no_message(mesh: Mesh, method: str) -> None:
    whole = ASKS[method].SerializeToString()
    assert b"A question " in whole
    async with nothing_spent(mesh):
        for raw in (
            whole[:-1],
            whole.replace(b"A question ", b"\xff\xfe question"[:11]),
            b"\xff" * 64,
            b"not a message",
        ):
            error = await refused(mesh, method, raw)
            found = (error.code, error.reason, error.field)
            assert found == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE", "request"), raw


# Who asks: second keys, added to the callers file of the running mesh.


@dataclass(frozen=True)
class Keys:
    """Keys of further callers."""

    stranger: str
    """Of a tenant that the ledger does not know."""
    reader: str
    """May only fetch receipts."""
    modest: str
    """May not name users."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def keys(mesh: Mesh) -> Keys:
    """The callers file is read again without a restart."""
    made = Keys(*(secrets.token_urlsafe(24) for _ in range(3)))
    path = mesh.data_dir / "callers.yaml"
    content = yaml.safe_load(path.read_text("utf-8"))
    receipts = ORCHESTRATOR[1:] + "GetReceipt"
    for name, tenant, key, may_call in (
        ("stranger", "nobody", made.stranger, [ORCHESTRATOR[1:] + "*", "tenth.ledger.v1.*"]),
        ("reader", "demo", made.reader, [receipts]),
        ("modest", "demo", made.modest, ["*"]),
    ):
        digest = hashlib.sha256(key.encode()).hexdigest()
        content["callers"].append({"name": name, "tenant_id": tenant, "key_sha256": digest, "may_call": may_call})
    path.write_text(yaml.safe_dump(content), "utf-8")
    ask = orchestrator_pb2.GetReceiptRequest(request_id=str(uuid.uuid4())).SerializeToString()
    until = time.monotonic() + 20
    for method in (f"/{receipts}", "/tenth.ledger.v1.LedgerReadService/GetReceipt"):  # Each service reads it by itself.
        while (await refused(mesh, method, ask, made.modest)).reason == "UNAUTHENTICATED":
            assert time.monotonic() < until, "the callers file is not read again"
            await asyncio.sleep(0.2)
    return made


def with_user(request: Request) -> None:
    request.user_id = "somebody"


def with_project(request: Request) -> None:
    request.project_id = "something"


NOBODY = (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "authorization")
WHO: dict[str, tuple[Callable[[Keys], str], Change | None, tuple[grpc.StatusCode, str, str]]] = {
    "unknown key": (lambda keys: "no-such-key", None, NOBODY),
    "empty key": (lambda keys: "", None, NOBODY),
    "method not granted": (
        lambda keys: keys.reader,
        None,
        (grpc.StatusCode.PERMISSION_DENIED, "CALLER_FORBIDDEN", ""),
    ),
    "user named without the right": (
        lambda keys: keys.modest,
        with_user,
        (grpc.StatusCode.PERMISSION_DENIED, "USER_ASSERTION_FORBIDDEN", "request.user_id"),
    ),
    "project named without the right": (
        lambda keys: keys.modest,
        with_project,
        (grpc.StatusCode.PERMISSION_DENIED, "USER_ASSERTION_FORBIDDEN", "request.project_id"),
    ),
    "unknown tenant": (
        lambda keys: keys.stranger,
        None,
        (grpc.StatusCode.PERMISSION_DENIED, "UNKNOWN_TENANT", ""),
    ),
}


@pytest.mark.parametrize("case", WHO)
async def test_a_caller_without_the_right(mesh: Mesh, keys: Keys, case: str) -> None:
    key, change, expected = WHO[case]
    request = good()
    if change is not None:
        change(request)
    async with nothing_spent(mesh):
        for method, wrap in CALLS.items():
            error = await refused(mesh, ORCHESTRATOR + method, wrap(request).SerializeToString(), key(keys))
            assert (error.code, error.reason, error.field) == expected, method


async def test_a_tenant_sees_and_sets_only_its_own(mesh: Mesh, keys: Keys) -> None:
    budget = ledger_pb2.Budget(name="own", tenant_id="demo", window=ledger_pb2.BUDGET_WINDOW_DAY, limit_nano_usd=1)
    asked = ledger_pb2.SetBudgetRequest(budget=budget).SerializeToString()
    error = await refused(mesh, "/tenth.ledger.v1.LedgerService/SetBudget", asked, keys.stranger)
    assert (error.reason, error.field) == ("CROSS_TENANT_FORBIDDEN", "request.budget.tenant_id")


# Money.

LEDGER = "/tenth.ledger.v1.LedgerService/"
BUDGETS: dict[str, tuple[dict[str, Any], str, str]] = {
    "negative": ({"limit_nano_usd": -1}, "INVALID_FIELD", "request.budget.limit_nano_usd"),
    "most negative": ({"limit_nano_usd": -(2**63)}, "INVALID_FIELD", "request.budget.limit_nano_usd"),
    "no window": ({"window": 0}, "INVALID_FIELD", "request.budget.window"),
    "no name": ({"name": ""}, "REQUIRED_FIELD", "request.budget.name"),
    "no tenant": ({"tenant_id": ""}, "REQUIRED_FIELD", "request.budget.tenant_id"),
    "unknown tenant": ({"tenant_id": "nobody"}, "UNKNOWN_TENANT", ""),
    "time zone": ({"time_zone": "Mars/Olympus"}, "INVALID_FIELD", "request.budget.time_zone"),
}


@pytest.mark.parametrize("case", BUDGETS)
async def test_a_budget_that_cannot_be(mesh: Mesh, case: str) -> None:
    changes, reason, field = BUDGETS[case]
    body: dict[str, Any] = {
        "name": "monthly",
        "tenant_id": "demo",
        "window": ledger_pb2.BUDGET_WINDOW_MONTH,
        "limit_nano_usd": 10**9,
        **changes,
    }
    asked = ledger_pb2.SetBudgetRequest(budget=ledger_pb2.Budget(**body))
    before = await budgets(mesh)
    async with nothing_spent(mesh):
        error = await refused(mesh, LEDGER + "SetBudget", asked.SerializeToString())
        assert error.reason == reason
        assert error.field == field or not field
    assert await budgets(mesh) == before


async def budgets(mesh: Mesh) -> ledger_pb2.ListBudgetsResponse:
    async with Rpc(mesh.connection) as rpc:
        stub = ledger_pb2_grpc.LedgerReadServiceStub
        reply = await rpc.call("ledger", stub, "ListBudgets", ledger_pb2.ListBudgetsRequest(tenant_id="demo"))
    assert isinstance(reply, ledger_pb2.ListBudgetsResponse)
    return reply


async def only_compute(mesh: Mesh, client: Client, before: spending.Books, request_id: str) -> None:
    """A request refused after the cache was asked costs the mesh's own compute at most, and no model was asked."""
    after = await spending.rest(mesh)
    assert after.provider == before.provider
    assert after.status.open_reservation_count == 0
    assert after.status.attempt_count == before.status.attempt_count
    receipt = await client.receipt(request_id)
    assert receipt.facts.failed
    assert {item.kind for item in receipt.facts.overheads} <= {"compute"}
    assert after.total.actual_nano_usd - before.total.actual_nano_usd == receipt.actual_nano_usd
    assert receipt.actual_nano_usd == receipt.overhead_nano_usd < 100_000


async def test_an_unknown_model(mesh: Mesh, client: Client) -> None:
    before = await spending.read(mesh)
    request = good()
    request.policy.model = "gpt-99"
    with pytest.raises(TenthClientError) as caught:
        await client.complete(request)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_MODEL")
    assert caught.value.field == "request.policy.model"
    await only_compute(mesh, client, before, request.request_id)


async def test_a_model_without_a_confirmed_price(mesh: Mesh, client: Client) -> None:
    # gemini-2.5-flash is only asked by name: its price becomes one that nobody confirmed.
    price = receipt_pb2.Price(model="gemini-2.5-flash", source="imported, looked at by nobody")
    price.valid_from_time.GetCurrentTime()
    async with Rpc(mesh.connection) as rpc:
        await rpc.call(
            "ledger", ledger_pb2_grpc.LedgerServiceStub, "AddPrices", ledger_pb2.AddPricesRequest(prices=[price])
        )
    request = good()
    request.policy.model = "gemini-2.5-flash"
    until = time.monotonic() + 20
    while await explained(client, request):  # Explaining spends nothing.
        assert time.monotonic() < until, "the new price does not arrive"
        await asyncio.sleep(0.2)
    before = await spending.rest(mesh)
    with pytest.raises(TenthClientError) as caught:
        await client.complete(request)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PRICE_UNKNOWN")
    await only_compute(mesh, client, before, request.request_id)


async def explained(client: Client, request: Request) -> bool:
    try:
        await client.explain(request)
    except TenthClientError as error:
        if error.reason != "PRICE_UNKNOWN":
            raise
        return False
    return True


PRICES: dict[str, tuple[dict[str, Any], str]] = {
    "negative": ({"input_nano_usd_per_million_tokens": -1}, "INVALID_FIELD"),
    "no model": ({"model": ""}, "REQUIRED_FIELD"),
    "no source": ({"source": ""}, "REQUIRED_FIELD"),
}


@pytest.mark.parametrize("case", PRICES)
async def test_a_price_that_cannot_be(mesh: Mesh, case: str) -> None:
    changes, reason = PRICES[case]
    body: dict[str, Any] = {"model": "gpt-4o", "source": "a test", "confirmed": True, **changes}
    price = receipt_pb2.Price(**body)
    price.valid_from_time.GetCurrentTime()
    asked = ledger_pb2.AddPricesRequest(prices=[price])
    async with nothing_spent(mesh):
        error = await refused(mesh, LEDGER + "AddPrices", asked.SerializeToString())
        assert error.reason == reason
        assert error.field.startswith("request.prices[0].")


# Time.


@pytest.mark.parametrize("seconds", [0.0, 0.0005])
async def test_an_expired_deadline(mesh: Mesh, client: Client, seconds: float) -> None:
    before = await spending.read(mesh)
    for _ in range(3):
        with pytest.raises(TenthClientError) as caught:
            await client.complete(good(), timeout=seconds)
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")
        with pytest.raises(TenthClientError) as caught:
            await anext(aiter(client.stream(good(), timeout=seconds)))
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")
    after = await spending.rest(mesh)
    assert after.provider == before.provider
    assert after.total.output_token_count == before.total.output_token_count


# Files in OpenAI's format.

OK_LINE = b'{"messages": [{"role": "user", "content": "Hello"}]}\n'
FILES = {
    "bad UTF-8": (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}\n', "", "not UTF-8"),
    "half a surrogate": (
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}\n',
        "messages[0].content",
        "not UTF-8",
    ),
    "bad JSON": (b'{"messages": [\n', "", "not JSON"),
    "NaN": (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}\n', "", "NaN is not JSON"),
    "no object": (b"[1, 2]\n", "", "a JSON object is expected"),
    "unknown role": (b'{"messages": [{"role": "robot", "content": "x"}]}\n', "messages[0].role", "robot"),
    "unknown key": (b'{"messages": [{"role": "user", "content": "x"}], "temprature": 1}\n', "temprature", "not known"),
    "too deep": (b'{"messages": ' + b"[" * 100_000 + b"\n", "", "not JSON"),
}


@pytest.mark.parametrize("case", FILES)
async def test_a_file_with_a_bad_line(mesh: Mesh, case: str) -> None:
    line, field, words = FILES[case]
    with pytest.raises(FormatError) as caught:
        read_jsonl(OK_LINE + line)
    assert caught.value.line == 2
    assert caught.value.field == field
    assert words in str(caught.value)


async def test_replay_plays_nothing_of_a_bad_file_and_names_what_a_good_one_was_refused(
    mesh: Mesh, tmp_path: Path
) -> None:
    async with nothing_spent(mesh):
        file = tmp_path / "bad.jsonl"
        file.write_bytes(OK_LINE + FILES["bad UTF-8"][0])
        status, _, errors = await tenth(mesh, "replay", str(file))
        assert status == 1
        assert "line 2: not UTF-8" in errors
    # Its form is right, and the mesh refuses it: an exit status of 1, the line, the reason and the field.
    file = tmp_path / "refused.jsonl"
    body = {"messages": [{"role": "user", "content": "Hi"}], "tenth": {"namespace": "../other"}}
    file.write_text(json.dumps(body) + "\n", "utf-8")
    async with nothing_spent(mesh):
        status, out, errors = await tenth(mesh, "replay", str(file))
        assert status == 1
        assert "line 1: INVALID_ARGUMENT INVALID_FIELD (request.namespace)" in out, errors


async def tenth(mesh: Mesh, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", "from tenth_client.cli import main; main()", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command,
        "--data-dir",
        str(mesh.data_dir),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), errors.decode()


async def test_the_mesh_still_answers(mesh: Mesh, client: Client, keys: Keys) -> None:
    answer = await client.complete(good())
    assert answer.text
    events = [event async for event in client.stream(good())]
    assert events[-1].finished is not None
    async with Client(mesh.address("orchestrator"), keys.modest) as modest:
        assert (await modest.complete(good())).text
    after = await spending.rest(mesh)
    assert after.status.open_reservation_count == 0
