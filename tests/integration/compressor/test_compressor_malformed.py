"""What no client should send: a typed error that names the field, or a right answer, soon, beside other requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tenth.cache.v1 import cache_pb2_grpc
from tenth.compressor.v1 import compressor_pb2, compressor_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.catalog import WatchedFile
from mesh.errors import Code, TenthError
from mesh.testing import dial, running
from services.compressor import wiring
from services.compressor.catalog import parse_catalog
from services.compressor.corrections import Corrections
from services.compressor.documents import Documents
from services.compressor.embeddings import Embeddings
from services.compressor.history_weights import history_settings
from services.compressor.modes import plans
from services.compressor.prefixes import PrefixTracker
from services.compressor.servicer import CompressorServicer
from services.compressor.settings import CompressorSettings
from services.compressor.settled import SettledUsage
from services.compressor.tokens import TokenCounters
from services.compressor.vectors import PromptVectors, rough_tokens
from services.compressor.weights import load

MODEL = "gpt-4o-mini"
SYSTEM, USER, ASSISTANT, TOOL = chat_pb2.ROLE_SYSTEM, chat_pb2.ROLE_USER, chat_pb2.ROLE_ASSISTANT, chat_pb2.ROLE_TOOL
MODES = (
    chat_pb2.COMPRESSION_MODE_OFF,
    chat_pb2.COMPRESSION_MODE_SAFE,
    chat_pb2.COMPRESSION_MODE_BALANCED,
    chat_pb2.COMPRESSION_MODE_AGGRESSIVE,
)
SENTENCE = "The committee of the northern harbour met on 12 May 2019 and put off the question of the tolls. "
LONG = SENTENCE * 11_000
"""A little over a million characters: 220,000 tokens."""
SECONDS = 30
"""Far above what anything here takes on an idle core, far below what a pattern of quadratic time would."""
LAG_SECONDS = 2.0
"""The same for how long the event loop may stand still."""


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[compressor_pb2_grpc.CompressorServiceAsyncStub]:
    """A running compressor; its cache does not answer."""
    async with AsyncExitStack() as stack:
        nowhere = await stack.enter_async_context(dial(f"unix:{tmp_path / 'nowhere.sock'}"))
        catalog = WatchedFile(Path("deploy/catalog.yaml"), parse_catalog)
        corrections = Corrections()
        counters = TokenCounters(tmp_path, 1 << 20, corrections)
        counters.load(catalog.current.values())
        embeddings = Embeddings(cache_pb2_grpc.CacheServiceStub(nowhere), 0.05, 60.0, 100, time.monotonic)
        memory, rough = Documents(counters.plain, 1 << 20), Documents(rough_tokens, 1 << 20)
        servicer = CompressorServicer(
            catalog,
            counters,
            plans(8000, 3000, history_settings()),
            PromptVectors(embeddings, memory, rough, load(), 8),
            50_000,
            PrefixTracker(time.monotonic, 1000),
            SettledUsage(corrections, None),
            lambda: datetime(2026, 11, 26, tzinfo=UTC),
            wiring.summary_step(CompressorSettings(), None, catalog, stack),
        )
        register = compressor_pb2_grpc.add_CompressorServiceServicer_to_server
        address = await stack.enter_async_context(
            running(register, servicer, "tenth.compressor.v1.CompressorService", tmp_path)
        )
        yield compressor_pb2_grpc.CompressorServiceStub(await stack.enter_async_context(dial(address)))


def said(text: str, role: int = USER, **more: str) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(role=role, parts=[chat_pb2.ContentPart(text=text)], **more)  # type: ignore[arg-type]


def asked(
    *messages: chat_pb2.ChatMessage, mode: int = MODES[1], chunks: tuple[str, ...] = ()
) -> chat_pb2.CompletionRequest:
    request = chat_pb2.CompletionRequest(
        messages=messages, retrieved_chunks=[chat_pb2.RetrievedChunk(text=text) for text in chunks]
    )
    request.policy.compression_mode = mode  # type: ignore[assignment]  # A number.
    return request


class Lag:
    """The longest that the event loop stood still."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def __aenter__(self) -> Lag:
        self._probe = asyncio.create_task(self._watch())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.01)
        self._probe.cancel()
        with suppress(asyncio.CancelledError):
            await self._probe

    async def _watch(self) -> None:
        before = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            self.seconds = max(self.seconds, now - before - 0.005)
            before = now


