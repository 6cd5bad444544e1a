"""Chunks and sentences stay by what the question needs; what stays is a part of what came, in its order."""

from __future__ import annotations

import json
import time
import uuid

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from services.compressor import weights
from services.compressor.documents import Document, Documents, prepare
from services.compressor.extractive import select, worth
from services.compressor.ranking import Floats, Level, Query, Vectors, language, rank
from services.compressor.retrieval import (
    BudgetTooSmallError,
    Fitted,
    Harshness,
    Selection,
    blend,
    by_budget,
    by_mode,
    mask,
    threshold_for_share,
    worth_embedding,
)
from services.compressor.retrieval import prepare as ranked

FITTED = weights.load()

HOOSICK = (
    "Hoosick, New York\nHoosick is a town in Rensselaer County, New York, United States. The population was "
    "6,924 at the 2010 census. It was named from the Hoosic River."
)
ROUTE = (
    "New York State Route 67\nNew York State Route 67 (NY 67) is an east-west state highway in eastern New York. Its "
    "eastern terminus is at the Vermont state line in Hoosick, where it continues eastward as Vermont Route 67."
)
OTHERS = (
    "Gallbladder\nThe gallbladder is a small hollow organ where bile is stored. It lies beneath the liver in humans.",
    "Deadpool 2\nDeadpool 2 is scheduled to be released in the United States on May 18, 2018. A sequel is being made.",
    "United States Mint\nThe Director of the Mint is the head of the Mint. The position is vacant. It is very old.",
    "Route 9\nRoute 9 is a road in Delaware. It is 57 miles long. Much of it runs along the river through marshes.",
    "Photosynthesis\nPlants turn light into energy. The process takes place in chloroplasts. Oxygen is set free.",
)
SEOUL = "서울\n서울특별시는 대한민국의 수도이다. 인구는 약 940만 명이다. 한강이 도시를 가로지른다."
KOREAN = (
    "부산\n부산광역시는 대한민국의 항구 도시이다. 영화제로 유명하다. 바다와 산이 가깝다.",
    "김치\n김치는 채소를 소금에 절여 만든 음식이다. 지역마다 맛이 다르다. 겨울에 많이 담근다.",
    "훈민정음\n훈민정음은 세종이 만든 글자이다. 1443년에 창제되었다. 스물여덟 자로 되어 있었다.",
    "제주도\n제주도는 화산섬이다. 한라산이 가운데에 있다. 귤이 많이 난다.",
)


