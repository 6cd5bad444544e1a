"""Rollups: the visible receipts summed by UTC hour, day and month and everything that reports group by, tags apart.

Each of the three is kept twice: with users and projects, and with these together, which is far fewer rows.

Receipt events are rolled in, in their order: what an event shows is added, and what its request showed before is
taken off again, both read from the events themselves. So the rollups are exactly the receipts as of the last event
rolled in, whatever was corrected and when.

    python -m services.ledger.rollups check       compares them with the receipts, to the nano-dollar
    python -m services.ledger.rollups rebuild     makes them anew from the events
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, or_, select

from mesh.errors import TenthError
from mesh.money import MAX_NANO_USD
from mesh.settings import MeshSettings, load
from services.ledger.grains import Grain
from services.ledger.migrate import database_password
from services.ledger.policy import ENDS
from services.ledger.rollup_check import check_rollups
from services.ledger.rollup_rows import (
    KEY,
    SUMS,
    State,
    add,
    largest,
    read_state,
    save_state,
    stored_state,
)
from services.ledger.rollup_steps import Request, leveled, shown_before, step_of
from services.ledger.settings import LedgerSettings
from services.ledger.store import Store, open_store
from services.ledger.tables import attempts, receipt_events, rollups

log = logging.getLogger("tenth.ledger")

BATCH = 1_000
"""Most events of one step: bounds how long the writer is held."""


class Roller:
    """Rolls new receipt events in. Replicas may all run one: a step whose start another took is dropped."""

    def __init__(self, store: Store, *, batch: int = BATCH) -> None:
        self._store = store
        self._batch = batch

    async def run(self, interval_seconds: float) -> None:
        """Roll for ever."""
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                await self.catch_up()
            except TenthError as error:
                log.warning("rollups put off: %s", error)
            except Exception:
                # Reports stay right without: they read what is not rolled in from the receipts, only slower.
                log.exception("rollups failed")

    async def catch_up(self) -> int:
        """Roll everything in; returns how many events that were."""
        count = 0
        while rolled_in := await self.step():
            count += rolled_in
        return count

    async def step(self) -> int:
        """Roll in one batch; returns how many events and attempts' records it held."""
        async with self._store.read() as connection:
            state = await read_state(connection)
            new = (
                select(receipt_events)
                .where(receipt_events.c.id > state.event_id)
                .order_by(receipt_events.c.id)
                .limit(self._batch)
            )
            events = (await connection.execute(new)).all()
            before: dict[Request, Row[Any]] = {}
            if events:
                query = shown_before(state.event_id, events[-1].id)
                for row in await connection.execute(query):
                    before[row.tenant_id, row.request_id] = row
            ended = (
                await connection.execute(
                    select(attempts.c.id, attempts.c.kind)
                    .where(attempts.c.id > state.attempt_id)
                    .order_by(attempts.c.id)
                    .limit(self._batch)
                )
            ).all()
        if not events and not ended:
            return 0
        # Events never change, so they are computed outside of the writer, and off the event loop.
        step = await asyncio.to_thread(step_of, events, before, state)
        changes = await asyncio.to_thread(leveled, step.deltas)
        bound = min(state.bound + largest(changes), MAX_NANO_USD)
        after = State(
            event_id=events[-1].id if events else state.event_id,
            receipts=state.receipts + step.receipts,
            violations=state.violations + step.violations,
            attempt_id=ended[-1].id if ended else state.attempt_id,
            attempts=state.attempts + sum(row.kind in ENDS for row in ended),
            kept_ns=state.kept_ns,
            rebuilt_id=state.rebuilt_id,
            bound=bound,
        )

        def operation(connection: Connection) -> bool:
            if stored_state(connection) != state:
                return False
            add(connection, changes, bound)
            save_state(connection, after)
            return True

        await self._store.write(operation)
        return len(events) + len(ended)


async def rebuild(store: Store) -> int:
    """Make the rollups anew from the events, those of hours whose receipts may be gone apart; returns the events."""
    await restart(store)
    return await Roller(store).catch_up()


async def restart(store: Store) -> None:
    """Empty the rollups, for rollers to fill them again; reports stay right meanwhile, only slower."""

    def operation(connection: Connection) -> None:
        state = stored_state(connection)
        if state.event_id < state.rebuilt_id:
            return  # An earlier rebuild goes on.
        # The month that the mark lies in is summed again from its hours before the mark.
        month = Grain.MONTH.start(state.kept_ns)
        connection.execute(
            delete(rollups).where(
                or_(rollups.c.start_ns >= state.kept_ns, and_(rollups.c.level > 0, rollups.c.start_ns >= month))
            )
        )
        kept = {
            tuple(row[name] for name in KEY): [row[name] for name in SUMS]
            for row in connection.execute(
                select(rollups).where(rollups.c.level == 0, rollups.c.start_ns >= month)
            ).mappings()
        }
        coarse = {key: sums for key, sums in leveled(kept).items() if key[0] > 0}
        bound = min(state.bound + largest(coarse), MAX_NANO_USD)
        add(connection, coarse, bound)
        # Every request has one event that is no correction. Receipts whose events are gone stay counted.
        there = select(func.count()).where(receipt_events.c.id <= state.event_id, receipt_events.c.kind != "corrected")
        gone = state.receipts - connection.execute(there).scalar_one()
        save_state(
            connection,
            State(
                receipts=gone,
                attempt_id=state.attempt_id,
                attempts=state.attempts,
                kept_ns=state.kept_ns,
                rebuilt_id=state.event_id,
                bound=bound,
            ),
        )

    await store.write(operation)


def main() -> None:
    """The command line; ends with 1 when rollups and receipts differ."""
    parser = argparse.ArgumentParser(prog="services.ledger.rollups", description="Checks or makes anew the rollups.")
    parser.add_argument("what", choices=["check", "rebuild"])
    sys.exit(asyncio.run(_main(parser.parse_args().what)))


async def _main(what: str) -> int:
    settings = load(LedgerSettings)
    url = settings.url(load(MeshSettings).data_dir)
    async with open_store(url, password=database_password(settings)) as store:
        if what == "rebuild":
            print(f"rolled in {await rebuild(store)} events and attempts")
        differences = await check_rollups(store)
    for line in differences:
        print(line)
    print("the rollups are the receipts" if not differences else f"{len(differences)} differences")
    return 1 if differences else 0


if __name__ == "__main__":
    main()
