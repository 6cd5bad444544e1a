"""``python -m services.batch``: the wiring of the service that takes batches in and gives their results."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import AsyncExitStack

from tenth.batch.v1.batch_pb2_grpc import add_BatchServiceServicer_to_server

from mesh.auth import Authenticator, read_key
from mesh.process import run
from mesh.server import MeshServer
from mesh.settings import MeshSettings, load
from mesh.telemetry import start_telemetry
from services.batch.creating import Creation
from services.batch.deleting import Deletion
from services.batch.intake import Limits
from services.batch.objects import open_store
from services.batch.queueing import Queue
from services.batch.results import Results
from services.batch.retrying import Retrying
from services.batch.servicer import BatchServicer
from services.batch.settings import BatchSettings
from services.batch.sweeping import Sweeper
from services.batch.temporal import Temporal
from services.batch.viewing import Views


async def serve(mesh: MeshSettings, settings: BatchSettings) -> None:
    """Serve until told to stop."""
    async with AsyncExitStack() as stack:
        telemetry = start_telemetry("batch", mesh)
        stack.callback(telemetry.close)
        store = open_store(
            settings.store_url or str(mesh.data_dir / "objects"),
            s3_endpoint_url=settings.s3_endpoint_url,
            s3_region=settings.s3_region,
        )
        stack.push_async_callback(store.close)
        temporal = Temporal(settings)
        views = Views(store, temporal, time.time_ns, settings.result_retention_days)
        limits = Limits(**settings.model_dump(include=set(Limits.__slots__)))
        creation = Creation(store, temporal, limits, time.time_ns, lambda: uuid.uuid4().hex)
        retrying = Retrying(store, views, creation, time.time_ns)
        deletion = Deletion(store)
        queue = Queue(store, temporal, views, settings, time.time_ns)
        results = Results(
            store, views, mesh.data_dir / "streams", settings.follow_seconds, settings.follow_longest_seconds
        )
        sweeper = Sweeper(store, views, creation, deletion, queue, settings, time.time_ns)
        sweeping = asyncio.create_task(sweeper.run())
        stack.callback(sweeping.cancel)
        server = MeshServer(
            mesh,
            telemetry,
            Authenticator(mesh.callers_file, read_key(mesh.identity_key_file)),
            {"objects": store.ping, "temporal": temporal.ping},
        )
        servicer = BatchServicer(creation, views, results, retrying, deletion, queue, temporal)
        server.add(add_BatchServiceServicer_to_server, servicer, "tenth.batch.v1.BatchService")
        await server.serve()


if __name__ == "__main__":
    run(serve(load(MeshSettings), load(BatchSettings)))
