from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from google.protobuf import json_format
from rich.console import Console, RenderableType
from tenth.router.v1 import router_pb2

from tenth_client import router_views as views
from tenth_client.router_files import line_of, merged, read_log, read_policy
from tenth_client.router_words import warning


def shown(view: RenderableType, width: int = 200) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(view)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def again(request_id: str, model: str, cost: int, before: int, quality: float = 0.8) -> router_pb2.ReplayedOutcome:
    return router_pb2.ReplayedOutcome(
        request_id=request_id, model=model, tier=1, success_probability=quality, cost_nano_usd=cost,  # type: ignore[arg-type]
        recorded_success_probability=0.9, recorded_cost_nano_usd=before, reason=f"because of {request_id}",
    )  # fmt: skip


def sums() -> views.ReplaySums:
    made = views.ReplaySums()
    made.add("strong", again("r1", "strong", 5_000_000, 5_000_000, 0.9))
    made.add("strong", again("r2", "cheap", 1_000_000, 9_000_000))
    made.add("strong", again("r3", "cheap", 1_000_000, 2_000_000))
    made.add("strong", again("r4", "", 0, 7_000_000, 0.0))
    made.add("strong", again("r5", "free", -1, 4_000_000))
    return made


def test_the_sums_count_only_what_both_sides_know() -> None:
    assert sums().report() == {
        "request_count": 5,
        "changed_count": 4,
        "refused_count": 1,
        "unpriced_count": 1,
        "cost_before_nano_usd": 16_000_000,
        "cost_after_nano_usd": 7_000_000,
        "quality_before": pytest.approx(0.9),
        "quality_after": pytest.approx((0.9 + 0.8 * 3) / 4),
    }


def test_a_replay_shows_sums_moves_and_the_largest_changes() -> None:
    said = shown(views.replay(sums(), 2, 2, "en"))
    assert "5 decisions again, 4 of them change (80.0%)" in said
    assert "$0.016000" in said
    assert "-$0.009000 (-56.2%)" in said
    assert "no decision of them (feedback alone): 2" in said
    assert "would find no model, neither sum counts them: 1" in said
    assert said.index("because of r2") < said.index("because of r3")
    assert "because of r4" not in said, "two rows were asked for"
    assert said.count("unknown") == 1, "what has no price has no change of cost either"
    korean = shown(views.replay(sums(), 0, 9, "ko"))
    assert "5건을 다시 결정, 그중 4건이 바뀜" in korean
    assert "모름" in korean


def report(**more: object) -> router_pb2.GetReportResponse:
    model = router_pb2.ModelReport(
        model="cheap", decision_count=1200, scored_count=60, mean_score=0.5, mean_predicted=0.8, gap_low=-0.42,
        gap_high=-0.18, failed_count=3, escalated_count=4, cost_nano_usd=1_500_000, expected_cost_nano_usd=1_000_000,
    )  # fmt: skip
    return router_pb2.GetReportResponse(
        models=[model],
        decision_count=1200,
        strategy_counts={"trained": 1000, "rules": 200},
        **more,  # type: ignore[arg-type]
    )


def test_a_report_in_both_languages() -> None:
    line = "cheap answers worse than predicted: 0.50 seen, 0.80 predicted, 60 answers with feedback"
    full = report(
        explored_count=12, audited_count=6, exploration_cost_nano_usd=2_000_000, shadow_count=10,
        shadow_differs_count=3, out_of_distribution_count=7, heads_version="abc", warnings=[line],
        feature_drift={"length": 0.31, "maths": 0.01},
    )  # fmt: skip
    said = shown(views.report(full, "en"))
    for words in (
        "1,200 decisions: trained 1,000, rules 200", "-0.42 .. -0.18", "12 explored, 6 audited, $0.002000",
        "3 of 10 would have gone elsewhere", "unlike the training: 7", "heads abc", "length 0.31, maths 0.01", line,
    ):  # fmt: skip
        assert words in said, words
    korean = shown(views.report(full, "ko"))
    assert "결정 1,200건" in korean
    assert "cheap의 답이 예측보다 나쁩니다: 관측 0.50, 예측 0.80, 피드백 60건" in korean
    quiet = shown(views.report(report(), "en"))
    assert "nothing to warn of" in quiet
    assert "not measured" in quiet
    assert shown(views.report(router_pb2.GetReportResponse(), "en")) == "no decision is recorded"


