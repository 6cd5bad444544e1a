"""Whole runs of batches: real Temporal, a real worker, real sockets; the other layers are played."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from temporalio.client import WorkflowExecutionStatus
from tenth.batch.v1 import stored_pb2
from tenth.inference.v1 import inference_pb2
from tenth.type.v1 import receipt_pb2

from mesh.errors import Code, TenthError
from services.batch import batches
from services.batch.refs import CANCEL_SIGNAL, BatchRef, State
from tests.integration.batch.batch_engine_rig import TENANT, ask, engine, request_id, until
from tests.integration.batch.batch_layers import (
    LOCAL_MODEL,
    OTHER_MODEL,
    PAID_MODEL,
    PRICE,
    Layers,
    PlayedBatch,
    answer_all,
    end_as_it_is,
    never,
    result,
)


async def test_a_batch_goes_through_all_lanes(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.cache["q0"] = "from the cache"
    layers.refused["q1"] = "BUDGET_EXCEEDED"
    models = [LOCAL_MODEL, PAID_MODEL, OTHER_MODEL]
    requests = [ask(f"q{n}", model=models[n % 3], user=f"u{n % 2}") for n in range(250)]
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in(requests)
        progress = await made.run(ref)
        assert progress.state == State.DONE, progress
        assert (progress.done, progress.failed, progress.cache_hits) == (249, 1, 1)
        assert progress.lanes == {"local": 83, "openai": 82, "anthropic": 83}
        assert progress.actual_nano_usd == 248 * PRICE
        assert progress.forecast_nano_usd == 248 * PRICE
        assert progress.baseline_nano_usd == 249 * PRICE
        assert progress.savings == [PRICE, 0, 0, 0, 0, 0]
        results = await made.results(ref)
        assert sorted(results) == list(range(250))
        assert results[1].result.error_reason == "BUDGET_EXCEEDED"
        assert results[0].result.completion.message.parts[0].text == "from the cache"
        assert results[4].result.completion.message.parts[0].text == "paid 1: q4"
        assert results[5].result.custom_id == "c5"
        assert not layers.reserved
        assert layers.lanes == {"local batch": 83, "openai batch": 82, "anthropic batch": 83}
        assert layers.kinds(request_id(ref, 4)) == [(1, "FINISHED"), (1, "STARTED")]
        assert layers.identities == {(TENANT, "u0", "test"), (TENANT, "u1", "test")}
        # What only the run needed is gone, and its end is kept.
        assert not [name async for name in made.store.list(batches.plan_prefix(ref))]
        assert not [name async for name in made.store.list(batches.prepared_prefix(ref))]
        assert (await batches.read_run(made.store, ref)).ended.done_count == 249


async def test_the_same_question_is_asked_once(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.failing = lambda request: (
        TenthError(Code.INVALID_ARGUMENT, "INVALID_FIELD", "bad")
        if request.messages[-1].parts[0].text == "bad"
        else None
    )
    requests = [
        *(ask("same") for _ in range(5)),
        *(ask("hot", temperature=0.9) for _ in range(3)),
        *(ask("bad") for _ in range(3)),
    ]
    same = {1: 0, 2: 0, 3: 0, 4: 0, 6: 5, 7: 5, 9: 8, 10: 8}
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in(requests, same=same)
        progress = await made.run(ref)
        assert (progress.done, progress.failed, progress.shared) == (8, 3, 4), progress
        results = await made.results(ref)
        text = results[0].result.completion.message.parts[0].text
        assert [results[n].result.completion.message.parts[0].text for n in range(5)] == [text] * 5
        assert [results[n].shared for n in range(5)] == [False, True, True, True, True]
        # Above the temperature limit each is an answer of its own.
        assert [len(layers.generated[request_id(ref, n)]) for n in range(8)] == [1, 0, 0, 0, 0, 1, 1, 1]
        # A wrong request is wrong for its twins too; nobody asks again.
        assert [results[n].result.error_reason for n in (8, 9, 10)] == ["INVALID_FIELD"] * 3
        assert not layers.tried[request_id(ref, 9)]
        assert progress.actual_nano_usd == 4 * PRICE


async def test_nearly_the_same_waits_for_the_cache(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.embeddings = {"a": [1.0, 0.0], "a!": [0.999, 0.04], "a?": [0.998, 0.06], "a!!": [1.0, 0.0], "b": [0.0, 1.0]}
    layers.near = {"a!": "a"}
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in([ask("a"), ask("a!"), ask("a?"), ask("b"), ask("a!!", system="other context")])
        progress = await made.run(ref)
        assert (progress.done, progress.cache_hits) == (5, 1)
        assert progress.forecast_nano_usd == 4 * PRICE, "what is prepared again counts once"
        results = await made.results(ref)
        assert results[1].result.completion.message.parts[0].text == "small 1: a"
        assert results[2].result.completion.message.parts[0].text == "small 1: a?", "what the cache refuses runs"
        assert [layers.prepared[request_id(ref, n)] for n in range(5)] == [1, 2, 2, 1, 1]
        assert not layers.reserved


async def test_what_no_lane_takes_fails_piece_by_piece(tmp_path: Path, temporal_address: str) -> None:
    async with engine(tmp_path, temporal_address) as made:
        ref = await made.take_in([ask(f"q{n}", model=PAID_MODEL) for n in range(620)], lanes=["local"])
        progress = await made.run(ref)
        assert (progress.state, progress.done, progress.failed) == (State.DONE, 0, 620)
        assert {one.result.error_reason for one in (await made.results(ref)).values()} == {"LANE_NOT_ALLOWED"}
        objects = [name async for name in made.store.list(batches.results_prefix(TENANT, ref.batch_id))]
        assert len(objects) == 2, "a batch that goes nowhere is never in memory whole"
        assert not made.layers.reserved


async def test_a_batch_whose_provider_cannot_be_left_waits_for_nothing(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.embeddings = {"a": [1.0, 0.0], "a?": [0.998, 0.06]}
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        requests = [ask("a", model=PAID_MODEL), ask("a?", model=PAID_MODEL)]
        progress = await made.run(await made.take_in(requests, lanes=["openai"]))
        assert (progress.done, len(layers.batches)) == (2, 1)


async def test_twins_of_what_is_nearly_the_same_share_its_answer(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.embeddings = {"a": [1.0, 0.0], "a?": [0.998, 0.06], "hot": [0.999, 0.04]}
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        requests = [
            ask("a"),
            *(ask("a?") for _ in range(4)),
            ask("a"),
            *(ask("hot", temperature=0.2) for _ in range(2)),
        ]
        ref = await made.take_in(requests, same={2: 1, 3: 1, 4: 1, 5: 0, 7: 6})
        progress = await made.run(ref)
        assert (progress.state, progress.done, progress.shared) == (State.DONE, 8, 5), progress
        results = await made.results(ref)
        assert [results[n].result.completion.message.parts[0].text for n in range(1, 5)] == ["small 1: a?"] * 4
        assert [len(layers.generated[request_id(ref, n)]) for n in range(8)] == [1, 1, 0, 0, 0, 0, 1, 0]
        assert progress.actual_nano_usd == 3 * PRICE
        assert not layers.reserved


@pytest.mark.parametrize("refused", [False, True], ids=["shared", "refused once"])
async def test_twins_of_what_waits_itself_wait_with_it(tmp_path: Path, temporal_address: str, refused: bool) -> None:
    """ "a!" waits for "a", which the cache does not take for it; its twins have its answer, not one of their own."""
    layers = Layers()
    layers.embeddings = {"a": [1.0, 0.0], "a!": [0.999, 0.04]}
    failures = Counter({"a!": refused})

    def failing(generation: inference_pb2.GenerateTextRequest) -> TenthError | None:
        text = generation.messages[-1].parts[0].text
        failures[text] -= 1
        return TenthError(Code.UNAUTHENTICATED, "NO_KEY", "not now") if failures[text] >= 0 else None

    layers.failing = failing
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in([ask("a"), ask("a!"), ask("a!"), ask("a!"), ask("a")], same={2: 1, 3: 1, 4: 0})
        progress = await made.run(ref)
        results = await made.results(ref)
        texts = [results[place].result.completion.message.parts[0].text for place in (0, 4)]
        assert texts == ["small 1: a"] * 2
        if refused:  # The first may be tried again later, its twins are not kept from their own try.
            assert (progress.done, progress.failed, progress.shared) == (4, 1, 1)
            assert results[1].result.error_reason == "NO_KEY"
        else:
            assert (progress.done, progress.failed, progress.shared) == (5, 0, 3)
            assert len({results[place].result.completion.message.parts[0].text for place in (1, 2, 3)}) == 1
        answered = [len(layers.generated[request_id(ref, place)]) for place in range(5)]
        assert answered == ([1, 0, 1, 1, 0] if refused else [1, 1, 0, 0, 0])
        assert not layers.reserved


async def test_a_named_model_that_was_down_for_a_moment_is_waited_for(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.none_left = "NO_ELIGIBLE_MODEL"
    down = [TenthError(Code.UNAVAILABLE, "PROVIDER_UNAVAILABLE", "restarting")] * 2
    layers.failing = lambda _: down.pop() if down else None
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in([ask("named", model=PAID_MODEL)], lanes=["online"])
        progress = await made.run(ref)
        assert (progress.done, progress.failed) == (1, 0)
        assert [model for model, _ in layers.tried[request_id(ref, 0)]] == [PAID_MODEL] * 3
        assert not layers.reserved


async def test_a_cancelled_batch_lets_go(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.gate, layers.free = asyncio.Event(), 5
    layers.on_submit, layers.on_cancel = half_then_never, end_as_it_is
    requests = [ask(f"q{n}", model=PAID_MODEL if n >= 200 else "") for n in range(210)]
    async with engine(tmp_path, temporal_address, layers=layers, chunk_items=10, local_concurrency=8) as made:
        ref = await made.take_in(requests)
        handle = await made.start(ref)
        await until(lambda: layers.started > 5 and layers.batches)
        await handle.signal(CANCEL_SIGNAL)
        progress = await asyncio.wait_for(handle.result(), 30)
        assert progress.state == State.CANCELLED
        assert progress.done + progress.failed == 210
        assert progress.done == 10, "what was answered, here and at the provider, stays"
        results = await made.results(ref)
        assert sorted(results) == list(range(210))
        reasons = Counter(result.result.error_reason for result in results.values())
        assert reasons == {"": 10, "BATCH_CANCELLED": 200}
        assert all(result.retryable for result in results.values() if result.result.error_reason)
        assert layers.calls["cancel"] == 1
        assert not layers.reserved, "every reservation is let go of"
        # And the failed ones again, as a run of their own.
        layers.gate.set()
        layers.on_submit = answer_all
        again = BatchRef(ref.tenant_id, ref.batch_id, 2)
        failed = sorted(index for index, result in results.items() if result.result.error_reason)
        record = stored_pb2.StoredRunItems(indexes=failed)
        await batches.write_one(made.store, batches.run_items_name(again), record)
        await made.write_run(again, len(failed), 3600)
        progress = await made.run(again)
        assert (progress.state, progress.done, progress.failed) == (State.DONE, 200, 0)
        assert {result.result.error_reason for result in (await made.results(ref)).values()} == {""}
        assert layers.kinds(request_id(ref, 209)) == [(1, "FAILED"), (1, "STARTED")]
        assert len(layers.kinds(request_id(again, 209))) == 2


async def test_gathered_requests_and_deleted_users(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.gate, layers.free = asyncio.Event(), 0
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in([ask("a", user="u1"), ask("b", user="u2")], gathered=True)
        handle = await made.start(ref)
        await until(lambda: layers.started == 2)
        deletion = stored_pb2.StoredDeletion(user_id="u2", indexes=[1])
        await batches.write_one(made.store, batches.deleted_name(TENANT, ref.batch_id, "u2"), deletion)
        layers.gate.set()
        progress = await asyncio.wait_for(handle.result(), 30)
        assert progress.state == State.DONE
        assert list(await made.results(ref)) == [0], "nothing is written of a deleted user"
        name = batches.queued_result_name(TENANT, request_id(ref, 0))
        kept = await batches.read_one(made.store, name, stored_pb2.StoredResult)
        assert kept.result.completion.message.parts[0].text == "small 1: a"
        assert not await made.store.exists(batches.queued_result_name(TENANT, request_id(ref, 1)))


async def test_models_that_fail(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    full: Counter[str] = Counter()

    def failing(request: inference_pb2.GenerateTextRequest) -> TenthError | None:
        text = request.messages[-1].parts[0].text
        full[text] += 1
        if text == "full" and full[text] <= 3:
            return TenthError(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", "full", retry_after_seconds=0.01)
        if text == "spent" and request.model == LOCAL_MODEL:
            spent = receipt_pb2.SpentDetail(attempts=[receipt_pb2.OverheadItem(kind="failed_attempt", attempt=1)])
            return TenthError(Code.UNIMPLEMENTED, "UNSUPPORTED", "no", details=(spent,))
        return None

    layers.failing = failing
    layers.down = {OTHER_MODEL}
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        questions = [ask("full"), ask("spent"), ask("down", model=OTHER_MODEL), ask("fine")]
        ref = await made.take_in(questions, lanes=["local", "online"])
        progress = await made.run(ref)
        assert (progress.done, progress.failed) == (4, 0)
        assert progress.lanes == {"local": 2, "online": 2}
        tried = [layers.tried[request_id(ref, n)] for n in range(4)]
        assert tried[0] == [("small", 1), ("small", 2), ("small", 3), ("small", 4)]
        assert tried[1] == [("small", 1), ("paid", 2)]
        assert [model for model, _ in tried[2]] == ["claude", "claude", "paid"]
        assert len({number for _, number in tried[2]}) == 3, "no attempt's number is used twice"
        assert layers.lanes == {"local batch": 2, "online full": 2}


async def test_lanes_that_a_batch_does_not_allow(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in([ask("a"), ask("b", model=OTHER_MODEL)], lanes=["anthropic"])
        progress = await made.run(ref)
        assert (progress.done, progress.failed) == (1, 1)
        assert (await made.results(ref))[0].result.error_reason == "LANE_NOT_ALLOWED"
        ref = await made.take_in([ask("c"), ask("d", model=PAID_MODEL)], lanes=["online"])
        progress = await made.run(ref)
        assert (progress.done, progress.lanes) == (2, {"online": 2})
        assert layers.generated[request_id(ref, 0)], "own hardware was not allowed: another model answered"
        assert layers.tried[request_id(ref, 0)][0][0] == PAID_MODEL
        assert not layers.reserved


async def test_a_batch_whose_input_is_damaged_fails(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in([ask(f"q{n}") for n in range(250)])
        await made.store.put(batches.input_name(TENANT, ref.batch_id, 1), b"\xff\xff")
        progress = await made.run(ref)
        assert (progress.state, progress.error_reason) == (State.FAILED, "STORE_DAMAGED")
        assert progress.done == 0
        assert (await batches.read_run(made.store, ref)).ended.error_reason == "STORE_DAMAGED"
        reasons = {one.result.error_reason for one in (await made.results(ref)).values()}
        assert reasons <= {"STORE_DAMAGED"}
        assert not layers.generated, "nothing was run"


async def test_a_long_run_continues_as_a_new_one(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.on_submit = never
    questions = [ask(f"q{n}", model=PAID_MODEL if n % 5 == 0 else "") for n in range(300)]
    async with engine(tmp_path, temporal_address, layers=layers, chunk_items=4, history_events=100) as made:
        ref = await made.take_in(questions)
        handle = await made.start(ref)
        await until(lambda: len(layers.ends) == 240)
        for batch in layers.batches.values():
            answer_all(batch)
        progress = await asyncio.wait_for(handle.result(), 40)
        assert (progress.state, progress.done) == (State.DONE, 300)
        assert len(await made.results(ref)) == 300
        first = await made.client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id).describe()
        assert first.status == WorkflowExecutionStatus.CONTINUED_AS_NEW
        assert set(layers.ends.values()) == {1}
        assert len(layers.submissions) == 1, "what is at the provider is not handed in again"


def half_then_never(batch: PlayedBatch) -> None:
    batch.results = [result(one) for one in batch.generations[:5]]
