"""GatherWorkflow: one caller's requests that can wait become batches when enough wait, or one has waited long enough.

Deterministic; what it knows of a request is its id and when it must be in a batch. The worker registers it, beside
``composing.Composer.compose_batch``. It ends when nothing waits; the next request starts it again.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from services.batch.refs import (
        ADD_SIGNAL,
        BATCH_WORKFLOW,
        COMPOSE_ACTIVITY,
        GATHER_WORKFLOW,
        PROGRESS_MEMO,
        BatchRef,
        Compose,
        GatherRef,
        Progress,
        Waiting,
        batch_workflow_id,
    )

_COMPOSE_SECONDS = 300
_MOST_EVENTS = 10_000


@workflow.defn(name=GATHER_WORKFLOW)
class GatherWorkflow:
    """Gathers the requests of one caller."""

    @workflow.init
    def __init__(self, ref: GatherRef) -> None:
        self._waiting: dict[str, Waiting] = {one.request_id: one for one in ref.waiting}

    @workflow.signal(name=ADD_SIGNAL)
    def add(self, one: Waiting) -> None:
        """A request waits. Told twice, it counts once; one that is in a batch already is left out when that is made."""
        self._waiting.setdefault(one.request_id, one)

    @workflow.run
    async def run(self, ref: GatherRef) -> None:
        """Make batches until nothing waits."""
        while self._waiting:
            await self._until_due(ref.item_count)
            await self._flush(ref)
            long = workflow.info().get_current_history_length() > _MOST_EVENTS
            if self._waiting and (long or workflow.info().is_continue_as_new_suggested()):
                workflow.continue_as_new(replace(ref, waiting=list(self._waiting.values())))

    async def _until_due(self, item_count: int) -> None:
        """Wait until enough wait or the earliest is due. One timer, unless a request comes that is due before it."""
        while len(self._waiting) < item_count:
            due = self._earliest()
            left = due - workflow.now().timestamp()
            if left <= 0:
                return

            def changed(due: float = due) -> bool:
                return len(self._waiting) >= item_count or self._earliest() < due

            try:
                await workflow.wait_condition(changed, timeout=left)
            except TimeoutError:
                return

    def _earliest(self) -> float:
        return min(one.due_seconds for one in self._waiting.values())

    async def _flush(self, ref: GatherRef) -> None:
        """Make one batch of those that wait longest, and start it."""
        taken = list(self._waiting)[: ref.item_count]
        batch_id = str(workflow.uuid4())
        what = Compose(ref.tenant_id, ref.caller, ref.may_assert_user, batch_id, taken)
        count = await workflow.execute_activity(
            COMPOSE_ACTIVITY,
            what,
            result_type=int,
            start_to_close_timeout=timedelta(seconds=_COMPOSE_SECONDS),
            retry_policy=RetryPolicy(maximum_interval=timedelta(seconds=60)),
        )
        for request_id in taken:
            self._waiting.pop(request_id, None)
        if not count:
            return
        batch = BatchRef(ref.tenant_id, batch_id)
        with contextlib.suppress(WorkflowAlreadyStartedError):  # The service's sweeper may be first.
            await workflow.start_child_workflow(
                BATCH_WORKFLOW,
                batch,
                id=batch_workflow_id(batch),
                parent_close_policy=ParentClosePolicy.ABANDON,
                memo={PROGRESS_MEMO: Progress()},
            )
