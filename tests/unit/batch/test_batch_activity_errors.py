"""What Temporal is told of an activity that failed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from mesh.errors import Code, TenthError
from mesh.testing import memory_telemetry
from services.batch.activities import BatchActivities
from services.batch.calls import Layers
from services.batch.objects import ObjectStore
from services.batch.refs import BatchRef
from services.batch.settings import WorkerSettings


class Away:
    """A store that says when to come again."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    async def get(self, _: str) -> bytes:
        raise TenthError(Code.UNAVAILABLE, "STORE_UNAVAILABLE", "away", retry_after_seconds=self._seconds)


@pytest.mark.parametrize(
    ("told", "delay"), [(60.0, timedelta(seconds=60)), (86_400.0, timedelta(seconds=300)), (None, None)]
)
async def test_it_comes_again_when_it_was_told_to(told: float | None, delay: timedelta | None) -> None:
    telemetry = memory_telemetry("worker")[0]
    store, layers = cast(ObjectStore, Away(told)), cast(Layers, cast(Any, None))
    activities = BatchActivities(store, layers, WorkerSettings(), telemetry)
    with pytest.raises(ApplicationError) as raised:
        await ActivityEnvironment().run(activities.read_run, BatchRef("t", "b"))
    assert (raised.value.type, raised.value.next_retry_delay) == ("STORE_UNAVAILABLE", delay)
