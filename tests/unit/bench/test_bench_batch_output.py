"""The batch bench's items, small sums, tables and picture."""

from __future__ import annotations

import argparse

import pytest
from tenth.type.v1 import usage_pb2

from bench.batch import PARTS, part_of, parts
from bench.batch_items import as_items, instructions, interleaved, questions, request
from bench.batch_local import add_spread, cached_share, turns
from bench.batch_overhead import milliseconds_per_item
from bench.batch_plots import pictures
from bench.batch_tables import batch_tables
from bench.result import Result
from bench.tables import TABLES


def test_texts_follow_from_the_seed_and_differ() -> None:
    assert questions(5, 1) == questions(5, 1) != questions(5, 2)
    assert len(set(questions(300, 1))) == 300
    made = instructions(24, 200, 1, "first edition. ")
    assert made == instructions(24, 200, 1, "first edition. ")
    assert len({text[:120] for text in made}) == 24
    assert all(200 <= len(text.split()) < 260 for text in made)
    assert all(text.startswith("first edition. ") for text in made)


def test_items_are_interleaved_and_named_by_place() -> None:
    made = interleaved(["one", "two"], ["a", "b", "c"], "m", 8)
    assert [each.messages[0].parts[0].text for each in made] == ["one", "two", "one"]
    assert [each.messages[1].parts[0].text for each in made] == ["a", "b", "c"]
    items = list(as_items(made))
    assert [item.custom_id for item in items] == ["i0", "i1", "i2"]
    assert not any(item.request.request_id for item in items), "the batch gives ids"
    assert all(each.request_id for each in made), "and the caller keeps its own"


def test_a_request_touches_neither_cache_nor_compressor_unless_it_shall() -> None:
    bare, cached = request("q", "m", 8), request("q", "m", 8, cached=True)
    assert bare.policy.cache_mode
    assert not cached.policy.cache_mode
    assert bare.sampling.max_output_tokens == 8
    assert bare.sampling.HasField("temperature")
    assert bare.sampling.temperature == 0


def test_arms_take_turns() -> None:
    assert [turns(["a", "b", "c"], number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_small_sums() -> None:
    usages = [
        usage_pb2.Usage(input_token_count=100, cached_input_token_count=90),
        usage_pb2.Usage(input_token_count=100),
    ]
    assert cached_share(usages) == 0.45
    assert cached_share([]) == 0
    used = milliseconds_per_item({"a": 1.0}, {"a": 3.0, "b": 0.5}, 1000)
    assert used == {"a": 2.0, "b": 0.5}
    result = Result("batch", quick=False)
    add_spread(result, "prefix_order/ours/speedup", [1.5, 1.2, 2.0])
    assert [each["value"] for each in result.metrics.values()] == [1.5, 1.2, 2.0]


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [
        ("local_lane/ours/speedup_vs_one_at_a_time", 3.0, "yes"),
        ("local_lane/ours/speedup_vs_one_at_a_time", 2.99, "**no**"),
        ("prefix_order/ours/speedup", 1.29, "**no**"),
        ("overhead/ours/cpu_ms_per_item", 2.01, "**no**"),
        ("memory_100k/service/rss_mb", 300.0, "yes"),
        ("memory_100k/worker/rss_mb", 301.0, "**no**"),
        ("kills/ours/lost", 0.0, "yes"),
        ("kills/ours/billed_twice", 1.0, "**no**"),
        ("kills/ours/repeated_chunks_max", 1.0, "yes"),
        ("kills/ours/repeated_chunks_max", 2.0, "**no**"),
    ],
)
def test_what_is_reached(metric: str, value: float, said: str) -> None:
    result = Result("batch", quick=False)
    result.add(metric, value, "x", 3)
    rows = [line for line in batch_tables(result.as_json()).splitlines() if line.endswith(("| yes |", "| **no** |"))]
    assert [line.split(" | ")[-1].removesuffix(" |") for line in rows] == [said]


def test_tables_hold_what_was_measured() -> None:
    result = Result("batch", quick=False)
    add_spread(result, "local_lane/ours/speedup_vs_one_at_a_time", [6.0, 5.0, 7.0])
    for arm, speed in (("local_lane/batch", 12.0), ("local_lane/online_c8", 9.0)):
        result.add(f"{arm}/items_per_s", speed, "items/s", 3)
        result.add(f"{arm}/cached_share", 0.8, "ratio", 3)
        result.add(f"{arm}/input_tokens_per_item", 450.0, "tokens", 3)
        result.add(f"{arm}/output_tokens_per_item", 16.0, "tokens", 3)
    for name, value in (("cpu_ms_per_item", 1.5), ("cpu_ms_per_item_provider", 1.5), ("cpu_ms_per_item_online", 1.2)):
        result.add(f"overhead/ours/{name}", value, "ms", 10)
    result.add("kills/temporal/rounds", 4, "count", 4)
    result.add("kills/temporal/repeated_items_max", 17, "count", 4)
    result.add("kills/temporal/seconds_max", 21.25, "s", 4)
    result.skipped = ["memory: not asked for"]
    lines = batch_tables(result.as_json()).splitlines()
    assert "| local lane over one at a time | 6.00x (5.00x to 7.00x) | at least 3.00x | yes |" in lines
    assert "| batch, local lane | 12.00 | 450 | 0.800 | 16.0 |" in lines
    assert "| batch layer together | 1.50 | 1.20 |  |" in lines
    assert "| temporal | 4 | 17 | 21.2 |" in lines
    assert "Not measured: memory: not asked for." in lines
    assert TABLES["batch"] is batch_tables
    (picture,) = pictures(result.metrics).values()
    assert [each["speed"] for each in picture["layer"][0]["data"]["values"]] == [9.0, 12.0]
    assert pictures({}) == {}


def test_parts() -> None:
    assert parts("local,kills") == ("local", "kills")
    for wrong in ("", "local,nothing"):
        with pytest.raises(argparse.ArgumentTypeError):
            parts(wrong)
    names = ("local_lane/x", "prefix_order/x", "overhead/x", "memory_100k/x", "kills/x")
    assert tuple(map(part_of, names)) == PARTS
    assert tuple(map(part_of, PARTS)) == PARTS
