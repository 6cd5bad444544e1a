"""The catalogue file is read strictly, every complaint with its file, line and key; a bad change is not taken."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from mesh.catalog import CatalogError, Entry, WatchedFile, open_catalog


def entry(text: str) -> Entry:
    return open_catalog(text, "c.yaml", None)


def test_values_of_every_kind() -> None:
    found = entry("""
text: a
number: 9223372036854775807
no: False
usd: "0.04"
day: 2025-01-01
time: 2025-01-01T09:00:00+09:00
""")
    assert found.text("text") == "a"
    assert found.integer("number") == 2**63 - 1
    assert not found.boolean("no", True)
    assert found.usd("usd") == 40_000_000
    assert found.instant("day") == datetime(2025, 1, 1, tzinfo=UTC)
    assert found.instant("time") == datetime(2025, 1, 1, 9, tzinfo=timezone(timedelta(hours=9)))
    assert (found.text("absent", ""), found.integer("absent", 3), found.boolean("absent", True)) == ("", 3, True)
    assert found.choice("text", ("a", "b")) == "a"
    assert found.choice("absent", ("a", "b"), "b") == "b"
    assert list(found) == ["text", "number", "no", "usd", "day", "time"]
    assert "text" in found
    assert "absent" not in found


def test_nothing_below_a_key_is_the_same_as_no_key() -> None:
    for text in ("models:\nprices:", "", "# only a comment"):
        root = open_catalog(text, "c.yaml")
        assert list(root.mapping("models", None).mappings(())) == []
        assert list(root.sequence("prices", ())) == []
        with pytest.raises(CatalogError, match=r"^c\.yaml:1: models: required$"):
            root.mapping("models", None, required=True)


def test_merged_keys_are_read_and_own_ones_win() -> None:
    root = entry("""
one: &one {a: 1, b: 1}
two: &two {b: 2, c: 2}
both: {<<: [*one, *two], c: 3}
""")
    both = root.mapping("both", {"a", "b", "c"})
    assert [both.integer(key) for key in "abc"] == [1, 1, 3]
    with pytest.raises(CatalogError, match=r"^c\.yaml:3: both\.c: unknown key$"):
        root.mapping("both", {"a", "b"})


def test_numbers_with_a_decimal_point_and_words_that_yaml_takes_for_others() -> None:
    found = entry("{whole: 3, part: 0.25, word: off}")
    assert (found.number("whole", above=0), found.number("part", above=0, most=1)) == (3.0, 0.25)
    assert found.number("absent", 1.5, above=0) == 1.5
    assert found.choice("word", ("on", "off")) == "off"
    for value in ("0", "-1", "1.5.0", "1e3", ".5", "010", "1:30", ".nan", "'2'", "[2]", "11", "x"):
        with pytest.raises(CatalogError, match=r"^c\.yaml:1: x: "):
            entry(f"x: {value}").number("x", above=0, most=10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: 010", "c.yaml:1: x: '010' is not a whole number of at least 1"),
        ('x: "8"', "x: '8' is not a whole number"),
        ("x: 9223372036854775808", "is not a whole number"),
        ("x: 1_000", "is not a whole number"),
        (f"x: {'9' * 5000}", "is not a whole number"),
        ("x: [1]", "x: must be one value"),
        ("y: 1", "x: required"),
        ("\n- a", "c.yaml:2: must be a mapping"),
        ("a: 1\nx: 1\nx: 2", "c.yaml:3: x: given twice"),
        ("&a {<<: *a}", "c.yaml:1: merges itself"),
        ("a: 1\n---\nb: 1", "c.yaml: not YAML"),
    ],
)
def test_a_wrong_number_or_file_is_named(text: str, message: str) -> None:
    with pytest.raises(CatalogError) as caught:
        entry(text).integer("x")
    assert message in str(caught.value)


@pytest.mark.parametrize("value", ["5", "~", "true", "2025-01-01", "[a]", '""'])
def test_only_text_is_text(value: str) -> None:
    with pytest.raises(CatalogError, match=r"^c\.yaml:1: x: must be"):
        entry(f"x: {value}").text("x")


@pytest.mark.parametrize("value", ["yes", "on", '"true"', "1"])
def test_only_true_and_false_are_taken(value: str) -> None:
    with pytest.raises(CatalogError, match="neither true nor false"):
        entry(f"x: {value}").boolean("x", False)


def test_a_price_that_another_reader_takes_for_a_float_is_refused() -> None:
    with pytest.raises(CatalogError, match=r"x: 2\.5 is not a decimal string in quotes"):
        entry("x: 2.5").usd("x")


async def test_a_file_that_is_no_text_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("x: a")
    file = WatchedFile(path, lambda text, name: open_catalog(text, name, None).text("x"))
    path.write_bytes(b"x: \xff\xfe")
    assert not await file.refresh()
    assert file.current == "a"
    assert "c.yaml: not UTF-8" in caplog.text
    path.write_text("x: bb")
    assert await file.refresh()
    assert file.current == "bb"


def test_hostile_nesting_is_refused_and_repeated_merges_cost_nothing() -> None:
    """Files may come from callers, who replay decisions under a catalogue of their own."""
    with pytest.raises(CatalogError, match="nested too deeply"):
        entry("[" * 5000)
    chain = "\n".join(f"k{n}: &k{n} {{ <<: {f'*k{n - 1}' if n else '{a: 1}'} }}" for n in range(40))
    with pytest.raises(CatalogError, match="deep"):
        entry(chain).mapping("k39", None)
    tower = "\n".join(f"k{n}: &k{n} {{ <<: [{', '.join([f'*k{n - 1}'] * 20) if n else '{a: 1}'}] }}" for n in range(15))
    # 20 to the 14th readings, were each node read as often as it is merged.
    assert entry(tower).mapping("k14", None).integer("a") == 1


def test_lists_of_texts_and_lines() -> None:
    found = entry('a: [one, "2"]\nb:\n  - x\n')
    assert (found.texts("a"), found.texts("b", ("x", "y")), found.texts("absent")) == (("one", "2"), ("x",), ())
    assert (found.line("a"), found.line("b"), found.line("absent"), found.line("")) == (1, 3, 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: one", "c.yaml:1: a: must be a list"),
        ("a: []", "c.yaml:1: a: must be a list of at least one text"),
        ("a:", "c.yaml:1: a: must be a list"),
        ("a:\n - one\n - 2", "c.yaml:3: a: must be text"),
        ("a:\n - yes", "c.yaml:2: a: must be text"),
        ("a:\n - {b: c}", "c.yaml:2: a: must be text"),
        ("a:\n - x\n - z", "c.yaml:3: a: 'z' is none of x, y"),
    ],
)
def test_a_wrong_list_of_texts_is_named(text: str, message: str) -> None:
    with pytest.raises(CatalogError) as caught:
        entry(text).texts("a", ("x", "y") if "x" in text else None)
    assert message in str(caught.value)


async def test_a_file_that_is_being_written_is_read_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that goes on while the file is read: half a YAML file can be a valid one."""
    path = tmp_path / "c.yaml"
    path.write_text("a: 1")
    file = WatchedFile(path, lambda text, name: text)
    path.write_text("a: 2\n")
    read = Path.read_text

    def read_and_write(self: Path, *arguments: str) -> str:
        text = read(self, *arguments)
        monkeypatch.setattr(Path, "read_text", read)
        path.write_text("a: 2\nb: 3\n")
        return text

    monkeypatch.setattr(Path, "read_text", read_and_write)
    assert not await file.refresh()
    assert file.current == "a: 1"
    assert await file.refresh()
    assert file.current == "a: 2\nb: 3\n"
