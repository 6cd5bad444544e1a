"""The health of models as inference tells it, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc

from mesh.auth import current_identity
from mesh.errors import TenthError, unavailable
from mesh.testing import dial, running
from services.router.health import Health
from services.router.served import ServedModels


class FakeInference(inference_pb2_grpc.InferenceServiceServicer):
    """Lists what it is told to, two models a page."""

    def __init__(self) -> None:
        self.models: dict[str, str] = {}
        self.error: TenthError | None = None
        self.asked = 0
        self.callers: set[tuple[str, str, str]] = set()

    async def ListServedModels(
        self, request: inference_pb2.ListServedModelsRequest, context: Any
    ) -> inference_pb2.ListServedModelsResponse:
        self.asked += 1
        who = current_identity()
        self.callers.add((who.service, who.caller, who.tenant_id))
        if self.error is not None:
            raise self.error
        names = sorted(name for name in self.models if name > request.page_token)
        return inference_pb2.ListServedModelsResponse(
            models=[
                inference_pb2.ServedModel(model=name, healthy=self.models[name] == "up", reason=self.models[name])
                for name in names[:2]
            ],
            next_page_token=names[1] if len(names) > 2 else "",
        )


class Bench:
    def __init__(self, inference: FakeInference, health: Health, served: ServedModels) -> None:
        self.inference = inference
        self.health = health
        self.served = served


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        inference = FakeInference()  # type: ignore[abstract]  # Only what is called is played.
        address = await stack.enter_async_context(
            running(
                inference_pb2_grpc.add_InferenceServiceServicer_to_server,
                inference,
                "tenth.inference.v1.InferenceService",
                tmp_path,
            )
        )
        channel = await stack.enter_async_context(dial(address))
        health = Health(lambda: 0.0, failure_count=3, down_seconds=2.0, max_down_seconds=10.0)
        yield Bench(inference, health, ServedModels(inference_pb2_grpc.InferenceServiceStub(channel), health, 0.01))


async def test_all_pages_are_read(bench: Bench) -> None:
    bench.inference.models = {"a": "up", "b": "no key", "c": "up", "d": "up", "e": "5 calls failed"}
    assert await bench.served.refresh()
    assert bench.health.down() == {"b": "no key", "e": "5 calls failed"}
    assert bench.inference.asked == 3
    bench.inference.models["b"] = "up"
    assert await bench.served.refresh()
    assert bench.health.down() == {"e": "5 calls failed"}


async def test_a_model_without_a_reason_has_one(bench: Bench) -> None:
    bench.inference.models = {"a": ""}
    assert await bench.served.refresh()
    assert bench.health.down() == {"a": "inference says so"}


async def test_inference_that_is_down_takes_no_model_down(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.inference.models = {"a": "no key"}
    await bench.served.refresh()
    bench.inference.error = unavailable("going down")
    for _ in range(3):
        assert not await bench.served.refresh()
    assert bench.health.down() == {}
    bench.health.note_failure("b")
    assert caplog.text.count("none is taken for down") == 1, "logged once, not every two seconds"
    bench.inference.error = None
    assert await bench.served.refresh()
    assert bench.health.down() == {"a": "no key"}


async def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    health = Health(lambda: 0.0, failure_count=1, down_seconds=2.0, max_down_seconds=10.0)
    async with dial("127.0.0.1:1") as channel:
        served = ServedModels(inference_pb2_grpc.InferenceServiceStub(channel), health, 0.01)
        assert not await served.refresh()
    assert health.down() == {}
    assert "UNREACHABLE" in caplog.text


async def test_the_watch_goes_on_through_an_outage_and_calls_in_its_own_name(bench: Bench) -> None:
    bench.inference.models = {"a": "no key"}
    watch = asyncio.create_task(bench.served.watch())

    async def until(down: dict[str, str]) -> None:
        asked = bench.inference.asked
        while bench.health.down() != down or bench.inference.asked == asked:  # noqa: ASYNC110  # A socket is between.
            await asyncio.sleep(0.001)

    try:
        async with asyncio.timeout(10):
            await until({"a": "no key"})
            bench.inference.error = unavailable("going down")
            await until({})
            bench.inference.error = None
            await until({"a": "no key"})
    finally:
        watch.cancel()
    assert bench.inference.callers == {("test", "router", "")}
