"""Order of items and their cut into chunks; who leads questions that mean nearly the same."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batch.grouping import leaders, to_int8
from services.batch.ordering import (
    BLOCK_CHARACTERS,
    MOST_CHUNKS,
    ChunkLimits,
    Entry,
    chunks,
    in_input_order,
    items_of_chunk,
    ordered,
    prefix_key,
    shared_length,
)
from services.batch.reports import Piece

words = st.sampled_from(["a", "b", "c"])
entries = st.lists(
    st.builds(
        Entry,
        st.integers(0, 10**6),
        st.sampled_from(["local", "online"]),
        st.sampled_from(["m1", "m2"]),
        st.lists(words, min_size=1, max_size=4).map(prefix_key),
        st.integers(1, 1000),
        st.integers(1, 5000),
    ),
    max_size=60,
    unique_by=lambda entry: entry.number,
)


def test_keys_of_prompts_that_begin_alike_begin_alike() -> None:
    system = "s" * (3 * BLOCK_CHARACTERS)
    one, other = prefix_key([system, "question one"]), prefix_key([system, "question two"])
    assert shared_length(one, other) == 3 * 6
    assert len(one) == len(other) == 4 * 6
    assert shared_length(one, one) == len(one)
    assert len(prefix_key(["x" * 10**6])) == 48 * 6, "bounded however long a prompt is"
    assert prefix_key(["a", "b"]) != prefix_key(["ab"])


@given(entries)
def test_order_keeps_models_and_shared_beginnings_together(held: list[Entry]) -> None:
    found = ordered(held)
    assert Counter(found) == Counter(held)
    groups = [(entry.lane, entry.model) for entry in found]
    assert len([1 for one, other in pairwise(groups) if one != other]) <= max(0, len(set(groups)) - 1)
    # Items with the same first block stand together, where there is more than one.
    for group in set(groups):
        firsts = [entry.prefix[:6] for entry in found if (entry.lane, entry.model) == group]
        counts = Counter(firsts)
        shared = [first for first in firsts if counts[first] > 1]
        assert len([1 for one, other in pairwise(shared) if one != other]) <= max(0, len(set(shared)) - 1)


def test_long_prompts_go_first_among_those_that_begin_alike() -> None:
    system = prefix_key(["system", "x"])[:6]
    held = [Entry(n, "local", "m", system + bytes([n] * 6), length, 1) for n, length in enumerate([5, 50, 20])]
    alone = Entry(9, "local", "m", prefix_key(["another"]), 1000, 1)
    found = ordered([*held, alone])
    assert [entry.length for entry in found if entry.number != 9] == [50, 20, 5]
    places = [place for place, entry in enumerate(found) if entry.number != 9]
    assert places in ([0, 1, 2], [1, 2, 3])


@given(entries, st.integers(1, 10), st.integers(1, 20_000))
def test_chunks_hold_everything_once_within_their_limits(held: list[Entry], items: int, size: int) -> None:
    by_number = {entry.number: entry for entry in held}
    limits = {("local", "m1"): ChunkLimits(3, 10**9)}
    found = list(chunks(ordered(held), limits, ChunkLimits(items, size)))
    assert [number for chunk in found for number in chunk.numbers] == [entry.number for entry in ordered(held)]
    for chunk in found:
        mine = [by_number[number] for number in chunk.numbers]
        assert {(entry.lane, entry.model) for entry in mine} == {(chunk.lane, chunk.model)}
        limit = limits.get((chunk.lane, chunk.model), ChunkLimits(items, size))
        assert len(mine) <= limit.item_count
        assert len(mine) == 1 or sum(entry.byte_count for entry in mine) <= limit.byte_count


@given(st.integers(0, 2**32 - 1), st.integers(1, 1400), st.floats(0.5, 0.99))
def test_every_follower_is_near_its_leader(seed: int, count: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(max(1, count // 5), 8))
    vectors = centres[random.integers(0, len(centres), count)] + 0.1 * random.normal(size=(count, 8))
    small = np.stack([to_int8(vector) for vector in vectors])
    found = leaders(small, threshold)
    units = small / np.linalg.norm(small.astype(np.float64), axis=1, keepdims=True)
    for place, leader in enumerate(found):
        assert leader <= place
        assert found[leader] == leader, "nobody follows a follower"
        if leader != place:
            assert float(units[place] @ units[leader]) >= threshold - 1e-3
    led = units[found == np.arange(count)]
    near = led @ led.T - np.eye(len(led))
    assert near.max(initial=-1) < threshold + 1e-3, "no leader could follow another one"


def test_a_question_without_a_vector_stands_for_itself() -> None:
    zeros = np.stack([to_int8([0.0, 0.0]), to_int8([0.0, 0.0]), to_int8([1.0, 0.0]), to_int8([2.0, 0.0])])
    assert leaders(zeros, 0.9).tolist() == [0, 1, 2, 2]
    assert leaders(np.empty((0, 4), dtype=np.int8), 0.9).tolist() == []
    assert to_int8([0.5, -0.25]).tolist() == [127, -64]


@given(entries)
def test_the_inputs_order_keeps_models_together_and_nothing_else(held: list[Entry]) -> None:
    plain = in_input_order(held)
    assert sorted(plain, key=lambda entry: entry.number) == sorted(held, key=lambda entry: entry.number)
    assert [(e.lane, e.model, e.number) for e in plain] == sorted((e.lane, e.model, e.number) for e in held)


@pytest.mark.parametrize(
    ("wanted", "item_count", "size"), [(64, 500, 64), (1, 10_000, 1), (1, 200_000, 20), (1, 10_001, 2)]
)
def test_a_plan_has_no_more_chunks_than_a_workflow_can_name(wanted: int, item_count: int, size: int) -> None:
    assert items_of_chunk(wanted, item_count) == size
    longest = [Piece(f"3-12-{number:06d}", size, ["3-12-123456-anthropic"]) for number in range(MOST_CHUNKS)]
    assert len(json.dumps([asdict(piece) for piece in longest])) < 1_500_000
