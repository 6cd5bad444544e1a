"""Runs the ledger: ``python -m services.ledger``."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import AsyncExitStack

from tenth.ledger.v1.ledger_pb2_grpc import (
    add_LedgerReadServiceServicer_to_server,
    add_LedgerServiceServicer_to_server,
)

from mesh.auth import Authenticator, read_key
from mesh.process import run
from mesh.server import MeshServer
from mesh.settings import MeshSettings, load
from mesh.telemetry import start_telemetry
from services.ledger.admin import Admin
from services.ledger.alerts import Alerter
from services.ledger.book import Book
from services.ledger.metrics import BookGauges, MoneyMetrics
from services.ledger.migrate import database_password, migrate
from services.ledger.partitions import Partitions
from services.ledger.pricebook import PriceBooks
from services.ledger.read_servicer import LedgerReadServicer
from services.ledger.reconcile import Sweeper
from services.ledger.report import Reports
from services.ledger.retention import upkeep
from services.ledger.seeding import Seeder
from services.ledger.servicer import LedgerServicer
from services.ledger.settings import LedgerSettings
from services.ledger.store import open_store


async def main() -> None:
    """Wire the ledger and serve until SIGTERM."""
    mesh, settings = load(MeshSettings), load(LedgerSettings)
    url, password = settings.url(mesh.data_dir), database_password(settings)
    telemetry = start_telemetry("ledger", mesh)
    async with AsyncExitStack() as stack:
        stack.callback(telemetry.close)
        await migrate(url, password)
        store = await stack.enter_async_context(
            open_store(url, password=password, read_connection_count=settings.read_connection_count)
        )
        await Partitions(store).make(time.time_ns())
        prices = PriceBooks(store)
        admin = Admin(store, prices, time.time_ns)
        money = MoneyMetrics(telemetry.meter)
        book = Book(store, prices, time.time_ns, lambda: uuid.uuid4().hex, money.count)
        seeder = Seeder(prices, admin, settings.catalog_file, mesh.callers_file)
        await seeder.seed()
        sweeper = Sweeper(
            book,
            attempt_ttl_seconds=settings.attempt_ttl_seconds,
            unfinished_grace_seconds=settings.unfinished_grace_seconds,
        )
        alerter = Alerter(store, time.time_ns, settings.alert_key_file)
        for work in (
            sweeper.run(settings.sweep_interval_seconds),
            seeder.watch(settings.sweep_interval_seconds),
            alerter.run(settings.alert_interval_seconds),
            *upkeep(store, settings, time.time_ns),
        ):
            stack.callback(asyncio.create_task(work).cancel)
        if mesh.otlp_endpoint:
            gauges = BookGauges(telemetry.meter, store, admin)
            stack.callback(asyncio.create_task(gauges.run(mesh.metrics_interval_seconds)).cancel)
        server = MeshServer(
            mesh, telemetry, Authenticator(mesh.callers_file, read_key(mesh.identity_key_file)), {"store": store.ping}
        )
        writes = LedgerServicer(book, admin, time.time_ns, reservation_ttl_seconds=settings.reservation_ttl_seconds)
        reads = LedgerReadServicer(Reports(store), admin, prices, time.time_ns, self_hosted=seeder.self_hosted)
        server.add(add_LedgerServiceServicer_to_server, writes, "tenth.ledger.v1.LedgerService")
        server.add(add_LedgerReadServiceServicer_to_server, reads, "tenth.ledger.v1.LedgerReadService")
        await server.serve()


if __name__ == "__main__":
    run(main())
