"""BatchWorkflow: one run of a batch, from its first item prepared to its last result. Read it top to bottom.

Deterministic and thin: what is decided stands in policy.py and planning.py, what is done in activities.py. Its history
holds names and counts only, and it continues as a new one before that grows long.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from services.batch.driving import LaneDriver
    from services.batch.errors import Reason
    from services.batch.planning import Margins, may_wait, pace_end
    from services.batch.refs import BATCH_WORKFLOW, CANCEL_SIGNAL, PROGRESS_MEMO, BatchRef, Progress, State
    from services.batch.reports import (
        Close,
        Counts,
        End,
        MakePlan,
        Planned,
        Prepare,
        Prepared,
        Resume,
        RunFacts,
        RunInput,
        Share,
        Shared,
    )

_TWINS_LEAST_SECONDS = 5.0
_MOST_ROUNDS = 3
"""The first ones; what waited for those that mean nearly the same; the twins of these, where they cannot share."""
_READ_SECONDS = 60


@workflow.defn(name=BATCH_WORKFLOW)
class BatchWorkflow:
    """One run of a batch."""

    def __init__(self) -> None:
        self._cancelled = False
        self._counts = Counts()
        self._expected = 0
        self._shown = -1
        self._state = State.RUNNING
        self._driver: LaneDriver | None = None
        self._uncounted: list[str] = []
        """Beginnings of the names of results that activities may have written which were interrupted."""
        self._half_prepared: list[int] = []

    @workflow.signal(name=CANCEL_SIGNAL)
    def cancel(self) -> None:
        """Begin nothing new; wait for what is at a provider; end the rest."""
        self._cancelled = True
        if self._state is State.RUNNING:
            self._state = State.CANCELLING
        if self._driver is not None:
            self._driver.stop()
        self._show(always=True)

    @workflow.run
    async def run(self, asked: RunInput) -> Progress:
        """The run. It is started with a BatchRef, which reads as a RunInput that resumes nothing."""
        ref = self._ref = BatchRef(asked.tenant_id, asked.batch_id, asked.run)
        resume = asked.resume
        facts = resume.facts if resume is not None else await self._facts()
        driver = self._driver = LaneDriver(ref, facts, self._count)
        if self._cancelled:
            driver.stop()
        error: tuple[str, str] | None = None
        timing = asyncio.create_task(self._stop_at_deadline(driver))
        try:
            if resume is not None:
                self._resume(resume, driver)
            await self._rounds(driver, resume)
        except ActivityError as failed:
            error = _words(failed)
            workflow.logger.error("batch %s cannot go on: %s", ref.batch_id, error)
        finally:
            timing.cancel()
        return await self._end(driver, error)

    @staticmethod
    async def _stop_at_deadline(driver: LaneDriver) -> None:
        """Whatever the run waits for just then."""
        left = driver.facts.deadline_seconds - workflow.now().timestamp()
        if left > 0:
            await asyncio.sleep(left + 0.01)
        driver.stop()

    async def _rounds(self, driver: LaneDriver, resume: Resume | None) -> None:
        round_, stem = (resume.round, resume.stem) if resume is not None else (1, "")
        if resume is None:
            stem = await self._prepare_and_plan(driver, 1, list(range(driver.facts.object_count)))
        await self._drive(driver, round_, stem)
        while round_ < _MOST_ROUNDS and driver.waiting and not driver.stopped:
            asked = Share(self._ref, stem, driver.facts.object_count, round_)
            shared: Shared | None = await driver.do_unless_stopped("share", asked, Shared)
            if shared is None:
                self._uncounted.append("shared-0" if round_ == 1 else f"shared-r{round_}-")
                return
            self._count(shared.counts)
            driver.waiting = 0
            if not shared.numbers or driver.stopped:
                return
            round_ += 1
            stem = await self._prepare_and_plan(driver, round_, shared.numbers)
            await self._drive(driver, round_, stem)

    async def _prepare_and_plan(self, driver: LaneDriver, round_: int, numbers: list[int]) -> str:
        """One round's items through the first half, then into lanes. The beginning of the plan's names."""
        pace, deadline = driver.facts.pace, driver.facts.deadline_seconds
        margins = Margins(pace.safety_factor, pace.reserve_seconds)
        left = deadline - workflow.now().timestamp()
        cheap = left - pace.reserve_seconds - pace.provider_leave_seconds
        driver.at_batch_prices = cheap >= pace.provider_least_seconds
        twins = round_ < _MOST_ROUNDS and may_wait(left, _TWINS_LEAST_SECONDS, margins)
        gate = asyncio.Semaphore(pace.prepare_parallel)
        now, open_items = workflow.now().timestamp(), driver.facts.item_count - self._counts.ended
        paced_until = pace_end(now, deadline, open_items, driver.online_rate(), margins)

        async def one(number: int) -> int:
            async with gate:
                if driver.stopped:
                    return 0
                asked = Prepare(self._ref, round_, number, deadline, twins, driver.at_batch_prices, paced_until)
                try:
                    prepared: Prepared | None = await driver.do_unless_stopped("prepare", asked, Prepared)
                except ActivityError:
                    driver.stop()
                    self._left_half_prepared(round_, number)
                    raise
                if prepared is None:
                    self._left_half_prepared(round_, number)
                    return 0
                self._expected += prepared.expected_nano_usd
                self._count(prepared.counts)
                return prepared.waiting

        waiting = await asyncio.gather(*(one(number) for number in numbers), return_exceptions=True)
        if failed := next((each for each in waiting if isinstance(each, BaseException)), None):
            raise failed  # Now that none is under way any more.
        driver.waiting = sum(each for each in waiting if isinstance(each, int))
        if driver.stopped:
            return ""
        near = round_ == 1 and pace.near_same and may_wait(left, pace.near_same_least_seconds, margins)
        asked = MakePlan(self._ref, round_, driver.facts.object_count, deadline, cheap, driver.facts.lanes, near)
        planned: Planned | None = await driver.do_unless_stopped("plan", asked, Planned)
        if planned is None:
            self._uncounted.append(f"nowhere-{round_}-")
            return ""
        self._count(planned.counts)
        self._expected -= planned.waiting_nano_usd
        driver.waiting += planned.waiting
        driver.take(planned)
        return planned.stem

    def _left_half_prepared(self, round_: int, number: int) -> None:
        self._uncounted.append(f"prepared-{round_}-{number:08d}")
        self._half_prepared.append(number)

    async def _drive(self, driver: LaneDriver, round_: int, stem: str) -> None:
        await driver.run()
        if driver.renewing and not driver.stopped and (any(line.pieces for line in driver.lines) or self._outside):
            workflow.continue_as_new(
                RunInput(
                    self._ref.tenant_id,
                    self._ref.batch_id,
                    self._ref.run,
                    Resume(
                        round=round_,
                        facts=driver.facts,
                        counts=self._counts,
                        expected_nano_usd=self._expected,
                        waiting=driver.waiting,
                        stem=stem,
                        at_batch_prices=driver.at_batch_prices,
                        lines=driver.lines,
                        outside=[batch for batch in driver.outside if batch.left],
                        cancelled=self._cancelled,
                    ),
                )
            )
        driver.renewing = False

    @property
    def _outside(self) -> bool:
        return self._driver is not None and any(batch.left for batch in self._driver.outside)

    def _resume(self, resume: Resume, driver: LaneDriver) -> None:
        self._counts, self._expected = resume.counts, resume.expected_nano_usd
        driver.lines, driver.outside, driver.waiting = resume.lines, resume.outside, resume.waiting
        driver.at_batch_prices = resume.at_batch_prices
        if resume.cancelled:
            self.cancel()

    async def _facts(self) -> RunFacts:
        facts: RunFacts = await workflow.execute_activity(
            "read_run",
            self._ref,
            result_type=RunFacts,
            start_to_close_timeout=timedelta(seconds=_READ_SECONDS),
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=30)),
        )
        return facts

    async def _end(self, driver: LaneDriver, error: tuple[str, str] | None) -> Progress:
        """Every item gets its end, the run its last word."""
        expired = workflow.now().timestamp() >= driver.facts.deadline_seconds
        if self._counts.ended < driver.facts.item_count:
            if error is not None:
                reason, message = error
            elif self._cancelled:
                reason, message = Reason.BATCH_CANCELLED, "the batch was cancelled before the item was run"
            elif expired:
                reason, message = Reason.BATCH_EXPIRED, "the batch's deadline passed before the item was answered"
            elif driver.unplaced:
                reason, message = Reason.LANE_NOT_ALLOWED, "the provider did not run it, and no other lane is allowed"
            else:
                reason, message = Reason.ITEM_LOST, "the run ended without a result of the item"
            until = workflow.now().timestamp() + driver.facts.pace.close_seconds
            count = driver.facts.object_count
            asked = Close(self._ref, count, str(reason), message, True, until, self._uncounted, self._half_prepared)
            try:
                self._count(await driver.do("close", asked, Counts))
            except ActivityError as failed:
                # What is left open is let go of when its reservation ends.
                error = error or _words(failed)
                workflow.logger.error("batch %s cannot be closed: %s", self._ref.batch_id, _words(failed))
        self._state = State.FAILED if error is not None else State.CANCELLED if self._cancelled else State.DONE
        progress = self._progress(error, workflow.now().timestamp())
        await driver.do("end", End(self._ref, progress), None)
        workflow.upsert_memo({PROGRESS_MEMO: asdict(progress)})
        return progress

    def _count(self, counts: Counts) -> None:
        self._counts.add(counts)
        self._show()

    def _show(self, *, always: bool = False) -> None:
        """Write the progress into the memo; of a large batch not every step."""
        if self._driver is None:
            return
        step = max(1, self._driver.facts.item_count // 100)
        if always or self._counts.ended >= self._shown + step:
            self._shown = self._counts.ended
            workflow.upsert_memo({PROGRESS_MEMO: asdict(self._progress(None, 0.0))})

    def _progress(self, error: tuple[str, str] | None, end_seconds: float) -> Progress:
        counts = self._counts
        return Progress(
            state=self._state,
            done=counts.done,
            failed=counts.failed,
            shared=counts.shared,
            cache_hits=counts.cache_hits,
            actual_nano_usd=counts.actual_nano_usd,
            overhead_nano_usd=counts.overhead_nano_usd,
            baseline_nano_usd=counts.baseline_nano_usd,
            savings=list(counts.savings),
            forecast_nano_usd=max(self._expected, counts.actual_nano_usd),
            lanes=dict(counts.lanes),
            error_reason=error[0] if error is not None else "",
            error_message=error[1] if error is not None else "",
            end_time_seconds=end_seconds,
        )


def _words(error: ActivityError) -> tuple[str, str]:
    """Reason and message of what ended a run."""
    cause: Any = error.cause
    if isinstance(cause, ApplicationError) and cause.type:
        return cause.type, cause.message
    return Reason.WORKFLOW_FAILED, str(cause or error)
