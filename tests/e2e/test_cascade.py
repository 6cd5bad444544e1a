"""A cascade through the whole mesh: the local model answers first, its answer is checked, both attempts are billed."""

from __future__ import annotations

from pathlib import Path

import books
from conftest import PATIENT, started
from tenth.type.v1 import chat_pb2

from tenth_client import Client

QUESTION = "Explain the difference between a stack and a queue, and give one use of each."


async def test_a_first_answer_stands_or_is_escalated_and_the_receipt_adds_up(tmp_path: Path) -> None:
    router = {"TENTH_ROUTER_STRATEGY": "cascade"}
    env = {"orchestrator": PATIENT, "router": router}
    async with (
        started(tmp_path, env=env, local_model=True) as mesh,
        Client(mesh.address("orchestrator"), mesh.api_key) as client,
    ):
        answer = await client.complete(
            QUESTION, sampling=chat_pb2.SamplingParameters(max_output_tokens=40), timeout=120
        )
        facts = answer.receipt.facts
        assert answer.text
        assert books.holds(answer.receipt)
        hops = {hop.name: hop for hop in facts.hops}
        assert "answers first" in hops["router"].reason, hops["router"].reason
        first = [item for item in facts.overheads if item.kind == "cascade"]
        if facts.model == "smollm2-135m":
            assert not first, "an answer that stands is the answer, not overhead"
        else:
            assert [f"{item.model} answers first" in hops["router"].reason for item in first] == [True]
            assert first[0].usage.output_token_count > 0
        assert not answer.completion.logprobs, "nobody asked for them"

        # A stream holds nothing back, so that it is no cascade unless it says so.
        sampling = chat_pb2.SamplingParameters(max_output_tokens=20)
        pieces = [event async for event in client.stream(QUESTION + " Briefly.", sampling=sampling, timeout=120)]
        finished = pieces[-1].finished
        assert finished is not None
        assert not [item for item in finished.receipt.facts.overheads if item.kind == "cascade"]
