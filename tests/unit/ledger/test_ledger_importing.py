"""The diff of a price file against the book: every outcome, and nothing added while a conflict is open."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mesh.errors import Code, TenthError
from mesh.receipt import Price, PriceStep
from services.ledger.importing import EVERY, Choice, FileRow, Outcome, Plan, choice_of, compare, only
from services.ledger.prices import DatedPrice

DAY = 86_400 * 10**9


def dated(day: int, amount: int = 1, model: str = "m", end: int | None = None, **changes: Any) -> DatedPrice:
    """A price from a day on."""
    price = Price(model, amount, amount, **changes)
    return DatedPrice(price, day * DAY, "book", None if end is None else end * DAY)


def read(day: int, amount: int = 1, model: str = "m", **changes: Any) -> FileRow:
    """A row of a file."""
    return FileRow(model, replace(dated(day, amount, model, **changes), source="file"))


def plan(book: list[DatedPrice], *file: FileRow, take: str = "", keep: str = "") -> Plan:
    """The diff of a file; ``take`` and ``keep`` are names with blanks between."""
    return compare(book, file, Choice(frozenset(take.split()), frozenset(keep.split())))


def outcomes(found: Plan) -> list[Outcome]:
    """The outcome of each line."""
    return [line.outcome for line in found.lines]


def test_what_the_book_lacks_is_new_and_a_zero_of_it_is_not_confirmed() -> None:
    zero = FileRow("z", replace(dated(5, 0, "z"), price=Price("z", 0, 0, confirmed=False)), "input is 0")
    found = plan([dated(1, model="other")], read(5), zero, FileRow("s", None, "why"))
    assert outcomes(found) == [Outcome.NEW, Outcome.SKIPPED, Outcome.UNCONFIRMED]
    assert [line.reason for line in found.lines] == ["", "why", "input is 0"]
    assert [row.model for row in found.added] == ["m", "z"]


def test_what_the_book_has_is_the_same_whoever_confirmed_it_and_wherever_it_is_from() -> None:
    vouched = replace(dated(1), confirmed_by="me")
    for day in (1, 5):
        found = plan([vouched], FileRow("m", replace(dated(day), price=Price("m", 1, 1, confirmed=False))))
        assert outcomes(found) == [Outcome.SAME]
        assert found.added == ()
    unconfirmed = replace(dated(1), price=Price("m", 1, 1, confirmed=False))
    assert plan([unconfirmed], read(5)).lines[0].reason == "not confirmed yet"


def test_another_amount_is_a_conflict_until_someone_says_whose_holds() -> None:
    book = [dated(1, 1)]
    found = plan(book, read(5, 2))
    assert outcomes(found) == [Outcome.CONFLICT]
    assert found.lines[0].reason == "input 0.000000001 -> 0.000000002, output 0.000000001 -> 0.000000002"
    assert found.added == ()
    for take in ("m", "*"):
        taken = plan(book, read(5, 2), take=take)
        assert outcomes(taken) == [Outcome.TAKEN]
        assert taken.added == (read(5, 2).price,)
        taken.require_resolved()
    for keep in ("m", "*"):
        kept = plan(book, read(5, 2), keep=keep)
        assert (outcomes(kept), kept.added) == ([Outcome.KEPT], ())
        kept.require_resolved()


def test_a_name_stands_before_the_star() -> None:
    book, file = [dated(1, model=name) for name in "ab"], [read(5, 2, name) for name in "ab"]
    assert outcomes(plan(book, *file, take="*", keep="a")) == [Outcome.KEPT, Outcome.TAKEN]
    assert outcomes(plan(book, *file, take="a", keep="*")) == [Outcome.TAKEN, Outcome.KEPT]


def test_steps_and_absent_prices_are_told_apart() -> None:
    step = PriceStep(1000, 10**9, 2 * 10**9)
    assert plan([dated(1)], read(5, steps=(step,))).lines[0].reason == "steps none -> >1000: 1 in, 2 out"
    assert plan([dated(1, cached_input=0)], read(5)).lines[0].reason == "cached_input 0 -> none"


def test_a_price_is_never_put_before_the_books_last() -> None:
    book = [dated(1, 1, end=9), dated(9, 3)]
    for row, why in ((read(5, 2), "it cannot be taken from 1970-01-06"), (read(9, 2), "begins on 1970-01-10")):
        found = plan(book, row, take="m")
        assert outcomes(found) == [Outcome.CONFLICT]
        assert why in found.lines[0].reason
        assert outcomes(plan(book, row, keep="m")) == [Outcome.KEPT]
    found = plan(book, read(0, 2), take="m")
    assert outcomes(found) == [Outcome.CONFLICT]
    assert found.lines[0].before is None
    assert "begin later, on 1970-01-02" in found.lines[0].reason
    # The same amounts at an earlier time are nothing to argue about.
    assert outcomes(plan(book, read(5, 1))) == [Outcome.SAME]


def test_after_a_price_has_ended_a_new_one_is_no_conflict() -> None:
    assert outcomes(plan([dated(1, 1, end=3)], read(3, 2))) == [Outcome.NEW]
    assert outcomes(plan([dated(1, 1, end=3)], read(2, 2))) == [Outcome.CONFLICT]


def test_a_file_with_a_history_follows_itself() -> None:
    file = [read(5, 2), read(1, 1), read(9, 3)]
    found = plan([], *file)
    assert outcomes(found) == [Outcome.NEW] * 3
    assert [row.price.input for row in found.added] == [1, 2, 3]
    assert outcomes(plan([dated(1, 1, end=5), dated(5, 2)], *file)) == [Outcome.SAME, Outcome.SAME, Outcome.CONFLICT]
    # Two prices of one instant contradict each other; keeping the book's settles even that.
    assert outcomes(plan([], read(1, 1), read(1, 2), take="*")) == [Outcome.NEW, Outcome.CONFLICT]


def test_a_zero_is_taken_only_with_a_warning() -> None:
    zero = FileRow("m", replace(dated(5, 0), price=Price("m", 0, 0, confirmed=False)), "input is 0")
    found = plan([dated(1)], zero, take="m")
    assert outcomes(found) == [Outcome.TAKEN]
    assert found.lines[0].reason.endswith("not confirmed: input is 0")


def test_an_open_conflict_names_up_to_twenty_models() -> None:
    names = [f"m{index:02}" for index in range(25)]
    found = plan([dated(1, model=name) for name in names], *(read(5, 2, name) for name in names))
    with pytest.raises(TenthError, match="25 of the file's models") as caught:
        found.require_resolved()
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "PRICE_CONFLICT")
    assert caught.value.field == "request.take"
    assert caught.value.metadata == {"models": ",".join(names[:20]), "count": "25"}


@pytest.mark.parametrize(
    ("take", "keep", "field"),
    [
        (["m", "x"], [], "request.take[1]"),
        ([], ["x"], "request.keep[0]"),
        (["m"], ["m"], "request.keep"),
        ([EVERY], [EVERY], "request.keep"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(take: list[str], keep: list[str], field: str) -> None:
    with pytest.raises(TenthError) as caught:
        choice_of([read(1)], take, keep)
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", field)


def test_only_some_models() -> None:
    file = [read(1, model=name) for name in "abc"]
    assert [row.model for row in only(file, ["c", "a"])] == ["a", "c"]
    assert only(file, []) == file
    with pytest.raises(TenthError) as caught:
        only(file, ["a", "x"])
    assert caught.value.field == "request.models[1]"
