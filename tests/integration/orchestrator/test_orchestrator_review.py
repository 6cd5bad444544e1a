"""What a caller is told, and what it is served, where things go wrong in unusual order."""

from __future__ import annotations

from typing import Any

import pytest
from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import TenthError
from tests.integration.orchestrator.orchestrator_fakes import (
    DOWN,
    LOCAL,
    MINI,
    Mesh,
    adds_up,
    ask,
    began,
    follow,
    followed,
    piece,
    until,
)


def tool_piece(arguments: str) -> chat_pb2.CompletionDelta:
    call = chat_pb2.ToolCallDelta(index=0, id="call-1", name="look_up", arguments_json=arguments)
    return chat_pb2.CompletionDelta(tool_calls=[call])


def tool_answer(arguments: str) -> chat_pb2.Completion:
    call = chat_pb2.ToolCall(id="call-1", name="look_up", arguments_json=arguments)
    return chat_pb2.Completion(
        message=chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, tool_calls=[call]),
        finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS,
        model=MINI,
    )


async def test_a_followed_tool_call_is_never_cut_short(mesh: Mesh) -> None:
    mesh.fakes.on("LookupCompletion", follow())
    events: list[Any] = [
        followed(delta=tool_piece('{"city": ')),
        followed(finished=tool_answer('{"city": "Seoul"}')),
    ]
    mesh.fakes.on("FollowCompletion", events)
    with pytest.raises(TenthError) as raised:
        await mesh.events(ask())
    assert raised.value.reason == "STREAM_BROKEN"


async def test_a_followed_tool_call_that_came_whole_is_served(mesh: Mesh) -> None:
    mesh.fakes.on("LookupCompletion", follow())
    events: list[Any] = [
        followed(delta=tool_piece('{"city": ')),
        followed(delta=tool_piece('"Seoul"}')),
        followed(finished=tool_answer('{"city": "Seoul"}')),
    ]
    mesh.fakes.on("FollowCompletion", events)
    heard = await mesh.events(ask())
    assert heard[-1].finished.receipt.facts.cache_hit_kind == "follow"


async def test_a_compressor_that_is_down_does_not_raise_the_baseline(mesh: Mesh) -> None:
    mesh.fakes.on("CompressPrompt", DOWN)
    reply = await mesh.generate(ask("A question of some length, whose tokens can only be guessed here. " * 20))
    facts = reply.receipt.facts
    assert facts.usage.input_token_count == facts.original_input_token_count == 80
    assert facts.baseline_input_token_count == 80, "a guess must not show up as a saving"
    assert adds_up(reply.receipt)


@pytest.mark.parametrize("field", ["user_id", "project_id"])
async def test_a_name_that_the_ledger_would_refuse_is_refused_at_once(mesh: Mesh, field: str) -> None:
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask(**{field: "a\nb"}))
    assert (raised.value.reason, raised.value.field) == ("INVALID_FIELD", f"request.{field}")
    assert not mesh.fakes.count("LookupCompletion")


async def test_a_broken_continuation_stops_the_model(mesh: Mesh) -> None:
    """The caller read "Hel"; the repeated answer begins otherwise."""
    away = TenthError(DOWN.code, "DRAINING", "the replica is shutting down")
    mesh.fakes.then("StreamGenerateText", [began(), piece("Hel"), away], [began(), piece("Good"), 30, piece("bye")])
    request = ask(policy=chat_pb2.RequestPolicy(model=LOCAL), sampling=chat_pb2.SamplingParameters(temperature=0))
    with pytest.raises(TenthError) as raised:
        await mesh.events(request)
    assert raised.value.reason == "STREAM_BROKEN"
    await until(lambda: "StreamGenerateText" in mesh.fakes.cancelled, seconds=3)


async def test_a_classifier_without_a_price_does_not_cost_the_answer(mesh: Mesh) -> None:
    item = receipt_pb2.OverheadItem(kind="classifier", model="unpriced", attempt=7)
    item.usage.input_token_count = 10
    chosen = router_pb2.SelectModelResponse(model=MINI, tier=chat_pb2.TIER_MEDIUM, overheads=[item])
    mesh.fakes.on("SelectModel", chosen)
    reply = await mesh.generate(ask())
    assert reply.completion.message.parts[0].text == "Hello."
    assert reply.receipt.facts.attempts_unknown, "the ledger adds it, when it has a price"
    assert not any(each.model == "unpriced" for each in reply.receipt.facts.overheads)
    assert adds_up(reply.receipt)


async def test_a_kept_answer_of_a_user_is_not_given_to_who_may_not_name_users(mesh: Mesh) -> None:
    request = ask(user_id="u")
    await mesh.generate(request)
    with pytest.raises(TenthError) as raised:
        await mesh.generate(request, key="plain")
    assert raised.value.reason == "USER_ASSERTION_FORBIDDEN"
