"""The real engine: one for the whole module, on the folder that ``make models`` builds."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tenth.type.v1 import chat_pb2

from mesh.errors import TenthError
from services.inference.convert import logprobs_to_proto
from services.inference.policy import (
    Delta,
    Finished,
    Generation,
    Message,
    Meter,
    ResponseKind,
    Sampling,
)
from services.inference.vllm import VllmBackend
from services.inference.vllm_load import EngineOptions
from services.router.checking import tokens_of
from services.router.confidence import TOP_LOGPROBS, certainty_of, read_confidence
from tests.integration.inference.span_collector import Collector

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # vLLM and torch warn of their own deprecations while they are imported.
    pytest.mark.filterwarnings("ignore"),
]

FOLDER = Path(os.environ.get("TENTH_MODELS_DIR", ".models")) / "smollm2-135m-instruct"
OPTIONS = EngineOptions(FOLDER, 2048, threads=2, kv_cache_bytes=256 * 1024 * 1024, max_running=8)
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(collector: tuple[Collector, str]) -> AsyncIterator[VllmBackend]:
    result = VllmBackend("smollm2", "local", "folder", replace(OPTIONS, otlp_endpoint=collector[1]))
    result.start()
    with pytest.raises(TenthError, match="starting"):
        await result.ping()
    for _ in range(900):
        if not result.unavailable_reason():
            break
        await asyncio.sleep(0.2)
    await result.ping()
    yield result
    await result.close()


def generation(text: str, tenant: str = "acme", **changes: Any) -> Generation:
    sampling = Sampling(**{"temperature": 0.0, "max_output_tokens": 12, **changes.pop("sampling", {})})
    return Generation(
        request_id=f"r{time.monotonic_ns()}",
        attempt=1,
        model="smollm2",
        messages=(Message("user", (text,)),),
        sampling=sampling,
        tenant_id=tenant,
        **changes,
    )


def meter() -> Meter:
    return Meter(1, len)


async def test_a_stream_and_a_whole_answer_agree(backend: VllmBackend) -> None:
    used = meter()
    events = [event async for event in backend.stream(generation("What is the capital of France?"), used)]
    text = "".join(event.text for event in events if isinstance(event, Delta))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert len(events) > 4
    assert "Paris" in text
    assert finished.finish_reason == "stop"
    assert used.usage() == finished.usage
    assert finished.usage.input > 20
    assert not finished.usage.estimated
    whole = await backend.generate(generation("What is the capital of France?"), meter())
    assert whole.delta.text == text
    assert whole.finished.usage.output == finished.usage.output
    assert whole.first_token_seconds


async def test_the_engine_counts_its_busy_time_and_its_tokens(backend: VllmBackend) -> None:
    assert backend.runs()
    await asyncio.sleep(0.1)
    backend.work.take()
    answer = await backend.generate(generation("Tell me a story.", sampling={"max_output_tokens": 9}), meter())
    await asyncio.sleep(0.5)  # Idle again.
    work = backend.work.take()
    assert work.output_tokens == answer.finished.usage.output == 9
    assert 0 < work.busy_share < 1
    await asyncio.sleep(0.1)
    idle = backend.work.take()
    assert (idle.busy_share, idle.output_tokens) == (0.0, 0)


async def test_length_stop_and_seed(backend: VllmBackend) -> None:
    long = await backend.generate(generation("Tell me a story.", sampling={"max_output_tokens": 4}), meter())
    assert (long.finished.finish_reason, long.finished.usage.output) == ("length", 4)
    cut = await backend.generate(generation("What is the capital of France?", sampling={"stop": ("Paris",)}), meter())
    assert cut.finished.finish_reason == "stop"
    assert "France" in cut.delta.text
    assert "Paris" not in cut.delta.text
    seeded = {"temperature": 1.5, "seed": 7, "max_output_tokens": 8}
    one = await backend.generate(generation("Tell me a story.", sampling=seeded), meter())
    two = await backend.generate(generation("Tell me a story.", sampling=seeded), meter())
    assert one.delta.text == two.delta.text


async def test_the_prefix_cache_is_used_within_a_tenant_only(backend: VllmBackend) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 40
    first = await backend.generate(generation(text, sampling={"max_output_tokens": 1}), meter())
    again = await backend.generate(generation(text, sampling={"max_output_tokens": 1}), meter())
    other = await backend.generate(generation(text, "rival", sampling={"max_output_tokens": 1}), meter())
    assert first.finished.usage.cached == 0
    assert again.finished.usage.cached >= 256
    assert again.finished.usage.input == first.finished.usage.input
    assert other.finished.usage.cached == 0


async def test_leaving_a_stream_frees_its_sequence_and_charges_what_was_made(backend: VllmBackend) -> None:
    used = meter()
    stream = backend.stream(generation("Tell me a long story.", sampling={"max_output_tokens": 500}), used)
    async for _ in stream:
        break
    await stream.aclose()
    await _idle(backend)
    assert 1 <= used.usage().output < 10
    whole = asyncio.create_task(
        backend.generate(generation("Tell me a long story.", sampling={"max_output_tokens": 500}), used := meter())
    )
    await asyncio.sleep(0.5)
    whole.cancel()
    with pytest.raises(asyncio.CancelledError):
        await whole
    await _idle(backend)
    assert used.usage().output < 100


async def _idle(backend: VllmBackend) -> None:
    for _ in range(100):
        if backend.engine.loaded is not None and not backend.engine.loaded.engine.has_unfinished_requests():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the engine still works on it")


async def test_several_at_once(backend: VllmBackend) -> None:
    questions = [f"What is {number} plus {number}?" for number in range(6)]
    answers = await asyncio.gather(*(backend.generate(generation(question), meter()) for question in questions))
    assert all(answer.delta.text for answer in answers)
    assert len({answer.finished.usage.input for answer in answers}) == 1


async def test_json_to_a_schema(backend: VllmBackend) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    asked = generation("Capital of France as JSON?", response=ResponseKind.JSON_SCHEMA, schema=schema)
    answer = await backend.generate(replace(asked, sampling=Sampling(temperature=0, max_output_tokens=40)), meter())
    assert answer.delta.text in ('{"city":"Paris","big":true}', '{"city":"Paris","big":false}')


async def test_a_schema_that_the_engine_cannot_do_is_refused_by_field(backend: VllmBackend) -> None:
    asked = generation("x", response=ResponseKind.JSON_SCHEMA, schema={"type": "no such type"})
    with pytest.raises(TenthError) as caught:
        await backend.generate(asked, meter())
    assert (caught.value.reason, caught.value.field) == ("UNSUPPORTED", "generation.response_format.json_schema")
    assert (await backend.generate(generation("Hello"), meter())).delta.text


async def test_log_probabilities(backend: VllmBackend) -> None:
    answer = await backend.generate(
        generation("What is the capital of France?", sampling={"top_logprobs": 2, "max_output_tokens": 3}), meter()
    )
    assert len(answer.delta.logprobs) == 3
    for item in answer.delta.logprobs:
        assert len(item.alternatives) == 2
        assert item.alternatives[0] == (item.token, item.logprob)  # greedy
        assert item.logprob <= 0


@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_a_cascades_check_can_read_them(backend: VllmBackend, temperature: float) -> None:
    """As many alternatives as the router plans with, over the wire's messages, drawn tokens included."""
    sampling = {"top_logprobs": TOP_LOGPROBS, "temperature": temperature, "seed": 7}
    answer = await backend.generate(generation("What is the capital of France?", sampling=sampling), meter())
    tokens = tokens_of(chat_pb2.Completion(logprobs=logprobs_to_proto(answer.delta)))
    found = certainty_of(tokens)
    assert found is not None
    assert found.token_count == answer.finished.usage.output == len(tokens)
    assert -1.0 <= found.min_margin <= found.mean_margin <= 1.0
    assert found.min_margin >= 0.0 or temperature > 0
    assert 0.0 < read_confidence().of(tokens, "smollm2-135m") < 1.0