LARGE = {
    "one text": asked(said(LONG), said("ok", ASSISTANT), said("When did it meet?")),
    "the question": asked(said(LONG)),
    "ten thousand empty messages": asked(*(said("", USER if at % 2 == 0 else ASSISTANT) for at in range(10_001))),
    "ten thousand short messages": asked(
        *(said("yes " * 5, USER if at % 2 == 0 else ASSISTANT) for at in range(10_001))
    ),
    "one letter": asked(said("a" * 1_000_000), said("b", ASSISTANT), said("c")),
    "blanks": asked(said(" \n" * 500_000), said("b", ASSISTANT), said("c")),
    "emoji": asked(said("👩‍👩‍👧‍👦🇰🇷" * 40_000), said("b", ASSISTANT), said("c")),
    "both ways": asked(said("שלום‮ عالم‏ abc " * 40_000), said("b", ASSISTANT), said("c")),
    "Hangul": asked(
        said("위원회는 2019년 5월에 만났고 통행료 문제를 미루었다. " * 16_000), said("b", ASSISTANT), said("c")
    ),
    "brackets": asked(said("[{(" * 300_000), said("b", ASSISTANT), said("c")),
    "chunks": asked(said("When did it meet?"), chunks=tuple(f"{at} {SENTENCE * 10}" for at in range(1_000))),
    "one chunk": asked(said("When did it meet?"), chunks=(LONG,)),
}


@pytest.mark.parametrize("name", LARGE)
async def test_a_large_prompt_is_answered_beside_others(
    stub: compressor_pb2_grpc.CompressorServiceAsyncStub, name: str
) -> None:
    for mode in (MODES[1], MODES[3]):
        request = chat_pb2.CompletionRequest()
        request.CopyFrom(LARGE[name])
        request.policy.compression_mode = mode
        compression = compressor_pb2.CompressPromptRequest(request=request, model=MODEL, context_window_tokens=10**7)
        async with Lag() as lag:
            started = time.perf_counter()
            done = await stub.CompressPrompt(compression, timeout=SECONDS)
            seen = await stub.PreviewCompression(
                compressor_pb2.PreviewCompressionRequest(compression=compression), timeout=SECONDS
            )
            counts = await stub.CountTokens(
                compressor_pb2.CountTokensRequest(request=request, models=[MODEL]), timeout=SECONDS
            )
            took = time.perf_counter() - started
        assert took < SECONDS
        assert lag.seconds < LAG_SECONDS
        assert counts.counts[0].input_token_count == done.original_input_token_count
        assert done.compressed_input_token_count <= done.original_input_token_count
        assert seen.compression.original_input_token_count == done.original_input_token_count
        assert done.messages[-1] == request.messages[-1] or name == "the question"


ODD = {
    "a result without a call": asked(said("hi"), said("42", TOOL, tool_call_id="none"), said("And now?")),
    "nothing but a result": asked(said("42", TOOL, tool_call_id="none")),
    "empty texts": asked(said(""), said("", ASSISTANT), said("")),
    "no parts": asked(chat_pb2.ChatMessage(role=USER)),
    "no user": asked(said("Be brief.", SYSTEM), said("Hello.", ASSISTANT)),
    "emoji and both ways": asked(said("👩‍👩‍👧‍👦 שלום‮ عالم‏ 🇰🇷\x00"), said("\u200b", ASSISTANT), said("ok?")),
    "empty chunks": asked(said("What?"), chunks=("", " ", "")),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("mode", MODES)
async def test_an_odd_prompt_is_answered(
    stub: compressor_pb2_grpc.CompressorServiceAsyncStub, name: str, mode: int
) -> None:
    request = chat_pb2.CompletionRequest()
    request.CopyFrom(ODD[name])
    request.policy.compression_mode = mode  # type: ignore[assignment]  # A number.
    done = await stub.CompressPrompt(
        compressor_pb2.CompressPromptRequest(request=request, model=MODEL), timeout=SECONDS
    )
    assert 0 < done.compressed_input_token_count <= done.original_input_token_count
    results = [message for message in request.messages if message.role == TOOL]
    assert [message for message in done.messages if message.role == TOOL] == results
    # No text is left empty that was not empty before.
    assert sum(not any(part.text for part in message.parts) for message in done.messages) <= sum(
        not any(part.text for part in message.parts) for message in request.messages
    )


@pytest.mark.parametrize("at", [0, 2])
async def test_a_message_without_a_role_is_named(stub: compressor_pb2_grpc.CompressorServiceAsyncStub, at: int) -> None:
    messages = [said("hi") for _ in range(3)]
    messages[at].ClearField("role")
    request = asked(*messages)
    compression = compressor_pb2.CompressPromptRequest(request=request, model=MODEL)
    for call in (
        stub.CompressPrompt(compression, timeout=SECONDS),
        stub.CountTokens(compressor_pb2.CountTokensRequest(request=request, models=[MODEL]), timeout=SECONDS),
    ):
        with pytest.raises(TenthError) as caught:
            await call
        assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, f"request.messages[{at}].role")
