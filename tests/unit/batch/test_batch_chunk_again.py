"""A chunk that another worker had before: what that one has finished is not asked again, in any lane."""

from __future__ import annotations

from typing import Any, cast

import pytest
from tenth.batch.v1 import stored_pb2
from tenth.inference.v1 import inference_pb2
from tenth.orchestrator.v1 import orchestrator_pb2 as pb
from tenth.type.v1 import chat_pb2

from mesh.auth import Identity
from services.batch.calls import Layers, Stop
from services.batch.lanes import ChunkFrame, ChunkRunner
from services.batch.policy import LANES, LOCAL, ONLINE
from services.batch.settings import WorkerSettings


class Played:
    """The first item was finished by the worker before; ``asked`` are the generations of this one."""

    def __init__(self, *, has_batch_price: bool) -> None:
        self.asked: list[str] = []
        self._has_batch_price = has_batch_price

    def prepared(self, name: str) -> pb.PreparedCompletion:
        generation = inference_pb2.GenerateTextRequest(request_id=name, attempt=5001, model="m")
        return pb.PreparedCompletion(generation=generation, has_batch_price=self._has_batch_price, state=b"s")

    async def PrepareCompletions(
        self, request: pb.PrepareCompletionsRequest, **_: float
    ) -> pb.PrepareCompletionsResponse:
        outcomes = []
        for item in request.items:
            name = item.request.request_id
            if name == "done":
                done = pb.FinishedCompletion(completion=chat_pb2.Completion(model="m"))
                outcomes.append(pb.PrepareOutcome(answered=done))
            else:
                outcomes.append(pb.PrepareOutcome(prepared=self.prepared(name)))
        return pb.PrepareCompletionsResponse(outcomes=outcomes)

    async def FinishCompletions(self, request: pb.FinishCompletionsRequest, **_: float) -> pb.FinishCompletionsResponse:
        finished = pb.FinishedCompletion(completion=chat_pb2.Completion(model="m"))
        return pb.FinishCompletionsResponse(outcomes=[pb.FinishOutcome(finished=finished) for _ in request.items])

    async def GenerateText(
        self, request: inference_pb2.GenerateTextRequest, **_: float
    ) -> inference_pb2.GenerateTextResponse:
        self.asked.append(request.request_id)
        return inference_pb2.GenerateTextResponse(completion=chat_pb2.Completion(model="m"))


@pytest.mark.parametrize("has_batch_price", [True, False])
@pytest.mark.parametrize("lane", [LOCAL, ONLINE])
async def test_what_was_finished_before_is_not_asked_again(lane: str, has_batch_price: bool) -> None:
    played = Played(has_batch_price=has_batch_price)
    stubs = cast(Layers, type("Stubs", (), {"halves": played, "inference": played})())
    runner = ChunkRunner(stubs, WorkerSettings(), lambda: 0.0)
    work = []
    for index, name in enumerate(("done", "open")):
        item = stored_pb2.StoredItem(index=index, request=chat_pb2.CompletionRequest(request_id=name))
        outcome = pb.PrepareOutcome(prepared=played.prepared(name))
        work.append(stored_pb2.StoredPrepared(index=index, item=item, outcome=outcome))
    frame = ChunkFrame(
        lane=lane,
        run=1,
        delivery=2,
        repeated=True,
        deadline=1e6,
        another_model=False,
        at_batch_prices=True,
        lanes=frozenset(LANES),
        identity=Identity(tenant_id="t", caller="c"),
    )
    results: list[Any] = await runner.run(work, frame, Stop(1))
    assert sorted(one.index for one in results) == [0, 1]
    assert played.asked == ["open"]
