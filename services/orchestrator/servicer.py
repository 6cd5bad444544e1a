"""The orchestrator's RPCs: proto in, flow, proto out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from tenth.router.v1 import router_pb2, router_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh import deadlines
from mesh.auth import current_identity, set_identity
from mesh.channel import rendezvous, routing_key
from mesh.errors import Code, TenthError, invalid_argument, required
from services.orchestrator.admission import DEFAULT_NAMESPACE, Admission
from services.orchestrator.errors import Reason
from services.orchestrator.explain import Explain
from services.orchestrator.flow import Flow
from services.orchestrator.generation import whole_delta
from services.orchestrator.handover import OPERATION_WINDOW_SECONDS, Handover, window_seconds
from services.orchestrator.outbox import Kept, Outbox
from services.orchestrator.runs import Answer, Run, Runs, reused

log = logging.getLogger("tenth.orchestrator")

pb = orchestrator_pb2
_CAP_SECONDS = 5.0
_OPERATIONS = "operations/"


class OrchestratorServicer(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Implements tenth.orchestrator.v1.OrchestratorService."""

    def __init__(
        self,
        admission: Admission,
        flow: Flow,
        runs: Runs,
        outbox: Outbox,
        explain: Explain,
        cache: cache_pb2_grpc.CacheServiceAsyncStub,
        router: router_pb2_grpc.RouterServiceAsyncStub,
        ledger: ledger_pb2_grpc.LedgerReadServiceAsyncStub,
        handover: Handover,
        cache_replicas: Callable[[], Awaitable[Sequence[str]]],
    ) -> None:
        self._handover = handover
        self._cache_replicas = cache_replicas
        self._admission = admission
        self._flow = flow
        self._runs = runs
        self._outbox = outbox
        self._explain = explain
        self._cache = cache
        self._router = router
        self._ledger = ledger

    async def GenerateCompletion(
        self, request: pb.GenerateCompletionRequest, context: Any
    ) -> pb.GenerateCompletionResponse:
        """Answer a request whole."""
        if window_seconds(request.request) >= OPERATION_WINDOW_SECONDS:
            return await self._later(request.request)
        begun = self._begin(request.request, streaming=False)
        answer = begun if isinstance(begun, Answer) else await self._result(begun)
        return _answered(answer)

    async def StreamGenerateCompletion(
        self, request: pb.StreamGenerateCompletionRequest, context: Any
    ) -> AsyncIterator[pb.StreamGenerateCompletionResponse]:
        """Answer a request as a stream."""
        begun = self._begin(request.request, streaming=True)
        if isinstance(begun, Answer):
            answer = begun
            for response in _replayed(answer):
                yield response
        else:
            streamed = False
            try:
                # Closed here and now: a client that left during a write must not count as a listener any more.
                async with aclosing(begun.listen()) as events:
                    async for event in events:
                        streamed = True
                        yield _response(event)
            finally:
                self._runs.release(begun)
            assert begun.answer is not None
            answer = begun.answer
            if not streamed:  # Joined a request that its first caller asked for whole.
                for response in _replayed(answer):
                    yield response
        yield pb.StreamGenerateCompletionResponse(
            finished=pb.CompletionFinished(
                finish_reason=answer.completion.finish_reason,
                usage=answer.completion.usage,
                receipt=answer.receipt,
                model=answer.completion.model,
            )
        )

    async def ExplainRequest(self, request: pb.ExplainRequestRequest, context: Any) -> pb.ExplainRequestResponse:
        """Say what each layer would do. Spends nothing."""
        digest = self._admission.identify(request.request)
        call = self._admission.admit(request.request, digest, streaming=False)
        set_identity(call.identity)
        with routing_key(call.shard):
            return await self._explain.explain(call, self._handover.wanted(call.request, call.tenant))

    async def GetCompletion(self, request: pb.GetCompletionRequest, context: Any) -> pb.GetCompletionResponse:
        """The state of an operation."""
        if not request.operation.startswith(_OPERATIONS):
            raise invalid_argument(f'must be "{_OPERATIONS}REQUEST_ID"', field="operation")
        key = (current_identity().tenant_id, request.operation.removeprefix(_OPERATIONS))
        if self._runs.running(key):
            return pb.GetCompletionResponse(state=pb.OPERATION_STATE_RUNNING)
        kept = self._outbox.find(*key)
        if kept is None or kept.completion is None:
            # Also for a failure that is kept here: a half that failed is tried again by the batch service.
            queued = await self._handover.find(key[1])
            if queued is not None:
                return queued
        if kept is None:
            raise TenthError(Code.NOT_FOUND, Reason.NOT_FOUND, "no such operation, or it is forgotten", "operation")
        return _operation(kept)

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: Any) -> pb.GetReceiptResponse:
        """The receipt of a request: the one on its way to the ledger, else the ledger's."""
        if not request.request_id:
            raise required("request_id")
        kept = self._outbox.find(current_identity().tenant_id, request.request_id)
        if kept is not None and not kept.settled:
            return pb.GetReceiptResponse(receipt=kept.receipt)
        try:
            found = await self._ledger.GetReceipt(
                ledger_pb2.GetReceiptRequest(request_id=request.request_id), timeout=_CAP_SECONDS
            )
            return pb.GetReceiptResponse(receipt=found.receipt)
        except TenthError as error:
            if error.code is Code.NOT_FOUND:
                raise TenthError(Code.NOT_FOUND, Reason.NOT_FOUND, "no receipt of this request", "request_id") from None
            raise

    async def ReportOutcome(self, request: pb.ReportOutcomeRequest, context: Any) -> pb.ReportOutcomeResponse:
        """Pass feedback on to the router and, for a bad answer that is cached, to the cache."""
        if not request.request_id:
            raise required("request_id")
        if not 0 <= request.score <= 1:
            raise invalid_argument("must be from 0 to 1", field="score")
        kept = self._outbox.find(current_identity().tenant_id, request.request_id)
        await self._router.ReportOutcome(
            router_pb2.ReportOutcomeRequest(
                request_id=request.request_id, score=request.score, comment=request.comment
            ),
            timeout=_CAP_SECONDS,
        )
        retired = False
        if kept is not None and kept.entry_id:
            retired = await self._report_quality(kept, request)
        return pb.ReportOutcomeResponse(cache_entry_retired=retired)

    async def DeleteUserData(self, request: pb.DeleteUserDataRequest, context: Any) -> pb.DeleteUserDataResponse:
        """Delete one end user's data in every service. Raises, deleting what it can, when one is down: call again."""
        if not request.user_id:
            raise required("user_id")
        if not current_identity().may_assert_user:
            raise TenthError(
                Code.PERMISSION_DENIED, "USER_ASSERTION_FORBIDDEN", "this caller may not name users", "user_id"
            )
        completions = self._outbox.forget_user(current_identity().tenant_id, request.user_id)
        entry_count = 0
        for replica in await self._cache_replicas():  # A user's entries may lie on every shard.
            with routing_key(replica):
                entries = await self._cache.DeleteUserEntries(
                    cache_pb2.DeleteUserEntriesRequest(user_id=request.user_id), timeout=_CAP_SECONDS
                )
            entry_count += entries.entry_count
        outcomes = await self._router.DeleteUserOutcomes(
            router_pb2.DeleteUserOutcomesRequest(user_id=request.user_id), timeout=_CAP_SECONDS
        )
        return pb.DeleteUserDataResponse(
            cache_entry_count=entry_count,
            outcome_count=outcomes.outcome_count,
            completion_count=completions,
            batch_item_count=await self._handover.delete_user(request.user_id),
        )

    async def _report_quality(self, kept: Kept, request: pb.ReportOutcomeRequest) -> bool:
        """Tell every cache replica: one served the answer, all keep the evidence. True when the entry is retired.

        Raises when the one that served it is down. The others may be: a report that they miss makes them no worse.
        """
        replicas = await self._cache_replicas()
        owner = rendezvous(kept.shard, replicas)
        semantic = kept.receipt.facts.cache_hit_kind == "semantic"
        namespace = quote(kept.namespace or DEFAULT_NAMESPACE, safe="")

        async def tell(replica: str) -> bool:
            # Only a semantic hit is the cache's own decision, and only where it was made it counts against the bound.
            kind = ("semantic" if replica == owner else "elsewhere") if semantic else "exact"
            report = cache_pb2.ReportAnswerQualityRequest(
                entry_id=kept.entry_id,
                correct=request.score >= 0.5,
                report_id=f"{kind}@{namespace}:{request.request_id}",
            )
            with routing_key(replica):
                return (await self._cache.ReportAnswerQuality(report, timeout=_CAP_SECONDS)).retired

        answers = await asyncio.gather(*map(tell, replicas), return_exceptions=True)
        retired = False
        for replica, answer in zip(replicas, answers, strict=True):
            if not isinstance(answer, BaseException):
                retired = retired or answer
            elif replica == owner or not isinstance(answer, TenthError):
                raise answer
            else:
                log.info("a cache replica did not hear of a report: %s", answer)
        return retired

    async def _later(self, request: chat_pb2.CompletionRequest) -> pb.GenerateCompletionResponse:
        """A request that can wait: an operation, of the batch service or of this process."""
        digest = self._admission.identify(request)
        why_here = None
        if not isinstance(self._known(request, digest), Run | Answer):
            handed, why_here = await self._handover.take(request, self._admission.tenant(request))
            if handed:
                return _begun(request.request_id)
        deadlines.set_remaining(window_seconds(request))
        begun = self._begin(request, streaming=False, why_here=why_here)
        if isinstance(begun, Answer):
            return _answered(begun)
        begun.kept = True
        return _begun(request.request_id)

    def _known(self, request: chat_pb2.CompletionRequest, digest: bytes) -> Run | Answer | Kept | None:
        """What there is of a request already: its run, its answer, or a failed try. Raises REQUEST_ID_REUSED."""
        key = (current_identity().tenant_id, request.request_id)
        running = self._runs.find(key, digest)
        if running is not None:
            return running
        kept = self._outbox.find(*key)
        if kept is not None:
            if kept.digest != digest:
                raise reused(request.request_id)
            if kept.completion is not None:
                return Answer(request.request_id, kept.completion, kept.receipt, kept.entry_id)
        return kept

    def _begin(
        self, request: chat_pb2.CompletionRequest, *, streaming: bool, why_here: receipt_pb2.Hop | None = None
    ) -> Run | Answer:
        """The request's kept answer, the run it joins, or a new run."""
        digest = self._admission.identify(request)
        known = self._known(request, digest)
        if isinstance(known, Run | Answer):
            return known
        call = self._admission.admit(request, digest, streaming=streaming)
        if known is not None:
            call.carry(known.receipt.facts)
        if why_here is not None:
            call.hops.append(why_here)

        async def work(run: Run) -> None:
            set_identity(call.identity)
            with routing_key(call.shard):
                await self._flow.answer(run, call)

        return self._runs.start((call.identity.tenant_id, request.request_id), digest, work)

    async def _result(self, run: Run) -> Answer:
        try:
            return await run.result()
        finally:
            self._runs.release(run)