def words(text: str) -> int:
    """A stand-in for a tokenizer."""
    return -(-len(text) // 4)


def documents(*chunks: str) -> list[Document]:
    return [prepare(chunk, words) for chunk in chunks]


def choose(question: str, chunks: tuple[str, ...], mode: Harshness, fitted: Fitted = FITTED) -> Selection:
    return by_mode(ranked(documents(*chunks), Query(question), None, fitted), mode, fitted)


def texts(found: Selection) -> list[str]:
    return [chunk.text for chunk in found.chunks]


def is_part(part: str, whole: str) -> bool:
    """True when the characters of one stand in the other in this order."""
    rest = iter(whole)
    return all(character in rest for character in part)


@pytest.mark.parametrize("mode", list(Harshness))
@pytest.mark.parametrize(
    ("question", "chunks", "answer"),
    [
        ("when is the next deadpool movie being released", (HOOSICK, ROUTE, *OTHERS), "May 18, 2018"),
        ("Where is bile stored?", (*OTHERS, ROUTE, HOOSICK), "gallbladder is a small hollow organ"),
        ("서울의 인구는 몇 명인가?", (*KOREAN, SEOUL), "940만 명"),
        ("훈민정음은 언제 창제되었는가?", (SEOUL, *KOREAN), "1443년"),
    ],
)
def test_the_answer_stays_in_every_mode(question: str, chunks: tuple[str, ...], answer: str, mode: Harshness) -> None:
    found = choose(question, chunks, mode)
    assert any(answer in text for text in texts(found))
    assert [chunk.place for chunk in found.chunks] == sorted(chunk.place for chunk in found.chunks)


def test_harsher_modes_keep_less() -> None:
    sizes = [
        sum(map(len, texts(choose("Where is bile stored?", (HOOSICK, ROUTE, *OTHERS), mode)))) for mode in Harshness
    ]
    assert sizes[0] >= sizes[1] >= sizes[2]
    assert sizes[2] < sum(map(len, (HOOSICK, ROUTE, *OTHERS)))


def test_a_second_hop_outranks_chunks_that_share_no_name() -> None:
    question = (
        "The eastern terminus of New York State Route 67 is in a town with what population as of the 2010 census?"
    )
    prepared = ranked(documents(*OTHERS, ROUTE, HOOSICK), Query(question), None, FITTED)
    order = np.argsort(-prepared.ranked.chunks).tolist()
    assert set(order[:2]) == {len(OTHERS), len(OTHERS) + 1}


def test_a_title_link_is_worth_something() -> None:
    # The same chunk, once named by the best one, once not.
    question = Query("Where does New York State Route 67 end?")
    linked = rank(documents(ROUTE, HOOSICK, *OTHERS), question, None, FITTED.weights["en", Level.WORDS])
    other = HOOSICK.replace("Hoosick", "Brunswick")
    free = rank(documents(ROUTE, other, *OTHERS), question, None, FITTED.weights["en", Level.WORDS])
    assert linked.chunks[1] > free.chunks[1]


def test_vectors_find_what_words_do_not() -> None:
    chunks = documents(*OTHERS, HOOSICK)
    question = Query("How do leaves make food?")
    rows = np.eye(len(chunks), 8)
    target = 4  # Photosynthesis
    vectors = Vectors(0.95 * rows[target] + 0.05, rows)
    found = rank(chunks, question, vectors, FITTED.weights["en", Level.CHUNKS])
    assert int(np.argmax(found.chunks)) == target
    assert found.level is Level.CHUNKS


def test_chunks_without_a_vector_count_as_the_least_similar() -> None:
    chunks = documents(*OTHERS)
    rows: Floats = np.eye(len(chunks), 8)
    rows[1:] = np.nan
    found = rank(chunks, Query("leaves"), Vectors(np.eye(1, 8)[0], rows), FITTED.weights["en", Level.CHUNKS])
    assert np.isfinite(found.chunks).all()
    assert np.isfinite(found.units).all()


def test_identical_chunks_stay_once() -> None:
    found = choose("Where is bile stored?", (OTHERS[0], OTHERS[0], *OTHERS[1:]), Harshness.SAFE)
    assert [chunk.place for chunk in found.chunks if chunk.text.startswith("Gallbladder")] == [0]
    assert any(each.place == 1 and each.reason == "repeated" for each in found.removed)


def keyed(count: int = 75) -> tuple[str, str, str]:
    pairs = {str(uuid.UUID(int=7 * number + 1)): str(uuid.UUID(int=11 * number + 5)) for number in range(count)}
    key = list(pairs)[count // 2]
    return json.dumps(pairs, indent=1), key, pairs[key]


def test_safe_keeps_json_whole_and_other_modes_keep_the_named_record() -> None:
    text, key, value = keyed()
    question = f'What is the value of "{key}"?'
    assert texts(choose(question, (text, *OTHERS), Harshness.SAFE))[0] == text
    for mode in (Harshness.BALANCED, Harshness.AGGRESSIVE):
        found = choose(question, (*OTHERS, text), mode)
        assert json.loads(texts(found)[-1]) == {key: value}


def test_a_table_with_an_identifier_of_the_question_is_never_dropped() -> None:
    table = "| id | state |\n|---|---|\n| INV-20417 | paid |\n| INV-20418 | open |\n"
    found = choose(
        "Is INV-20417 paid? I ask about the mint and the gallbladder.", (*OTHERS, table), Harshness.AGGRESSIVE
    )
    assert table in texts(found)


def test_a_sentence_that_leans_on_the_one_before_brings_it() -> None:
    text = (
        "Kim founded the firm in Busan with two friends. He sold it in 1999 to a rival. Weather "
        "was mild that year and the harbour stayed open all through the winter."
    )
    document = documents(text, *OTHERS)
    query = Query("Sold in 1999 to a rival")
    found = rank(document, query, None, FITTED.weights["en", Level.WORDS])
    prepared = worth(document, found, query, [])
    prepared.density[:] = 0
    prepared.density[1] = 1
    kept = select(prepared, 0.5)
    assert kept.tolist()[:3] == [True, True, False]


def test_units_under_one_protected_span_stay_together() -> None:
    text = 'Alpha. {"a": 1,\n\n"b": 2} Beta two is over there. Gamma three is gone for good and nobody has heard of it.'
    document = documents(text, *OTHERS)
    query = Query("Alpha")
    found = rank(document, query, None, FITTED.weights["en", Level.WORDS])
    prepared = worth(document, found, query, [])
    prepared.density[:] = 0
    prepared.density[1] = 1
    assert select(prepared, 0.5).tolist()[:4] == [False, True, True, False]


def test_negations_that_the_question_asks_about_stay_with_their_chunk() -> None:
    text = (
        "Refunds\nRefunds of a ticket are paid within nine days of the claim. The office stands on a hill near the "
        "lake and opens at noon. A refund is not paid for a ticket that was used before."
    )
    document = documents(text, *OTHERS)
    query = Query("When is a refund of a ticket not paid?")
    found = rank(document, query, None, FITTED.weights["en", Level.WORDS])
    prepared = worth(document, found, query, [])
    prepared.density[:] = 0
    prepared.density[1] = 1
    assert select(prepared, 0.5).tolist()[:4] == [True, True, False, True]


def test_budget_is_respected_and_protected_text_alone_may_exceed_it() -> None:
    chunks = (HOOSICK, ROUTE, *OTHERS)
    prepared = ranked(documents(*chunks), Query("Where is bile stored?"), None, FITTED)
    for budget in (20, 40, 80, 160, 10_000):
        found = by_budget(prepared, budget)
        assert sum(words(text) for text in texts(found)) <= budget
    assert "gallbladder" in " ".join(texts(by_budget(prepared, 40)))
    table = "| id | state |\n|---|---|\n" + "".join(f"| INV-{number} | open |\n" for number in range(20_000, 20_060))
    prepared = ranked(documents(table, *OTHERS), Query("Is INV-20017 open?"), None, FITTED)
    with pytest.raises(BudgetTooSmallError) as error:
        by_budget(prepared, 50)
    assert error.value.over_tokens == words(table) - 50


def test_a_share_is_met_over_a_set() -> None:
    questions = ("Where is bile stored?", "Who heads the mint?", "How long is Route 9?", "What do plants set free?")
    prepared = [ranked(documents(HOOSICK, ROUTE, *OTHERS), Query(each), None, FITTED) for each in questions]
    threshold = threshold_for_share(prepared, 0.6)
    gone = sum(each.tokens - float(each.worth.tokens[mask(each, threshold)].sum()) for each in prepared)
    assert 0.55 < gone / sum(each.tokens for each in prepared) < 0.75


def test_earlier_turns_say_what_a_follow_up_is_about() -> None:
    chunks = documents(*OTHERS, HOOSICK)
    without = rank(chunks, Query("And how many people live there?"), None, FITTED.weights["en", Level.WORDS])
    with_it = rank(
        chunks,
        Query("And how many people live there?", ("Where is Hoosick?",)),
        None,
        FITTED.weights["en", Level.WORDS],
    )
    assert with_it.chunks[-1] > without.chunks[-1]
    mixed = blend(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert float(np.linalg.norm(mixed)) == pytest.approx(1.0)
    assert mixed[0] > mixed[1] > 0


def test_words_choose_what_is_worth_embedding() -> None:
    prepared = ranked(documents(*OTHERS, ROUTE), Query("Where is bile stored?"), None, FITTED)
    assert 0 in worth_embedding(prepared, 2)
    assert len(worth_embedding(prepared, 2)) == 2


def test_prepared_chunks_are_kept_within_bounds() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return 1

    memory = Documents(count, capacity_bytes=8_000)
    memory.prepare(OTHERS[:2])
    before = len(counted)
    memory.prepare(OTHERS[:2])
    assert len(counted) == before
    memory.prepare(OTHERS)
    memory.prepare(OTHERS[:1])
    assert len(counted) > before + sum(len(prepare(each, words).units) for each in OTHERS[2:])


def test_fitted_weights_exist_for_each_language_and_level() -> None:
    for tongue in ("en", "ko"):
        for level in Level:
            assert (tongue, level) in FITTED.weights
            harsher = [FITTED.thresholds[tongue, level, mode] for mode in Harshness]
            assert harsher == sorted(harsher)
    assert language(Query("서울의 인구는 몇 명인가?")) == "ko"
    assert language(Query("Is 서울 the capital of Korea today?")) == "en"


@pytest.mark.parametrize(
    "text",
    [
        "\ud800 lone. Half of a pair \udfff here.",
        "👩‍👩‍👧 family. 🇰🇷 flag! 끝.",
        "שלום עולם. مرحبا بالعالم. Hello.",
        "\x00. \x00",
        "\n\n\n",
        ".",
    ],
)
def test_odd_text_is_handled(text: str) -> None:
    memory = Documents(words, 100_000)
    prepared = ranked(memory.prepare([text, *OTHERS, text]), Query(text), None, FITTED)
    for mode in Harshness:
        assert all(
            is_part(chunk.text, (text, *OTHERS, text)[chunk.place]) for chunk in by_mode(prepared, mode, FITTED).chunks
        )


def spent(copies: int) -> float:
    chunks = [f"{number} {text}" for number in range(copies) for text in (*OTHERS, HOOSICK, ROUTE, *KOREAN)]
    started = time.process_time()
    found = by_mode(ranked(documents(*chunks), Query("Where is bile stored?"), None, FITTED), Harshness.SAFE, FITTED)
    assert found.chunks
    return time.process_time() - started


def test_time_grows_with_the_prompt_and_no_faster() -> None:
    # 8 times the chunks; quadratic time would take 64 times as long.
    few = min(spent(20) for _ in range(3))
    assert spent(160) < 24 * few + 0.1


def test_a_long_document_is_cut_by_sentence() -> None:
    text = "\n\n".join((*OTHERS, ROUTE, HOOSICK) * 3 + OTHERS[:1])
    found = by_budget(ranked(documents(text), Query("What was the population of Hoosick in 2010?"), None, FITTED), 120)
    assert "6,924" in found.chunks[0].text
    assert words(found.chunks[0].text) <= 120


CHUNK = st.text(max_size=160) | st.sampled_from((*OTHERS, *KOREAN, HOOSICK, ROUTE, keyed(8)[0]))


@given(
    st.lists(CHUNK, min_size=1, max_size=8),
    st.text(max_size=60) | st.sampled_from(["Where is bile stored?", "서울의 인구는?", keyed(8)[1]]),
    st.sampled_from(list(Harshness)),
)
@settings(max_examples=150, deadline=None)
def test_what_stays_is_a_part_in_order_and_the_same_each_time(
    chunks: list[str], question: str, mode: Harshness
) -> None:
    found = choose(question, tuple(chunks), mode)
    assert found == choose(question, tuple(chunks), mode)
    places = [chunk.place for chunk in found.chunks]
    assert places == sorted(set(places))
    assert places or not any(chunks)
    for chunk in found.chunks:
        assert is_part(chunk.text, chunks[chunk.place])


@given(st.lists(CHUNK, min_size=1, max_size=6), st.text(max_size=40), st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_a_budget_is_never_exceeded(chunks: list[str], question: str, budget: int) -> None:
    prepared = ranked(documents(*chunks), Query(question), None, FITTED)
    try:
        found = by_budget(prepared, budget)
    except BudgetTooSmallError as error:
        event(f"over by {error.over_tokens}")
        return
    assert sum(words(text) for text in texts(found)) <= budget
    # What fits already stays as it is.
    again = ranked(documents(*texts(found)), Query(question), None, FITTED) if found.chunks else None
    if again is not None:
        assert texts(by_budget(again, budget)) == texts(found)
