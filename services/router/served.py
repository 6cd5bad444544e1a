"""Asks inference for the health of its models, again and again."""

from __future__ import annotations

import asyncio
import logging

from tenth.inference.v1 import inference_pb2, inference_pb2_grpc

from mesh import deadlines
from mesh.auth import Identity, set_identity
from mesh.errors import TenthError
from services.router.health import Health

log = logging.getLogger("tenth.health")

SELF = Identity(tenant_id="", caller="router")
"""The identity of calls that the router makes for itself."""
_CAP_SECONDS = 2.0
_PAGE_SIZE = 1000


class ServedModels:
    """Tells ``Health`` what inference says. With several replicas of inference each look is at one of them."""

    def __init__(
        self, stub: inference_pb2_grpc.InferenceServiceAsyncStub, health: Health, interval_seconds: float
    ) -> None:
        """Look every ``interval_seconds``."""
        self._stub = stub
        self._health = health
        self._interval_seconds = interval_seconds
        self._reachable = True

    async def watch(self) -> None:
        """Look until cancelled."""
        set_identity(SELF)
        deadlines.set_remaining(None)
        while True:
            await self.refresh()
            await asyncio.sleep(self._interval_seconds)

    async def refresh(self) -> bool:
        """Look once; True when inference answered. What it failed with is logged once, until it answers again."""
        try:
            listed = await self._listed()
        except TenthError as error:
            self._health.unreachable()
            if self._reachable:
                log.warning("the health of models is unknown, none is taken for down: %s", error)
            self._reachable = False
            return False
        if not self._reachable:
            log.info("the health of models is known again")
        self._reachable = True
        self._health.listed(listed)
        return True

    async def _listed(self) -> dict[str, str]:
        found: dict[str, str] = {}
        request = inference_pb2.ListServedModelsRequest(page_size=_PAGE_SIZE)
        while True:
            page = await self._stub.ListServedModels(request, timeout=_CAP_SECONDS)
            for served in page.models:
                found[served.model] = "" if served.healthy else served.reason or "inference says so"
            if not page.next_page_token or page.next_page_token == request.page_token:
                return found
            request.page_token = page.next_page_token