def _begun(request_id: str) -> pb.GenerateCompletionResponse:
    return pb.GenerateCompletionResponse(request_id=request_id, operation=_OPERATIONS + request_id)


def _answered(answer: Answer) -> pb.GenerateCompletionResponse:
    return pb.GenerateCompletionResponse(
        request_id=answer.request_id, completion=answer.completion, receipt=answer.receipt
    )


def _response(event: pb.CompletionStarted | chat_pb2.CompletionDelta) -> pb.StreamGenerateCompletionResponse:
    if isinstance(event, pb.CompletionStarted):
        return pb.StreamGenerateCompletionResponse(started=event)
    return pb.StreamGenerateCompletionResponse(delta=event)


def _replayed(answer: Answer) -> list[pb.StreamGenerateCompletionResponse]:
    started = pb.CompletionStarted(
        request_id=answer.request_id,
        model=answer.completion.model,
        from_cache=answer.receipt.facts.cache_hit,
        trace_id=answer.receipt.facts.trace_id,
    )
    return [_response(started), _response(whole_delta(answer.completion))]


def _operation(kept: Kept) -> pb.GetCompletionResponse:
    state = pb.OPERATION_STATE_DONE if kept.completion is not None else pb.OPERATION_STATE_FAILED
    reason, _, message = kept.error.partition(": ")
    reply = pb.GetCompletionResponse(
        state=state, receipt=kept.receipt, completion=kept.completion, error_reason=reason, error_message=message
    )
    if kept.settled:
        reply.receipt.state = receipt_pb2.RECEIPT_STATE_FINAL
    reply.expire_time.FromNanoseconds(int(kept.expire_time * 1e9))
    return reply
