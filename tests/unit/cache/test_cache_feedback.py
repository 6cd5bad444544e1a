"""The evidence of reports: exact bounds, suspension, shrinkage, and that it comes back from its events as it was."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cache.feedback import (
    LEAST_FACTOR,
    MOST_FACTOR,
    Event,
    Evidence,
    Report,
    ReportName,
    Served,
    binomial_tail,
    broken_bound,
    lower_bound,
    parse_report_id,
)


def report(correct: bool, **changes: object) -> Report:
    fields: dict[str, object] = {
        "tenant": "acme",
        "namespace": "shop",
        "entry_id": "e1",
        "served": Served.SEMANTIC,
        "correct": correct,
        **changes,
    }
    return Report(**fields)  # type: ignore[arg-type]  # Fields by name.


def looked(evidence: Evidence, count: int, tenant: str = "acme", namespace: str = "shop") -> None:
    for _ in range(count):
        evidence.looked(tenant, namespace, hit=True)


def told(evidence: Evidence, right: int, wrong: int, **changes: object) -> list[Event]:
    events = []
    for number in range(right + wrong):
        events += evidence.report(report(number < right, **changes), 5.0)
    return events


# Worked by hand from the definition, and the rule of three: 0.05 ** (1 / n) for n of n.
@pytest.mark.parametrize(
    ("count", "trials", "expected"),
    [(0, 10, 0.0), (1, 1, 0.05), (3, 3, 0.05 ** (1 / 3)), (10, 10, 0.05**0.1), (1, 100, 1 - 0.95**0.01)],
)
def test_lower_bound_by_hand(count: int, trials: int, expected: float) -> None:
    assert lower_bound(count, trials) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("least", "trials", "rate", "expected"),
    [
        (0, 5, 0.3, 1.0),
        (6, 5, 0.3, 0.0),
        (1, 5, 0.0, 0.0),
        (5, 5, 1.0, 1.0),
        (5, 5, 0.5, 1 / 32),
        (1, 5, 0.5, 31 / 32),
        (2, 3, 0.25, 3 * 0.25**2 * 0.75 + 0.25**3),
    ],
)
def test_binomial_tail_by_hand(least: int, trials: int, rate: float, expected: float) -> None:
    assert binomial_tail(least, trials, rate) == pytest.approx(expected, rel=1e-12)


def test_the_exact_sums_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for trials in (1, 7, 100, 5_000, 2_000_000):
        for share in (1e-6, 0.001, 0.02, 0.5, 0.999):
            for count in {1, 3, math.ceil(trials * share), min(trials, math.ceil(trials * share * 1.5) + 3)}:
                if count > trials:
                    continue
                expected = float(stats.binom.sf(count - 1, trials, share))
                assert binomial_tail(count, trials, share) == pytest.approx(expected, rel=1e-6, abs=1e-300)
                wanted = float(stats.beta.ppf(0.05, count, trials - count + 1))
                assert lower_bound(count, trials) == pytest.approx(wanted, rel=1e-6)


@given(st.integers(1, 400), st.integers(0, 400), st.floats(0.0001, 0.9999))
def test_more_successes_are_less_likely_and_bound_higher(count: int, more: int, rate: float) -> None:
    trials = count + more + 1
    assert 0 <= binomial_tail(count + 1, trials, rate) <= binomial_tail(count, trials, rate) <= 1
    assert lower_bound(count, trials) < lower_bound(count + 1, trials)
    assert lower_bound(count, trials) < count / trials


@pytest.mark.parametrize(
    ("wrong", "lookups", "bound", "broken"),
    [
        (2, 2, 5.0, False),  # Too few reports, whatever the rate.
        (3, 0, 5.0, True),  # Lookups that a kill lost.
        (3, 100, 5.0, True),  # At least 8.2 per 1,000.
        (3, 164, 5.0, True),
        (3, 165, 5.0, False),  # At least 4.97.
        (3, 1000, 5.0, False),
        (10, 1000, 5.0, True),
        (9, 1000, 5.0, False),  # At least 4.7 per 1,000.
        (9, 1000, 4.0, True),
        (1000, 1000, 1000.0, False),  # Nothing is above everything.
    ],
)
def test_what_breaks_a_bound(wrong: int, lookups: int, bound: float, broken: bool) -> None:
    reason = broken_bound(wrong, lookups, bound)
    assert bool(reason) == broken
    if broken:
        assert f"{wrong} of {max(wrong, lookups)} lookups" in reason
        assert f"the bound is {bound:g}" in reason


def test_a_namespace_that_breaks_its_bound_is_suspended_until_restored() -> None:
    evidence = Evidence()
    looked(evidence, 100)
    assert [event["kind"] for event in told(evidence, 5, 2)] == ["report"] * 7
    assert not evidence.is_suspended("acme", "shop")
    events = told(evidence, 0, 1)
    assert [event["kind"] for event in events] == ["report", "suspended"]
    assert "3 of 100" in evidence.is_suspended("acme", "shop")
    assert told(evidence, 0, 1)[1:] == [], "it says so once"
    assert not evidence.is_suspended("acme", "other")
    assert not evidence.is_suspended("evil", "shop")
    assert [event["kind"] for event in evidence.restore("acme", "shop")] == ["restored"]
    assert evidence.restore("acme", "shop") == [], "idempotent"
    assert evidence.is_suspended("acme", "shop") == ""
    assert (evidence.standing("acme", "shop").lookups, evidence.standing("acme", "shop").wrong) == (0, 0)
    assert evidence.error_factor("acme", "shop", "e1") == 1.0


def test_many_good_lookups_carry_a_few_wrong_ones() -> None:
    evidence = Evidence()
    looked(evidence, 1000)
    told(evidence, 0, 4)
    assert not evidence.is_suspended("acme", "shop")


@pytest.mark.parametrize(
    ("served", "wrong", "wrong_here", "suspended"),
    [(Served.SEMANTIC, 5, 5, True), (Served.ELSEWHERE, 5, 0, False), (Served.EXACT, 0, 0, False)],
)
def test_only_hits_by_meaning_of_this_replica_count_against_the_bound(
    served: Served, wrong: int, wrong_here: int, suspended: bool
) -> None:
    evidence = Evidence()
    looked(evidence, 10)
    told(evidence, 0, 5, served=served)
    standing = evidence.standing("acme", "shop")
    assert (standing.wrong, standing.wrong_here, bool(standing.suspended)) == (wrong, wrong_here, suspended)
    assert evidence.entry_counts("acme", "e1").wrong == 5
    assert (evidence.error_factor("acme", "shop", "e1") > 1) == (served is not Served.EXACT)


def test_one_report_counts_once() -> None:
    evidence = Evidence()
    assert evidence.report(report(False, report="r"), 5.0)
    assert evidence.report(report(False, report="r"), 5.0) == []
    assert evidence.report(report(False, report="r", tenant="other"), 5.0), "ids are the tenant's own"
    assert evidence.standing("acme", "shop").wrong == 1
    assert evidence.report(report(False), 5.0)
    assert evidence.report(report(False), 5.0), "without an id every call counts"
    assert evidence.standing("acme", "shop").wrong == 3


# Expected error .01: the prior is 0.5 wrong of 50; own ratio shrunk by 5.
@pytest.mark.parametrize(
    ("namespace", "entry", "expected"),
    [
        ((0, 0), (0, 0), 1.0),
        ((50, 0), (0, 0), 0.5),
        ((0, 1), (0, 0), (1.5 / 51) / 0.01),
        ((9, 1), (0, 0), (1.5 / 60) / 0.01),
        ((9, 1), (5, 0), (5 * (1.5 / 65) / 10) / 0.01),
        ((10, 0), (0, 1), ((1 + 5 * 1.5 / 61) / 6) / 0.01),
        ((100_000, 0), (0, 0), LEAST_FACTOR),
        ((0, 1_000), (0, 0), MOST_FACTOR),
    ],
)
def test_error_factor(namespace: tuple[int, int], entry: tuple[int, int], expected: float) -> None:
    evidence = Evidence(0.01)
    looked(evidence, 10**5)
    told(evidence, *namespace, entry_id="others")
    told(evidence, *entry, entry_id="e1")
    assert evidence.error_factor("acme", "shop", "e1") == pytest.approx(expected)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20), st.integers(0, 20))
def test_error_factor_is_bounded_and_monotone(right: int, wrong: int, own_right: int, own_wrong: int) -> None:
    def factor(right: int, wrong: int, own_right: int, own_wrong: int) -> float:
        evidence = Evidence(0.02)
        counts = {"kind": "namespace", "tenant": "acme", "namespace": "shop", "lookups": 0, "hits": 0, "wrong_here": 0}
        evidence.apply({**counts, "right": right, "wrong": wrong, "suspended": ""})
        own = {"kind": "entry", "tenant": "acme", "namespace": "shop", "entry": "e1", "right": 0, "wrong": 0}
        evidence.apply({**own, "semantic_right": own_right, "semantic_wrong": own_wrong})
        return evidence.error_factor("acme", "shop", "e1")

    base = factor(right, wrong, own_right, own_wrong)
    assert LEAST_FACTOR <= base <= MOST_FACTOR
    assert factor(right + 1, wrong, own_right, own_wrong) <= base
    assert factor(right, wrong + 1, own_right, own_wrong) >= base
    assert factor(right, wrong, own_right + 1, own_wrong) <= base
    assert factor(right, wrong, own_right, own_wrong + 1) >= base


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("looked"), st.sampled_from("ab"), st.sampled_from("xy"), st.booleans()),
        st.tuples(
            st.just("report"), st.sampled_from("ab"), st.sampled_from(["x", "y", ""]), st.booleans(),
            st.sampled_from(list(Served)), st.sampled_from(["", "r1", "r2", "r3"]), st.sampled_from("eft"),
        ),
        st.tuples(st.just("restore"), st.sampled_from("ab"), st.sampled_from("xy")),
    ),
    max_size=60,
)  # fmt: skip


@given(STEPS, st.integers(0, 60))
def test_replayed_events_and_a_snapshot_give_the_same_state(steps: list[tuple[object, ...]], cut: int) -> None:
    evidence, journal = Evidence(), []
    for number, step in enumerate(steps):
        kind, tenant, namespace, *rest = step
        assert isinstance(tenant, str)
        assert isinstance(namespace, str)
        if kind == "looked":
            evidence.looked(tenant, namespace, bool(rest[0]))
        elif kind == "report":
            correct, served, name, entry = rest
            taken = Report(tenant, namespace, str(entry), Served(str(served)), bool(correct), str(name))
            journal += evidence.take_looked() + evidence.report(taken, 5.0)
        else:
            journal += evidence.take_looked() + evidence.restore(tenant, namespace)
        if number == cut:  # A restart in between: the file is rewritten as a snapshot.
            evidence.take_looked()
            journal = list(evidence.snapshot())
    journal += evidence.take_looked()
    again = Evidence()
    for line in journal:
        again.apply(json.loads(json.dumps(line)))
    assert list(again.snapshot()) == list(evidence.snapshot())
    for tenant in "ab":
        for namespace in "xy":
            assert again.is_suspended(tenant, namespace) == evidence.is_suspended(tenant, namespace)
            assert again.error_factor(tenant, namespace, "e") == evidence.error_factor(tenant, namespace, "e")


def test_what_is_remembered_is_bounded_by_tenant_and_the_suspended_go_last() -> None:
    evidence = Evidence(max_namespaces=3, max_entries=2, max_reports=2)
    told(evidence, 0, 3, namespace="bad", tenant="acme")
    told(evidence, 0, 1, namespace="shop", tenant="other", report="theirs", entry_id="theirs")
    for number in range(50):
        evidence.looked("acme", f"n{number}", hit=False)
        told(evidence, 1, 0, namespace=f"n{number}", report=f"r{number}", entry_id=f"e{number}")
    assert len(evidence.namespaces("acme")) == 3
    assert evidence.is_suspended("acme", "bad")
    assert evidence.seen("acme", "r49") is not None
    assert evidence.seen("acme", "r0") is None
    assert sum(event["kind"] == "entry" and event["tenant"] == "acme" for event in evidence.snapshot()) == 2
    assert evidence.seen("other", "theirs") is not None, "one tenant's flood pushes out nothing of another's"
    assert evidence.standing("other", "shop").wrong == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("semantic:r1", ReportName(Served.SEMANTIC, "", "r1")),
        ("exact@shop:r1", ReportName(Served.EXACT, "shop", "r1")),
        ("elsewhere@a%3Ab%2F%ED%95%9C:r:2", ReportName(Served.ELSEWHERE, "a:b/한", "r:2")),
        ("semantic@shop:", ReportName(Served.SEMANTIC, "shop", "")),
        ("r1", ReportName(None, "", "r1")),
        ("other:r1", ReportName(None, "", "other:r1")),
        ("semantic", ReportName(None, "", "semantic")),
        ("", ReportName(None, "", "")),
    ],
)
def test_report_ids(text: str, expected: ReportName) -> None:
    assert parse_report_id(text) == expected


@pytest.mark.parametrize("event", [{}, {"kind": "x", "tenant": "a"}, {"kind": "looked", "tenant": "a"}, [], "x", 1])
def test_what_is_no_event_is_refused(event: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Evidence().apply(event)  # type: ignore[arg-type]  # On purpose.


@pytest.mark.parametrize("error", [0.0, 1.0, -1.0])
def test_an_impossible_expected_error_is_refused(error: float) -> None:
    with pytest.raises(ValueError, match="expected_error"):
        Evidence(error)
