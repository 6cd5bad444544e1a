"""Leases, followers, promotion, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from services.cache.flights import Delta, Finished, FlightBoard, Lease, Promoted

TTL = 0.05
Board = FlightBoard[str, str]


def new_ids() -> Callable[[], str]:
    counter = itertools.count(1)
    return lambda: f"id{next(counter)}"


@pytest.fixture
def board() -> Board:
    return FlightBoard(TTL, new_ids(), len, max_flights=50, max_flight_bytes=100)


def lead(board: Board, key: str = "k") -> Lease:
    lease = board.join(key, "acme")
    assert isinstance(lease, Lease)
    return lease


def flight_of(board: Board, key: str = "k") -> str:
    flight = board.join(key, "acme")
    assert isinstance(flight, str)
    return flight


async def events(board: Board, flight: str, owner: str = "acme") -> list[object]:
    return [event async for event in board.follow(flight, owner)]


async def started(coroutine: object) -> asyncio.Task[list[object]]:
    task = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]  # Any coroutine.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task  # type: ignore[no-any-return]  # As above.


async def gone(board: Board) -> None:
    for _ in range(100):
        if not board.count:
            return
        await asyncio.sleep(TTL / 5)
    raise AssertionError(f"{board.count} flights are left")


async def test_the_first_leads_the_rest_follow_to_the_answer() -> None:
    board: Board = FlightBoard(10.0, new_ids(), len)
    lease = lead(board)
    followers = [await started(events(board, flight_of(board))) for _ in range(200)]
    assert board.finish(lease.lease_id, "answer", settled=True) == 200
    assert all([await follower == [Finished("answer")] for follower in followers])
    assert isinstance(board.join("k", "acme"), Lease), "a settled flight is looked up again, not followed"
    board.close()


async def test_pieces_are_replayed_then_live_then_the_answer(board: Board) -> None:
    lease = lead(board)
    flight = flight_of(board)
    assert board.open_stream(lease.lease_id, "acme")
    board.publish(lease.lease_id, "a")
    early = await started(events(board, flight))
    board.publish(lease.lease_id, "b")
    late = await started(events(board, flight))
    await asyncio.sleep(2 * TTL)  # An open stream holds the lease beyond its time.
    board.publish(lease.lease_id, "c")
    board.finish(lease.lease_id, "abc", settled=False)
    expected = [Delta("a"), Delta("b"), Delta("c"), Finished("abc")]
    assert await early == expected
    assert await late == expected
    assert flight_of(board) == flight, "not settled yet: still followed"
    assert await events(board, flight) == expected
    board.settle(lease.lease_id)
    assert board.in_flight("k") == ""


async def test_expired_lease_promotes_one_follower_and_the_rest_follow_it(board: Board) -> None:
    lead(board)
    flight = flight_of(board)
    first, second = await started(events(board, flight)), await started(events(board, flight))
    (promoted,) = await asyncio.wait_for(first, 10 * TTL)
    assert isinstance(promoted, Promoted)
    assert not second.done()
    assert board.key_of(promoted.lease.lease_id, "acme") == "k"
    board.finish(promoted.lease.lease_id, "late", settled=True)
    assert await second == [Finished("late")]


async def test_a_broken_stream_promotes_and_its_pieces_are_void(board: Board) -> None:
    lease = lead(board)
    flight = flight_of(board)
    board.open_stream(lease.lease_id, "acme")
    board.publish(lease.lease_id, "old")
    heir = await started(events(board, flight))
    saw_old = await started(events(board, flight))
    board.close_stream(lease.lease_id)
    assert not board.publish(lease.lease_id, "too late")
    result = await heir
    assert result[0] == Delta("old")
    promoted = result[1]
    assert isinstance(promoted, Promoted)
    assert board.open_stream(promoted.lease.lease_id, "acme")
    board.publish(promoted.lease.lease_id, "new")
    fresh = await started(events(board, flight))
    board.finish(promoted.lease.lease_id, "new", settled=True)
    assert await fresh == [Delta("new"), Finished("new")]
    assert await saw_old == [Delta("old"), Finished("new")], "no pieces of another answer are mixed in"


async def test_release_promotes_or_leaves_the_flight_to_the_next(board: Board) -> None:
    lease = lead(board)
    flight = flight_of(board)
    assert board.release(lease.lease_id, "other tenant") == (True, 0)
    assert board.key_of(lease.lease_id, "acme") == "k", "another tenant's release changes nothing"
    follower = await started(events(board, flight))
    assert board.release(lease.lease_id, "acme", only_if_unfollowed=True) == (False, 1)
    assert board.release(lease.lease_id, "acme") == (True, 1)
    assert isinstance((await follower)[0], Promoted)
    assert board.release(lease.lease_id, "acme") == (True, 0), "idempotent"


async def test_who_comes_late_to_an_orphan_leads(board: Board) -> None:
    lease = lead(board)
    flight = flight_of(board)
    board.release(lease.lease_id, "acme")
    (event,) = await events(board, flight)
    assert isinstance(event, Promoted)
    board.release(event.lease.lease_id, "acme")
    assert isinstance(board.join("k", "acme"), Lease)


async def test_a_promoted_follower_that_left_passes_the_lease_on(board: Board) -> None:
    lease = lead(board)
    flight = flight_of(board)
    leaver, stayer = await started(events(board, flight)), await started(events(board, flight))
    board.release(lease.lease_id, "acme")
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    assert isinstance((await asyncio.wait_for(stayer, TTL / 2))[0], Promoted)


async def test_cancelled_followers_and_all_flights_are_forgotten(board: Board) -> None:
    for index in range(20):
        lead(board, f"k{index}")
        follower = await started(events(board, flight_of(board, f"k{index}")))
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
    await gone(board)
    assert not board._by_key
    assert not board._by_lease


async def test_flights_are_bounded(board: Board) -> None:
    leases = [lead(board, f"k{index}") for index in range(120)]
    assert board.count == 50
    assert not board.key_of(leases[0].lease_id, "acme")
    assert board.key_of(leases[-1].lease_id, "acme")


async def test_a_flight_beyond_its_bytes_gives_late_followers_the_answer_alone(board: Board) -> None:
    lease = lead(board)
    flight = flight_of(board)
    board.open_stream(lease.lease_id, "acme")
    board.publish(lease.lease_id, "x" * 60)
    board.publish(lease.lease_id, "y" * 60)
    follower = await started(events(board, flight))
    board.finish(lease.lease_id, "whole", settled=True)
    assert await follower == [Finished("whole")]


async def test_all_flights_together_keep_a_bounded_number_of_pieces() -> None:
    board: Board = FlightBoard(10.0, new_ids(), len, max_flight_bytes=100, max_total_bytes=150)
    leases = [lead(board, key) for key in "abc"]
    followers = [await started(events(board, flight_of(board, key))) for key in "abc"]
    for lease in leases:
        board.open_stream(lease.lease_id, "acme")
        board.publish(lease.lease_id, "x" * 60)
        board.publish(lease.lease_id, "y" * 20)
        assert board._total <= 150
    for lease, key in zip(leases, "abc", strict=True):
        board.finish(lease.lease_id, f"whole {key}", settled=True)
    assert [(await follower)[-1] for follower in followers] == [Finished(f"whole {key}") for key in "abc"]
    board.close()
    assert board._total == 0


async def test_a_reader_of_a_flight_that_is_forgotten_still_gets_the_whole_answer(board: Board) -> None:
    lease = lead(board)
    flight = flight_of(board)
    board.open_stream(lease.lease_id, "acme")
    for piece in "abc":
        board.publish(lease.lease_id, piece)
    reader = board.follow(flight, "acme")
    assert await anext(reader) == Delta("a")
    board.finish(lease.lease_id, "abc", settled=True)
    await gone(board)
    assert [event async for event in reader][-1] == Finished("abc")


async def test_two_hundred_followers_lose_leader_after_leader_and_all_get_the_last_ones_answer() -> None:
    board: Board = FlightBoard(30.0, new_ids(), len)
    lease = lead(board)
    flight = flight_of(board)
    followers = {await started(events(board, flight)) for _ in range(200)}
    for generation in range(5):
        board.open_stream(lease.lease_id, "acme")
        board.publish(lease.lease_id, f"piece {generation}")
        board.close_stream(lease.lease_id)  # The leader is dead.
        (heir,), followers = await asyncio.wait(followers, return_when=asyncio.FIRST_COMPLETED)
        promoted = heir.result()[-1]
        assert isinstance(promoted, Promoted)
        assert promoted.lease.lease_id != lease.lease_id
        lease = promoted.lease
    board.finish(lease.lease_id, "whole", settled=True)
    assert len(followers) == 195
    assert {str((await follower)[-1]) for follower in followers} == {str(Finished("whole"))}
    board.close()


async def test_an_unknown_flight_and_another_tenants_have_no_events(board: Board) -> None:
    lead(board)
    assert await events(board, "nothing") == []
    assert await events(board, flight_of(board), owner="evil") == []


async def test_leading_alone_beside_a_flight(board: Board) -> None:
    lead(board)
    alone = board.lead("k", "acme")
    flight = flight_of(board)
    board.finish(alone.lease_id, "mine", settled=True)
    assert flight_of(board) == flight, "the flight that others follow is another one"


async def test_one_lease_has_one_stream(board: Board) -> None:
    lease = lead(board)
    assert board.open_stream(lease.lease_id, "acme")
    assert not board.open_stream(lease.lease_id, "acme")
    assert not board.open_stream(lease.lease_id, "evil")
    board.close()
    assert not board.count
