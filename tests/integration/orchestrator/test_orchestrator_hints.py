"""What the compressor said of the stable prefix reaches inference; what a lost hedge spent reaches the receipt."""

from __future__ import annotations

import pytest
from tenth.compressor.v1 import compressor_pb2
from tenth.inference.v1 import inference_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from tests.integration.orchestrator.orchestrator_fakes import (
    DOWN,
    MINI,
    Mesh,
    ask,
    began,
    ended,
    generated,
    piece,
    usage,
)


def stable(request: compressor_pb2.CompressPromptRequest) -> compressor_pb2.CompressPromptResponse:
    return compressor_pb2.CompressPromptResponse(
        messages=request.request.messages,
        original_input_token_count=100,
        compressed_input_token_count=80,
        baseline_input_token_count=110,
        stable_prefix_message_count=1,
        prefix_version="rules-1",
    )


async def test_the_stable_prefix_is_forwarded_unless_compression_is_off_or_down(mesh: Mesh) -> None:
    mesh.fakes.on("CompressPrompt", stable)
    off = chat_pb2.RequestPolicy(compression_mode=chat_pb2.COMPRESSION_MODE_OFF)
    await mesh.generate(ask())
    await mesh.generate(ask("Another question?", policy=off))
    mesh.fakes.on("CompressPrompt", DOWN)
    await mesh.generate(ask("A third one?"))
    sent = mesh.fakes.requests("GenerateText")
    hints = [(request.stable_prefix_message_count, request.prefix_version) for request in sent]
    assert hints == [(1, "rules-1"), (0, ""), (0, "")]


LOST = receipt_pb2.OverheadItem(kind="hedged_attempt", model=MINI, usage=usage(80, 0), attempt=251)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_lost_hedge_is_on_the_receipt_beside_the_attempt_that_answered(mesh: Mesh, streamed: bool) -> None:
    if streamed:
        end = ended()
        end.finished.attempt = 777
        end.finished.overheads.append(LOST)
        mesh.fakes.on("StreamGenerateText", [began(), piece("Hello."), end])
        receipt = (await mesh.events(ask()))[-1].finished.receipt
    else:

        def hedged(request: inference_pb2.GenerateTextRequest) -> inference_pb2.GenerateTextResponse:
            answer: inference_pb2.GenerateTextResponse = generated("Hello.")
            answer.attempt = 777
            answer.overheads.append(LOST)
            return answer

        mesh.fakes.on("GenerateText", hedged)
        receipt = (await mesh.generate(ask())).receipt
    assert receipt.facts.attempt == 777
    (item,) = [item for item in receipt.facts.overheads if item.kind == "hedged_attempt"]
    assert (item.attempt, item.model) == (251, MINI)
    assert item.cost_nano_usd > 0
    assert receipt.overhead_nano_usd >= item.cost_nano_usd
