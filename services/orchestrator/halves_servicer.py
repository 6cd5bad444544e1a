"""The halves' RPCs: proto in, halves, proto out."""

from __future__ import annotations

from typing import Any

from tenth.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc

from mesh.auth import current_identity
from mesh.errors import Code, Reason, TenthError, invalid_argument
from services.orchestrator.halves import Halves

pb = orchestrator_pb2
_MOST_ITEMS = 100


class HalvesServicer(orchestrator_pb2_grpc.CompletionHalvesServiceServicer):
    """Implements tenth.orchestrator.v1.CompletionHalvesService."""

    def __init__(self, halves: Halves) -> None:
        self._halves = halves

    async def PrepareCompletions(
        self, request: pb.PrepareCompletionsRequest, context: Any
    ) -> pb.PrepareCompletionsResponse:
        """The first half of some requests, each for itself."""
        _check(len(request.items))
        return pb.PrepareCompletionsResponse(outcomes=await self._halves.prepare(request.items))

    async def FinishCompletions(
        self, request: pb.FinishCompletionsRequest, context: Any
    ) -> pb.FinishCompletionsResponse:
        """The second half of some requests, each for itself."""
        _check(len(request.items))
        return pb.FinishCompletionsResponse(outcomes=await self._halves.finish(request.items))


def _check(count: int) -> None:
    identity = current_identity()
    if not identity.service:
        # Whatever the callers file grants an outside caller, "*" included: a state is believed as it comes.
        message = f"{identity.caller} is no service: the halves of a request are the batch service's"
        raise TenthError(Code.PERMISSION_DENIED, Reason.CALLER_FORBIDDEN, message)
    if not 1 <= count <= _MOST_ITEMS:
        raise invalid_argument(f"from 1 to {_MOST_ITEMS}", field="items")
