"""JSON of many records is cut to the named ones, and stays JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.compressor.records import keep_named, records


def test_only_named_records_stay() -> None:
    text = json.dumps({f"key-{number}": f"value {number}" for number in range(20)}, indent=1)
    left = keep_named(text, frozenset(["key-7"]))
    assert left is not None
    assert json.loads(left) == {"key-7": "value 7"}


def test_nested_records_and_text_around() -> None:
    text = "Data:\n" + json.dumps([{"id": f"A-{number}", "tags": ["x,y", "}"]} for number in range(9)]) + "\nEnd."
    left = keep_named(text, frozenset(["A-3", "A-5"]))
    assert left is not None
    assert left.startswith("Data:\n[")
    assert left.endswith("]\nEnd.")
    assert [each["id"] for each in json.loads(left[6:-5])] == ["A-3", "A-5"]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("no json", ["k"]),
        ('{"a": 1, "b": 2}', ["a"]),
        ('{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5', ["a"]),
        ('{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}', []),
        ('{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}', ["zz"]),
        ("[" * 100_000, ["a"]),
    ],
)
def test_other_texts_stay_whole(text: str, keys: list[str]) -> None:
    assert keep_named(text, frozenset(keys)) is None


@given(
    st.dictionaries(st.text(max_size=8), st.text(max_size=12) | st.lists(st.text(max_size=4)), min_size=5), st.data()
)
def test_what_is_left_is_valid_and_holds_the_named(content: dict[str, object], data: st.DataObject) -> None:
    text = json.dumps(content, ensure_ascii=False)
    found = records(text)
    assert found is not None
    assert len(found.records) == len(content)
    key = data.draw(st.sampled_from(sorted(content)))
    left = keep_named(text, frozenset([json.dumps(key, ensure_ascii=False)]))
    if left is not None:
        assert json.loads(left)[key] == content[key]
        assert len(left) <= len(text)
