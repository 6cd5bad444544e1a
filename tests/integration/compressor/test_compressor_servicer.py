"""The compressor over a real socket, with a stand-in cache that embeds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.compressor.v1 import compressor_pb2, compressor_pb2_grpc
from tenth.type.v1 import chat_pb2, usage_pb2

from mesh.catalog import WatchedFile
from mesh.errors import Code, TenthError
from mesh.testing import dial, running
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
from services.compressor.vectors import PromptVectors, rough_tokens
from services.compressor.weights import load

AT = datetime(2026, 11, 26, tzinfo=UTC)
USER, SYSTEM, ASSISTANT = chat_pb2.ROLE_USER, chat_pb2.ROLE_SYSTEM, chat_pb2.ROLE_ASSISTANT
CHUNKS = [
    "Pasta is boiled in salted water.",
    "Refunds are possible within 14 days of purchase.",
    "The office is closed on Sundays.",
    "A refund is paid to the card that was used.",
    "Bananas are yellow.",
]


class FakeCache(cache_pb2_grpc.CacheServiceServicer):
    """Embeds by whether a text speaks of refunds."""

    def __init__(self) -> None:
        self.embedder = "multilingual-e5-small@1"
        self.error: TenthError | None = None
        self.delay_seconds = 0.0
        self.asked: list[list[str]] = []

    async def Embed(self, request: cache_pb2.EmbedRequest, context: Any) -> cache_pb2.EmbedResponse:
        self.asked.append(list(request.texts))
        await asyncio.sleep(self.delay_seconds)
        if self.error is not None:
            raise self.error
        return cache_pb2.EmbedResponse(
            embeddings=[
                chat_pb2.Embedding(values=[1.0, 0.0] if "efund" in text else [0.0, 1.0], embedder=self.embedder)
                for text in request.texts
            ],
            compute_micros=500,
        )


class Mesh:
    """A running compressor and the cache behind it."""

    def __init__(self, stub: compressor_pb2_grpc.CompressorServiceAsyncStub, cache: FakeCache) -> None:
        self.stub = stub
        self.cache = cache
        self.now = 0.0

    async def compress(
        self, question: str = "Can I get a refund?", **more: Any
    ) -> compressor_pb2.CompressPromptResponse:
        return await self.stub.CompressPrompt(ask(question, **more), timeout=20)


def no_summaries(catalog: WatchedFile[dict[str, Model]]) -> SummaryStep:
    """As where no inference service is set."""
    made = Summaries(SummarySettings(), SummaryStore(1), 0.0, lambda: 0.0)
    return SummaryStep(None, "", made, catalog, SummaryTimes(0.0, 1.0), lambda: datetime(2026, 11, 26, tzinfo=UTC), str)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        cache = FakeCache()  # type: ignore[abstract]  # Only what is called is played.
        address = await stack.enter_async_context(
            running(cache_pb2_grpc.add_CacheServiceServicer_to_server, cache, "tenth.cache.v1.CacheService", tmp_path)
        )
        behind = await stack.enter_async_context(dial(address))
        catalog = WatchedFile(Path("deploy/catalog.yaml"), parse_catalog)
        corrections = Corrections()
        counters = TokenCounters(tmp_path, 1 << 20, corrections)
        counters.load(catalog.current.values())
        made: list[Mesh] = []
        embeddings = Embeddings(cache_pb2_grpc.CacheServiceStub(behind), 0.25, 2.0, 100, lambda: made[0].now)
        prefixes = PrefixTracker(lambda: made[0].now, 1000)
        fitted = load()
        memory = Documents(counters.plain, 1 << 20)
        vectors = PromptVectors(embeddings, memory, Documents(rough_tokens, 1 << 20), fitted, 8)
        servicer = CompressorServicer(
            catalog,
            counters,
            plans(8000, 200, history_settings()),
            vectors,
            50_000,
            prefixes,
            SettledUsage(corrections, None),
            lambda: AT,
            no_summaries(catalog),
        )
        target = await stack.enter_async_context(
            running(
                compressor_pb2_grpc.add_CompressorServiceServicer_to_server,
                servicer,
                "tenth.compressor.v1.CompressorService",
                tmp_path,
            )
        )
        channel = await stack.enter_async_context(dial(target))
        made.append(Mesh(compressor_pb2_grpc.CompressorServiceStub(channel), cache))
        yield made[0]


def message(text: str, role: int = USER) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(role=role, parts=[chat_pb2.ContentPart(text=text)])  # type: ignore[arg-type]  # A number.


def ask(
    question: str = "Can I get a refund?",
    mode: int = chat_pb2.COMPRESSION_MODE_UNSPECIFIED,
    chunks: list[str] | None = None,
    edit: Callable[[chat_pb2.CompletionRequest], Any] | None = None,
    model: str = "gpt-4o",
    **more: Any,
) -> compressor_pb2.CompressPromptRequest:
    request = chat_pb2.CompletionRequest(
        messages=[message(question)],
        retrieved_chunks=[
            chat_pb2.RetrievedChunk(chunk_id=str(at), text=text, document_id="d")
            for at, text in enumerate(chunks or [])
        ],
        policy=chat_pb2.RequestPolicy(compression_mode=mode),  # type: ignore[arg-type]  # A number.
    )
    if edit is not None:
        edit(request)
    return compressor_pb2.CompressPromptRequest(request=request, model=model, **more)


def with_system(text: str) -> Callable[[chat_pb2.CompletionRequest], Any]:
    return lambda request: request.messages.insert(0, message(text, SYSTEM))


async def test_chunks_are_ranked_by_vectors_and_keep_their_order(mesh: Mesh) -> None:
    given = chat_pb2.Embedding(values=[1.0, 0.0], embedder="multilingual-e5-small@1")
    aggressive = chat_pb2.COMPRESSION_MODE_AGGRESSIVE
    response = await mesh.compress(chunks=CHUNKS, mode=aggressive, embedding=given)
    assert [chunk.chunk_id for chunk in response.retrieved_chunks] == ["1", "3"]
    assert response.retrieved_chunks[0].document_id == "d"
    (step,) = response.strategies
    assert (step.strategy, step.reason) == ("retrieval", "2 of 5 chunks kept by embedding similarity and words")
    assert step.removed_token_count == response.original_input_token_count - response.compressed_input_token_count > 0
    assert response.compute_micros >= 500
    assert mesh.cache.asked == [CHUNKS]  # The question's vector was given.
    again = await mesh.compress(chunks=CHUNKS, mode=aggressive, embedding=given)
    assert again.retrieved_chunks == response.retrieved_chunks
    assert len(mesh.cache.asked) == 1  # Vectors of chunks are kept.


async def test_without_a_vector_the_question_is_embedded_too(mesh: Mesh) -> None:
    response = await mesh.compress(chunks=CHUNKS, mode=chat_pb2.COMPRESSION_MODE_AGGRESSIVE)
    assert [chunk.chunk_id for chunk in response.retrieved_chunks] == ["1", "3"]
    assert mesh.cache.asked[0][-1] == "Can I get a refund?"


async def test_a_cache_that_is_down_leaves_bm25_and_is_not_asked_at_once_again(mesh: Mesh) -> None:
    mesh.cache.error = TenthError(Code.UNAVAILABLE, "GONE", "gone")
    for _ in range(2):
        response = await mesh.compress(
            "Is a refund paid to the card?", chunks=CHUNKS, mode=chat_pb2.COMPRESSION_MODE_AGGRESSIVE
        )
        assert "3" in [chunk.chunk_id for chunk in response.retrieved_chunks]
        assert "BM25 (the cache " in response.strategies[0].reason
    assert len(mesh.cache.asked) == 1
    mesh.cache.error = None
    mesh.now = 3.0
    response = await mesh.compress(chunks=CHUNKS, mode=chat_pb2.COMPRESSION_MODE_AGGRESSIVE)
    assert "embedding similarity" in response.strategies[0].reason


async def test_a_late_cache_is_not_waited_for(mesh: Mesh) -> None:
    mesh.cache.delay_seconds = 5.0
    started = asyncio.get_running_loop().time()
    response = await mesh.compress(chunks=CHUNKS, mode=chat_pb2.COMPRESSION_MODE_AGGRESSIVE)
    assert asyncio.get_running_loop().time() - started < 3.0
    assert "BM25 (the cache is late" in response.strategies[0].reason


async def test_korean_is_not_ranked_by_an_embedder_that_cannot_read_it(mesh: Mesh) -> None:
    chunks = [
        "배송은 이틀이 걸립니다.",
        "환불은 구매 후 14일 안에 신청합니다.",
        "바나나는 노랗습니다.",
        "환불 금액은 카드로 돌려드립니다.",
    ]
    response = await mesh.compress(
        "환불은 며칠 안에 신청해야 하나요?",
        chunks=chunks,
        mode=chat_pb2.COMPRESSION_MODE_AGGRESSIVE,
        embedding=chat_pb2.Embedding(values=[0.0, 1.0], embedder="all-MiniLM-L6-v2@1"),
    )
    assert "1" in [chunk.chunk_id for chunk in response.retrieved_chunks]
    assert "BM25 (all-MiniLM-L6-v2@1 cannot read Korean)" in response.strategies[0].reason
    assert mesh.cache.asked == []


async def test_vectors_of_two_embedders_never_meet(mesh: Mesh) -> None:
    given = chat_pb2.Embedding(values=[1.0, 0.0], embedder="another@1")
    response = await mesh.compress(chunks=CHUNKS, mode=chat_pb2.COMPRESSION_MODE_AGGRESSIVE, embedding=given)
    assert "BM25 (the question's vector is of another@1" in response.strategies[0].reason
    await mesh.compress(chunks=CHUNKS, mode=chat_pb2.COMPRESSION_MODE_AGGRESSIVE)
    mesh.cache.embedder = "newer@1"
    more = [*CHUNKS, "New refund terms hold since May."]
    given = chat_pb2.Embedding(values=[1.0, 0.0], embedder="newer@1")
    response = await mesh.compress(chunks=more, mode=chat_pb2.COMPRESSION_MODE_BALANCED, embedding=given)
    assert "embedding similarity" in response.strategies[0].reason
    assert mesh.cache.asked[-1] == more  # The kept vectors of the former embedder were of no use.


async def test_counts_for_the_answering_and_the_baseline_model(mesh: Mesh) -> None:
    response = await mesh.compress(
        edit=with_system("You are a helpful assistant.   Be   brief."),
        model="gpt-4o-mini",
        baseline_model="claude-opus-4-7",
    )
    assert response.messages[0].parts[0].text == "Be brief."
    assert response.compressed_input_token_count < response.original_input_token_count
    assert response.baseline_input_token_count == -(-response.original_input_token_count * 6 // 5)
    assert response.estimated
    assert response.stable_prefix_message_count == 1
    counted = await mesh.stub.CountTokens(
        compressor_pb2.CountTokensRequest(
            request=ask(edit=with_system("You are a helpful assistant.   Be   brief.")).request,
            models=["claude-opus-4-7", "gpt-4o-mini"],
        )
    )
    assert [item.input_token_count for item in counted.counts] == [
        response.baseline_input_token_count,
        response.original_input_token_count,
    ]
    assert [item.model for item in counted.counts] == ["claude-opus-4-7", "gpt-4o-mini"]


async def test_off_sends_the_prompt_as_it_is(mesh: Mesh) -> None:
    request = ask(
        "a   b", chat_pb2.COMPRESSION_MODE_OFF, CHUNKS, with_system("You are a helpful assistant.  \n\n\n\nx")
    )
    response = await mesh.stub.CompressPrompt(request, timeout=5)
    assert list(response.messages) == list(request.request.messages)
    assert list(response.retrieved_chunks) == list(request.request.retrieved_chunks)
    assert response.compressed_input_token_count == response.original_input_token_count > 0
    assert mesh.cache.asked == []


async def test_what_is_not_text_comes_through(mesh: Mesh) -> None:
    def edit(request: chat_pb2.CompletionRequest) -> None:
        picture = chat_pb2.ContentPart(image=chat_pb2.ImageContent(url="https://example.com/a.png", detail="low"))
        request.messages[0].parts.insert(0, picture)
        request.messages[0].name = "ann"
        call = chat_pb2.ToolCall(id="1", name="find", arguments_json='{"q":  "x"}')
        request.messages.insert(0, chat_pb2.ChatMessage(role=ASSISTANT, tool_calls=[call], reasoning="hm"))
        request.messages.insert(1, message("a   result", chat_pb2.ROLE_TOOL))
        request.messages[1].tool_call_id = "1"
        request.tools.add(name="find", parameters_json_schema="{not json")

    request = ask("many      blanks      here", edit=edit)
    response = await mesh.stub.CompressPrompt(request, timeout=5)
    assert list(response.messages[:2]) == list(request.request.messages[:2])
    last = response.messages[2]
    assert (last.name, last.parts[0].image.detail, last.parts[1].text) == ("ann", "low", "many blanks here")


async def test_the_same_prompt_gives_the_same_bytes(mesh: Mesh) -> None:
    request = ask(chunks=CHUNKS, mode=chat_pb2.COMPRESSION_MODE_BALANCED, edit=with_system("Be   brief.  \n\n\n\nx"))
    first, second = [await mesh.stub.CompressPrompt(request, timeout=5) for _ in range(2)]
    for response in (first, second):
        response.compute_micros = 0
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (compressor_pb2.CompressPromptRequest(model="gpt-4o"), "REQUIRED_FIELD", "request.messages"),
        (ask(model=""), "REQUIRED_FIELD", "model"),
        (ask(model="gpt-9"), "UNKNOWN_MODEL", "model"),
        (ask(baseline_model="gpt-9"), "UNKNOWN_MODEL", "baseline_model"),
        (ask(context_window_tokens=-1), "INVALID_FIELD", "context_window_tokens"),
        (ask(mode=99), "INVALID_FIELD", "request.policy.compression_mode"),
        (ask(edit=lambda request: request.messages.add()), "INVALID_FIELD", "request.messages[1].role"),
        (ask("word " * 2_000_000), "PROMPT_TOO_LONG", "request.messages"),
        (ask("a few words", context_window_tokens=5), "PROMPT_TOO_LONG", "request.messages"),
    ],
)
async def test_refusals(mesh: Mesh, request_: compressor_pb2.CompressPromptRequest, reason: str, field: str) -> None:
    with pytest.raises(TenthError) as caught:
        await mesh.stub.CompressPrompt(request_, timeout=60)
    assert (caught.value.code, caught.value.reason, caught.value.field) == (Code.INVALID_ARGUMENT, reason, field)
    assert (await mesh.compress()).compressed_input_token_count > 0  # It goes on serving.


async def test_counting_for_an_unknown_model_names_it(mesh: Mesh) -> None:
    with pytest.raises(TenthError) as caught:
        await mesh.stub.CountTokens(
            compressor_pb2.CountTokensRequest(request=ask().request, models=["gpt-4o", "gpt-9"]), timeout=5
        )
    assert (caught.value.reason, caught.value.field) == ("UNKNOWN_MODEL", "models[1]")


async def test_a_long_prompt_does_not_hold_up_a_short_one(mesh: Mesh) -> None:
    text = "".join(f"Sentence number {number} says {number * 7919 % 1000003}. " for number in range(60_000))
    long = asyncio.create_task(mesh.compress(question=text, context_window_tokens=10_000_000))
    await asyncio.sleep(0.05)
    await mesh.compress()
    assert not long.done()  # The short one came through while the long one was counted.
    assert (await long).original_input_token_count > 100_000


def preview_of(request: compressor_pb2.CompressPromptRequest) -> compressor_pb2.PreviewCompressionRequest:
    return compressor_pb2.PreviewCompressionRequest(compression=request)


async def test_the_answer_says_what_was_cut_and_what_it_saves(mesh: Mesh) -> None:
    response = await mesh.compress(
        chunks=CHUNKS, mode=chat_pb2.COMPRESSION_MODE_AGGRESSIVE, edit=with_system("Be   brief.   Be  kind.")
    )
    cleanup, retrieval = response.strategies
    assert (cleanup.before_token_count, retrieval.after_token_count) == (
        response.original_input_token_count,
        response.compressed_input_token_count,
    )
    assert cleanup.after_token_count == retrieval.before_token_count
    assert list(cleanup.edited_message_indexes) == [0]
    assert list(retrieval.cut_chunk_indexes) == [0, 2, 4]
    # gpt-4o's input is 2,500 nano-USD a token; so short a prompt is never cached.
    removed = response.original_input_token_count - response.compressed_input_token_count
    assert response.expected_saving_nano_usd == removed * 2500
    assert response.prompt_cache_probability == 0
    assert response.prefix_version


async def test_a_look_changes_nothing(mesh: Mesh) -> None:
    request = ask(chunks=CHUNKS, mode=chat_pb2.COMPRESSION_MODE_AGGRESSIVE, edit=with_system("Rule. " * 900))
    looks = [await mesh.stub.PreviewCompression(preview_of(request), timeout=5) for _ in range(3)]
    for look in looks:
        look.compression.compute_micros = 0
    assert looks[0] == looks[1] == looks[2]
    assert list(looks[0].message_indexes) == [0, 1]
    assert list(looks[0].chunk_indexes) == [1, 3]
    assert looks[0].input_nano_usd_per_million_tokens == 2 * looks[0].cached_input_nano_usd_per_million_tokens
    with pytest.raises(TenthError) as caught:
        await mesh.stub.PreviewCompression(preview_of(ask(model="none")), timeout=5)
    assert (caught.value.reason, caught.value.field) == ("UNKNOWN_MODEL", "compression.model")


async def test_what_the_provider_says_is_believed(mesh: Mesh) -> None:
    probabilities = []
    for number in range(40):
        request = ask(f"Question {number}", edit=with_system("Rule. " * 1500))
        request.request.request_id = f"request-{number}"
        probabilities.append((await mesh.stub.CompressPrompt(request, timeout=5)).prompt_cache_probability)
        usage = usage_pb2.Usage(input_token_count=2000, cached_input_token_count=0)
        report = compressor_pb2.RecordUsageRequest(request_id=f"request-{number}", model="gpt-4o", usage=usage)
        assert (await mesh.stub.RecordUsage(report, timeout=5)).counted
        assert not (await mesh.stub.RecordUsage(report, timeout=5)).counted
    assert probabilities[-1] < 0.25 < probabilities[1]


@pytest.mark.parametrize(
    ("report", "reason", "field"),
    [
        (compressor_pb2.RecordUsageRequest(model="gpt-4o"), "REQUIRED_FIELD", "request_id"),
        (compressor_pb2.RecordUsageRequest(request_id="a", model="none"), "UNKNOWN_MODEL", "model"),
        (
            compressor_pb2.RecordUsageRequest(
                request_id="a", model="gpt-4o", usage=usage_pb2.Usage(cached_input_token_count=5)
            ),
            "INVALID_FIELD",
            "usage.cached_input_token_count",
        ),
    ],
)
async def test_a_report_of_bad_form(
    mesh: Mesh, report: compressor_pb2.RecordUsageRequest, reason: str, field: str
) -> None:
    with pytest.raises(TenthError) as caught:
        await mesh.stub.RecordUsage(report, timeout=5)
    assert (caught.value.code, caught.value.reason, caught.value.field) == (Code.INVALID_ARGUMENT, reason, field)


async def test_switches_and_budgets(mesh: Mesh) -> None:
    off = compressor_pb2.StrategyOverride(strategy="cleanup", enabled=False)
    response = await mesh.compress(edit=with_system("Be   brief."), strategy_overrides=[off])
    assert response.messages[0].parts[0].text == "Be   brief."
    for overrides in ([off, off], [compressor_pb2.StrategyOverride(strategy="magic", enabled=True)]):
        with pytest.raises(TenthError) as caught:
            await mesh.compress(strategy_overrides=overrides)
        assert (caught.value.reason, caught.value.field) == ("UNKNOWN_STRATEGY", "strategy_overrides")
    small = await mesh.compress(chunks=CHUNKS, token_budget=40)
    assert small.compressed_input_token_count <= 40 < small.original_input_token_count
    with pytest.raises(TenthError) as caught:
        await mesh.compress(chunks=CHUNKS, token_budget=5)
    assert caught.value.reason == "BUDGET_TOO_SMALL"
    assert int(caught.value.metadata["over_token_count"]) == int(caught.value.metadata["input_token_count"]) - 5
    with pytest.raises(TenthError, match="INVALID_FIELD"):
        await mesh.compress(token_budget=0)


async def test_chunks_are_left_in_part_and_not_cut_twice(mesh: Mesh) -> None:
    passage = (
        "A refund is paid to the card that was used within fourteen days of the purchase. The hall downstairs was "
        "painted green by the former owner, who kept goats and sang in the village choir for many happy years. "
        "Visitors admire its ceiling, which three brothers from the valley carved out of pear wood one long winter."
    )
    asked = ask("Within how many days is a refund paid to the card?", chunks=[passage, CHUNKS[0]])
    asked.token_budget = 60
    response = await mesh.stub.CompressPrompt(asked, timeout=5)
    assert response.compressed_input_token_count <= 60
    assert list(response.strategies[-1].edited_chunk_indexes) == [0]
    first = response.retrieved_chunks[0]
    assert (first.chunk_id, first.settled) == ("0", True)
    assert "fourteen days" in first.text
    assert first.text in passage
    assert len(first.text) < len(passage)
    del asked.request.retrieved_chunks[:]
    asked.request.retrieved_chunks.extend(response.retrieved_chunks)
    again = await mesh.stub.CompressPrompt(asked, timeout=5)
    assert list(again.retrieved_chunks) == list(response.retrieved_chunks)
    assert not again.strategies


async def test_history_is_chosen_by_what_the_question_is_about(mesh: Mesh) -> None:
    def edit(request: chat_pb2.CompletionRequest) -> None:
        for number in range(30):
            request.messages.insert(2 * number, message(f"Tell me something about hobby number {number} of my aunt."))
            request.messages.insert(2 * number + 1, message(f"Hobby {number} is old and needs patience.", ASSISTANT))
        request.messages[8].parts[0].text = "My passport is kept in the blue drawer."

    response = await mesh.compress(
        "Where is my passport kept?", mode=chat_pb2.COMPRESSION_MODE_AGGRESSIVE, edit=edit, model="gpt-4o"
    )
    texts = [each.parts[0].text for each in response.messages]
    assert "My passport is kept in the blue drawer." in texts
    assert len(texts) < 30
    assert response.compressed_input_token_count <= 210
    assert [step.strategy for step in response.strategies] == ["history"]


async def test_what_was_billed_corrects_estimated_counts(mesh: Mesh) -> None:
    model = "claude-opus-4-7"
    request = ask("How long is the warranty, and whom do I call about it? " * 8, model=model)
    first = await mesh.stub.CompressPrompt(request, timeout=5)
    assert (first.estimated, first.token_correction) == (True, 1.0)
    for number in range(40):
        report = compressor_pb2.RecordUsageRequest(
            request_id=f"r{number}",
            model=model,
            usage=usage_pb2.Usage(input_token_count=round(first.compressed_input_token_count * 1.25)),
            told_input_token_count=first.compressed_input_token_count,
            token_correction=first.token_correction,
        )
        await mesh.stub.RecordUsage(report, timeout=5)
    later = await mesh.stub.CompressPrompt(request, timeout=5)
    assert later.token_correction == pytest.approx(1.25, abs=0.02)
    assert later.compressed_input_token_count == pytest.approx(1.25 * first.compressed_input_token_count, rel=0.03)


async def test_of_many_new_chunks_those_that_words_put_first_are_embedded(mesh: Mesh) -> None:
    chunks = [f"Passage {number} is about the history of town {number} and its mills." for number in range(14)]
    chunks[12] = "A refund is paid to the card that was used."
    response = await mesh.compress("Is a refund paid to the card?", chunks=chunks)
    (asked,) = mesh.cache.asked
    assert asked[-1] == "Is a refund paid to the card?"
    assert chunks[12] in asked
    assert len(asked) == 9
    assert "12" in [chunk.chunk_id for chunk in response.retrieved_chunks]
    assert "embedding similarity" in response.strategies[0].reason
    await mesh.compress("Is a refund paid to the card?", chunks=chunks)
    assert set(asked).isdisjoint(mesh.cache.asked[1])  # The others, now that these are kept.


async def test_messages_are_embedded_where_few_are_new(mesh: Mesh) -> None:
    def edit(request: chat_pb2.CompletionRequest) -> None:
        for number in range(5):
            request.messages.insert(2 * number, message(f"Of town {number}: " + "mills and bridges, " * 10))
            request.messages.insert(2 * number + 1, message("It is old.", ASSISTANT))
        request.messages[2].parts[0].text = "My refund went to the wrong card. " + "It was a long day. " * 10

    aggressive = chat_pb2.COMPRESSION_MODE_AGGRESSIVE
    given = chat_pb2.Embedding(values=[1.0, 0.0], embedder=mesh.cache.embedder)
    response = await mesh.compress("And my refund?", mode=aggressive, edit=edit, embedding=given)
    (asked,) = mesh.cache.asked
    assert len(asked) == 7  # Each text once.
    assert "embedding similarity and words" in response.strategies[-1].reason
    texts = [each.parts[0].text for each in response.messages]
    assert any("wrong card" in text for text in texts)
    mesh.cache.error = TenthError(Code.UNAVAILABLE, "GONE", "gone")
    mesh.now = 100.0
    other = await mesh.compress("And my refund, please?", mode=aggressive, edit=edit)
    assert "by words" in other.strategies[-1].reason
