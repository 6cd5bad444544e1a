"""How jobs that can wait are sent: as requests with a far window, each an operation that is fetched when it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import receipt_pb2

from bench.endtoend_play import Arm, Outcome, request_of
from bench.endtoend_workload import Arrival
from tenth_client.client import Client, text_of
from tenth_client.errors import TenthClientError

_AT_ONCE = 4
_LOOK_SECONDS = 0.25
Make = Callable[[Arrival, str, receipt_pb2.Receipt, float, str], Outcome]


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
