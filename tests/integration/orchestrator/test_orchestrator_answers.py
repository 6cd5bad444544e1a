"""Answers: misses, hits, followed flights, stream grammar, and the receipt of each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tenth.cache.v1 import cache_pb2
from tenth.inference.v1 import inference_pb2
from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import Code, TenthError
from services.orchestrator.generation import Assembly
from tests.integration.orchestrator.conftest import Start
from tests.integration.orchestrator.orchestrator_fakes import (
    DOWN,
    EMBEDDING,
    LOCAL,
    MINI,
    OPUS,
    Mesh,
    adds_up,
    ask,
    completion,
    ended,
    follow,
    followed,
    generated,
    hit,
    hops,
    message,
    piece,
    slow,
    until,
)


def grammar(events: list[Any]) -> list[str]:
    return [event.WhichOneof("event") for event in events]


def text_of(events: list[Any]) -> str:
    return "".join(event.delta.text for event in events)


async def test_a_miss_goes_through_every_layer(mesh: Mesh) -> None:
    request = ask(user_id="u1", project_id="p1", tags={"team": "support"})
    reply = await mesh.generate(request)
    assert reply.request_id == request.request_id
    assert reply.completion.message.parts[0].text == "Hello."
    assert (reply.completion.model, reply.completion.tier) == (MINI, chat_pb2.TIER_MEDIUM)
    fakes = mesh.fakes
    asked = [seen.method for seen in fakes.seen if seen.method not in ("GetAdmissionSnapshot", "ListModels")]
    assert asked[:5] == ["LookupCompletion", "SelectModel", "CompressPrompt", "ReserveFunds", "GenerateText"]
    # Embed once: the lookup's vector goes to router, compressor and store.
    await until(lambda: fakes.count("StoreCompletion") == 1)
    for method in ("SelectModel", "CompressPrompt", "StoreCompletion"):
        assert fakes.requests(method)[0].embedding == EMBEDDING, method
    assert fakes.requests("StoreCompletion")[0].lease_id.startswith("lease-")
    assert not fakes.requests("StoreCompletion")[0].share_only
    assert fakes.requests("StoreCompletion")[0].price_book_version == reply.receipt.facts.price_book_version == 7
    # The compressed prompt is what is sent; the identity of the end user travels with every call.
    sent = fakes.requests("GenerateText")[0]
    assert sent.messages[0].parts[0].text == "short"
    assert sent.price_book_version == 7
    assert sent.reservation_id.startswith("reservation-")
    assert sent.sampling.max_output_tokens == 1024
    # The deployment's default limit is no part of the question: whoever warms the cache does not know it.
    for method in ("LookupCompletion", "StoreCompletion"):
        assert not fakes.requests(method)[0].request.sampling.HasField("max_output_tokens"), method
    assert {(seen.identity.tenant_id, seen.identity.user_id) for seen in fakes.seen if seen.request is sent} == {
        ("acme", "u1")
    }
    receipt = reply.receipt
    assert receipt.state == receipt_pb2.RECEIPT_STATE_PENDING
    assert adds_up(receipt)
    assert receipt.baseline_nano_usd == 110 * 5_000 + 5 * 25_000
    assert receipt.overhead_nano_usd == 10  # 1 ms of CPU for the embedding.
    assert receipt.actual_nano_usd == 80 * 1_000 + 5 * 2_000 + 10
    assert hops(receipt) == dict.fromkeys(("cache", "router", "compressor", "ledger", "inference"), "OK")
    facts = receipt.facts
    assert (facts.tenant_id, facts.user_id, facts.project_id, facts.tags["team"]) == ("acme", "u1", "p1", "support")
    assert facts.original_input_token_count == 100
    assert facts.attempt == sent.attempt > 0
    assert (await mesh.settled(request.request_id)).facts == facts


@pytest.mark.parametrize(
    ("kind", "name"), [(cache_pb2.HIT_KIND_EXACT, "exact"), (cache_pb2.HIT_KIND_SEMANTIC, "semantic")]
)
async def test_a_hit_asks_nobody_else(mesh: Mesh, kind: cache_pb2.HitKind.ValueType, name: str) -> None:
    mesh.fakes.on("LookupCompletion", hit(kind))
    mesh.fakes.on("ReserveFunds", DOWN)
    reply = await mesh.generate(ask(), key="hard")
    assert reply.completion.message.parts[0].text == "Stored."
    receipt = reply.receipt
    assert receipt.facts.cache_hit
    assert receipt.facts.cache_hit_kind == name
    assert adds_up(receipt)
    assert receipt.baseline_nano_usd == 110 * 5_000 + 5 * 25_000
    assert receipt.savings[0].saving_nano_usd == receipt.baseline_nano_usd
    assert receipt.actual_nano_usd == 0
    await mesh.settled(reply.request_id)
    for method in ("SelectModel", "CompressPrompt", "ReserveFunds", "GenerateText", "StoreCompletion"):
        assert mesh.fakes.count(method) == 0, method


async def test_a_stream_has_one_started_then_deltas_then_one_finished(mesh: Mesh) -> None:
    request = ask()
    events = await mesh.events(request)
    assert grammar(events) == ["started", "delta", "delta", "finished"]
    assert events[0].started.model == MINI
    assert not events[0].started.from_cache
    assert len(events[0].started.trace_id) == 32
    assert text_of(events) == "Hello."
    finished = events[-1].finished
    assert finished.finish_reason == chat_pb2.FINISH_REASON_STOP
    assert finished.usage.output_token_count == 5
    assert adds_up(finished.receipt)
    assert finished.receipt.facts.trace_id == events[0].started.trace_id


async def test_a_hit_replays_the_same_grammar(mesh: Mesh) -> None:
    mesh.fakes.on("LookupCompletion", hit())
    events = await mesh.events(ask())
    assert grammar(events) == ["started", "delta", "finished"]
    assert events[0].started.from_cache
    assert text_of(events) == "Stored."


async def test_tool_calls_and_reasoning_survive_the_stream(mesh: Mesh) -> None:
    call = [chat_pb2.ToolCallDelta(index=0, id="c1", name="find", arguments_json='{"a"')]
    more = [chat_pb2.ToolCallDelta(index=0, arguments_json=":1}")]
    mesh.fakes.on(
        "StreamGenerateText", [piece(reasoning="hm"), piece(tool_calls=call), piece(tool_calls=more), ended()]
    )
    request = ask(tools=[chat_pb2.Tool(name="find")])
    await mesh.events(request)
    whole = await mesh.generate(request)
    assert whole.completion.message.reasoning == "hm"
    assert whole.completion.message.tool_calls[0].arguments_json == '{"a":1}'
    assert mesh.fakes.count("GenerateText") == 0


async def test_a_hit_streams_tool_calls_reasoning_and_usage_as_they_were(mesh: Mesh) -> None:
    stored = completion("", model=MINI, tier=chat_pb2.TIER_MEDIUM, baseline_input_token_count=110)
    stored.message.parts[0].text = "네, 찾아볼게요. 👩‍💻 " + "\u1112\u1161\u11ab"
    stored.message.reasoning = "먼저 값을 확인하고, 그다음 도구를 부른다."
    for number, argument in enumerate(("한글 'ㄱ'", "", "끝")):
        arguments = f'{{"q": "{argument}"}}'
        stored.message.tool_calls.add(id=f"c{number}", name="find", arguments_json=arguments)
    stored.logprobs.add(token="네", logprob=-0.5).alternatives.add(token="예", logprob=-1.5)
    stored.finish_reason = chat_pb2.FINISH_REASON_TOOL_CALLS
    stored.usage.reasoning_output_token_count = 4
    stored.usage.cached_input_token_count = 8
    scripted = hit()
    scripted.hit.completion.CopyFrom(stored)
    mesh.fakes.on("LookupCompletion", scripted)
    request = ask(tools=[chat_pb2.Tool(name="find")])
    events = await mesh.events(request)
    folded = Assembly()
    for event in events[1:-1]:
        folded.add(event.delta)
    finished = events[-1].finished
    end = inference_pb2.GenerationFinished(finish_reason=finished.finish_reason, usage=finished.usage)
    again = folded.completion(finished.model, end)
    again.tier, again.baseline_input_token_count = stored.tier, stored.baseline_input_token_count
    assert again == stored
    whole = await mesh.generate(ask(tools=[chat_pb2.Tool(name="find")]))
    assert whole.completion == stored
    # The same request again: the kept answer, as the same stream.
    repeated = await mesh.events(request)
    assert [event.delta for event in repeated[1:-1]] == [event.delta for event in events[1:-1]]
    assert repeated[-1].finished.usage == stored.usage


async def test_a_stream_that_breaks_off_is_not_stored(mesh: Mesh) -> None:
    mesh.fakes.on("StreamGenerateText", [piece("Hel"), DOWN])
    with pytest.raises(TenthError) as caught:
        await mesh.events(ask())
    assert caught.value.code is Code.UNAVAILABLE
    await until(lambda: mesh.fakes.count("ReleaseLease") == 1)
    assert mesh.fakes.count("StoreCompletion") == 0


async def test_users_who_ask_the_same_reach_one_of_two_replicas_over_one_store(start: Start) -> None:
    mesh = await start(cache_replicas=2, cache_shard_by="request")
    for number in range(12):
        for user in ("ann", "bob", ""):
            await mesh.generate(ask(f"Question {number}?", user_id=user, tags={"who": user or "nobody"}))
    by_question: dict[str, set[int]] = {}
    for seen in mesh.fakes.seen:
        if seen.method == "LookupCompletion":
            by_question.setdefault(seen.request.request.messages[0].parts[0].text, set()).add(seen.replica)
    assert len(by_question) == 12
    assert all(len(replicas) == 1 for replicas in by_question.values())
    assert set.union(*by_question.values()) == {0, 1}


async def test_a_follower_gets_the_leaders_answer_for_nothing(mesh: Mesh) -> None:
    mesh.fakes.on("LookupCompletion", follow())
    whole = completion("Hello there.", model=MINI, baseline_input_token_count=110)
    delta = chat_pb2.CompletionDelta
    mesh.fakes.on(
        "FollowCompletion",
        [followed(delta=delta(text="Hello ")), 0.01, followed(delta=delta(text="there.")), followed(finished=whole)],
    )
    events = await mesh.events(ask())
    assert grammar(events) == ["started", "delta", "delta", "finished"]
    assert text_of(events) == "Hello there."
    receipt = events[-1].finished.receipt
    assert receipt.facts.cache_hit_kind == "follow"
    assert receipt.actual_nano_usd == 0
    assert adds_up(receipt)
    unary = await mesh.generate(ask())
    assert unary.completion.message.parts[0].text == "Hello there."
    assert mesh.fakes.count("SelectModel") == 0


async def test_pieces_that_a_follower_missed_come_with_the_end(mesh: Mesh) -> None:
    mesh.fakes.on("LookupCompletion", follow())
    delta = followed(delta=chat_pb2.CompletionDelta(text="Hello"))
    mesh.fakes.on("FollowCompletion", [delta, followed(finished=completion("Hello there.", model=MINI))])
    assert text_of(await mesh.events(ask())) == "Hello there."
    mesh.fakes.on("FollowCompletion", [delta, followed(finished=completion("Goodbye.", model=MINI))])
    with pytest.raises(TenthError) as raised:
        await mesh.events(ask())
    assert raised.value.reason == "STREAM_BROKEN"
    assert mesh.fakes.count("StreamGenerateText") == 0


async def test_a_promoted_follower_leads_and_stores_under_the_lease(mesh: Mesh) -> None:
    mesh.fakes.on("LookupCompletion", follow())
    mesh.fakes.on("FollowCompletion", [followed(promoted=cache_pb2.Lease(lease_id="lease-inherited"))])
    reply = await mesh.generate(ask())
    assert not reply.receipt.facts.cache_hit
    await until(lambda: mesh.fakes.count("StoreCompletion") == 1)
    assert mesh.fakes.requests("StoreCompletion")[0].lease_id == "lease-inherited"


@pytest.mark.parametrize("flight", [DOWN, []], ids=["cache down", "unknown flight"])
async def test_a_flight_that_is_gone_is_a_miss_without_a_lease(mesh: Mesh, flight: Any) -> None:
    mesh.fakes.on("LookupCompletion", follow())
    mesh.fakes.on("FollowCompletion", flight)
    reply = await mesh.generate(ask())
    assert hops(reply.receipt)["follow"] == "DEGRADED"
    assert mesh.fakes.count("GenerateText") == 1
    await mesh.settled(reply.request_id)
    assert mesh.fakes.count("StoreCompletion") == 0


async def test_a_follower_with_pieces_spends_nothing_on_an_answer_that_cannot_continue_them(mesh: Mesh) -> None:
    mesh.fakes.on("LookupCompletion", follow())
    mesh.fakes.on("FollowCompletion", [followed(delta=chat_pb2.CompletionDelta(text="Hel")), DOWN])
    request = ask()
    with pytest.raises(TenthError) as raised:
        await mesh.events(request)
    assert raised.value.reason == "STREAM_BROKEN"
    assert mesh.fakes.count("StreamGenerateText") == 0
    # A greedy answer of an own model repeats itself, and goes on where the leader stopped.
    mesh.fakes.on("SelectModel", router_pb2.SelectModelResponse(model=LOCAL, tier=chat_pb2.TIER_SIMPLE))
    greedy = ask(sampling=chat_pb2.SamplingParameters(temperature=0))
    assert text_of(await mesh.events(greedy)) == "Hello."


async def test_a_slow_leader_publishes_its_pieces(start: Start) -> None:
    mesh = await start(publish_after_seconds=0.03)
    mesh.fakes.on("StreamGenerateText", [piece("Hel"), 0.15, piece("lo."), ended()])
    await mesh.events(ask())
    await until(lambda: any(item.HasField("finished") for item in mesh.fakes.published))
    items = mesh.fakes.published
    assert items[0].lease_id.startswith("lease-")
    assert "".join(item.delta.text for item in items) == "Hello."
    assert items[-1].finished.message.parts[0].text == "Hello."


async def test_a_quick_leader_opens_no_publish_stream(mesh: Mesh) -> None:
    await mesh.generate(ask())
    await until(lambda: mesh.fakes.count("StoreCompletion") == 1)
    assert mesh.fakes.published == []


@pytest.mark.parametrize(
    ("mode", "looked_up", "stored"),
    [
        (chat_pb2.CACHE_MODE_OFF, False, False),
        (chat_pb2.CACHE_MODE_READ, True, None),
        (chat_pb2.CACHE_MODE_WRITE, True, True),
        (chat_pb2.CACHE_MODE_READ_WRITE, True, True),
    ],
)
async def test_cache_modes(
    mesh: Mesh, mode: chat_pb2.CacheMode.ValueType, looked_up: bool, stored: bool | None
) -> None:
    if mode == chat_pb2.CACHE_MODE_WRITE:
        mesh.fakes.on("LookupCompletion", cache_pb2.LookupCompletionResponse())  # No lease: stored all the same.
    await mesh.generate(ask(policy=chat_pb2.RequestPolicy(cache_mode=mode)))
    assert bool(mesh.fakes.count("LookupCompletion")) == looked_up
    if stored is False:
        assert mesh.fakes.count("StoreCompletion") == 0
        return
    await until(lambda: mesh.fakes.count("StoreCompletion") == 1)
    assert mesh.fakes.requests("StoreCompletion")[0].share_only == (stored is None)


async def test_a_bypassed_question_is_not_stored(mesh: Mesh) -> None:
    mesh.fakes.on("LookupCompletion", cache_pb2.LookupCompletionResponse(bypass=cache_pb2.Bypass(reason="time_bound")))
    reply = await mesh.generate(ask(policy=chat_pb2.RequestPolicy(cache_mode=chat_pb2.CACHE_MODE_WRITE)))
    await mesh.settled(reply.request_id)
    assert mesh.fakes.count("StoreCompletion") == 0


async def test_a_truncated_answer_is_shared_and_not_stored(mesh: Mesh) -> None:
    mesh.fakes.on("GenerateText", generated("Hel", finish_reason=chat_pb2.FINISH_REASON_LENGTH))
    await mesh.generate(ask())
    await until(lambda: mesh.fakes.count("StoreCompletion") == 1)
    assert mesh.fakes.requests("StoreCompletion")[0].share_only


@pytest.mark.parametrize("layer", ["cache", "routing", "compression"])
async def test_kill_switches(mesh: Mesh, layer: str) -> None:
    await mesh.switched(layer)
    reply = await mesh.generate(ask())
    name = {"cache": "cache", "routing": "router", "compression": "compressor"}[layer]
    assert hops(reply.receipt)[name] == "DISABLED"
    assert adds_up(reply.receipt)
    if layer == "cache":
        assert mesh.fakes.count("LookupCompletion") == mesh.fakes.count("StoreCompletion") == 0
    if layer == "routing":
        assert mesh.fakes.count("SelectModel") == 0
        assert reply.completion.model == OPUS
        named = await mesh.generate(ask(policy=chat_pb2.RequestPolicy(model=LOCAL)))
        assert named.completion.model == LOCAL
    if layer == "compression":
        sent = mesh.fakes.requests("GenerateText")[0]
        assert sent.messages[0].parts[0].text == "How do I reset my password?"
        assert reply.receipt.savings[2].saving_nano_usd == 0
    await mesh.switched()
    assert hops((await mesh.generate(ask())).receipt)[name] == "OK"


async def test_compression_off_sends_the_prompt_untouched(mesh: Mesh) -> None:
    policy = chat_pb2.RequestPolicy(compression_mode=chat_pb2.COMPRESSION_MODE_OFF)
    await mesh.generate(ask("As it is.", policy=policy))
    assert mesh.fakes.requests("GenerateText")[0].messages == [message("As it is.")]


async def test_identical_namespaces_reach_one_of_two_cache_shards(start: Start) -> None:
    mesh = await start(cache_replicas=2)
    for name in ("", "default", *(f"app-{number}" for number in range(12))):
        await mesh.generate(ask(namespace=name))
    await until(lambda: mesh.fakes.count("StoreCompletion") == 14)
    by_name: dict[str, set[int]] = {}
    for seen in mesh.fakes.seen:
        if seen.method in ("LookupCompletion", "StoreCompletion"):
            by_name.setdefault(seen.request.request.namespace or "default", set()).add(seen.replica)
    assert all(len(replicas) == 1 for replicas in by_name.values())
    assert set.union(*by_name.values()) == {0, 1}


async def test_the_same_question_reaches_one_replica_whoever_asks(start: Start) -> None:
    mesh = await start(cache_replicas=3, cache_shard_by="request")
    policies = (
        None,
        chat_pb2.RequestPolicy(cache_mode=chat_pb2.CACHE_MODE_READ_WRITE, tier_ceiling=chat_pb2.TIER_COMPLEX),
        chat_pb2.RequestPolicy(compression_mode=chat_pb2.COMPRESSION_MODE_OFF),
    )
    by_question: dict[str, set[int]] = {}
    for number in range(8):
        for index, policy in enumerate(policies):
            fields = {"user_id": f"u{index}", "tags": {"n": str(index)}, "namespace": "default" if index else ""}
            await mesh.generate(ask(f"Question {number}", policy=policy, **fields))
    for seen in mesh.fakes.seen:
        if seen.method == "LookupCompletion":
            by_question.setdefault(seen.request.request.messages[0].parts[0].text, set()).add(seen.replica)
    assert len(by_question) == 8
    assert all(len(replicas) == 1 for replicas in by_question.values())
    assert len(set.union(*by_question.values())) > 1, "other questions reach other replicas"


async def test_many_requests_at_once(mesh: Mesh) -> None:
    mesh.fakes.on("GenerateText", slow(0.05))
    replies = await asyncio.gather(*(mesh.generate(ask(f"Question {number}")) for number in range(20)))
    assert len({reply.request_id for reply in replies}) == 20
    await until(lambda: len(mesh.fakes.settled) == 20)
    # In batches, not one by one.
    assert mesh.fakes.count("SettleReceipts") < 20
