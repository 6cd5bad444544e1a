"""What passes between the service, Temporal and the workers: references and counts, never prompts or answers.

Everything here goes through Temporal's default JSON converter. What a worker owes the service:

- The workflow upserts its ``Progress`` into its memo under ``PROGRESS_MEMO`` after each chunk, counts of its own run
  alone, so that GetBatch needs no worker. It returns its last Progress.
- Its last activity calls ``batches.record_end``, for Temporal forgets ended workflows before their results expire.
- The finish step of a batch with ``StoredBatch.gathered`` writes each StoredResult also as the one record of
  ``batches.queued_result_name(tenant_id, request_id)``, after the results object.
- Workflows, and activities that any worker may run, are on the control queue, which is named ``task_queue_prefix``
  ("tenth-batch"): a workflow knows it as ``workflow.info().task_queue``.
- Items come from ``batches.read_items``, which leaves out deleted users and, in later runs, what has its answer.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import quote

BATCH_WORKFLOW = "BatchWorkflow"
"""Its argument is a BatchRef, its result a Progress."""
CANCEL_SIGNAL = "cancel"
"""To a BatchWorkflow, without arguments: nothing new is run, what is at a provider is waited for."""
GATHER_WORKFLOW = "GatherWorkflow"
"""Its argument is a GatherRef."""
ADD_SIGNAL = "add"
"""To a GatherWorkflow: one Waiting."""
COMPOSE_ACTIVITY = "compose_batch"
"""Makes a batch of waiting requests: its argument is a Compose, its result how many items the batch has."""
PROGRESS_MEMO = "progress"
_WINDOWS_ALIKE_SECONDS = (600, 3600, 6 * 3600, 86_400)
"""Where a new size of completion windows begins."""


class State(StrEnum):
    """``Progress.state``."""

    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


ENDED = frozenset({State.DONE, State.CANCELLED, State.FAILED})


@dataclass(frozen=True, slots=True)
class BatchRef:
    """One run of a batch."""

    tenant_id: str
    batch_id: str
    run: int = 1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one run is; counts and sums of this run alone. Money in nano-USD, ``savings`` by layer, from
    LAYER_CACHE to LAYER_QUANTIZATION. ``done`` counts answered items, ``shared`` and ``cache_hits`` are part of it.
    """

    state: str = State.RUNNING
    done: int = 0
    failed: int = 0
    shared: int = 0
    cache_hits: int = 0
    actual_nano_usd: int = 0
    overhead_nano_usd: int = 0
    baseline_nano_usd: int = 0
    savings: list[int] = field(default_factory=lambda: [0] * 6)
    forecast_nano_usd: int = 0
    lanes: dict[str, int] = field(default_factory=dict)
    error_reason: str = ""
    error_message: str = ""
    end_time_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """One enqueued request, and when it must be in a batch, seconds since 1970."""

    request_id: str
    due_seconds: float


@dataclass(frozen=True, slots=True)
class GatherRef:
    """Whose requests a GatherWorkflow gathers, how many make a batch at once, and what its last run left over."""

    tenant_id: str
    caller: str
    may_assert_user: bool
    item_count: int
    waiting: list[Waiting] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Compose:
    """Which requests become which batch."""

    tenant_id: str
    caller: str
    may_assert_user: bool
    batch_id: str
    request_ids: list[str]


def batch_workflow_id(ref: BatchRef) -> str:
    """The workflow of one run."""
    return f"batch-{ref.batch_id}" if ref.run == 1 else f"batch-{ref.batch_id}-r{ref.run}"


def gather_workflow_id(tenant_id: str, caller: str, may_assert_user: bool, window_seconds: float) -> str:
    """The workflow that gathers one caller's requests; its rights are part of it, for they may change.

    A batch has the deadline of its most urgent request. So requests are gathered with those whose windows are alike:
    else one that waits a minute would send others online, or let them expire, that can wait a day.
    """
    size = bisect_right(_WINDOWS_ALIKE_SECONDS, window_seconds)
    who = "/".join(quote(part, safe="") for part in (tenant_id, caller))
    return f"gather/{who}/{'users' if may_assert_user else 'own'}/{size}"


def lane_queue(prefix: str, lane: str, model: str = "") -> str:
    """Task queue of a lane's chunks; a worker serves those whose models it has. ``prefix``: task_queue_prefix."""
    return "-".join(part for part in (prefix, lane, re.sub(r"[^A-Za-z0-9._-]", "_", model)) if part)
