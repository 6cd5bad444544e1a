"""Whole runs of batches: real Temporal, a real worker, real sockets; the other layers are played."""

from __future__ import annotations

from pathlib import Path

from services.batch import batches
from services.batch.refs import State
from tests.integration.batch.batch_engine_rig import TENANT, ask, engine
from tests.integration.batch.batch_layers import LOCAL_MODEL, OTHER_MODEL, PAID_MODEL, PRICE, Layers


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
        assert layers.kinds(f"{ref.batch_id}-4") == [(1, "FINISHED"), (1, "STARTED")]
        assert layers.identities == {(TENANT, "u0", "test"), (TENANT, "u1", "test")}
        # What only the run needed is gone, and its end is kept.
        assert not [name async for name in made.store.list(batches.plan_prefix(ref))]
        assert not [name async for name in made.store.list(batches.prepared_prefix(ref))]
        assert (await batches.read_run(made.store, ref)).ended.done_count == 249
