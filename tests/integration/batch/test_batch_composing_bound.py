"""A gathered batch has no more input objects than its workflow can prepare, whatever the settings say."""

from __future__ import annotations

from pathlib import Path

from tenth.batch.v1 import stored_pb2
from tenth.type.v1 import chat_pb2

from services.batch import batches
from services.batch.composing import Composer
from services.batch.intake import MAX_OBJECTS
from services.batch.objects_directory import DirectoryStore
from services.batch.refs import Compose


async def test_many_requests_of_one_item_an_object(tmp_path: Path) -> None:
    store, names = DirectoryStore(tmp_path), [f"r{number}" for number in range(MAX_OBJECTS + 1)]
    for name in names:
        queued = stored_pb2.StoredQueued(request=chat_pb2.CompletionRequest(request_id=name))
        queued.deadline_time.FromSeconds(10**9)
        await batches.write_one(store, batches.queued_name("acme", name), queued)
    composer = Composer(store, 1, lambda: 10**18)
    assert await composer.compose_batch(Compose("acme", "tester", True, "b", names)) == len(names)
    stored = await batches.read_batch(store, "acme", "b")
    assert (stored.item_count, stored.items_per_object, stored.object_count) == (2001, 2, 1001)
