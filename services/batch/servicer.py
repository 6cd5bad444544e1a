"""BatchService: translates between the wire and the modules that do the work."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

from tenth.batch.v1 import batch_pb2, batch_pb2_grpc

from mesh.auth import act_for, current_identity
from mesh.errors import required
from mesh.telemetry import annotate
from services.batch.creating import Creation
from services.batch.deleting import Deletion
from services.batch.errors import batch_not_found
from services.batch.queueing import Queue
from services.batch.results import Results
from services.batch.retrying import Retrying
from services.batch.temporal import Temporal
from services.batch.viewing import View, Views


class BatchServicer(batch_pb2_grpc.BatchServiceServicer):
    """The RPCs of ``protos/tenth/batch/v1/batch.proto``. A batch of another tenant is not found."""

    def __init__(
        self,
        creation: Creation,
        views: Views,
        results: Results,
        retrying: Retrying,
        deletion: Deletion,
        queue: Queue,
        temporal: Temporal,
    ) -> None:
        self._creation = creation
        self._views = views
        self._results = results
        self._retrying = retrying
        self._deletion = deletion
        self._queue = queue
        self._temporal = temporal

    async def CreateBatch(
        self, request_iterator: AsyncIterator[batch_pb2.CreateBatchRequest], context: Any
    ) -> batch_pb2.CreateBatchResponse:
        """Take a batch in and start it."""
        identity = current_identity()
        batch_id, errors = await self._creation.create(identity, request_iterator)
        annotate({"tenth.batch_id": batch_id, "tenth.batch.error_count": len(errors)})
        if errors:
            return batch_pb2.CreateBatchResponse(line_errors=errors)
        view = await self._views.look(identity.tenant_id, batch_id)
        annotate({"tenth.batch.item_count": view.stored.item_count})
        return batch_pb2.CreateBatchResponse(batch=self._views.message(view))

    async def GetBatch(self, request: batch_pb2.GetBatchRequest, context: Any) -> batch_pb2.GetBatchResponse:
        """Give one batch."""
        view = await self._look(request.batch_id)
        return batch_pb2.GetBatchResponse(batch=self._views.message(view))

    async def ListBatches(self, request: batch_pb2.ListBatchesRequest, context: Any) -> batch_pb2.ListBatchesResponse:
        """Give a page of batches, newest first."""
        tenant_id = current_identity().tenant_id
        views, token = await self._views.page(tenant_id, request.page_size, request.page_token)
        return batch_pb2.ListBatchesResponse(
            batches=[self._views.message(view) for view in views], next_page_token=token
        )

    async def StreamBatchResults(
        self, request: batch_pb2.StreamBatchResultsRequest, context: Any
    ) -> AsyncIterator[batch_pb2.StreamBatchResultsResponse]:
        """Give results until the batch has ended."""
        tenant_id = current_identity().tenant_id
        batch_id = _batch_id(request.batch_id)
        async for result in self._results.stream(tenant_id, batch_id, in_input_order=request.in_input_order):
            yield result

    async def CancelBatch(self, request: batch_pb2.CancelBatchRequest, context: Any) -> batch_pb2.CancelBatchResponse:
        """Stop a batch."""
        view = await self._look(request.batch_id)
        if not view.ended:
            if view.waits:
                await self._creation.start(view.ref, cancelled=True)
            else:
                await self._temporal.cancel(view.ref)
            view = await self._look(request.batch_id)
        batch = self._views.message(view)
        if batch.state == batch_pb2.BATCH_STATE_RUNNING:  # It is told; its workflow will say so itself.
            batch.state = batch_pb2.BATCH_STATE_CANCELLING
        return batch_pb2.CancelBatchResponse(batch=batch)

    async def RetryFailed(self, request: batch_pb2.RetryFailedRequest, context: Any) -> batch_pb2.RetryFailedResponse:
        """Run failed items again."""
        view = await self._retrying.retry(current_identity().tenant_id, _batch_id(request.batch_id))
        return batch_pb2.RetryFailedResponse(batch=self._views.message(view))

    async def EnqueueCompletion(
        self, request: batch_pb2.EnqueueCompletionRequest, context: Any
    ) -> batch_pb2.EnqueueCompletionResponse:
        """Keep a request that can wait."""
        queued = await self._queue.enqueue(current_identity(), request.request)
        annotate({"tenth.request_id": queued.request.request_id})
        return batch_pb2.EnqueueCompletionResponse(deadline_time=queued.deadline_time)

    async def GetQueuedCompletion(
        self, request: batch_pb2.GetQueuedCompletionRequest, context: Any
    ) -> batch_pb2.GetQueuedCompletionResponse:
        """Give what became of an enqueued request."""
        if not request.request_id:
            raise required("request_id")
        annotate({"tenth.request_id": request.request_id})
        return await self._queue.get(current_identity().tenant_id, request.request_id)

    async def DeleteUserItems(
        self, request: batch_pb2.DeleteUserItemsRequest, context: Any
    ) -> batch_pb2.DeleteUserItemsResponse:
        """Delete one end user's items."""
        if not request.user_id:
            raise required("user_id")
        identity = act_for(request.user_id, "")
        count = await self._deletion.delete_user(identity.tenant_id, request.user_id)
        annotate({"tenth.batch.deleted_count": count})
        return batch_pb2.DeleteUserItemsResponse(item_count=count)

    async def _look(self, batch_id: str) -> View:
        return await self._views.look(current_identity().tenant_id, _batch_id(batch_id))


def _batch_id(batch_id: str) -> str:
    if not batch_id:
        raise required("batch_id")
    try:
        return str(uuid.UUID(batch_id))
    except ValueError:
        raise batch_not_found(batch_id[:100]) from None
