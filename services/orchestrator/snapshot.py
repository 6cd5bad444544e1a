"""What admission needs, kept at hand: prices, tenants and kill switches from the ledger, models from the router.

Looked for anew every second (the ledger answers "unchanged" by a version), and kept on disk, so that a restart
while the ledger is down still knows every price.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.router.v1 import router_pb2, router_pb2_grpc

from mesh import deadlines
from mesh.auth import Identity, set_identity
from mesh.errors import Code, TenthError, unavailable
from mesh.receipt import Price
from mesh.wire import dated_prices
from services.orchestrator.errors import Reason
from services.orchestrator.policy import KnownModel

log = logging.getLogger("tenth.snapshot")

SELF = Identity(tenant_id="", caller="orchestrator")
"""The identity of calls that the orchestrator makes for itself."""
_CAP_SECONDS = 2.0


class Snapshot:
    """The newest snapshot; read by every request, written by one task."""

    def __init__(
        self,
        ledger: ledger_pb2_grpc.LedgerServiceAsyncStub,
        router: router_pb2_grpc.RouterServiceAsyncStub,
        directory: Path,
        now: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._router = router
        self._admission_file = directory / "admission.bin"
        self._models_file = directory / "models.bin"
        self._now = now
        self._admission = ledger_pb2.GetAdmissionSnapshotResponse()
        self._tenants: Mapping[str, ledger_pb2.TenantPolicy] = {}
        self._prices = dated_prices(())
        self.models: tuple[KnownModel, ...] = ()
        if self._admission_file.exists():
            self._adopt(ledger_pb2.GetAdmissionSnapshotResponse.FromString(self._admission_file.read_bytes()))
        if self._models_file.exists():
            self._adopt_models(router_pb2.ListModelsResponse.FromString(self._models_file.read_bytes()))

    @property
    def price_book_version(self) -> int:
        """The version to pin at admission."""
        return self._admission.price_book_version

    def tenant(self, tenant_id: str) -> ledger_pb2.TenantPolicy:
        """A tenant's policy. Raises NOT_READY before the first snapshot, UNKNOWN_TENANT for a stranger."""
        if not self._admission.version:
            raise unavailable("no prices are known yet: the ledger was never reached", reason=Reason.NOT_READY)
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            raise TenthError(
                Code.PERMISSION_DENIED, Reason.UNKNOWN_TENANT, f"tenant {tenant_id!r} is not known to the ledger"
            )
        return tenant

    def disabled_layers(self, tenant_id: str) -> Sequence[str]:
        """The layers that are off for a tenant now; of one that is gone, none."""
        tenant = self._tenants.get(tenant_id)
        return () if tenant is None else tenant.disabled_layers

    def prices(self, at_seconds: float) -> Mapping[str, Price]:
        """The price book at an instant, to the nanosecond at which the receipt will say that it was admitted."""
        return self._prices.at(int(at_seconds * 1e9))

    def model(self, name: str) -> KnownModel | None:
        """A catalogue model as last heard from the router."""
        return next((model for model in self.models if model.name == name), None)

    async def ping(self) -> None:
        """Raises until there is a snapshot."""
        if not self._admission.version:
            raise unavailable("no admission snapshot yet", reason=Reason.NOT_READY)

    async def follow(self, interval_seconds: float) -> None:
        """Look for changes for ever."""
        set_identity(SELF)
        deadlines.set_remaining(None)
        while True:
            for refresh in (self._refresh_admission, self._refresh_models):
                try:
                    await refresh()
                except TenthError as error:
                    # What is held stays in force; the hops themselves find out whether the service is down.
                    log.debug("no new snapshot: %s", error)
                except (OSError, DecodeError, ValueError):
                    # A full disk or a malformed book must not freeze prices and switches for ever.
                    log.exception("the new snapshot could not be used or kept")
            await asyncio.sleep(interval_seconds if self._admission.version else 0.1)

    async def _refresh_admission(self) -> None:
        request = ledger_pb2.GetAdmissionSnapshotRequest(version=self._admission.version)
        reply = await self._ledger.GetAdmissionSnapshot(request, timeout=_CAP_SECONDS)
        if not reply.unchanged:
            self._adopt(reply)
            _write(self._admission_file, reply.SerializeToString())

    async def _refresh_models(self) -> None:
        reply = await self._router.ListModels(router_pb2.ListModelsRequest(page_size=1000), timeout=_CAP_SECONDS)
        raw = reply.SerializeToString()
        if tuple(_known(model) for model in reply.models) != self.models:
            self._adopt_models(reply)
            _write(self._models_file, raw)

    def _adopt(self, snapshot: ledger_pb2.GetAdmissionSnapshotResponse) -> None:
        self._admission = snapshot
        self._tenants = {tenant.tenant_id: tenant for tenant in snapshot.tenants}
        self._prices = dated_prices(snapshot.prices)

    def _adopt_models(self, reply: router_pb2.ListModelsResponse) -> None:
        self.models = tuple(_known(model) for model in reply.models)


def _known(model: router_pb2.CatalogModel) -> KnownModel:
    return KnownModel(
        name=model.model,
        tier=model.tier,
        context_window_tokens=model.context_window_tokens,
        self_hosted=model.self_hosted,
        routable=model.routable,
        tools=model.abilities.tools,
        korean=model.abilities.korean,
    )


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(path)
