"""Learning from traffic over a real socket: the router's servicer on its outcome log."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2, usage_pb2

from mesh.auth import set_identity
from mesh.errors import Code, TenthError
from mesh.testing import TEST_IDENTITY
from services.router.outcome_messages import outcome_message, outcome_of
from tests.integration.router.test_router_outcome_log import DONE, FULL, GOOD
from tests.integration.router.test_router_servicer import Mesh, mesh  # noqa: F401  (a fixture)

HARD = "Prove that there are infinitely many primes, step by step, and analyze where the argument needs choice."
CHEAP = "smollm2-135m"


def done(request_id: str = "r1", **more: Any) -> router_pb2.RecordCompletionRequest:
    usual: dict[str, Any] = {
        "model": CHEAP,
        "usage": usage_pb2.Usage(input_token_count=20, output_token_count=40),
        "finish_reason": chat_pb2.FINISH_REASON_STOP,
        "cost_nano_usd": 900,
        "duration": Duration(seconds=1, nanos=500_000_000),
    }
    return router_pb2.RecordCompletionRequest(request_id=request_id, **{**usual, **more})


def said(score: float, request_id: str = "r1", **more: Any) -> router_pb2.ReportOutcomeRequest:
    return router_pb2.ReportOutcomeRequest(request_id=request_id, score=score, comment="a secret word", **more)


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("outcomes.sqlite*"))


async def listed(at: Mesh, **more: Any) -> list[router_pb2.Outcome]:
    return list((await at.stub.ListOutcomes(router_pb2.ListOutcomesRequest(**more))).outcomes)


async def test_a_decision_its_completion_and_its_feedback_become_one_outcome(mesh: Mesh, tmp_path: Path) -> None:  # noqa: F811
    embedding = chat_pb2.Embedding(values=[0.6, 0.8], embedder="e5@2")
    edit: Callable[[chat_pb2.CompletionRequest], None] = lambda request: request.tags.update({"kind": "faq"})  # noqa: E731
    await mesh.stub.RecordCompletion(done())
    selected = await mesh.select("the-question-itself?", request_id="r1", embedding=embedding, edit=edit)
    await mesh.stub.ReportOutcome(said(0.25))
    (found,) = await listed(mesh)
    assert (found.request_id, found.model, found.tier) == ("r1", selected.model, selected.tier)
    assert found.strategy == router_pb2.STRATEGY_FEATURES
    assert (found.score, found.score_source, found.completion) == (0.25, "caller", done())
    assert found.embedding.values == pytest.approx([0.6, 0.8], abs=1e-3)
    assert dict(found.tags) == {"kind": "faq"}
    assert [item.model for item in found.candidates] == [item.model for item in selected.candidates]
    assert found.features["lookup"] > 0
    assert found.demand.prompt_token_count > 0
    (without,) = await listed(mesh, without_embeddings=True)
    assert not without.HasField("embedding")
    held = bytes_of(tmp_path)
    assert b"the-question" not in held
    assert b"secret word" not in held


async def test_a_refused_first_answer_shows_until_somebody_judges(mesh: Mesh) -> None:  # noqa: F811
    await mesh.select(request_id="r1")
    await mesh.stub.RecordCompletion(done(model="gpt-4o", escalated_from=CHEAP))
    (found,) = await listed(mesh)
    assert (found.score, found.score_source) == (0.0, "escalation")
    await mesh.stub.ReportOutcome(said(1.0, source=router_pb2.FEEDBACK_SOURCE_JUDGE))
    (found,) = await listed(mesh)
    assert (found.score, found.score_source) == (1.0, "judge")
    # A second record takes the place of the first.
    await mesh.stub.RecordCompletion(done())
    (found,) = await listed(mesh)
    assert found.completion == done()


async def test_a_dry_run_and_a_request_without_an_id_leave_no_outcome(mesh: Mesh) -> None:  # noqa: F811
    await mesh.select(request_id="r1", dry_run=True)
    await mesh.select()
    assert await listed(mesh) == []


async def test_pages_are_stable_while_outcomes_come(mesh: Mesh) -> None:  # noqa: F811
    for number in range(7):
        await mesh.select(request_id=f"r{number}")
    seen: list[str] = []
    token = ""
    while True:
        page = await mesh.stub.ListOutcomes(router_pb2.ListOutcomesRequest(page_size=3, page_token=token))
        seen += [item.request_id for item in page.outcomes]
        token = page.next_page_token
        if not token:
            break
        await mesh.stub.ReportOutcome(said(1.0, "r0"))
        if len(seen) == 3:
            await mesh.select(request_id="late")
    assert seen == [*(f"r{number}" for number in range(7)), "late"]


async def test_tenants_see_their_own(mesh: Mesh) -> None:  # noqa: F811
    await mesh.select(request_id="r1")
    set_identity(replace(TEST_IDENTITY, tenant_id="another"))
    assert await listed(mesh) == []
    assert (await mesh.stub.GetReport(router_pb2.GetReportRequest())).decision_count == 0
    set_identity(TEST_IDENTITY)
    assert (await mesh.stub.GetReport(router_pb2.GetReportRequest())).decision_count == 1
    later = Timestamp(seconds=4_000_000_000)
    assert (await mesh.stub.GetReport(router_pb2.GetReportRequest(start_time=later))).decision_count == 0
    assert await listed(mesh, start_time=later) == []


async def test_the_report_puts_what_was_seen_beside_what_was_predicted(mesh: Mesh) -> None:  # noqa: F811
    for number in range(60):
        await mesh.select(request_id=f"r{number}")
        await mesh.stub.RecordCompletion(done(f"r{number}"))
        await mesh.stub.ReportOutcome(said(0.0, f"r{number}"))
    answer = await mesh.stub.GetReport(router_pb2.GetReportRequest())
    (model,) = answer.models
    assert (model.model, model.decision_count, model.scored_count, model.mean_score) == (CHEAP, 60, 60, 0.0)
    assert model.gap_low <= -model.mean_predicted <= model.gap_high < 0
    assert (model.cost_nano_usd, model.output_token_count) == (60 * 900, 60 * 40)
    assert dict(answer.strategy_counts) == {"features": 60}
    (warning,) = answer.warnings
    assert warning.startswith(f"{CHEAP} answers worse than predicted: 0.00 seen")


CATALOG = """
providers: { local: { backend: vllm } }
models:
  small: {provider: local, tier: simple, context_window_tokens: 8000, abilities: {korean: true}}
  big: {provider: local, tier: complex, context_window_tokens: 8000, abilities: {korean: true}}
