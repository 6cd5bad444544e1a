"""Single flight: identical requests that are in the air at once are answered by one generation.

The first is the leader and holds a lease; the others follow its flight: they get its pieces so far, then live, then
the whole answer. A lease passes to the follower that waits longest when its time is up without a publish stream or an
answer, when the publish stream breaks, or when it is given up. Lives in one process, on one event loop: identical
requests reach the same replica by rendezvous hashing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice
from typing import Generic, TypeVar

Piece = TypeVar("Piece")
"""A part of an answer; opaque here."""
Answer = TypeVar("Answer")
"""A whole answer; opaque here."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right and duty to answer. ``ttl_seconds`` counts from now."""

    lease_id: str
    ttl_seconds: float


@dataclass(frozen=True, slots=True)
class Delta(Generic[Piece]):
    """The next piece."""

    piece: Piece


@dataclass(frozen=True, slots=True)
class Finished(Generic[Answer]):
    """The whole answer; last."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Promoted:
    """This follower leads now; last."""

    lease: Lease


class _State(Enum):
    LED = auto()
    """Somebody holds the lease."""
    ORPHAN = auto()
    """The leader is gone and nobody waits; the first who comes leads."""
    FINISHED = auto()
    """The answer is here."""


@dataclass(eq=False, slots=True)
class _Follower:
    lease: Lease | None = None


@dataclass(eq=False, slots=True)
class _Flight(Generic[Piece, Answer]):
    flight_id: str
    key: str
    owner: str
    lease_id: str
    state: _State
    changed: asyncio.Future[None]
    joinable: bool = True
    publishing: bool = False
    epoch: int = 0
    pieces: list[Piece] = field(default_factory=list)
    piece_bytes: int = 0
    overflowed: bool = False
    answer: Answer | None = None
    followers: deque[_Follower] = field(default_factory=deque)
    followed: int = 0
    timer: asyncio.TimerHandle | None = None


class FlightBoard(Generic[Piece, Answer]):
    """All flights of one replica. Not thread-safe: one event loop."""

    def __init__(
        self,
        lease_ttl_seconds: float,
        new_id: Callable[[], str],
        piece_size: Callable[[Piece], int],
        max_flights: int = 10_000,
        max_flight_bytes: int = 4_194_304,
        max_total_bytes: int = 268_435_456,
    ) -> None:
        self._ttl = lease_ttl_seconds
        self._new_id = new_id
        self._piece_size = piece_size
        self._max_flights = max_flights
        self._max_bytes = max_flight_bytes
        self._max_total = max_total_bytes
        self._total = 0
        self._flights: OrderedDict[str, _Flight[Piece, Answer]] = OrderedDict()
        self._by_key: dict[str, _Flight[Piece, Answer]] = {}
        self._by_lease: dict[str, _Flight[Piece, Answer]] = {}

    @property
    def count(self) -> int:
        """Flights remembered now."""
        return len(self._flights)

    def in_flight(self, key: str) -> str:
        """The id of the flight that a request with this key would follow; empty when it would lead."""
        flight = self._by_key.get(key)
        return flight.flight_id if flight is not None and flight.joinable and flight.state is not _State.ORPHAN else ""

    def join(self, key: str, owner: str) -> Lease | str:
        """Lead (a Lease) or follow (the id of the flight). ``owner`` is the tenant."""
        flight = self._by_key.get(key)
        if flight is not None and flight.joinable:
            if flight.state is not _State.ORPHAN:
                return flight.flight_id
            return self._lend(flight)
        return self.lead(key, owner)

    def lead(self, key: str, owner: str) -> Lease:
        """Lead without asking who else does: a flight of one's own, joinable only if the key has none."""
        self._make_room()
        taken = self._by_key.get(key)
        flight = _Flight[Piece, Answer](
            flight_id=f"{key}.{self._new_id()}",
            key=key,
            owner=owner,
            lease_id="",
            state=_State.ORPHAN,
            changed=asyncio.get_running_loop().create_future(),
            joinable=taken is None or not taken.joinable,
        )
        self._flights[flight.flight_id] = flight
        if flight.joinable:
            self._by_key[key] = flight
        return self._lend(flight)

    def key_of(self, lease_id: str, owner: str) -> str:
        """The key that a lease was given for; empty when the lease is not in force."""
        flight = self._by_lease.get(lease_id)
        return flight.key if flight is not None and flight.owner == owner else ""

    def open_stream(self, lease_id: str, owner: str) -> bool:
        """A publish stream begins: the lease holds as long as it is open. False when the lease is gone."""
        flight = self._held(lease_id, owner)
        if flight is None or flight.state is not _State.LED or flight.publishing:
            return False
        flight.publishing = True
        self._cancel_timer(flight)
        return True

    def publish(self, lease_id: str, piece: Piece) -> bool:
        """Hand a piece to all followers. False when the lease is gone."""
        flight = self._by_lease.get(lease_id)
        if flight is None or flight.state is not _State.LED:
            return False
        if not flight.overflowed:
            size = self._piece_size(piece)
            if flight.piece_bytes + size > self._max_bytes or self._total + size > self._max_total:
                # Followers that come late or are slow get the whole answer at the end instead.
                self._drop_pieces(flight)
                flight.overflowed = True
            else:
                flight.piece_bytes += size
                self._total += size
                flight.pieces.append(piece)
        self._notify(flight)
        return True

    def close_stream(self, lease_id: str) -> None:
        """The publish stream is over; without an answer the lease passes on."""
        flight = self._by_lease.get(lease_id)
        if flight is not None and flight.publishing:
            flight.publishing = False
            if flight.state is _State.LED:
                self._pass_on(flight)

    def finish(self, lease_id: str, answer: Answer, settled: bool) -> int:
        """Give the whole answer to all followers. Returns how many followed.

        Until ``settled`` (the answer is stored, or will not be) new identical requests still follow this flight.
        """
        flight = self._by_lease.get(lease_id)
        if flight is None:
            return 0
        if flight.state is not _State.FINISHED:
            flight.state = _State.FINISHED
            flight.answer = answer
            self._notify(flight)
        flight.publishing = False
        if settled:
            self._settle(flight)
        else:
            self._restart_timer(flight)
        return flight.followed

    def settle(self, lease_id: str) -> None:
        """The answer of a finished flight is stored or dropped: new requests look it up again."""
        flight = self._by_lease.get(lease_id)
        if flight is not None and flight.state is _State.FINISHED:
            self._settle(flight)

    def release(self, lease_id: str, owner: str, only_if_unfollowed: bool = False) -> tuple[bool, int]:
        """Give the lease up. Returns whether it is given up (or was not in force) and how many follow."""
        flight = self._held(lease_id, owner)
        if flight is None:
            return True, 0
        waiting = len(flight.followers)
        if only_if_unfollowed and waiting:
            return False, waiting
        if flight.state is _State.LED:
            flight.publishing = False
            self._pass_on(flight)
        return True, waiting

    async def follow(
        self, flight_id: str, owner: str
    ) -> AsyncGenerator[Delta[Piece] | Finished[Answer] | Promoted, None]:
        """The events of a flight. Ends at once, with no event, when the flight is not known.

        A follower that has seen pieces of a leader that then died gets no pieces of the next one, only the answer.
        """
        flight = self._flights.get(flight_id)
        if flight is None or flight.owner != owner:
            return
        if flight.state is _State.ORPHAN:
            yield Promoted(self._lend(flight))
            return
        follower = _Follower()
        flight.followers.append(follower)
        flight.followed += 1
        seen, epoch, delivered = 0, flight.epoch, False
        try:
            while True:
                if follower.lease is not None:
                    delivered = True
                    yield Promoted(follower.lease)
                    return
                if flight.epoch == epoch or not seen:
                    epoch = flight.epoch
                    while flight.epoch == epoch and seen < len(flight.pieces):
                        piece = flight.pieces[seen]
                        seen += 1
                        yield Delta(piece)
                if follower.lease is not None:
                    continue
                if flight.state is _State.FINISHED and flight.answer is not None:
                    yield Finished(flight.answer)
                    return
                if flight_id not in self._flights:
                    return
                if flight.epoch != epoch or seen >= len(flight.pieces):
                    await asyncio.shield(flight.changed)
        finally:
            if follower in flight.followers:
                flight.followers.remove(follower)
            if follower.lease is not None and not delivered:
                # Promoted, but gone before hearing of it: the next one leads.
                self.release(follower.lease.lease_id, owner)

    def close(self) -> None:
        """Forget all flights; followers' streams end."""
        for flight in list(self._flights.values()):
            self._forget(flight)

    def _held(self, lease_id: str, owner: str) -> _Flight[Piece, Answer] | None:
        flight = self._by_lease.get(lease_id)
        return flight if flight is not None and flight.owner == owner else None

    def _lend(self, flight: _Flight[Piece, Answer]) -> Lease:
        self._by_lease.pop(flight.lease_id, None)
        flight.lease_id = self._new_id()
        flight.state = _State.LED
        flight.publishing = False
        flight.epoch += 1
        self._drop_pieces(flight)
        flight.overflowed = False
        self._by_lease[flight.lease_id] = flight
        self._restart_timer(flight)
        return Lease(flight.lease_id, self._ttl)

    def _pass_on(self, flight: _Flight[Piece, Answer]) -> None:
        if flight.followers:
            follower = flight.followers.popleft()
            follower.lease = self._lend(flight)
        else:
            self._by_lease.pop(flight.lease_id, None)
            flight.state = _State.ORPHAN
            flight.epoch += 1
            self._drop_pieces(flight)
            # Somebody who was told to follow may be on the way: kept for one more lease time.
            self._restart_timer(flight)
        self._notify(flight)

    def _settle(self, flight: _Flight[Piece, Answer]) -> None:
        flight.joinable = False
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]
        # Kept for one lease time for those who were told to follow and have not come yet.
        self._by_lease.pop(flight.lease_id, None)
        self._restart_timer(flight)

    def _restart_timer(self, flight: _Flight[Piece, Answer]) -> None:
        self._cancel_timer(flight)
        flight.timer = asyncio.get_running_loop().call_later(self._ttl, self._time_is_up, flight)

    def _time_is_up(self, flight: _Flight[Piece, Answer]) -> None:
        flight.timer = None
        if flight.state is _State.LED:
            self._pass_on(flight)
        elif flight.state is _State.FINISHED and flight.joinable:
            self._settle(flight)
        else:
            self._forget(flight)

    def _forget(self, flight: _Flight[Piece, Answer]) -> None:
        self._cancel_timer(flight)
        self._drop_pieces(flight)  # Who still reads them has the whole answer at the end.
        self._flights.pop(flight.flight_id, None)
        self._by_lease.pop(flight.lease_id, None)
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]
        self._notify(flight)

    def _drop_pieces(self, flight: _Flight[Piece, Answer]) -> None:
        self._total -= flight.piece_bytes
        flight.piece_bytes = 0
        flight.pieces.clear()

    def _make_room(self) -> None:
        while len(self._flights) >= self._max_flights:
            # Finished ones first; if all are in the air, the oldest, whose followers look up again.
            victim = next(
                (flight for flight in islice(self._flights.values(), 64) if flight.state is not _State.LED),
                next(iter(self._flights.values())),
            )
            self._forget(victim)

    def _notify(self, flight: _Flight[Piece, Answer]) -> None:
        if not flight.changed.done():
            flight.changed.set_result(None)
        flight.changed = asyncio.get_running_loop().create_future()

    @staticmethod
    def _cancel_timer(flight: _Flight[Piece, Answer]) -> None:
        if flight.timer is not None:
            flight.timer.cancel()
            flight.timer = None
