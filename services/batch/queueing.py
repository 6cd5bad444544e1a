"""Single requests that can wait: kept under their request_id, told to the workflow that gathers, asked for later."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable

from tenth.batch.v1 import batch_pb2, stored_pb2
from tenth.type.v1 import chat_pb2

from mesh.auth import Identity
from mesh.errors import Code, Reason, TenthError, required
from mesh.validation import validate
from services.batch.batches import (
    queued_expiry_name,
    queued_name,
    queued_result_name,
    queued_user_prefix,
    queued_waiting_name,
    read_one,
    segment,
    write_one,
)
from services.batch.creating import reused
from services.batch.errors import Reason as BatchReason
from services.batch.intake import check_window, request_digest
from services.batch.objects import ObjectNotFound, ObjectStore
from services.batch.refs import GatherRef, Waiting
from services.batch.settings import BatchSettings
from services.batch.temporal import Temporal
from services.batch.viewing import NANOS_PER_DAY, Views

_SHARE_OF_WINDOW = 10
"""A request waits for others at most this part of its window."""


class Queue:
    """Requests that can wait."""

    def __init__(
        self,
        store: ObjectStore,
        temporal: Temporal,
        views: Views,
        settings: BatchSettings,
        now_ns: Callable[[], int],
    ) -> None:
        self._store = store
        self._temporal = temporal
        self._views = views
        self._settings = settings
        self._now_ns = now_ns

    async def enqueue(self, identity: Identity, request: chat_pb2.CompletionRequest) -> stored_pb2.StoredQueued:
        """Keep a request until it is in a batch. Idempotent by request_id.

        Raises INVALID_ARGUMENT, PERMISSION_DENIED, ALREADY_EXISTS (REQUEST_ID_REUSED); UNAVAILABLE: it is not kept.
        """
        if not request.request_id:
            raise required("request.request_id")
        validate(request, self._settings.max_prompt_bytes)
        request.request_id = str(uuid.UUID(request.request_id))
        window = check_window(request.policy.completion_window, "request.policy.completion_window")
        if (request.user_id or request.project_id) and not identity.may_assert_user:
            field = "request.user_id" if request.user_id else "request.project_id"
            told = f"caller {identity.caller} may not name users or projects"
            raise TenthError(Code.PERMISSION_DENIED, Reason.USER_ASSERTION_FORBIDDEN, told, field)
        digest = request_digest(request)
        queued = await self._find(identity.tenant_id, request.request_id)
        new = queued is None
        if queued is None:
            queued = await self._keep(identity, request, digest, window)
        elif queued.digest != digest:
            raise reused(request.request_id, "request.request_id")
        if not queued.batch_id:
            try:
                await self.tell(queued)
            except TenthError:
                if new:  # The caller is told that it is not kept, and may ask elsewhere.
                    with contextlib.suppress(TenthError):
                        await forget(self._store, queued)
                raise
        return queued

    async def tell(self, queued: stored_pb2.StoredQueued) -> None:
        """Tell the workflow that gathers. Raises UNAVAILABLE."""
        created = queued.create_time.ToNanoseconds() / 1e9
        window = queued.deadline_time.ToNanoseconds() / 1e9 - created
        due = created + min(self._settings.gather_seconds, window / _SHARE_OF_WINDOW)
        ref = GatherRef(queued.tenant_id, queued.caller, queued.may_assert_user, self._settings.gather_item_count)
        await self._temporal.add(ref, Waiting(queued.request.request_id, due), window)

    async def get(self, tenant_id: str, request_id: str) -> batch_pb2.GetQueuedCompletionResponse:
        """What became of a request. Raises NOT_FOUND (QUEUED_NOT_FOUND), UNAVAILABLE."""
        with contextlib.suppress(ValueError):
            request_id = str(uuid.UUID(request_id))
        queued = await self._find(tenant_id, request_id)
        if queued is None or queued.expire_time.ToNanoseconds() <= self._now_ns():
            told = f"no request {request_id!r} waits or was answered"
            raise TenthError(Code.NOT_FOUND, BatchReason.QUEUED_NOT_FOUND, told, "request_id")
        answer = batch_pb2.GetQueuedCompletionResponse(deadline_time=queued.deadline_time)
        result = await self._result(queued)
        if result is None:
            return answer
        answer.ended = True
        answer.result.CopyFrom(result)
        answer.expire_time.CopyFrom(queued.expire_time)
        return answer

    async def _result(self, queued: stored_pb2.StoredQueued) -> batch_pb2.StreamBatchResultsResponse | None:
        name = queued_result_name(queued.tenant_id, queued.request.request_id)
        with contextlib.suppress(ObjectNotFound):
            return (await read_one(self._store, name, stored_pb2.StoredResult)).result
        if not queued.batch_id:
            return None
        message = "the batch that the request was in is gone"
        try:
            view = await self._views.look(queued.tenant_id, queued.batch_id)
            if not view.ended:
                return None
            message = view.last.error_message or "the batch that the request was in ended without a result of it"
        except TenthError as error:
            if error.reason != BatchReason.BATCH_NOT_FOUND:
                raise
            if self._now_ns() < queued.deadline_time.ToNanoseconds():
                return None  # It is being made right now.
        with contextlib.suppress(ObjectNotFound):  # It may have come between the two looks.
            return (await read_one(self._store, name, stored_pb2.StoredResult)).result
        return batch_pb2.StreamBatchResultsResponse(
            custom_id=queued.request.request_id, error_reason=BatchReason.BATCH_FAILED, error_message=message
        )

    async def _find(self, tenant_id: str, request_id: str) -> stored_pb2.StoredQueued | None:
        try:
            return await read_one(self._store, queued_name(tenant_id, request_id), stored_pb2.StoredQueued)
        except ObjectNotFound:
            return None

    async def _keep(
        self, identity: Identity, request: chat_pb2.CompletionRequest, digest: bytes, window_seconds: float
    ) -> stored_pb2.StoredQueued:
        now = self._now_ns()
        deadline = now + int(window_seconds * 1e9)
        queued = stored_pb2.StoredQueued(
            tenant_id=identity.tenant_id,
            caller=identity.caller,
            may_assert_user=identity.may_assert_user,
            request=request,
            digest=digest,
        )
        queued.create_time.FromNanoseconds(now)
        queued.deadline_time.FromNanoseconds(deadline)
        queued.expire_time.FromNanoseconds(deadline + self._settings.result_retention_days * NANOS_PER_DAY)
        # What it is found by comes first: nothing is kept that no sweep and no deletion finds.
        for name in _marks(queued):
            await self._store.put(name, b"")
        await write_one(self._store, queued_name(identity.tenant_id, request.request_id), queued)
        return queued


async def forget(store: ObjectStore, queued: stored_pb2.StoredQueued) -> None:
    """Delete an enqueued request, its result and its marks."""
    tenant_id, request_id = queued.tenant_id, queued.request.request_id
    await store.delete(queued_name(tenant_id, request_id))
    await store.delete(queued_result_name(tenant_id, request_id))
    for name in _marks(queued):
        await store.delete(name)


def _marks(queued: stored_pb2.StoredQueued) -> list[str]:
    tenant_id, request_id = queued.tenant_id, queued.request.request_id
    marks = [
        queued_expiry_name(tenant_id, request_id, queued.expire_time.ToNanoseconds()),
        queued_waiting_name(tenant_id, request_id),
    ]
    if queued.request.user_id:
        marks.append(queued_user_prefix(tenant_id, queued.request.user_id) + segment(request_id))
    return marks