SCORED = (
    "The lighthouse keeper climbed the stairs every evening, lit the lamp, and wrote the weather in a book. "
    "서울의 봄은 짧고, 벚꽃은 사월 초에 핍니다. 🙂 In winter nobody came."
)


async def test_a_prompts_log_probabilities_are_those_of_the_model(backend: VllmBackend) -> None:
    """Against transformers on the same weights, and never from the prefix cache, which has no probabilities."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = generation(SCORED, prompt_logprobs=True, sampling={"max_output_tokens": 1})
    answer = await backend.generate(asked, meter())
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    ids = tokenizer(SCORED, add_special_tokens=False, return_tensors="pt").input_ids
    assert answer.finished.usage.input == len(answer.delta.prompt) == ids.shape[1]
    assert answer.finished.usage.output == 1
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, local_files_only=True)
        logits = model(ids).logits[0, :-1]
        expected = logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
    first, *rest = answer.delta.prompt
    assert first.logprob is None
    found = [token.logprob for token in rest if token.logprob is not None]
    assert len(found) == len(rest)
    assert sum(found) == pytest.approx(float(expected.sum()), rel=0.03)
    correlation = torch.corrcoef(torch.stack([torch.tensor(found), expected]))[0, 1]
    assert correlation > 0.99, "each token's, not only their sum"
    again = await backend.generate(asked, meter())
    assert again.finished.usage.cached == 0
    assert again.delta.prompt == answer.delta.prompt


async def test_a_prompts_tokens_cover_its_characters_in_order(backend: VllmBackend) -> None:
    """Korean syllables and pictures are several tokens each; every one of those has the whole character."""
    asked = generation(SCORED, prompt_logprobs=True, sampling={"max_output_tokens": 1})
    tokens = (await backend.generate(asked, meter())).delta.prompt
    at = 0
    for token in tokens:
        assert token.start <= at <= token.end, "no character is left out"
        assert token.start < token.end
        at = token.end
    assert at == len(SCORED)
    places = [(token.start, token.end) for token in tokens]
    assert len(set(places)) < len(places), "a syllable of three bytes is more than one token"
    first = SCORED.index("서")
    assert sum(start <= first < end for start, end in places) >= 2
    assert SCORED[slice(*next(place for place in places if "evening" in SCORED[slice(*place)]))] == " evening"
    plain = await backend.generate(generation(SCORED, sampling={"max_output_tokens": 1}), meter())
    assert plain.delta.prompt == ()
    assert plain.finished.usage.input > len(tokens), "the chat template is left out only here"


@pytest.mark.parametrize(("words", "counted"), [(2500, True), (2_000_000, False)])
async def test_a_prompt_that_does_not_fit_is_refused(backend: VllmBackend, words: int, counted: bool) -> None:
    started = time.monotonic()
    with pytest.raises(TenthError) as caught:
        await backend.generate(generation("word " * words), meter())
    assert caught.value.reason == "PROMPT_TOO_LONG"
    assert ("prompt_tokens" in caught.value.metadata) is counted
    assert time.monotonic() - started < 5


async def test_the_engines_span_joins_the_trace(backend: VllmBackend, collector: tuple[Collector, str]) -> None:
    parent = "b7ad6b7169203331"
    earlier = len(collector[0].spans)  # Of another module's engine.
    await backend.generate(generation("Hello", traceparent=f"00-{TRACE_ID}-{parent}-01"), meter())
    # vLLM's exporter tries again, with longer and longer waits, while a busy machine does not answer it.
    for _ in range(600):
        found = [(name, span) for name, span in collector[0].spans[earlier:] if span.trace_id.hex() == TRACE_ID]
        if found:
            break
        await asyncio.sleep(0.1)
    name, span = found[0]
    assert (name, span.name, span.parent_span_id.hex()) == ("vllm", "llm_request", parent)
    assert "OTEL_SERVICE_NAME" not in os.environ


async def test_without_the_folder_the_model_is_unavailable_and_the_rest_is_served(tmp_path: Path) -> None:
    absent = VllmBackend("m", "local", "f", replace(OPTIONS, folder=tmp_path / "none"))
    absent.start()
    await absent.ping()
    with pytest.raises(TenthError, match="make models") as caught:
        await absent.generate(generation("x"), meter())
    assert caught.value.reason == "MODEL_UNAVAILABLE"
    await absent.close()


async def test_without_vllm_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    absent = VllmBackend("m", "local", "f", OPTIONS)
    absent.start()
    for _ in range(100):
        if "not installed" in absent.unavailable_reason():
            break
        await asyncio.sleep(0.02)
    await absent.ping()
    with pytest.raises(TenthError, match="backend: openai, base_url"):
        await absent.generate(generation("x"), meter())
    await absent.close()
