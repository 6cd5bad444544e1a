"""An input object whose worker died between its results and its prepared items: prepared again, each item ends once."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from tenth.batch.v1 import stored_pb2
from tenth.orchestrator.v1 import orchestrator_pb2 as pb
from tenth.type.v1 import chat_pb2

from services.batch import batches
from services.batch.calls import Layers, Stop
from services.batch.objects import write_records
from services.batch.objects_directory import DirectoryStore
from services.batch.preparing import Preparer
from services.batch.records import RunStore
from services.batch.refs import BatchRef
from services.batch.reports import Prepare
from services.batch.settings import WorkerSettings

REF = BatchRef("acme", "b")


class Killed(BaseException):
    """What ends a worker."""


class Dying(DirectoryStore):
    """A store before which a worker dies once, as it is to write prepared items."""

    dies = True

    async def put(self, name: str, content: bytes) -> None:
        if self.dies and name.startswith(batches.prepared_prefix(REF)):
            self.dies = False
            raise Killed
        await super().put(name, content)


class Orchestrator:
    """Refuses the first time, and then has room."""

    calls = 0

    async def PrepareCompletions(
        self, request: pb.PrepareCompletionsRequest, **_: float
    ) -> pb.PrepareCompletionsResponse:
        self.calls += 1
        refused = pb.PrepareOutcome(error=pb.HalfError(reason="BUDGET_EXCEEDED"))
        outcome = refused if self.calls == 1 else pb.PrepareOutcome(prepared=pb.PreparedCompletion(state=b"s"))
        return pb.PrepareCompletionsResponse(outcomes=[outcome for _ in request.items])


async def test_what_failed_before_and_is_prepared_now_has_one_end(tmp_path: Path) -> None:
    store = Dying(tmp_path)
    stored = stored_pb2.StoredBatch(batch_id="b", tenant_id="acme", item_count=1, items_per_object=1, object_count=1)
    await batches.write_one(store, batches.batch_name("acme", "b"), stored)
    item = stored_pb2.StoredItem(request=chat_pb2.CompletionRequest(request_id="r"), same_as_index=-1)
    await store.put(batches.input_name("acme", "b", 0), write_records([item]))
    layers = cast(Layers, type("Stubs", (), {"halves": Orchestrator()})())
    preparer = Preparer(RunStore(store), layers, WorkerSettings(), lambda: 0.0)
    asked = Prepare(REF, 1, 0, 3600.0, twins_wait=True, batch_prices=True)
    with pytest.raises(Killed):
        await preparer.prepare(asked, Stop(1), lambda _: None)
    prepared = await preparer.prepare(asked, Stop(1), lambda _: None)
    assert (prepared.prepared, prepared.counts.ended) == (1, 0)
