"""What ``tenth batch`` shows, in English and Korean."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from tenth.batch.v1 import batch_pb2
from tenth.type.v1 import receipt_pb2

from tenth_client import batch_words
from tenth_client.batch_views import as_json, line, line_errors, many, moving, one
from tenth_client.batch_words import length
from tenth_client.cache_words import LANGUAGES

CREATED = 1_800_000_000


def batch(**more: object) -> batch_pb2.Batch:
    found = batch_pb2.Batch(
        batch_id="b1",
        state=batch_pb2.BATCH_STATE_RUNNING,
        item_count=1000,
        done_count=240,
        failed_count=10,
        cache_hit_count=40,
        shared_count=25,
        lanes=[batch_pb2.LaneCount(lane="local", item_count=100), batch_pb2.LaneCount(lane="moon", item_count=75)],
        actual_nano_usd=2_500_000,
        overhead_nano_usd=100_000,
        forecast_nano_usd=9_000_000,
        baseline_nano_usd=10_000_000,
        savings=[receipt_pb2.LayerSaving(layer=receipt_pb2.LAYER_BATCH, saving_nano_usd=5_000_000)],
        run=1,
        tags={"team": "search"},
    )
    found.create_time.FromSeconds(CREATED)
    found.deadline_time.FromSeconds(CREATED + 86_400)
    found.MergeFrom(batch_pb2.Batch(**more))  # type: ignore[arg-type]  # the tests' own
    return found


def shown(what: object, width: int = 160) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_one_batch_says_everything() -> None:
    said = shown(one(batch(), CREATED + 600, "en"))
    for words in (
        "running",
        "1,000",
        "240, of which 40 by the cache, 25 shared",
        "own model 100, moon 75",
        "$0.002500, of which $0.000100 beside the answers",
        "$0.009000",
        "$0.007500 (75.0% of the baseline)",
        "batch $0.005000",
        "2027-01-15 08:00 UTC",
        "23 h 50 min left",
        "team=search",
    ):
        assert words in said, words
    assert "expires" not in said, "what is not known is not said"


def test_korean() -> None:
    said = shown(one(batch(), CREATED + 600, "ko"))
    for words in ("실행 중", "240, 캐시 40, 공유 25", "자체 모델 100", "기준 대비 75.0%", "23시간 50분 남음"):
        assert words in said, words


def test_watching_tells_counts_money_and_time() -> None:
    said = shown(moving(batch(), CREATED + 600, "en"))
    assert "250 of 1,000" in said
    assert "answered 240 (cache 40, shared 25), failed 10" in said
    assert "cost $0.002500, forecast $0.009000, saved $0.007500 (75.0%)" in said
    # 250 items took ten minutes: the other 750 take thirty.
    assert "about 30 min more at this pace" in said
    assert shown(line(batch(), CREATED + 600, "en")).count("\n") >= 1
    assert line(batch(), CREATED + 600, "en").startswith("running, 250 of 1,000; ")


def test_what_is_not_known_yet_is_no_zero() -> None:
    fresh = batch_pb2.Batch(batch_id="b", state=batch_pb2.BATCH_STATE_RUNNING, item_count=3)
    for said in (shown(one(fresh, CREATED, "en")), line(fresh, CREATED, "en")):
        assert "forecast" not in said
        assert "saved" not in said
        assert "cost" in said


def test_no_pace_is_made_up() -> None:
    none_ended = batch_pb2.Batch(state=batch_pb2.BATCH_STATE_RUNNING, item_count=10)
    none_ended.create_time.FromSeconds(CREATED)
    for each in (none_ended, batch(run=2), batch(state=batch_pb2.BATCH_STATE_CANCELLING)):
        assert "pace" not in line(each, CREATED + 600, "en")


def test_the_end_and_a_missed_deadline() -> None:
    ended = batch(state=batch_pb2.BATCH_STATE_DONE)
    ended.end_time.FromSeconds(CREATED + 3725)
    said = shown(one(ended, CREATED + 90_000, "en"))
    assert "took 1 h 2 min" in said
    assert "left" not in said
    assert "late by 1 h" in line(batch(), CREATED + 90_000, "en")


def test_a_batch_that_could_not_run_says_why() -> None:
    failed = batch(
        state=batch_pb2.BATCH_STATE_FAILED, error_reason="STORE_UNAVAILABLE", error_message="the store is full"
    )
    assert "STORE_UNAVAILABLE the store is full" in shown(one(failed, CREATED, "en"))


def test_a_batch_that_is_checked_shows_an_empty_bar() -> None:
    said = shown(moving(batch_pb2.Batch(batch_id="b", state=batch_pb2.BATCH_STATE_VALIDATING), CREATED, "en"))
    assert "being checked" in said
    assert "0 of 0" in said


def test_an_id_is_never_cut_in_two() -> None:
    found = batch(batch_id="")
    found.batch_id = "0d77032d-d7e7-575f-a304-dfdef69b5b74"
    for width in (80, 140):
        assert found.batch_id in shown(many([found], CREATED, "en"), width)


def test_many() -> None:
    said = shown(many([batch(), batch(state=batch_pb2.BATCH_STATE_DONE)], CREATED, "en"), 200)
    assert said.count("b1") == 2
    assert "75.0%" in said
    assert "no batch yet" in shown(many([], CREATED, "en"))


def test_every_error_of_a_file() -> None:
    errors = [
        batch_pb2.LineError(
            line=number, custom_id=f"[q]{number}", field="body.temperature", reason="INVALID", message="too hot"
        )
        for number in range(1, 301)
    ]
    said = shown(line_errors(errors, "en"))
    assert said.count("too hot") == 300
    assert "[q]300" in said, "an id is no markup"


def test_json_has_every_field() -> None:
    found = json.loads(as_json(batch_pb2.Batch(batch_id="b1")))
    assert found["batch_id"] == "b1"
    assert found["done_count"] == "0"
    assert found["state"] == "BATCH_STATE_UNSPECIFIED"


@pytest.mark.parametrize(
    ("seconds", "english", "korean"),
    [
        (0, "0 s", "0초"),
        (59.6, "1 min", "1분"),
        (3605, "1 h", "1시간"),
        (3725, "1 h 2 min", "1시간 2분"),
        (86_400, "1 d", "1일"),
        (90_061, "1 d 1 h", "1일 1시간"),
        (-5, "0 s", "0초"),
    ],
)
def test_lengths(seconds: float, english: str, korean: str) -> None:
    assert (length(seconds, "en"), length(seconds, "ko")) == (english, korean)


def test_every_word_stands_in_every_language_with_the_same_blanks() -> None:
    for words in (batch_words._TEXTS, batch_words._STATES, batch_words._LANES, batch_words._LAYERS):
        for name, said in words.items():
            assert len(said) == len(LANGUAGES), name
            blanks = [sorted(part.partition("}")[0] for part in each.split("{")[1:]) for each in said]
            assert blanks[0] == blanks[1], name


def test_every_state_and_layer_of_the_contract_has_words() -> None:
    for number in batch_pb2.BatchState.values():
        if number:
            assert not batch_words.state(number, "en").isdigit(), number
    assert batch_words.state(99, "en") == "99"
