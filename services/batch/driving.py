"""Drives a run's chunks through their lanes, inside the workflow: deterministic, decisions are in planning.py.

Of each model a few chunks are out at a time; a provider's batch has a coroutine of its own (driving_providers.py). A
look at the deadline now and then moves work online while there is time for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from services.batch.driving_providers import ProviderDriver
    from services.batch.planning import LaneLoad, Margins, check_seconds, measured_rate, plan
    from services.batch.policy import LOCAL, ONLINE, PROVIDER_LANES
    from services.batch.refs import BatchRef, lane_queue
    from services.batch.reports import (
        ChunkEnd,
        Counts,
        Line,
        Outside,
        Piece,
        Planned,
        RunChunk,
        RunFacts,
    )

_MOST_SECONDS = 9 * 86_400


@dataclass(slots=True)
class _Out:
    """A piece that a worker has, or is to take."""

    line: Line
    piece: Piece
    task: asyncio.Task[None] | None = None
    begun: bool = False
    recalled: bool = False

    def recall(self) -> None:
        """Ask for it back: what is answered stays, the rest comes back."""
        self.recalled = True
        # A task that is cancelled before its first step would never say so.
        if self.begun and self.task is not None and not self.task.cancelling():
            self.task.cancel()


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
    leaving: set[int] = field(default_factory=set)
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
        # What is at a provider must still be stopped and collected, by this workflow: no other one comes after it.
        self.renewing = False
        for out in self._out:
            out.recall()
        self.wake()

    async def run(self) -> None:
        """Until nothing is left, or all that was out has come back after ``stop`` or ``renewing``.

        Raises the ActivityError of what can never be done, when the rest has come back.
        """
        watching = asyncio.create_task(self._watch())
        failed: BaseException | None = None
        try:
            while True:
                self._begin()
                if not self._out and not self._polling:
                    break
                self._woken = False
                await workflow.wait_condition(lambda: self._woken or (self._is_long and not self.renewing))
                for place, task in self._polling.items():
                    if _error(task) is not None:
                        self.outside[place].left = 0  # It would fail again.
                tasks = [out.task for out in self._out if out.task is not None]
                for error in map(_error, [*tasks, *self._polling.values()]):
                    if error is not None:
                        # What is out comes back first: nothing of it may end twice.
                        failed = failed or error
                        self.stop()
                self._out = [out for out in self._out if out.task is not None and not out.task.done()]
                self._polling = {place: task for place, task in self._polling.items() if not task.done()}
                self.renewing = self.renewing or self._is_long
        finally:
            watching.cancel()
        if failed is not None:
            raise failed

    @property
    def _is_long(self) -> bool:
        return not self.stopped and workflow.info().get_current_history_length() > self.facts.pace.history_events

    def _begin(self) -> None:
        if self.renewing:
            return
        for line in () if self.stopped else self.lines:
            most = self.facts.pace.local_chunks if line.lane == LOCAL else self.facts.pace.online_chunks
            out = sum(1 for one in self._out if one.line is line)
            while line.pieces and out < most:
                one = _Out(line, line.pieces.pop(0))
                one.task = asyncio.create_task(self._run_piece(one))
                self._out.append(one)
                out += 1
        for place, batch in enumerate(self.outside):
            beside = sum(1 for other in self._polling if self.outside[other].model == batch.model)
            # Stopped, nothing is handed in; but what is at the provider is stopped there, and its answers are taken.
            may = bool(batch.provider_batch_id) if self.stopped else beside < self.facts.pace.provider_batches
            if batch.left and place not in self._polling and may:
                self._polling[place] = asyncio.create_task(ProviderDriver(self).run(place, batch))

    async def _run_piece(self, out: _Out) -> None:
        line, piece, out.begun = out.line, out.piece, True
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
        end = ChunkEnd(Counts(), piece.item_count, 0)
        try:
            if not out.recalled:
                end = await self.do("run_chunk", asked, ChunkEnd, lane=line.lane, model=model)
        except ActivityError:
            if not out.recalled:
                raise
            # Nobody had begun it.
        except asyncio.CancelledError:
            if not out.recalled:
                raise
        finally:
            self.wake()
        line.ended_count += end.counts.ended
        line.busy_seconds += end.seconds
        self.on_counts(end.counts)
        if end.left and not self.stopped:
            self._online(line.model, line.lane == LOCAL, [Piece(piece.name, end.left, piece.also_done)])

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

    def to_online(self, batch: Outside) -> None:
        """Run what is left of a provider's batch online, where the batch allows that."""
        if self._online_allowed:
            name = ProviderDriver(self).work(batch).name
            pieces = [
                Piece(f"{batch.stem}-{batch.first + place:06d}", size, [name]) for place, size in enumerate(batch.sizes)
            ]
            self._online(batch.model, False, pieces)
        else:
            self.unplaced = True
        batch.left = 0

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
                now, deadline, self._loads(), self.online_rate(), margins, online_allowed=self._online_allowed
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
            if place not in self.leaving
        ]
        return loads

    def _rate(self, line: Line) -> float:
        pace = self.facts.pace
        chunks, guess = pace.online_chunks, pace.online_items_per_second
        if line.lane == LOCAL:
            chunks, guess = pace.local_chunks, pace.local_items_per_second
        return measured_rate(line.ended_count, line.busy_seconds / chunks, guess)

    def online_rate(self) -> float:
        """Items a second online, measured over all models."""
        pace = self.facts.pace
        lines = [line for line in self.lines if line.lane == ONLINE]
        seconds = sum(line.busy_seconds for line in lines) / pace.online_chunks
        return measured_rate(sum(line.ended_count for line in lines), seconds, pace.online_items_per_second)

    def _move(self, key: str, item_count: int) -> None:
        kind, _, place = key.partition(" ")
        if kind == "batch":
            self.leaving.add(int(place))
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
            if missing > 0 and out.line is line and not out.recalled:
                missing -= out.piece.item_count
                out.recall()

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

    async def do_unless_stopped(self, name: str, asked: Any, kind: type[Any]) -> Any:
        """Run an activity that a stop interrupts, also while it waits for a layer that is away; None then."""
        doing = asyncio.create_task(self.do(name, asked, kind))
        await workflow.wait_condition(lambda: doing.done() or self.stopped)
        if not doing.done():
            doing.cancel()
        try:
            return await doing
        except (ActivityError, asyncio.CancelledError):
            if not self.stopped:
                raise
            return None


def _error(task: asyncio.Task[None]) -> BaseException | None:
    """What a task has failed with, if it has."""
    return task.exception() if task.done() and not task.cancelled() else None