@pytest.mark.parametrize(
    "line",
    [
        "questions have changed: length is not spread as in training (index 0.31, above 0.2)",
        "100 of 300 questions are unlike all that the heads were trained on",
        "gpt-4o-mini answers better than predicted: 0.95 seen, 0.80 predicted, 60 answers with feedback",
        "cheap costs 2.1 times what was expected, over 100 answers",
        "cheap costs 0.41 of what was expected, over 100 answers",
        "cheap writes 3.00 times the output tokens that were expected, over 100 answers",
        "cheap failed in 20 of 120 attempts",
        "3 parts of outcomes were not recorded: the log's queue was full or its disk failed",
    ],
)
def test_every_warning_of_the_router_has_korean_words(line: str) -> None:
    assert warning(line, "en") == line
    korean = warning(line, "ko")
    assert any("가" <= letter <= "힣" for letter in korean)
    assert "{" not in korean
    assert warning("something new", "ko") == "something new"


def test_a_policy_file(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("models: {}\n")
    path = tmp_path / "policy.yaml"
    path.write_text("catalog: prices.yaml\nquality_target: 0.8\nstrategy: trained\n")
    policy = read_policy(path)
    request = policy.request([router_pb2.Outcome(request_id="r")])
    assert (request.catalog_yaml, request.rules_yaml, request.strategy, request.quality_target) == (
        "models: {}\n", "", router_pb2.STRATEGY_TRAINED, 0.8,
    )  # fmt: skip
    assert policy.in_words("catalog_yaml:1: wrong") == f"{tmp_path / 'prices.yaml'}:1: wrong"
    path.write_text("")
    assert not read_policy(path).request([]).HasField("quality_target")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quality_target: 0.8\ncatalogue: x.yaml\n", ":2: catalogue: unknown key; known: catalog"),
        ("strategy: trained\nstrategy: rules\n", ":2: strategy: given twice"),
        ("strategy: llm\n", ":1: strategy: 'llm' is none of features"),
        ("\nquality_target: 1.5\n", ":2: quality_target: '1.5' is no number above 0"),
        ("quality_target: nan\n", ":1: quality_target: 'nan'"),
        ("catalog: none.yaml\n", ":1: catalog: .* is no file"),
        ("rules: [a]\n", ":1: rules: must be one value"),
        ("- a\n", ":1: must be a mapping"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_wrong_policy_file_names_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_policy(path)


def test_a_log_comes_back_and_a_bad_line_is_named(tmp_path: Path) -> None:
    outcome = router_pb2.Outcome(request_id="r", features={"length": 0.5}, score=0.0, score_source="caller")
    outcome.decide_time.FromSeconds(1_700_000_000)
    path = tmp_path / "log.jsonl"
    path.write_text(line_of(outcome) + "\n\n")
    assert list(read_log(path)) == [outcome]
    assert "decideTime" in json.loads(line_of(outcome))
    path.write_text(line_of(outcome) + '\n{"requestId": 7, "colour": 1}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl:2: "):
        list(read_log(path))


def part(**more: object) -> router_pb2.Outcome:
    return json_format.ParseDict({"requestId": "r", **more}, router_pb2.Outcome())


def test_what_replicas_know_of_a_request_becomes_one() -> None:
    decided = part(model="cheap", decideTime="2026-01-01T00:00:10Z", score=0.0, scoreSource="escalation")
    heard = part(
        decideTime="2026-01-01T00:00:20Z", userId="ann", score=0.7, scoreSource="caller",
        completion={"requestId": "r", "model": "strong"},
    )  # fmt: skip
    judged = part(decideTime="2026-01-01T00:00:30Z", score=0.1, scoreSource="judge")
    other = part(requestId="q", model="cheap", decideTime="2026-01-01T00:00:05Z")
    for order in ([decided, heard, judged, other], [judged, other, heard, decided]):
        copies = []
        for each in order:
            copy = router_pb2.Outcome()
            copy.CopyFrom(each)
            copies.append(copy)
        first, second = merged(copies)
        assert first.request_id == "q"
        assert (second.model, second.completion.model, second.score, second.score_source, second.user_id) == (
            "cheap", "strong", 0.7, "caller", "ann",
        )  # fmt: skip
        assert second.decide_time == decided.decide_time


def test_the_catalogue() -> None:
    model = router_pb2.CatalogModel(
        model="gpt-4o-mini", provider="openai", tier=1, context_window_tokens=128000, routable=True, healthy=True,  # type: ignore[arg-type]
        input_nano_usd_per_million_tokens=150_000_000, output_nano_usd_per_million_tokens=-1,
        output_tokens_per_second=80.4, quality_like="gpt-4",
    )  # fmt: skip
    model.abilities.json_schema = model.abilities.korean = True
    model.time_to_first_token.FromMilliseconds(420)
    said = shown(views.models([model, router_pb2.CatalogModel(model="gone")]))
    for words in ("json schema, korean", "128,000", "$0.1500", "80", "0.42 s", "healthy", "failing (only by name)"):
        assert words in said, words
