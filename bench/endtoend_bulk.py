"""How jobs that can wait are sent: as one batch, or as requests with a far window, each an operation fetched later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tenth.batch.v1 import batch_pb2
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import receipt_pb2

from bench.endtoend_play import Arm, Outcome, request_of
from bench.endtoend_workload import Arrival
from tenth_client.batches import Batches
from tenth_client.client import Client, text_of
from tenth_client.errors import TenthClientError

_AT_ONCE = 4
_LOOK_SECONDS = 0.25
Make = Callable[[Arrival, str, receipt_pb2.Receipt, float, str], Outcome]


_WINDOW_SECONDS = 24 * 3600.0


class Submitted:
    """One batch of all of them, as a nightly job is sent: created, followed, its results read as they come."""

    def __init__(self, address: str, api_key: str, longest_seconds: float = 300.0) -> None:
        """``longest_seconds``: how long the results are waited for; what has not come by then has failed."""
        self._address = address
        self._api_key = api_key
        self._longest = longest_seconds

    async def answer(
        self, client: Client, arrivals: Sequence[Arrival], arm: Arm, outcome: Make, done: Callable[[], None]
    ) -> list[Outcome]:
        """The outcomes, in the order in which their results came."""
        if not arrivals:
            return []
        by_id = {str(arrival.index): arrival for arrival in arrivals}
        found: list[Outcome] = []
        async with Batches(self._address, self._api_key) as batches:
            try:
                created = await batches.create(
                    [_item(custom_id, arrival, arm) for custom_id, arrival in by_id.items()],
                    completion_window_seconds=_WINDOW_SECONDS,
                )
                if created.line_errors:
                    raise ValueError(f"the batch was not taken: {created.line_errors[0].message}")
                async for result in batches.results(created.batch.batch_id, timeout=self._longest):
                    arrival = by_id.pop(result.custom_id)
                    text = text_of(result.completion.message)
                    found.append(outcome(arrival, text, result.receipt, 0.0, result.error_reason))
                    done()
            except TenthClientError as error:
                why = f"{error.code.name} {error.reason}"
                found += [Outcome(arrival.index, error=why) for arrival in by_id.values()]
        return found


def _item(custom_id: str, arrival: Arrival, arm: Arm) -> batch_pb2.BatchItem:
    request = request_of(arrival, arm)
    # The window is the batch's.
    request.policy.ClearField("completion_window")
    return batch_pb2.BatchItem(custom_id=custom_id, request=request)


class Operations:
    """Far windows: the orchestrator answers with an operation, which is looked at until it is done."""

    async def answer(
        self, client: Client, arrivals: Sequence[Arrival], arm: Arm, outcome: Make, done: Callable[[], None]
    ) -> list[Outcome]:
        """The outcomes, in the order in which they were fetched."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(arrival: Arrival) -> Outcome:
            async with gate:
                found = await _one(client, arrival, arm, outcome)
            done()
            return found

        return list(await asyncio.gather(*map(one, arrivals)))


async def _one(client: Client, arrival: Arrival, arm: Arm, outcome: Make) -> Outcome:
    try:
        answer = await client.complete(request_of(arrival, arm))
        if not answer.operation:
            return outcome(arrival, answer.text, answer.receipt, 0.0, "")
        while True:
            state = await client.completion(answer.operation)
            if state.state == orchestrator_pb2.OPERATION_STATE_DONE:
                return outcome(arrival, text_of(state.completion.message), state.receipt, 0.0, "")
            if state.state == orchestrator_pb2.OPERATION_STATE_FAILED:
                return outcome(arrival, "", state.receipt, 0.0, state.error_reason)
            await asyncio.sleep(_LOOK_SECONDS)
    except TenthClientError as error:
        return Outcome(arrival.index, error=f"{error.code.name} {error.reason}")
