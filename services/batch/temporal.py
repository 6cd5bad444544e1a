"""Temporal as the service sees it: runs of batches are started, looked at and cancelled; waiting requests are told of.

The connection is made when it is first needed, so that a service starts while Temporal is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode, TLSConfig

from mesh.errors import TenthError
from services.batch.errors import Reason, temporal_unavailable
from services.batch.refs import (
    ADD_SIGNAL,
    BATCH_WORKFLOW,
    CANCEL_SIGNAL,
    ENDED,
    GATHER_WORKFLOW,
    PROGRESS_MEMO,
    BatchRef,
    GatherRef,
    Progress,
    State,
    Waiting,
    batch_workflow_id,
    gather_workflow_id,
)
from services.batch.settings import BatchSettings

_AGAIN_SECONDS = 0.5
_NO_NAMESPACE = "NamespaceNotFound"
_RUNNING = (WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW)
T = TypeVar("T")


async def connect(settings: BatchSettings) -> Client:
    """A connection to Temporal. Raises UNAVAILABLE (TEMPORAL_UNAVAILABLE), also for files that cannot be read."""
    try:
        api_key = _text(settings.temporal_api_key_file)
        # Not its connect_timeout: that ends when the connection stands, and its first call has no end.
        async with asyncio.timeout(settings.temporal_timeout_seconds):
            return await Client.connect(
                settings.temporal_address,
                namespace=settings.temporal_namespace,
                tls=_tls(settings),
                api_key=api_key or None,
            )
    except TimeoutError as error:
        raise temporal_unavailable(f"no connection within {settings.temporal_timeout_seconds:g} s") from error
    except (RuntimeError, OSError) as error:
        raise temporal_unavailable(str(error)) from error


class Temporal:
    """Temporal behind one connection, made when needed. All methods raise UNAVAILABLE (TEMPORAL_UNAVAILABLE)."""

    def __init__(self, settings: BatchSettings) -> None:
        self._settings = settings
        self._timeout = timedelta(seconds=settings.temporal_timeout_seconds)
        self._connecting = asyncio.Lock()
        self._client: Client | None = None
        self._key_stamp = 0
        self._failed: tuple[float, str] | None = None

    async def ping(self) -> None:
        """Raise while Temporal does not answer, or has no such namespace."""
        client = await self.client()
        request = DescribeNamespaceRequest(namespace=self._settings.temporal_namespace)
        try:
            await self._rpc(client.workflow_service.describe_namespace(request, timeout=self._timeout))
        except _WorkflowUnknownError:
            raise temporal_unavailable(f"it has no namespace {self._settings.temporal_namespace!r}") from None

    async def start(self, ref: BatchRef, *, cancelled: bool = False) -> None:
        """Start a run's workflow, unless it was started before. ``cancelled``: told at once to cancel."""
        client = await self.client()
        try:
            await self._rpc(
                client.start_workflow(
                    BATCH_WORKFLOW,
                    ref,
                    id=batch_workflow_id(ref),
                    task_queue=self._settings.task_queue_prefix,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    memo={PROGRESS_MEMO: Progress()},
                    rpc_timeout=self._timeout,
                    start_signal=CANCEL_SIGNAL if cancelled else None,
                )
            )
        except WorkflowAlreadyStartedError:
            return

    async def progress(self, ref: BatchRef) -> Progress | None:
        """How far a run is; None when Temporal knows nothing of it."""
        client = await self.client()
        handle = client.get_workflow_handle(batch_workflow_id(ref), result_type=Progress)
        try:
            seen = await self._rpc(handle.describe(rpc_timeout=self._timeout))
        except _WorkflowUnknownError:
            return None
        told: Progress = await seen.memo_value(PROGRESS_MEMO, Progress(), type_hint=Progress)
        if seen.status in _RUNNING or told.state in ENDED:
            return told
        if seen.status == WorkflowExecutionStatus.COMPLETED:
            try:
                return await self._rpc(handle.result(rpc_timeout=self._timeout))
            except (_WorkflowUnknownError, WorkflowFailureError):
                return told
        name = seen.status.name.lower() if seen.status is not None else "of no known status"
        ended = seen.close_time.timestamp() if seen.close_time is not None else 0.0
        return failed(told, Reason.WORKFLOW_FAILED, f"the batch's workflow is {name}", ended)

    async def cancel(self, ref: BatchRef) -> None:
        """Tell a run to cancel; nothing happens when it has ended."""
        client = await self.client()
        handle = client.get_workflow_handle(batch_workflow_id(ref))
        try:
            await self._rpc(handle.signal(CANCEL_SIGNAL, rpc_timeout=self._timeout))
        except _WorkflowUnknownError:
            return

    async def add(self, ref: GatherRef, waiting: Waiting, window_seconds: float) -> None:
        """Tell of an enqueued request; the workflow that gathers is started where it does not run."""
        client = await self.client()
        await self._rpc(
            client.start_workflow(
                GATHER_WORKFLOW,
                ref,
                id=gather_workflow_id(ref.tenant_id, ref.caller, ref.may_assert_user, window_seconds),
                task_queue=self._settings.task_queue_prefix,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                start_signal=ADD_SIGNAL,
                start_signal_args=[waiting],
                rpc_timeout=self._timeout,
            )
        )

    async def client(self) -> Client:
        """The connection."""
        async with self._connecting:
            path = self._settings.temporal_api_key_file
            if self._client is None:
                self._key_stamp = _stamp(path)
                self._client = await self._connect()
            elif (stamp := _stamp(path)) != self._key_stamp:
                try:
                    self._client.api_key = _text(path)
                    self._key_stamp = stamp
                except OSError as error:
                    raise temporal_unavailable(str(error)) from error
            return self._client

    async def _connect(self) -> Client:
        """A connection. Callers that waited while it failed are told so at once, and do not each wait again."""
        now = asyncio.get_running_loop().time
        if self._failed is not None and now() - self._failed[0] < _AGAIN_SECONDS:
            raise temporal_unavailable(self._failed[1])
        try:
            return await connect(self._settings)
        except TenthError as error:
            self._failed = (now(), error.message.partition(": ")[2])
            raise

    async def _rpc(self, call: Awaitable[T]) -> T:
        """The call's answer. Raises _WorkflowUnknownError where there is no such workflow, else UNAVAILABLE."""
        try:
            return await call
        except RPCError as error:
            details = [detail.type_url for detail in error.grpc_status.details]
            # A namespace that does not exist is "not found" too, and says nothing about its workflows.
            if error.status == RPCStatusCode.NOT_FOUND and not any(_NO_NAMESPACE in name for name in details):
                raise _WorkflowUnknownError from error
            raise temporal_unavailable(f"{error.status.name}: {error.message}") from error


class _WorkflowUnknownError(Exception):
    """Temporal knows no workflow of that id."""


def failed(last: Progress, reason: str, message: str, end_time_seconds: float) -> Progress:
    """The progress of a run that ended without saying so itself."""
    return replace(
        last, state=State.FAILED, error_reason=reason, error_message=message, end_time_seconds=end_time_seconds
    )


def _tls(settings: BatchSettings) -> TLSConfig | bool | None:
    files = (settings.temporal_ca_file, settings.temporal_cert_file, settings.temporal_key_file)
    if not any(files):
        return True if settings.temporal_tls or settings.temporal_api_key_file else None
    ca, cert, key = (path.read_bytes() if path is not None else None for path in files)
    return TLSConfig(server_root_ca_cert=ca, client_cert=cert, client_private_key=key)


def _text(path: Path | None) -> str:
    return path.read_text("utf-8").strip() if path is not None else ""


def _stamp(path: Path | None) -> int:
    try:
        return path.stat().st_mtime_ns if path is not None else 0
    except OSError:
        return 0
