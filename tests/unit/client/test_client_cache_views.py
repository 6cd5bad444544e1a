"""What ``tenth cache`` shows: a Korean near miss that can be followed, statistics, namespaces."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console
from tenth.cache.v1 import cache_pb2

from services.cache.features import NEIGHBOURHOOD
from services.cache.guards import GUARD_NAMES, differences
from tenth_client import cache_words
from tenth_client.cache_views import bar, bytes_text, duration, explanation, merged, namespace, stats, totals
from tenth_client.cache_words import FEATURES, feature, language, verdict

ASKED = "주문한 물건을 환불하면 배송비는 안 돌려주나요?"
STORED = "주문한 물건을 환불하면 배송비도 돌려주나요?"


def near_miss() -> cache_pb2.InspectLookupResponse:
    answer = cache_pb2.InspectLookupResponse(
        outcome="miss",
        reason="the nearest is refused: negation: only one has '안'",
        embedded_text=ASKED,
        exact_key="ab" * 32,
        mode="strict",
        needed_probability=0.985,
    )
    found = answer.candidates.add(
        entry_id="6ba9cf06-7d24-4c0c-9a0d-4b2f4d0a6c51",
        question=STORED,
        similarity=0.9712,
        probability=0.41,
        reasons=[
            "ok: similarity 0.9712, needs 0.9",
            "refused: probability 0.4100, needs 0.9850 (the pair alone)",
            "refused: negation: only one has '안'",
            "refused: moon phase: full against new",
        ],
        provenance=cache_pb2.Provenance(model="mini", tier=2, hit_count=3, right_count=2, wrong_count=1, shared=True),
    )
    found.provenance.expire_time.FromSeconds(1_800_000_000)
    for name, value, contribution in (
        ("guard_negation", 1.0, -3.21),
        ("similarity", 0.9712, 1.84),
        ("only_asked", 1.0, -0.11),
        ("moon_phase", 0.25, 0.0),
    ):
        found.features.add(name=name, value=value, contribution=contribution)
    return answer


def shown(what: object, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for line in text.splitlines():
        assert cell_len(line) <= width, line
    return text


def row(text: str, begin: str) -> str:
    """The line that begins so, its white space folded."""
    return next(" ".join(line.split()) for line in text.splitlines() if line.strip().startswith(begin))


def test_a_korean_near_miss_in_korean() -> None:
    text = shown(explanation(near_miss(), "ko"))
    assert "적중 없음" in text
    assert row(text, "이유") == "이유 부정: 한쪽에만 '안' 있음"
    assert ASKED in text
    assert STORED in text
    assert "ab" * 32 in text
    assert "strict (말만 다른 같은 질문), 필요한 확률 0.985" in text
    assert "유사도 0.9712, 답이 맞을 확률 0.410" in text
    assert row(text, "x 부정") == "x 부정: 한쪽에만 '안' 있음"
    assert row(text, "+ 유사도") == "+ 유사도 0.9712, 0.9 필요"
    assert row(text, "부정 ") == "부정 1 -3.21 ------|"
    assert row(text, "유사도   ") == "유사도 0.971 +1.84 |+++"
    assert row(text, "물은 쪽 낱말") == "물은 쪽 낱말 1 -0.11 -|", "a small part is still seen"
    assert "물은 질문에만 있는 낱말 수" in text
    assert row(text, "moon_phase") == "moon_phase 0.25 +0.00 |", "unknown features fall back to themselves"
    assert row(text, "x moon") == "x moon phase: 한쪽은 full, 다른 쪽은 new", "and so do unknown guards"
    assert "답한 모델 mini, 등급 중간" in text
    assert "맞음 2, 틀림 1" in text
    assert "2027-01-15 08:00 UTC까지" in text


def test_the_same_in_english() -> None:
    text = shown(explanation(near_miss(), "en"))
    assert text.startswith("MISS")
    assert "x negation: only one of the two says '안'" in text
    assert row(text, "negation ") == "negation 1 -3.21 ------|"
    assert "one says not, the other does not" in text
    assert "served 3 times; reported right 2, wrong 1" in text
    assert "would not be served" in text


def test_only_the_strongest_features_unless_all_are_wanted() -> None:
    answer = near_miss()
    for number in range(20):
        answer.candidates[0].features.add(name=f"f{number}", value=1, contribution=0.01)
    few, every = shown(explanation(answer, "en")), shown(explanation(answer, "en", everything=True))
    assert "and 16 smaller ones: --all" in few
    assert "f19" not in few
    assert "f19" in every
    assert "smaller" not in every


@pytest.mark.parametrize("lang", cache_words.LANGUAGES)
def test_hits_bypasses_and_outcomes_of_a_newer_cache(lang: str) -> None:
    hit = cache_pb2.InspectLookupResponse(outcome="hit", reason="same canonical request", embedded_text="q")
    hit.candidates.add(question="[bold]markup[/bold] " + "긴 질문 " * 40, would_serve=True, similarity=1)
    text = shown(explanation(hit, lang))
    assert "[bold]markup[/bold]" in text
    assert ("would be served" if lang == "en" else "씀") in text
    bypass = shown(explanation(cache_pb2.InspectLookupResponse(outcome="bypass", reason="time_bound"), lang))
    assert cache_words.reason("time_bound", lang) in bypass
    assert "time_bound" not in bypass
    assert "later" in shown(explanation(cache_pb2.InspectLookupResponse(outcome="later"), lang))


def test_a_bar_has_a_side_and_a_length() -> None:
    assert bar(-2, 2).plain == "------|      "
    assert bar(1, 2).plain == "      |+++   "
    assert bar(0.001, 2).plain == "      |+     "
    assert bar(0, 0).plain == "      |      "


@pytest.mark.parametrize(
    ("line", "english", "korean"),
    [
        ("refused: antonyms: 'on' against 'off'", "one says 'on', the other 'off'", "한쪽은 'on', 다른 쪽은 'off'"),
        (
            "refused: asked for: asks where against when",
            "one asks where, the other when",
            "묻는 것: 한쪽은 어디, 다른 쪽은 언제 물음",
        ),
        ("refused: argument order: 'a' is 1 against 2", "'a' is 1 in one, 2 in the other", "순서: 'a' 한쪽은 1"),
        ("no exact match; the embedder cannot read this script", "no exact match; the", "임베더가 읽지 못하는 글자"),
        ("refused: expired", "its time is up", "기한이 지남"),
        ("follow-up: 2-4-gram overlap of the last turns 0.512, needs 0.6", "overlap by 0.512", "글자 겹침 0.512"),
        ("the embedder cannot read Hangul: only one has '켜'", "only one of the two says '켜'", "한쪽에만 '켜' 있음"),
        ("ok: something new", "something new", "something new"),
        (
            "refused: probability 0.7548, needs 0.9393 (the pair alone)",
            "is right 0.7548, needs 0.9393 (the pair alone)",
            "답이 맞을 확률 0.7548, 0.9393 필요 (두 질문만 비교)",
        ),
        (
            "refused: probability 0.7, no threshold holds the namespace's bound (near entries with the same answer)",
            "none is high enough for the namespace's bound (near entries with the same answer)",
            "지킬 수 있는 확률이 없음 (같은 답의 이웃까지 비교)",
        ),
        ("refused: negation scope: only one denies '돌리'", "denied word: only one", "부정한 말: 한쪽만 '돌리' 부정함"),
        ("refused: polarity: only one is negative", "negation: only one of the two says not", "부정: 한쪽만 부정함"),
        ("refused: one number: none against 3 kg", "only the stored question has 3 kg", "저장된 질문에만 3 kg 있음"),
        (
            "refused: asked for: asks amount, how against when",
            "asks amount, how",
            "한쪽은 얼마, 어떻게, 다른 쪽은 언제 물음",
        ),
        (
            "refused: particles: '서울' is from against to",
            "'서울' is from in one",
            "'서울' 한쪽은 출발점, 다른 쪽은 도착점",
        ),
        ("refused: argument order: 'a' and 'b' have changed places", "have changed places", "자리가 뒤바뀜"),
        (
            "no exact match (expired); the namespace is set to exact hits only",
            "that holds (its time is up); the namespace is set to exact hits only",
            "요청이 없음 (기한이 지남); 네임스페이스가 똑같은 질문만 쓰도록",
        ),
        (
            "no exact match; the namespace serves exact hits only: 3 wrong of 40 lookups",
            "exact hits only: 3 wrong of 40 lookups",
            "네임스페이스가 똑같은 질문만 답함: 3 wrong of 40 lookups",
        ),
    ],
)
def test_verdicts_in_words(line: str, english: str, korean: str) -> None:
    assert english in verdict(line, "en")
    assert korean in verdict(line, "ko")


def test_both_languages_know_the_same_names() -> None:
    assert FEATURES["en"].keys() == FEATURES["ko"].keys()


@pytest.mark.parametrize("lang", cache_words.LANGUAGES)
def test_every_feature_and_guard_of_the_cache_has_words(lang: str) -> None:
    for name in (*NEIGHBOURHOOD, *GUARD_NAMES):
        label, meaning = feature(name, lang)
        assert label
        assert meaning, name
    assert feature("guard_words", lang) != feature("words", lang), "a share of words, and a difference between them"


PAIRS = (
    ("환불하면 배송비는 안 돌려주나요?", "환불하면 배송비도 돌려주나요?"),
    ("서울에서 부산까지 가는 기차표 얼마야?", "부산에서 서울까지 가는 기차표 얼마야?"),
    ("거실 불 켜 줘", "거실 불 꺼 줘"),
    ("3개월 무이자 할부가 되나요?", "6개월 무이자 할부가 되나요?"),
    ("영업 시간은 언제인가요?", "매장은 어디인가요?"),
    ("커피 말고 홍차를 주문하려면?", "홍차 말고 커피를 주문하려면?"),
    ("회의실에 음식을 반입해도 되나요?", "회의실에 음식을 반입해야 하나요?"),
    ("Do I have to sign the form?", "May I sign the form?"),
    ("Is E404 an error?", "Is E500 an error?"),
    ("When does the shop open on Monday?", "When does the shop open on Friday?"),
    ("How do I fly from Oslo to Rome?", "How do I fly from Rome to Oslo?"),
)


@pytest.mark.parametrize(("asked", "stored"), PAIRS)
def test_what_guards_say_is_said_in_korean(asked: str, stored: str) -> None:
    found = differences(asked, stored)
    assert found, "or the pair proves nothing"
    for difference in found:
        said = verdict(f"refused: {difference}", "ko")
        outside = re.sub(r"'[^']*'", "", said)
        if any("가" <= letter <= "힣" for letter in asked):
            # Things of one kind have English names whatever they are called in the question.
            assert difference.name == "things" or not re.search(r"[A-Za-z]{2,}", outside), said
        assert any("가" <= letter <= "힣" for letter in outside), said
    assert feature("guard_asked_for", "ko") == feature("asked for", "ko") != ("asked for", "")
    assert feature("nobody knows", "ko") == ("nobody knows", "")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "en"),
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LC_ALL": "ko_KR", "LANG": "de_DE"}, "ko"),
        ({"LC_ALL": "", "LANG": "ko_KR"}, "ko"),
    ],
)
def test_the_language_is_the_locales(environ: dict[str, str], expected: str) -> None:
    assert language(None, environ) == expected
    assert language("en", environ) == "en"


def test_statistics_of_replicas_are_one() -> None:
    def answer(store: str) -> cache_pb2.GetStatsResponse:
        return cache_pb2.GetStatsResponse(
            entry_count=1200,
            exact_hit_count=10,
            semantic_hit_count=5,
            follow_count=1,
            miss_count=4,
            bypass_counts={"time_bound": 3, "odd": 1},
            not_stored_counts={"truncated": 2},
            embedder="e5@1",
            store=store,
            entry_bytes=2_500_000,
            private_entry_count=7,
        )

    apart = totals([answer("qdrant_edge")] * 2, shared=False)
    assert (apart["entry_count"], apart["private_entry_count"], apart["lookup_count"]) == (2400, 14, 40)
    assert apart["bypass_counts"] == {"time_bound": 6, "odd": 2}
    assert (apart["exact_hit_rate"], apart["semantic_hit_rate"]) == (0.5, 0.25)
    text = shown(stats(apart))
    assert row(text, "exact hits") == "exact hits 20 50.0%"
    assert row(text, "size") == "size 5.0 MB"
    assert row(text, "bypassed time_bound").startswith("bypassed time_bound 6 it asks about now")
    assert row(text, "bypassed odd") == "bypassed odd 2"
    assert "not stored truncated" in text
    assert "embedder e5@1; store qdrant_edge; 2 replicas" in text
    shared = totals([answer("qdrant_server")] * 2, shared=True)
    assert (shared["entry_count"], shared["entry_bytes"], shared["miss_count"]) == (1200, 2_500_000, 8)
    empty = totals([cache_pb2.GetStatsResponse()], shared=False)
    assert empty["exact_hit_rate"] is None
    assert "bypassed: none" in shown(stats(empty))


def test_namespaces_in_words() -> None:
    one = cache_pb2.Namespace(
        namespace="faq",
        mode="faq",
        max_wrong_hits_per_thousand=3,
        sharing_user_count=2,
        lookup_count=100,
        semantic_hit_count=40,
        right_count=4,
    )
    one.ttl.FromSeconds(86_400)
    other = cache_pb2.Namespace()
    other.CopyFrom(one)
    other.suspended, other.suspended_reason = True, "3 of 40 hits were reported wrong"
    listed = cache_pb2.ListNamespacesResponse
    (both,) = merged([listed(namespaces=[one]), listed(namespaces=[other])])
    text = " ".join(shown(namespace(both)).split())
    assert "faq: questions with the same intent share one answer" in text
    assert "at most 3 wrong hits per 1,000 lookups" in text
    assert "served for 1 day, for its own user until 2 users got the same answer" in text
    assert "200 lookups by meaning, 80 hits (40.0%)" in text
    assert "SUSPENDED, serves exact hits alone: 3 of 40 hits were reported wrong" in text
    assert "tenth cache restore faq" in text
    assert "SUSPENDED" not in shown(namespace(one))
    off = shown(namespace(cache_pb2.Namespace(namespace="x", mode="off", sharing_user_count=1)))
    assert "shared at once" in off
    assert "wrong hits per" not in off


def test_units() -> None:
    assert [bytes_text(size) for size in (0, 999, 1500, 2_500_000, 3_000_000_000)] == [
        "0 B", "999 B", "1.5 kB", "2.5 MB", "3.0 GB",
    ]  # fmt: skip
    length = cache_pb2.Namespace().ttl
    for seconds, text in ((90, "90 s"), (120, "2 minutes"), (3600, "1 hour"), (172_800, "2 days")):
        length.FromSeconds(seconds)
        assert duration(length) == text


def test_a_denied_korean_word_is_named_as_it_stands() -> None:
    """The stem that guards compare by ("도리") is no word."""
    asked, stored = "환불하면 배송비는 안 돌려주나요?", "환불하면 배송비도 돌려주나요?"
    difference = next(each for each in differences(asked, stored) if each.name == "negation scope")
    assert "'돌려주나요'" in verdict(f"refused: {difference}", "ko")
