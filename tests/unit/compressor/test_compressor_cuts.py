"""A text is only cut between whole words, and never a particle from its noun."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.compressor.cuts import safe_cuts
from services.compressor.protected import hard_spans


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("서울은 한국의 수도이다.", "서울은 |한국의 |수도이다."),
        ("서울 은 큰 도시 이다", "서울 은 |큰 |도시 이다"),
        ("“서울” 은 「부산」 과 다르다", "“서울” 은 |「부산」 과 |다르다"),
        ("그럴 수 있다고 한 것이 아니다", "그럴 수 |있다고 |한 것이 |아니다"),
        ("할 수 있다. 안 먹었다.", "할 수 있다. |안 먹었다."),
        ("먹지 않았다 그리고 잤다", "먹지 않았다 |그리고 |잤다"),
        ("2024년 11월 3일에 3 명이 왔다", "2024년 11월 3일에 |3 명이 |왔다"),
        ("약 5 만 원을 냈다", "약 5 만 원을 |냈다"),
        ("API 를 호출하고 user_id 로 찾는다", "API 를 |호출하고 |user_id 로 |찾는다"),
        ("He weighs 80 kg now", "He |weighs |80 kg |now"),
        ("It is not going to Dr. Kim", "It |is |not going |to |Dr. Kim"),
        ('He said "a b c" twice', 'He |said |"a b c" |twice'),
        ("Run `ls -la x` now", "Run |`ls -la x` |now"),
        ("日本語です。次の文、です。", "日本語です。|次の文、|です。"),
        ("「一。二」三", "「一。二」三"),
        ("See Fig. 3 and No. 5 there", "See |Fig. 3 |and |No. 5 |there"),
        ("👨‍👩‍👧 e\u0301x b", "👨‍👩‍👧 |e\u0301x |b"),
        ("", ""),
        ("   ", "   "),
        ("one", "one"),
        ("\u202eabc def\u202c \x00 \ud800x", "\u202eabc |def\u202c |\x00 |\ud800x"),
    ],
)
def test_where_a_text_may_be_cut(text: str, expected: str) -> None:
    ends = [0, *safe_cuts(text), len(text)]
    assert "|".join(text[left:right] for left, right in pairwise(ends)) == expected


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*' \n.,`"{}a가은는1。', "안 ", "5 kg", " 은 ", "a_b", "「", "」"]), max_size=50).map(
        "".join
    )
)
def test_no_hard_span_is_cut(text: str) -> None:
    cuts = safe_cuts(text)
    assert list(cuts) == sorted(set(cuts))
    assert all(0 < cut < len(text) for cut in cuts)
    for span in hard_spans(text):
        assert not any(span.start < cut < span.end for cut in cuts)


@pytest.mark.parametrize(
    "unit", [" ", "a ", "가 ", "은 ", "수 ", "5 ", "。", "안 ", "not ", "Dr. ", "서울 은 한국의 수도 이다. "]
)
def test_a_megabyte_of_words(unit: str) -> None:
    text = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    started = time.thread_time()
    safe_cuts(text)
    assert time.thread_time() - started < 4.0
