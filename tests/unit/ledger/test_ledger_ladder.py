"""The ladder before refusal: what a request may still do as a hard budget grows tight."""

from __future__ import annotations

import pytest

from services.ledger.limits import parse_ladder
from services.ledger.policy import Budget, Decision, Position, Verdict, decide

LADDER = "batch=80 cheaper_tier=90 cache_only=95"
SIMPLE, COMPLEX = 1, 3


def at(used: int, ladder: str = LADDER, *, name: str = "b", reserved: int = 0, hard: bool = True) -> Position:
    """A budget of 1,000 with so much spent."""
    return Position(Budget(name, "acme", 1000, hard, ladder=parse_ladder(ladder)), 0, used - reserved, reserved)


@pytest.mark.parametrize(
    ("used", "batch", "tier", "verdict"),
    [
        # No step has begun.
        (0, False, COMPLEX, Verdict.OK),
        (799, False, COMPLEX, Verdict.OK),
        # From 80 %: only what may wait.
        (800, False, COMPLEX, Verdict.BATCH),
        (800, False, SIMPLE, Verdict.BATCH),
        (800, False, 0, Verdict.BATCH),
        (800, True, COMPLEX, Verdict.OK),
        # From 90 %: a cheaper tier too.
        (900, False, COMPLEX, Verdict.DOWNGRADE),
        (900, False, SIMPLE, Verdict.OK),
        (900, True, COMPLEX, Verdict.OK),
        # From 95 %: the cache alone.
        (950, False, COMPLEX, Verdict.CACHE_ONLY),
        (950, True, SIMPLE, Verdict.CACHE_ONLY),
        (999, False, SIMPLE, Verdict.CACHE_ONLY),
        # Nothing is left.
        (1000, False, SIMPLE, Verdict.REFUSED),
        (1200, True, SIMPLE, Verdict.REFUSED),
    ],
)
def test_the_step_that_has_begun_last_decides(used: int, batch: bool, tier: int, verdict: Verdict) -> None:
    decision = decide(1, [at(used)], batch=batch, tier=tier)
    named = ("", 0) if verdict is Verdict.OK else ("b", max(1000 - used, 0))
    assert decision == Decision(verdict, *named)


def test_what_is_reserved_counts_as_what_is_spent() -> None:
    assert decide(1, [at(800, reserved=800)]).verdict is Verdict.BATCH


@pytest.mark.parametrize(
    ("ladder", "batch", "tier", "verdict"),
    [
        ("", False, COMPLEX, Verdict.DOWNGRADE),
        ("", False, SIMPLE, Verdict.DOWNGRADE),
        ("cheaper_tier=90", False, COMPLEX, Verdict.DOWNGRADE),
        ("cheaper_tier=90", False, SIMPLE, Verdict.REFUSED),
        ("batch=90", False, COMPLEX, Verdict.BATCH),
        ("batch=90", True, COMPLEX, Verdict.REFUSED),
        ("batch=90 cheaper_tier=95", True, SIMPLE, Verdict.REFUSED),
        ("batch=90 cheaper_tier=95", False, SIMPLE, Verdict.BATCH),
        ("cache_only=90", False, COMPLEX, Verdict.CACHE_ONLY),
        ("cache_only=90 batch=95", True, COMPLEX, Verdict.CACHE_ONLY),
    ],
)
def test_what_does_not_fit_is_told_what_might(ladder: str, batch: bool, tier: int, verdict: Verdict) -> None:
    assert decide(600, [at(500, ladder)], batch=batch, tier=tier).verdict is verdict


def test_what_passes_a_step_must_fit_too() -> None:
    assert decide(150, [at(900)], batch=True, tier=COMPLEX).verdict is Verdict.DOWNGRADE
    assert decide(100, [at(900)], batch=True, tier=COMPLEX).verdict is Verdict.OK


def test_what_costs_nothing_passes_every_step() -> None:
    assert decide(0, [at(999), at(2000)]).verdict is Verdict.OK


def test_a_soft_budget_has_no_say() -> None:
    assert decide(1, [at(999, hard=False)]) == Decision(Verdict.OK)


@pytest.mark.parametrize(
    ("positions", "verdict", "name"),
    [
        ([at(800, name="a"), at(900, name="b")], Verdict.BATCH, "a"),
        ([at(900, name="a"), at(950, name="b")], Verdict.CACHE_ONLY, "b"),
        ([at(950, name="a"), at(1000, "", name="b")], Verdict.REFUSED, "b"),
        ([at(0, name="a"), at(900, name="b")], Verdict.DOWNGRADE, "b"),
        # Equally strict: the tighter one, then by name.
        ([at(910, name="a"), at(920, name="b")], Verdict.DOWNGRADE, "b"),
        ([at(910, name="b"), at(910, name="a")], Verdict.DOWNGRADE, "a"),
    ],
)
def test_the_strictest_budget_decides(positions: list[Position], verdict: Verdict, name: str) -> None:
    decision = decide(1, positions, tier=COMPLEX)
    assert (decision.verdict, decision.budget_name) == (verdict, name)
