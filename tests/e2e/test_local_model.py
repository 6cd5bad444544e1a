"""The mesh with the real engine: SmolLM2 on vLLM answers, is counted, traced, stopped and bound to a schema.

One engine start serves the whole module; its tests share the mesh and do not break it.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

import books
import grpc
import pytest
import pytest_asyncio
import spending
from conftest import MODELS_DIR, started
from tenth.compressor.v1 import compressor_pb2, compressor_pb2_grpc
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.trace.v1 import trace_pb2, trace_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from formats.openai import text_message
from tenth_client import Answer, Client, TenthClientError
from tenth_client.local import missing_local_model
from tenth_client.rpc import Rpc
from tenth_client.up import Mesh, MeshOptions

MODEL = "smollm2-135m"
MISSING = missing_local_model(MeshOptions().deploy_dir, MODELS_DIR)
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(bool(MISSING), reason=MISSING or "the model can run"),
]
Receipt = receipt_pb2.Receipt


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh with the engine; paid models stay with the instant sandbox, which is not asked here."""
    async with started(tmp_path_factory.mktemp("local"), local_model=True) as mesh:
        yield mesh


@pytest_asyncio.fixture(loop_scope="module")
async def asking(own: Mesh) -> AsyncIterator[Client]:
    async with Client(own.address("orchestrator"), own.api_key, timeout=120) as client:
        yield client


def question(text: str, tokens: int = 16, model: str = "") -> chat_pb2.CompletionRequest:
    """A request of one question, never from the cache, with greedy sampling."""
    request = chat_pb2.CompletionRequest(
        request_id=str(uuid.uuid4()),
        messages=[
            text_message(chat_pb2.ROLE_SYSTEM, "You answer customers of a shop in one short sentence."),
            text_message(chat_pb2.ROLE_USER, text),
        ],
        policy=chat_pb2.RequestPolicy(cache_mode=chat_pb2.CACHE_MODE_OFF, model=model),
    )
    request.sampling.temperature = 0
    request.sampling.max_output_tokens = tokens
    return request


async def counted(mesh: Mesh, request: chat_pb2.CompletionRequest) -> int:
    """The prompt's tokens as the compressor counts them for the local model."""
    asked = compressor_pb2.CountTokensRequest(request=request, models=[MODEL])
    async with Rpc(mesh.connection) as rpc:
        reply = await rpc.call("compressor", compressor_pb2_grpc.CompressorServiceStub, "CountTokens", asked)
    (count,) = reply.counts
    assert not count.estimated
    return int(count.input_token_count)


async def check_receipt(mesh: Mesh, request: chat_pb2.CompletionRequest, receipt: Receipt) -> None:
    """The engine's own count of the prompt is the compressor's, to the token, and was paid by the model's price."""
    facts = receipt.facts
    assert facts.model == MODEL
    assert facts.quantized, "the catalogue's local model is the int8 folder"
    assert books.holds(receipt)
    assert facts.usage.input_token_count == facts.original_input_token_count == await counted(mesh, request)
    assert 0 < facts.usage.output_token_count <= request.sampling.max_output_tokens
    assert not facts.usage.estimated
    assert receipt.baseline_nano_usd > receipt.actual_nano_usd > 0


async def test_a_question_to_the_named_model_whole(own: Mesh, asking: Client) -> None:
    before = await spending.read(own)
    request = question("How do I reset my password?", model=MODEL)
    answer = await asking.complete(request)
    assert isinstance(answer, Answer)
    assert answer.text
    await check_receipt(own, request, answer.receipt)
    assert (await spending.read(own)).provider == before.provider, "no provider was asked"
    (final,) = await books.final_receipts(asking, [request.request_id])
    assert final.actual_nano_usd == answer.receipt.actual_nano_usd
    await check_trace(own, answer.receipt)


async def test_the_router_chooses_it_for_a_plain_question_streamed(own: Mesh, asking: Client) -> None:
    request = question("What is the capital of France?")
    events = [event async for event in asking.stream(request)]
    assert events[0].started is not None
    finished = events[-1].finished
    assert finished is not None
    text = "".join(event.text for event in events)
    assert "Paris" in text
    assert sum(bool(event.text) for event in events) > 1, "piece by piece"
    await check_receipt(own, request, finished.receipt)
    # Greedy: asked again, whole, it says the same, and the engine has the prompt's prefix at hand or not: same count.
    again = question("What is the capital of France?")
    answer = await asking.complete(again)
    assert answer.text == text
    assert answer.receipt.facts.usage.input_token_count == finished.usage.input_token_count
    await check_trace(own, finished.receipt)


async def check_trace(mesh: Mesh, receipt: Receipt) -> None:
    """vLLM's own span is in the request's trace, under the inference service's span of the attempt."""
    until = time.monotonic() + 40
    spans: dict[str, trace_pb2.Span] = {}
    while not any(span.service == "vllm" for span in spans.values()):
        assert time.monotonic() < until, f"no span of vLLM in {[(span.service, span.name) for span in spans.values()]}"
        await asyncio.sleep(0.3)
        async with Rpc(mesh.connection) as rpc:
            asked = trace_pb2.GetTraceRequest(trace_id=receipt.facts.trace_id)
            reply = await rpc.call("collector", trace_pb2_grpc.TraceServiceStub, "GetTrace", asked)
        spans = {span.span_id: span for span in reply.spans}
    (engine,) = (span for span in spans.values() if span.service == "vllm")
    assert engine.name == "llm_request"
    attempt = spans[engine.parent_span_id]
    assert (attempt.service, attempt.name) == ("inference", f"chat {MODEL}")
    assert attempt.attributes["gen_ai.usage.input_tokens"] == str(receipt.facts.usage.input_token_count)
    assert engine.attributes["gen_ai.usage.prompt_tokens"] == str(receipt.facts.usage.input_token_count)
    assert engine.attributes["gen_ai.usage.completion_tokens"] == str(receipt.facts.usage.output_token_count)


