"""Drives one batch at a provider, inside the workflow: handed in, asked about, stopped when time is short, collected.

Deterministic. What is left of it is handed in again or goes online.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from services.batch.planning import poll_seconds
    from services.batch.reports import AtProvider, ChunkEnd, Outside, Polled, ProviderWork, Submitted

if TYPE_CHECKING:
    from services.batch.driving import LaneDriver

_MOST_SECONDS = 9 * 86_400


@dataclass(frozen=True, slots=True)
class ProviderDriver:
    """One coroutine for each batch; what they share stands in the driver of lanes."""

    driver: LaneDriver

    async def run(self, place: int, batch: Outside) -> None:
        """One provider's batch, from handing in to its last result."""
        try:
            while batch.left and not (self.driver.renewing and not batch.provider_batch_id):
                if not batch.provider_batch_id and not await self._submit(place, batch):
                    return
                polled = await self._poll(place, batch)
                if polled is None:
                    return  # The next workflow goes on asking, or nobody does.
                at = AtProvider(self.work(batch), batch.provider_batch_id)
                end: ChunkEnd = await self.driver.do("collect_batch", at, ChunkEnd, polled.failed, lane=batch.lane)
                self.driver.on_counts(end.counts)
                batch.left, batch.provider_batch_id = end.left, ""
                batch.submission, batch.polled = batch.submission + 1, 0
                if polled.failed and polled.retryable:
                    batch.no_room += 1
                workflow.logger.info(
                    "%s: %d items ended, %d are left %s", batch.stem, end.counts.ended, end.left, polled.message
                )
                refused = polled.failed and not polled.retryable
                if end.left and (self.driver.stopped or not self._leave(place, batch, refused)):
                    return
                if end.left and polled.failed:
                    await self._wait_for_room(place, batch)
        finally:
            self.driver.wake()

    def _leave(self, place: int, batch: Outside, refused: bool) -> bool:
        """Take what is left online where that must be; True: hand it in again."""
        if not refused and not self._given_up(place, batch):
            return True
        self.driver.to_online(batch)
        return False

    def _given_up(self, place: int, batch: Outside) -> bool:
        """Handed in often enough, or the deadline is near. Where the provider had no room, that was no try."""
        return place in self.driver.leaving or batch.submission - batch.no_room > self.driver.facts.pace.provider_tries

    async def _wait_for_room(self, place: int, batch: Outside) -> None:
        """Before a provider that has as much waiting as the account may have is asked again."""
        pace = self.driver.facts.pace
        pause = poll_seconds(batch.no_room, pace.poll_first_seconds, pace.poll_longest_seconds, _MOST_SECONDS)
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self.driver.stopped or self.driver.renewing or place in self.driver.leaving,
                timeout=timedelta(seconds=pause),
            )

    async def _submit(self, place: int, batch: Outside) -> bool:
        if self._given_up(place, batch):
            self.driver.to_online(batch)
            return False
        batch.begin_seconds = batch.begin_seconds or workflow.now().timestamp()
        work = self.work(batch)
        handing_in = asyncio.create_task(self.driver.do("submit_batch", work, Submitted, lane=batch.lane))
        await workflow.wait_condition(lambda: handing_in.done() or self.driver.stopped or place in self.driver.leaving)
        if not handing_in.done():
            handing_in.cancel()
        try:
            submitted: Submitted = await handing_in
        except (ActivityError, asyncio.CancelledError):
            if not self.driver.stopped and place not in self.driver.leaving:
                raise
            submitted = await self._lost(batch, work)
        batch.provider_batch_id, batch.begin_seconds = submitted.provider_batch_id, 0.0
        if submitted.provider_batch_id:
            return True
        workflow.logger.warning("%s is not at %s: %s", work.name, batch.lane, submitted.reason)
        if not submitted.item_count:
            batch.left = 0
        elif batch.left and not self.driver.stopped:
            self.driver.to_online(batch)
        return False

    async def _lost(self, batch: Outside, work: ProviderWork) -> Submitted:
        """What became of a batch whose handing in was given up: the provider may have taken it all the same.

        What is left of it does not wait for that longer than the deadline allows.
        """
        finding = asyncio.create_task(self._find(work))
        reserve = self.driver.facts.pace.reserve_seconds
        seconds = self._last_moment(batch) - reserve - workflow.now().timestamp()
        if not self.driver.stopped:
            with contextlib.suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda: finding.done() or self.driver.stopped, timeout=timedelta(seconds=max(seconds, 0.01))
                )
            if not finding.done() and not self.driver.stopped:
                self.driver.to_online(batch)
        found = await finding
        if found is None:
            # Its attempts stay on the books at their worst case: too much, never too little.
            workflow.logger.error("whether %s took %s is not known", batch.lane, work.name)
            return Submitted("", batch.left, "given up while it was handed in")
        if found.provider_batch_id and not batch.left:
            # What it had runs elsewhere by now. Stopped, it costs less.
            at = AtProvider(work, found.provider_batch_id)
            await self._quietly("cancel_batch", at, batch.lane, bool)
            workflow.logger.error("%s was found too late: what it had runs elsewhere", found.provider_batch_id)
            return Submitted("", 0, "found too late")
        return found

    async def _find(self, work: ProviderWork) -> Submitted | None:
        """Ask whether the provider has a batch, until it says; None: it does not say within the time for that."""
        pace, asked = self.driver.facts.pace, 0
        until = workflow.now().timestamp() + pace.provider_find_seconds
        while (left := until - workflow.now().timestamp()) > 0 and not self.driver.renewing:
            # Not at once: what broke off a moment ago may still be on its way.
            pause = poll_seconds(asked, pace.poll_first_seconds, pace.poll_longest_seconds, left)
            asked += 1
            with contextlib.suppress(TimeoutError):
                await workflow.wait_condition(lambda: self.driver.renewing, timeout=timedelta(seconds=pause))
            try:
                found: Submitted = await self.driver.do("find_batch", work, Submitted, lane=work.lane, tries=1)
            except ActivityError as error:
                workflow.logger.warning("%s is looked for in vain: %s", work.name, error.cause)
                continue
            return found
        return None

    async def _poll(self, place: int, batch: Outside) -> Polled | None:
        """Until the provider's batch has ended; None when the workflow continues as new, or time is over."""
        pace = self.driver.facts.pace
        at = AtProvider(self.work(batch), batch.provider_batch_id)
        asked_to_stop = False
        while True:
            over = self.driver.stopped or place in self.driver.leaving
            if over and not asked_to_stop:
                batch.polled = 0
                asked_to_stop = await self._quietly("cancel_batch", at, batch.lane, bool) or False
            now = workflow.now().timestamp()
            left = max(1.0, self.driver.facts.deadline_seconds - now)
            pause = poll_seconds(batch.polled, pace.poll_first_seconds, pace.poll_longest_seconds, left)
            batch.polled += 1

            def changed(over: bool = over) -> bool:
                return self.driver.renewing or ((self.driver.stopped or place in self.driver.leaving) and not over)

            try:
                await workflow.wait_condition(changed, timeout=timedelta(seconds=pause))
            except TimeoutError:
                polled: Polled | None = await self._quietly("poll_batch", at, batch.lane, Polled)
                if polled is not None and (polled.ended or polled.failed):
                    return polled
            if self.driver.renewing:
                return None
            if over and workflow.now().timestamp() > self._last_moment(batch):
                # Its attempts stay on the books at their worst case: too much, never too little.
                workflow.logger.error("%s does not end: what it had runs elsewhere", batch.provider_batch_id)
                if not self.driver.stopped:
                    self.driver.to_online(batch)
                batch.left = 0
                return None

    def _last_moment(self, batch: Outside) -> float:
        """Until when a provider's batch that is being stopped is waited for."""
        deadline, leave = self.driver.facts.deadline_seconds, self.driver.facts.pace.provider_leave_seconds
        if self.driver.stopped:
            return max(deadline, workflow.info().start_time.timestamp()) + max(leave, 3600.0)
        return deadline - self.driver.facts.pace.safety_factor * batch.left / max(self.driver.online_rate(), 1e-9)

    async def _quietly(self, name: str, at: AtProvider, lane: str, kind: type[Any]) -> Any:
        """An activity whose failure changes nothing: it comes again with the next look. None then."""
        try:
            return await self.driver.do(name, at, kind, lane=lane, tries=3)
        except ActivityError as error:
            workflow.logger.warning("%s of %s failed: %s", name, at.provider_batch_id, error.cause)
            return None

    def work(self, batch: Outside) -> ProviderWork:
        """A batch as activities are told of it."""
        return ProviderWork(
            ref=self.driver.ref,
            lane=batch.lane,
            model=batch.model,
            stem=batch.stem,
            first=batch.first,
            count=len(batch.sizes),
            submission=batch.submission,
            begin_seconds=batch.begin_seconds,
            deadline_seconds=self.driver.facts.deadline_seconds,
        )
