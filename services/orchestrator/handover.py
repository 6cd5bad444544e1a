"""Requests that can wait, handed over to the batch service, and what became of them there."""

from __future__ import annotations

from tenth.batch.v1 import batch_pb2, batch_pb2_grpc
from tenth.ledger.v1 import ledger_pb2
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import Code, TenthError
from services.orchestrator.call import DEGRADED, DISABLED, is_down

OPERATION_WINDOW_SECONDS = 60.0
"""A completion window from this on returns an operation instead of an answer."""
_READ_CAP_SECONDS = 5.0
_DELETE_CAP_SECONDS = 60.0
"""Every object of a tenant's batches may have to be read."""


class Handover:
    """The batch service as the front door sees it. Without one, requests with a far window are worked on at once."""

    def __init__(self, batch: batch_pb2_grpc.BatchServiceAsyncStub | None, cap_seconds: float) -> None:
        self._batch = batch
        self._cap_seconds = cap_seconds

    def wanted(self, request: chat_pb2.CompletionRequest, tenant: ledger_pb2.TenantPolicy) -> bool:
        """True when a request goes to the batch service, as long as that is there."""
        far = window_seconds(request) >= OPERATION_WINDOW_SECONDS
        return self._batch is not None and far and "batch" not in tenant.disabled_layers

    async def take(
        self, request: chat_pb2.CompletionRequest, tenant: ledger_pb2.TenantPolicy
    ) -> tuple[bool, receipt_pb2.Hop | None]:
        """Hand a request over. False: it is to be worked on here, and the hop says why on its receipt.

        Idempotent by request_id. Raises what the batch service says no with, REQUEST_ID_REUSED for one.
        """
        if self._batch is None:
            return False, None
        if not self.wanted(request, tenant):
            return False, receipt_pb2.Hop(name="batch", outcome=DISABLED, reason="kill switch")
        try:
            await self._batch.EnqueueCompletion(
                batch_pb2.EnqueueCompletionRequest(request=request), timeout=self._cap_seconds
            )
        except TenthError as error:
            if not is_down(error):
                raise
            # A late one may have taken it all the same: it is answered twice then, and the ledger has one receipt.
            return False, receipt_pb2.Hop(name="batch", outcome=DEGRADED, reason=f"online: {error.reason}")
        return True, None

    async def find(self, request_id: str) -> orchestrator_pb2.GetCompletionResponse | None:
        """How far a request is that was handed over; None for one that was not. Raises when the service is down."""
        if self._batch is None:
            return None
        try:
            queued = await self._batch.GetQueuedCompletion(
                batch_pb2.GetQueuedCompletionRequest(request_id=request_id), timeout=_READ_CAP_SECONDS
            )
        except TenthError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise
        return _operation(queued)

    async def delete_user(self, user_id: str) -> int:
        """Delete one end user's items from every batch; returns how many."""
        if self._batch is None:
            return 0
        request = batch_pb2.DeleteUserItemsRequest(user_id=user_id)
        return (await self._batch.DeleteUserItems(request, timeout=_DELETE_CAP_SECONDS)).item_count


def window_seconds(request: chat_pb2.CompletionRequest) -> float:
    """How long the caller can wait; 0: not at all."""
    window = request.policy.completion_window
    return window.seconds + window.nanos / 1e9


def _operation(queued: batch_pb2.GetQueuedCompletionResponse) -> orchestrator_pb2.GetCompletionResponse:
    if not queued.ended:
        return orchestrator_pb2.GetCompletionResponse(state=orchestrator_pb2.OPERATION_STATE_RUNNING)
    result = queued.result
    answered = result.HasField("completion")
    return orchestrator_pb2.GetCompletionResponse(
        state=orchestrator_pb2.OPERATION_STATE_DONE if answered else orchestrator_pb2.OPERATION_STATE_FAILED,
        completion=result.completion if answered else None,
        receipt=result.receipt if result.HasField("receipt") else None,
        error_reason=result.error_reason,
        error_message=result.error_message,
        expire_time=queued.expire_time,
    )
