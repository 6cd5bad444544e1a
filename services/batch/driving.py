"""Drives a run's chunks through their lanes, inside the workflow: deterministic, decisions are in planning.py.

Of each model a few chunks are out at a time; a provider's batch has a coroutine that hands it in, sleeps and asks. A
look at the deadline now and then moves work online while there is time for that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from services.batch.planning import LaneLoad, Margins, check_seconds, measured_rate, plan, poll_seconds
    from services.batch.policy import LOCAL, ONLINE, PROVIDER_LANES
    from services.batch.refs import BatchRef, lane_queue
    from services.batch.reports import (
        AtProvider,
        ChunkEnd,
        Counts,
        Line,
        Outside,
        Piece,
        Planned,
        Polled,
        ProviderWork,
        RunChunk,
        RunFacts,
        Submitted,
    )

_MOST_SECONDS = 9 * 86_400


@dataclass(slots=True)
class _Out:
    """A piece that a worker has, or is to take."""

    line: Line
    piece: Piece
    task: asyncio.Task[None]


@dataclass(slots=True)
class LaneDriver:
    """The lanes of one run. ``on_counts`` hears what ended."""

    ref: BatchRef
    facts: RunFacts
    on_counts: Callable[[Counts], None]
    lines: list[Line] = field(default_factory=list)
    outside: list[Outside] = field(default_factory=list)
    at_batch_prices: bool = True
    waiting: int = 0
    """Items that run after these, in a later round: time must be left for them."""
    stopped: bool = False
    """Cancelled, or past the deadline: nothing new is begun."""
    renewing: bool = False
    """The workflow continues as a new one as soon as no chunk is out."""
    _out: list[_Out] = field(default_factory=list)
    _polling: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    _leaving: set[int] = field(default_factory=set)
    """Provider's batches that were given up, by their place."""
    unplaced: bool = False
    """True when a provider did not run items and no other lane is allowed."""
    _woken: bool = False

    def take(self, planned: Planned) -> None:
        """Take a plan's chunks."""
        for group in planned.groups:
            if group.lane not in PROVIDER_LANES:
                pieces = [
                    Piece(f"{planned.stem}-{group.first + place:06d}", size) for place, size in enumerate(group.sizes)
                ]
                self.lines.append(Line(group.lane, group.model, group.another_model, False, pieces))
                continue
            for first, count in group.batches:
                sizes = group.sizes[first - group.first : first - group.first + count]
                self.outside.append(Outside(group.lane, group.model, planned.stem, first, sizes, sum(sizes)))

    def wake(self) -> None:
        """Look again at what is to be done."""
        self._woken = True

    def stop(self) -> None:
        """Begin nothing new; what is out ends as it can."""
        self.stopped = True
        for out in self._out:
            out.task.cancel()
        self.wake()

    async def run(self) -> None:
        """Until nothing is left, or all that was out has come back after ``stop`` or ``renewing``."""
        watching = asyncio.create_task(self._watch())
        try:
            while True:
                self._begin()
                if not self._out and not self._polling:
                    return
                self._woken = False
                await workflow.wait_condition(lambda: self._woken)
                for task in [*(out.task for out in self._out), *self._polling.values()]:
                    if task.done() and not task.cancelled() and task.exception() is not None:
                        await task
                self._out = [out for out in self._out if not out.task.done()]
                self._polling = {place: task for place, task in self._polling.items() if not task.done()}
                if workflow.info().get_current_history_length() > self.facts.pace.history_events:
                    self.renewing = True
        finally:
            watching.cancel()
            for task in [*(out.task for out in self._out), *self._polling.values()]:
                task.cancel()

    def _begin(self) -> None:
        if self.stopped or self.renewing:
            return
        for line in self.lines:
            most = self.facts.pace.local_chunks if line.lane == LOCAL else self.facts.pace.online_chunks
            out = sum(1 for one in self._out if one.line is line)
            while line.pieces and out < most:
                piece = line.pieces.pop(0)
                self._out.append(_Out(line, piece, asyncio.create_task(self._run_piece(line, piece))))
                out += 1
        for place, batch in enumerate(self.outside):
            beside = sum(1 for other in self._polling if self.outside[other].model == batch.model)
            if batch.left and place not in self._polling and beside < self.facts.pace.provider_batches:
                self._polling[place] = asyncio.create_task(self._run_outside(place, batch))

    async def _run_piece(self, line: Line, piece: Piece) -> None:
        asked = RunChunk(
            ref=self.ref,
            lane=line.lane,
            model=line.model,
            name=piece.name,
            another_model=line.another_model,
            at_batch_prices=self.at_batch_prices,
            moved=line.moved,
            deadline_seconds=self.facts.deadline_seconds,
            also_done=piece.also_done,
        )
        model = line.model if line.lane == LOCAL else ""
        try:
            end: ChunkEnd = await self.do("run_chunk", asked, ChunkEnd, lane=line.lane, model=model)
        except ActivityError:
            if not self._asked_back(piece):
                raise
            end = ChunkEnd(Counts(), piece.item_count, 0)  # Nobody had begun it.
        except asyncio.CancelledError:
            end = ChunkEnd(Counts(), piece.item_count, 0)
        finally:
            self.wake()
        line.ended_count += end.counts.ended
        line.busy_seconds += end.seconds
        self.on_counts(end.counts)
        if end.left and not self.stopped:
            self._online(line.model, line.lane == LOCAL, [Piece(piece.name, end.left, piece.also_done)])

    def _asked_back(self, piece: Piece) -> bool:
        return self.stopped or any(out.piece is piece and out.task.cancelling() for out in self._out)

    def _online(self, model: str, another_model: bool, pieces: list[Piece]) -> None:
        """Put pieces of another lane into the online one."""
        for line in self.lines:
            if (line.lane, line.model, line.another_model, line.moved) == (ONLINE, model, another_model, True):
                line.pieces.extend(pieces)
                break
        else:
            self.lines.append(Line(ONLINE, model, another_model, True, pieces))
        self.wake()

    @property
    def _online_allowed(self) -> bool:
        return not self.facts.lanes or ONLINE in self.facts.lanes

    async def _run_outside(self, place: int, batch: Outside) -> None:
        """One provider's batch, from handing in to its last result."""
        try:
            while batch.left and not (self.renewing and not batch.provider_batch_id):
                if not batch.provider_batch_id and not await self._submit(place, batch):
                    return
                polled = await self._poll(place, batch)
                if polled is None:
                    return  # The next workflow goes on asking, or nobody does.
                at = AtProvider(self._work(batch), batch.provider_batch_id)
                end: ChunkEnd = await self.do("collect_batch", at, ChunkEnd, polled.failed, lane=batch.lane)
                self.on_counts(end.counts)
                batch.left, batch.provider_batch_id = end.left, ""
                batch.submission, batch.polled = batch.submission + 1, 0
                if polled.failed and polled.retryable:
                    batch.no_room += 1
                workflow.logger.info(
                    "%s: %d items ended, %d are left %s", batch.stem, end.counts.ended, end.left, polled.message
                )
                refused = polled.failed and not polled.retryable
                if end.left and (self.stopped or not self._leave(place, batch, refused)):
                    return
                if end.left and polled.failed:
                    await self._wait_for_room(place, batch)
        finally:
            self.wake()

    def _leave(self, place: int, batch: Outside, refused: bool) -> bool:
        """Take what is left online where that must be; True: hand it in again."""
        if not refused and not self._given_up(place, batch):
            return True
        self._to_online(batch)
        return False

    def _given_up(self, place: int, batch: Outside) -> bool:
        """Handed in often enough, or the deadline is near. Where the provider had no room, that was no try."""
        return place in self._leaving or batch.submission - batch.no_room > self.facts.pace.provider_tries

    async def _wait_for_room(self, place: int, batch: Outside) -> None:
        """Before a provider that has as much waiting as the account may have is asked again."""
        pace = self.facts.pace
        pause = poll_seconds(batch.no_room, pace.poll_first_seconds, pace.poll_longest_seconds, _MOST_SECONDS)
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self.stopped or self.renewing or place in self._leaving, timeout=timedelta(seconds=pause)
            )

    def _to_online(self, batch: Outside) -> None:
        if self._online_allowed:
            name = self._work(batch).name
            pieces = [
                Piece(f"{batch.stem}-{batch.first + place:06d}", size, [name]) for place, size in enumerate(batch.sizes)
            ]
            self._online(batch.model, False, pieces)
        else:
            self.unplaced = True
        batch.left = 0

    async def _submit(self, place: int, batch: Outside) -> bool:
        if self._given_up(place, batch):
            self._to_online(batch)
            return False
        batch.begin_seconds = batch.begin_seconds or workflow.now().timestamp()
        work = self._work(batch)
        handing_in = asyncio.create_task(self.do("submit_batch", work, Submitted, lane=batch.lane))
        await workflow.wait_condition(lambda: handing_in.done() or self.stopped or place in self._leaving)
        if not handing_in.done():
            handing_in.cancel()
        try:
            submitted: Submitted = await handing_in
        except (ActivityError, asyncio.CancelledError):
            if not self.stopped and place not in self._leaving:
                raise
            submitted = Submitted("", batch.left, "given up while it was handed in")
        batch.provider_batch_id, batch.begin_seconds = submitted.provider_batch_id, 0.0
        if submitted.provider_batch_id:
            return True
        workflow.logger.warning("%s is not at %s: %s", work.name, batch.lane, submitted.reason)
        if not submitted.item_count:
            batch.left = 0
        elif not self.stopped:
            self._to_online(batch)
        return False

    async def _poll(self, place: int, batch: Outside) -> Polled | None:
        """Until the provider's batch has ended; None when the workflow continues as new, or time is over."""
        pace = self.facts.pace
        at = AtProvider(self._work(batch), batch.provider_batch_id)
        asked_to_stop = False
        while True:
            over = self.stopped or place in self._leaving
            if over and not asked_to_stop:
                asked_to_stop, batch.polled = True, 0
                await self._quietly("cancel_batch", at, batch.lane)
            now = workflow.now().timestamp()
            left = max(1.0, self.facts.deadline_seconds - now)
            pause = poll_seconds(batch.polled, pace.poll_first_seconds, pace.poll_longest_seconds, left)
            batch.polled += 1

            def changed(asked: bool = asked_to_stop) -> bool:
                return self.renewing or ((self.stopped or place in self._leaving) and not asked)

            try:
                await workflow.wait_condition(changed, timeout=timedelta(seconds=pause))
            except TimeoutError:
                polled: Polled | None = await self._quietly("poll_batch", at, batch.lane, Polled)
                if polled is not None and (polled.ended or polled.failed):
                    return polled
            if self.renewing:
                return None
            if asked_to_stop and workflow.now().timestamp() > self._last_moment(batch):
                # Its attempts stay on the books at their worst case: too much, never too little.
                workflow.logger.error("%s does not end: what it had runs elsewhere", batch.provider_batch_id)
                if not self.stopped:
                    self._to_online(batch)
                batch.left = 0
                return None

    def _last_moment(self, batch: Outside) -> float:
        """Until when a provider's batch that is being stopped is waited for."""
        deadline, leave = self.facts.deadline_seconds, self.facts.pace.provider_leave_seconds
        if self.stopped:
            return max(deadline, workflow.info().start_time.timestamp()) + max(leave, 3600.0)
        return deadline - self.facts.pace.safety_factor * batch.left / max(self._online_rate(), 1e-9)

    async def _quietly(self, name: str, at: AtProvider, lane: str, kind: type[Any] | None = None) -> Any:
        """An activity whose failure changes nothing: it comes again with the next look."""
        try:
            return await self.do(name, at, kind, lane=lane, tries=3)
        except ActivityError as error:
            workflow.logger.warning("%s of %s failed: %s", name, at.provider_batch_id, error.cause)
            return None

    def _work(self, batch: Outside) -> ProviderWork:
        return ProviderWork(
            ref=self.ref,
            lane=batch.lane,
            model=batch.model,
            stem=batch.stem,
            first=batch.first,
            count=len(batch.sizes),
            submission=batch.submission,
            begin_seconds=batch.begin_seconds,
            deadline_seconds=self.facts.deadline_seconds,
        )

    async def _watch(self) -> None:
        """Look at the deadline now and then."""
        pace, deadline = self.facts.pace, self.facts.deadline_seconds
        margins = Margins(pace.safety_factor, pace.reserve_seconds)
        while not self.stopped:
            now = workflow.now().timestamp()
            if now >= deadline:
                self.stop()
                return
            decided = plan(
                now, deadline, self._loads(), self._online_rate(), margins, online_allowed=self._online_allowed
            )
            for move in decided.moves:
                workflow.logger.warning("batch %s: %s: %s; %s", self.ref.batch_id, move.key, move.why, decided.words)
                self._move(move.key, move.item_count)
            pause = check_seconds(now, decided.ask_again, pace.check_least_seconds, pace.check_most_seconds)
            await asyncio.sleep(max(0.05, min(pause, deadline - now)))

    def _loads(self) -> list[LaneLoad]:
        loads = [LaneLoad("waiting", ONLINE, self.waiting)]
        for place, line in enumerate(self.lines):
            count = sum(piece.item_count for piece in line.pieces)
            count += sum(out.piece.item_count for out in self._out if out.line is line)
            loads.append(LaneLoad(f"line {place}", line.lane, count, self._rate(line)))
        leave = self.facts.pace.provider_leave_seconds
        loads += [
            LaneLoad(f"batch {place}", batch.lane, batch.left, leave_seconds=leave)
            for place, batch in enumerate(self.outside)
            if place not in self._leaving
        ]
        return loads

    def _rate(self, line: Line) -> float:
        pace = self.facts.pace
        chunks, guess = pace.online_chunks, pace.online_items_per_second
        if line.lane == LOCAL:
            chunks, guess = pace.local_chunks, pace.local_items_per_second
        return measured_rate(line.ended_count, line.busy_seconds / chunks, guess)

    def _online_rate(self) -> float:
        pace = self.facts.pace
        lines = [line for line in self.lines if line.lane == ONLINE]
        seconds = sum(line.busy_seconds for line in lines) / pace.online_chunks
        return measured_rate(sum(line.ended_count for line in lines), seconds, pace.online_items_per_second)

    def _move(self, key: str, item_count: int) -> None:
        kind, _, place = key.partition(" ")
        if kind == "batch":
            self._leaving.add(int(place))
            self.wake()
            return
        line = self.lines[int(place)]
        moved: list[Piece] = []
        while line.pieces and sum(piece.item_count for piece in moved) < item_count:
            moved.append(line.pieces.pop())
        if moved:
            self._online(line.model, True, moved)
        missing = item_count - sum(piece.item_count for piece in moved)
        for out in reversed(self._out):
            if missing > 0 and out.line is line and not out.task.cancelling():
                missing -= out.piece.item_count
                out.task.cancel()  # What it has answered stays; the rest comes back.

    async def do(
        self,
        name: str,
        asked: Any,
        kind: type[Any] | None,
        *more: Any,
        lane: str = "",
        model: str = "",
        tries: int = 0,
    ) -> Any:
        """Run an activity; it is repeated until it succeeds, unless ``tries`` says otherwise."""
        queue = workflow.info().task_queue
        return await workflow.execute_activity(
            name,
            args=[asked, *more],
            task_queue=lane_queue(queue, lane, model) if lane else queue,
            result_type=kind,
            start_to_close_timeout=timedelta(seconds=_MOST_SECONDS),
            heartbeat_timeout=timedelta(seconds=self.facts.pace.heartbeat_seconds),
            retry_policy=RetryPolicy(
                initial_interval=timedelta(seconds=0.5),
                backoff_coefficient=2,
                maximum_interval=timedelta(seconds=30),
                maximum_attempts=tries,
            ),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
