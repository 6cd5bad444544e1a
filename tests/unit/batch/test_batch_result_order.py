"""Which result is told when: each item once, by the last run that took it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.batch.results import Order

RUNS = st.lists(st.sets(st.integers(0, 9)), max_size=3)
"""Which items each run after the first takes."""


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[set[int]], list[tuple[int, int]], set[int]]:
    """Items of later runs, results (item, run) in the order in which they are read, deleted items."""
    later = draw(RUNS)
    took = [(index, 1) for index in range(10)]
    took += [(index, run) for run, indexes in enumerate(later, start=2) for index in indexes]
    came = draw(st.lists(st.sampled_from(took), unique=True))
    return later, came, draw(st.sets(st.integers(0, 9), max_size=3))


def play(
    history: tuple[list[set[int]], list[tuple[int, int]], set[int]], in_input_order: bool
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What is told while results come, and what at the end. A place is index times 100 and the run."""
    later, came, deleted = history
    order = Order(10, in_input_order=in_input_order)
    for run, indexes in enumerate(later, start=2):
        order.takes(run, indexes)
    order.drop(deleted)
    told: list[tuple[int, int]] = []
    for index, run in came:
        if order.is_due(index, run):
            told.append((index, run))
        elif order.is_wanted(index, run):
            order.keep(index, run, index * 100 + run)
        told += [divmod(place, 100) for place in order.ready()]
    return told, [divmod(place, 100) for place in order.rest()]


@given(histories(), st.booleans())
def test_each_item_is_told_once_by_the_last_run_that_says_something(
    history: tuple[list[set[int]], list[tuple[int, int]], set[int]], in_input_order: bool
) -> None:
    _, came, deleted = history
    told, rest = play(history, in_input_order)
    last: dict[int, int] = {}
    for index, run in came:
        if index not in deleted:
            last[index] = max(last.get(index, 0), run)
    assert dict(told + rest) == last
    assert len(told + rest) == len(last)


@given(histories())
def test_what_is_told_in_input_order_is_in_input_order(
    history: tuple[list[set[int]], list[tuple[int, int]], set[int]],
) -> None:
    told, rest = play(history, True)
    assert [index for index, _ in told + rest] == sorted({index for index, _ in told + rest})


@given(histories(), st.booleans())
def test_nothing_waits_without_need(
    history: tuple[list[set[int]], list[tuple[int, int]], set[int]], in_input_order: bool
) -> None:
    later, came, deleted = history
    told, rest = play(history, in_input_order)
    wanted = [max([1, *(run for run, indexes in enumerate(later, start=2) if index in indexes)]) for index in range(10)]
    final = {index for index, run in came if run == wanted[index]} - deleted
    if in_input_order:
        gap = next((index for index in range(10) if index not in final | deleted), 10)
        assert {index for index, _ in told} == {index for index in final if index < gap}
    else:
        assert {index for index, _ in told} == final
    assert not {index for index, _ in told} & {index for index, _ in rest}
