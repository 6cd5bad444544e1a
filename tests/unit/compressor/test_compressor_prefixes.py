"""What is believed of a provider's prompt cache: by digest, by time, by what the provider says; bounded."""

from __future__ import annotations

import pytest

from services.compressor.money import CacheTerms
from services.compressor.prefixes import MAX_BOUNDARIES, Chain, PrefixTracker, chain_of, prefix_version, volatile

TERMS = CacheTerms(100, 100, 1, 300.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def chain(*parts: str, tokens: int = 100) -> Chain:
    return chain_of((part.encode(), tokens) for part in parts)


def tracker_of(clock: Clock, capacity: int = 1000) -> PrefixTracker:
    return PrefixTracker(clock, capacity)


def test_a_chain_names_every_start() -> None:
    one, other = chain("a", "b", "c"), chain("a", "b", "x")
    assert one.tokens == (100, 200, 300)
    assert one.common(other) == 200
    assert chain("ab", "c").digests[1] != chain("a", "bc").digests[1]
    assert one == chain("a", "b", "c")  # The same here, on another replica, and after a restart.


def test_the_longest_start_within_the_time_counts() -> None:
    clock = Clock()
    tracker = tracker_of(clock)
    tracker.note("t", "1", chain("a", "b"), chain("a"), (0, 100), 0.0)
    assert tracker.shared("t", chain("a", "b", "c"), TERMS) == 200
    assert tracker.sent("t", chain("a", "b", "c"), TERMS) == 100
    assert tracker.shared("other", chain("a", "b"), TERMS) == 0
    clock.now = 299
    assert tracker.shared("t", chain("a", "b"), TERMS) == 200
    clock.now = 301
    assert tracker.shared("t", chain("a", "b"), TERMS) == 0


def test_belief_follows_what_the_provider_says() -> None:
    tracker = tracker_of(Clock())
    before = tracker.odds("t")
    for number in range(50):
        tracker.note("t", str(number), chain("a"), chain("a"), (1000, 1000), 0.0)
        assert tracker.record("t", str(number), 0, TERMS)
        assert not tracker.record("t", str(number), 0, TERMS)  # Once.
    after = tracker.odds("t")
    assert after.seen < 0.2 < before.seen
    assert after.unseen == before.unseen
    for number in range(300):
        tracker.note("t", str(number), chain("a"), chain("a"), (1000, 1000), 0.0)
        tracker.record("t", str(number), 990, TERMS)
    assert tracker.odds("t").seen > 0.75
    assert tracker.odds("t").seen_at_most >= tracker.odds("t").seen
    for number in range(20):
        tracker.note("t", str(number), chain("a"), chain("a"), (0, 1000), 0.0)
        tracker.record("t", str(number), 990, TERMS)
    assert tracker.odds("t").unseen > before.unseen
    assert not tracker.record("t", "never seen", 1, TERMS)


def test_lists_of_chunks_are_learned_by_application() -> None:
    tracker = tracker_of(Clock())
    assert tracker.reuse("t", b"a") == (0.5, 1.0)
    for _ in range(20):
        tracker.note_chunks("t", b"a", again=False)
        tracker.note_chunks("t", b"b", again=True)
    assert tracker.reuse("t", b"a")[1] < 0.2
    assert tracker.reuse("t", b"b")[0] > 0.9


def test_memory_is_bounded() -> None:
    tracker = tracker_of(Clock(), 50)
    long = chain(*map(str, range(5000)))
    tracker.note("t", "1", long, long, (0, 0), 0.0)
    assert tracker.shared("t", long, TERMS) == 500_000
    assert tracker.shared("t", chain("0"), TERMS) == 0  # Pushed out by the places after it.
    roomy = tracker_of(Clock(), 10_000)
    roomy.note("t", "1", long, long, (0, 0), 0.0)
    assert roomy.shared("t", chain("0"), TERMS) == 100
    held = sum(roomy.shared("t", Chain((digest,), (1,)), TERMS) for digest in long.digests)
    assert held == MAX_BOUNDARIES
    for number in range(200):
        tracker.note("t", str(number), chain("x"), chain("x"), (0, 0), 0.0)
    assert not tracker.record("t", "0", 0, TERMS)
    assert tracker.record("t", "199", 0, TERMS)
    nothing = tracker_of(Clock(), 0)
    nothing.note("t", "1", chain("a"), chain("a"), (0, 0), 0.0)
    assert nothing.shared("t", chain("a"), TERMS) == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Today is 2026-11-26.", "2026-11-26"),
        ("오늘은 2026년 11월 26일입니다.", "2026년 11월 26일"),
        ("It is 14:05 now", "14:05"),
        ("Session 123e4567-e89b-12d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
        ("Answer in 3 sentences, at most 120 words.", ""),
    ],
)
def test_what_changes_is_pointed_out(text: str, found: str) -> None:
    assert volatile(text) == found


def test_a_version_names_the_facts() -> None:
    assert prefix_version("o200k_base", TERMS) == prefix_version("o200k_base", TERMS)
    assert prefix_version("o200k_base", TERMS) != prefix_version("cl100k_base", TERMS)