async def test_a_caller_that_leaves_frees_the_engine(own: Mesh, asking: Client) -> None:
    request = question("Tell a very long story about a lighthouse, with many chapters.", 1500, model=MODEL)
    pieces = 0
    async with aclosing(asking.stream(request)) as events:  # type: ignore[type-var]  # an async generator, typed as an iterator
        async for event in events:
            pieces += bool(event.text)
            if pieces == 3:
                break
    until = time.monotonic() + 20
    while await running(own):
        assert time.monotonic() < until, "the engine still works on it"
        await asyncio.sleep(0.1)
    await spending.rest(own)
    (receipt,) = await books.final_receipts(asking, [request.request_id])
    assert receipt.facts.failed
    assert receipt.facts.cancelled
    (attempt,) = (item for item in receipt.facts.overheads if item.model)
    assert attempt.model == MODEL
    assert attempt.usage.input_token_count == await counted(own, request)
    assert pieces <= attempt.usage.output_token_count < 1500
    assert (await asking.complete(question("What is the capital of Italy?", model=MODEL))).text


async def running(mesh: Mesh) -> int:
    async with Rpc(mesh.connection) as rpc:
        stub = inference_pb2_grpc.InferenceServiceStub
        reply = await rpc.call("inference", stub, "ListServedModels", inference_pb2.ListServedModelsRequest())
    (model,) = (item for item in reply.models if item.model == MODEL)
    assert (model.backend, model.healthy) == ("vllm", True)
    return int(model.running_count)


async def test_an_answer_to_a_schema(own: Mesh, asking: Client) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    request = question("Give the capital of France as JSON.", 40, model=MODEL)
    request.response_format.kind = chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA
    request.response_format.name = "capital"
    request.response_format.json_schema = json.dumps(schema)
    answer = await asking.complete(request)
    assert answer.completion.finish_reason == chat_pb2.FINISH_REASON_STOP
    parsed = json.loads(answer.text)
    assert set(parsed) == {"city", "big"}
    assert parsed["city"] in ("Paris", "Rome")


async def test_what_the_model_cannot_do_is_refused_unspent(own: Mesh, asking: Client) -> None:
    long = question("word " * 20_000, model=MODEL)
    # Only the clean-up: the prompt must not be cut to fit.
    long.policy.compression_mode = chat_pb2.COMPRESSION_MODE_OFF
    tools = question("What is the weather in Rome?", model=MODEL)
    tools.tools.add(name="weather", parameters_json_schema='{"type": "object"}')
    before = await spending.rest(own)
    for request, code, reasons in (
        (long, grpc.StatusCode.INVALID_ARGUMENT, {"PROMPT_TOO_LONG"}),
        (tools, grpc.StatusCode.FAILED_PRECONDITION, {"NO_ELIGIBLE_MODEL"}),
    ):
        with pytest.raises(TenthClientError) as caught:
            await asking.complete(request)
        assert caught.value.code is code
        assert caught.value.reason in reasons
    after = await spending.rest(own)
    assert after.provider == before.provider
    receipts = await books.final_receipts(asking, [long.request_id, tools.request_id])
    assert all(receipt.facts.failed for receipt in receipts)
    assert not [item for receipt in receipts for item in receipt.facts.overheads if item.usage.input_token_count]


async def test_a_text_is_pruned_by_it_once_and_the_ledger_hears_of_it(own: Mesh) -> None:
    """The last test of the module: the attempt is no request's, so the books do not rest before the ledger's sweep."""
    text = (
        "The lighthouse keeper of the island climbed the old stairs of the tower every single evening, and then he lit "
        "the big lamp at the top with a long match. He did not sleep before 5 a.m. in the winter of 1923. Who would?\n"
    )
    before = (await books.status(own)).unreceipted_request_count
    async with Rpc(own.connection) as rpc:
        stub = compressor_pb2_grpc.CompressorServiceStub
        asked = compressor_pb2.PruneTextRequest(text=text, model="gpt-4o", share=0.2)
        found = await rpc.call("compressor", stub, "PruneText", asked, seconds=60)
    assert found.reached
    assert found.pruned_token_count <= found.original_token_count * 0.8 + 1
    assert found.saving_nano_usd == (found.original_token_count - found.pruned_token_count) * 2500
    assert all(each in found.text for each in ("did not sleep before 5 a.m.", "1923", "Who would?\n"))
    (item,) = found.overheads
    assert (item.kind, item.model, item.attempt, item.usage.output_token_count) == ("tokenwise", MODEL, 1601, 1)
    assert found.scoring_cost_nano_usd > 0
    until = time.monotonic() + 20
    while (await books.status(own)).unreceipted_request_count <= before:
        assert time.monotonic() < until, "the attempt did not come to the ledger"
        await asyncio.sleep(0.2)
