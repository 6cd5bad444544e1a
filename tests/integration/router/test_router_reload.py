"""A catalogue that changes under load: no request fails, none sees two catalogues, a bad one is never taken."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tenth.inference.v1 import inference_pb2_grpc
from tenth.router.v1 import router_pb2, router_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.catalog import WatchedFile
from mesh.testing import dial, running
from services.router.catalog import Catalog, CatalogReader
from tests.integration.router.router_parts import router_servicer

VERSIONS = 50
CALLERS = 4
BAD = ("models: {}", "models: [\n", "", "modles: {}", "\x00", "routing: { default_tier: huge }")


def text_of(version: int) -> str:
    """A catalogue all of whose models carry its version in their names."""
    models = "".join(
        f"  {name}-v{version}:\n    provider: local\n    provider_model: x\n    tier: {tier}\n"
        f"    context_window_tokens: {8000 + version}\n    max_output_tokens: 2048\n    tokenizer: local\n"
        for name, tier in (("small", "simple"), ("mid", "medium"), ("large", "complex"))
    )
    prices = "".join(
        f'  - {{ model: {name}-v{version}, valid_from: 2025-01-01, input: "1", output: "2", source: test }}\n'
        for name in ("small", "mid", "large")
    )
    head = f"providers: {{ local: {{ backend: vllm }} }}\nrouting: {{ classifier_model: small-v{version} }}\n"
    return f"{head}models:\n{models}prices:\n{prices}"


def versions_in(response: router_pb2.SelectModelResponse) -> set[str]:
    names = [response.model, *response.fallback_models, *(item.model for item in response.candidates)]
    assert len(names) == 6, "one chosen, two fallbacks, three candidates"
    # The reason of the `llm` strategy names the classifier, which was asked, in vain, before the choice.
    return {re.sub(r"^\w+-v", "", name) for name in names} | set(re.findall(r"-v(\d+)", response.reason))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # What it waits for are requests of others, not an event of ours.
            await asyncio.sleep(0.001)


@asynccontextmanager
async def router(
    catalog: WatchedFile[Catalog], tmp_path: Path
) -> AsyncIterator[router_pb2_grpc.RouterServiceAsyncStub]:
    async with AsyncExitStack() as stack:
        nobody = await stack.enter_async_context(dial("127.0.0.1:1"))
        servicer, _ = router_servicer(
            tmp_path / "outcomes.sqlite", catalog, inference_pb2_grpc.InferenceServiceStub(nobody)
        )
        target = await stack.enter_async_context(
            running(
                router_pb2_grpc.add_RouterServiceServicer_to_server, servicer, "tenth.router.v1.RouterService", tmp_path
            )
        )
        yield router_pb2_grpc.RouterServiceStub(await stack.enter_async_context(dial(target)))


async def test_a_file_that_is_rewritten_fifty_times_drops_and_mixes_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(text_of(0))
    catalog = WatchedFile(path, CatalogReader(lambda: datetime.now(UTC)))
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text="Where is my parcel?")])
    requests = [
        router_pb2.SelectModelRequest(request=chat_pb2.CompletionRequest(messages=[message]), strategy=strategy)
        for strategy in (router_pb2.STRATEGY_FEATURES, router_pb2.STRATEGY_LLM)
    ]
    seen: Counter[str] = Counter()
    orders: list[list[int]] = []
    done = asyncio.Event()

    def replace_file(text: str) -> None:
        beside = tmp_path / "beside"
        beside.write_text(text)
        beside.replace(path)

    async with router(catalog, tmp_path) as stub:

        async def call(request: router_pb2.SelectModelRequest) -> None:
            order: list[int] = []
            orders.append(order)
            while not done.is_set():
                found = versions_in(await stub.SelectModel(request, timeout=10))
                assert len(found) == 1, f"one request saw several catalogues: {found}"
                seen.update(found)
                order.append(int(found.pop()))

        async with asyncio.TaskGroup() as group:
            watch = group.create_task(catalog.watch(0.001))
            for number in range(CALLERS):
                group.create_task(call(requests[number % 2]))
            # Each change waits until the one before was noticed, and until requests were served after it.
            await until(lambda: seen["0"] >= CALLERS)
            for version in range(1, VERSIONS + 1):
                served, errors = sum(seen.values()), len(caplog.records)
                if version % 3:
                    replace_file(text_of(version))
                    await until(lambda: seen[str(version)] >= CALLERS)  # noqa: B023  # Awaited in the same round.
                else:
                    replace_file(BAD[version // 3 % len(BAD)])
                    await until(lambda: len(caplog.records) > errors and seen.total() >= served + CALLERS)  # noqa: B023
            done.set()
            watch.cancel()

    good_versions = {str(version) for version in range(VERSIONS + 1) if version % 3 or not version}
    assert set(seen) == good_versions, "every good version was served, no bad one"
    assert all(order == sorted(order) for order in orders), "no caller went back to an older catalogue"
    refused = [record for record in caplog.records if "the old one stays" in record.message]
    assert len(refused) == VERSIONS // 3
    assert all(str(path) in record.message for record in refused)


async def test_a_file_that_is_written_in_pieces_is_taken_whole(tmp_path: Path) -> None:
    """In place, by appending: what parses on the way is a catalogue of its own, and the last one stays."""
    path = tmp_path / "catalog.yaml"
    path.write_text(text_of(0))
    catalog = WatchedFile(path, CatalogReader(lambda: datetime.now(UTC)))
    text = text_of(1)
    with path.open("w") as file:
        for start in range(0, len(text), 100):
            file.write(text[start : start + 100])
            file.flush()
            await catalog.refresh()
            assert {model.name.rpartition("-v")[2] for model in catalog.current.models} in ({"0"}, {"1"})
    await catalog.refresh()
    assert [model.name for model in catalog.current.models] == ["small-v1", "mid-v1", "large-v1"]
    assert all(model.price is not None for model in catalog.current.models)