prices:
  - {model: small, input: "1", output: "2", valid_from: 2020-01-01, source: a test}
  - {model: big, input: "10", output: "20", valid_from: 2020-01-01, source: a test}
"""


async def test_recorded_requests_are_decided_again(mesh: Mesh) -> None:  # noqa: F811
    await mesh.select(request_id="easy")
    await mesh.select(HARD, request_id="hard")
    outcomes = await listed(mesh)
    same = await mesh.stub.ReplayOutcomes(router_pb2.ReplayOutcomesRequest(outcomes=outcomes))
    assert [item.model for item in same.outcomes] == [item.model for item in outcomes], "nothing changed, nothing does"
    for item in same.outcomes:
        assert (item.cost_nano_usd, item.success_probability) == (
            item.recorded_cost_nano_usd,
            item.recorded_success_probability,
        )
    low = await mesh.stub.ReplayOutcomes(router_pb2.ReplayOutcomesRequest(outcomes=outcomes, quality_target=0.05))
    assert low.outcomes[1].cost_nano_usd < low.outcomes[1].recorded_cost_nano_usd
    other = await mesh.stub.ReplayOutcomes(router_pb2.ReplayOutcomesRequest(outcomes=outcomes, catalog_yaml=CATALOG))
    assert [item.model for item in other.outcomes] == ["small", "big"]
    assert other.outcomes[0].recorded_cost_nano_usd == -1, "the recorded model is not in this catalogue"
    assert len(await listed(mesh)) == 2


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (router_pb2.ListOutcomesRequest(page_size=-1), "page_size", "0..1000"),
        (router_pb2.ListOutcomesRequest(page_size=1001), "page_size", "0..1000"),
        (router_pb2.ListOutcomesRequest(page_token="x"), "page_token", "not one of ours"),
        (router_pb2.ListOutcomesRequest(start_time=Timestamp(nanos=-1)), "start_time", "not a time"),
        (done(""), "request_id", "required"),
        (done("r" * 257), "request_id", "at most 256"),
        (done(model="m" * 257), "model", "at most 256"),
        (done(failed_models=["a", "m" * 257]), r"failed_models[1]", "at most 256"),
        (done(failed_models=["m"] * 101), "failed_models", "at most 100"),
        (said(0.5, "r" * 257), "request_id", "at most 256"),
        (done(cost_nano_usd=-1), "cost_nano_usd", "negative"),
        (done(usage=usage_pb2.Usage(output_token_count=-1)), "usage.output_token_count", "negative"),
        (done(duration=Duration(seconds=-1)), "duration", "negative"),
        (said(0.5, source=9), "source", "no source"),
        (said(math.inf), "score", "0..1"),
        (router_pb2.ReplayOutcomesRequest(outcomes=[router_pb2.Outcome()] * 1001), "outcomes", "1000"),
        (router_pb2.ReplayOutcomesRequest(outcomes=[router_pb2.Outcome()]), "outcomes[0].request_id", "required"),
        (
            router_pb2.ReplayOutcomesRequest(outcomes=[router_pb2.Outcome(request_id="r")]),
            "outcomes[0].model",
            "required",
        ),
        (
            router_pb2.ReplayOutcomesRequest(
                outcomes=[
                    outcome_message(FULL),
                    router_pb2.Outcome(request_id="r", model="m", candidates=[router_pb2.RouteCandidate(model="m")]),
                ]
            ),
            "outcomes[1].candidates[0].tier",
            "required",
        ),
        (router_pb2.ReplayOutcomesRequest(strategy=router_pb2.STRATEGY_LLM), "strategy", "calls no model"),
        (router_pb2.ReplayOutcomesRequest(strategy=77), "strategy", "no strategy"),  # type: ignore[arg-type]
        (router_pb2.ReplayOutcomesRequest(quality_target=0), "quality_target", "above 0"),
        (
            router_pb2.ReplayOutcomesRequest(catalog_yaml="models:\n  a: {provider: p, teir: simple}\n"),
            "catalog_yaml",
            r"catalog_yaml:2: models.a.teir: unknown key",
        ),
    ],
)
async def test_refusals_name_the_field(mesh: Mesh, request_: Any, field: str, words: str) -> None:  # noqa: F811
    method: Any = {
        router_pb2.ListOutcomesRequest: mesh.stub.ListOutcomes,
        router_pb2.RecordCompletionRequest: mesh.stub.RecordCompletion,
        router_pb2.ReportOutcomeRequest: mesh.stub.ReportOutcome,
        router_pb2.ReplayOutcomesRequest: mesh.stub.ReplayOutcomes,
    }[type(request_)]
    with pytest.raises(TenthError, match=words) as caught:
        await method(request_)
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, field)


async def test_a_lost_file_is_an_error_with_a_reason_and_decisions_go_on(mesh: Mesh, tmp_path: Path) -> None:  # noqa: F811
    import sqlite3

    with sqlite3.connect(tmp_path / "outcomes.sqlite") as database:
        database.execute("DROP TABLE outcomes")
    assert (await mesh.select(request_id="r1")).model == CHEAP
    with pytest.raises(TenthError) as caught:
        await listed(mesh)
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "OUTCOME_LOG_UNAVAILABLE")


def test_messages_lose_nothing() -> None:
    whole = replace(FULL, completion=DONE, feedback=GOOD, tenant_id="acme")
    message = outcome_message(whole)
    back = outcome_of(message, "acme", "outcomes[0]")
    assert back.embedding is not None
    assert whole.embedding is not None
    assert (back.embedding.vector == whole.embedding.vector).all()
    assert replace(back, embedding=None) == replace(whole, embedding=None)
