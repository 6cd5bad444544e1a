"""What a provider said it read from its prompt cache reaches the compressor, after the answer, or is dropped."""

from __future__ import annotations

from tenth.inference.v1 import inference_pb2

from tests.integration.orchestrator.orchestrator_fakes import DOWN, Mesh, ask, generated, until


async def test_the_compressor_hears_what_the_answer_used(mesh: Mesh) -> None:
    request = ask()
    reply = await mesh.generate(request)
    await until(lambda: mesh.fakes.count("RecordUsage") == 1)
    (told,) = mesh.fakes.requests("RecordUsage")
    assert (told.request_id, told.model) == (request.request_id, reply.completion.model)
    assert told.usage == reply.completion.usage
    assert told.told_input_token_count > 0


async def test_a_compressor_that_is_down_is_told_nothing_and_hurts_nobody(mesh: Mesh) -> None:
    mesh.fakes.on("RecordUsage", DOWN)
    assert (await mesh.generate(ask())).completion.message.parts
    await until(lambda: mesh.fakes.count("RecordUsage") == 1)
    # What it never compressed it does not hear of.
    mesh.fakes.on("CompressPrompt", DOWN)
    assert (await mesh.generate(ask())).completion.message.parts
    await until(lambda: mesh.fakes.count("StoreCompletion") == 2)
    assert mesh.fakes.count("RecordUsage") == 1


async def test_counts_made_here_teach_nothing(mesh: Mesh) -> None:
    def estimated(request: inference_pb2.GenerateTextRequest) -> inference_pb2.GenerateTextResponse:
        answer: inference_pb2.GenerateTextResponse = generated("Hello.")
        answer.completion.usage.estimated = True
        return answer

    mesh.fakes.on("GenerateText", estimated)
    assert (await mesh.generate(ask())).completion.message.parts
    await until(lambda: mesh.fakes.count("StoreCompletion") == 1)
    assert mesh.fakes.count("RecordUsage") == 0
