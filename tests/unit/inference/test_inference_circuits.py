"""A model's circuit and its provider's: what opens which, and who probes."""

from __future__ import annotations

import pytest

from services.inference.circuits import SharedCircuit
from services.inference.policy import Circuit


def models() -> tuple[SharedCircuit, SharedCircuit]:
    provider = Circuit(2, 3.0)
    return SharedCircuit(Circuit(2, 3.0), provider), SharedCircuit(Circuit(2, 3.0), provider)


@pytest.mark.parametrize("reason", ["PROVIDER_UNREACHABLE", "PROVIDER_UNAUTHENTICATED (HTTP 401)"])
def test_what_is_wrong_for_all_closes_the_provider_for_all(reason: str) -> None:
    first, second = models()
    first.failed(0, reason)
    second.failed(0, reason)
    assert not first.healthy
    assert first.wait_seconds(1) == 2
    assert second.wait_seconds(1) == 2
    # One probes for all, whichever model it is for.
    assert second.wait_seconds(3) == 0
    assert first.wait_seconds(3) > 0
    second.succeeded()
    assert first.wait_seconds(3) == 0
    first.succeeded()
    assert first.healthy
    assert second.healthy


def test_what_is_wrong_with_one_model_leaves_the_others_alone() -> None:
    first, second = models()
    for _ in range(3):
        first.failed(0, "PROVIDER_FAILED (HTTP 500)")
    assert not first.healthy
    assert first.reason == "PROVIDER_FAILED (HTTP 500)"
    assert second.healthy
    assert second.wait_seconds(0) == 0


def test_an_error_status_shows_that_the_provider_is_there_and_a_timeout_shows_nothing() -> None:
    first, second = models()
    first.failed(0, "PROVIDER_UNREACHABLE")
    second.failed(0, "PROVIDER_TIMEOUT")
    first.failed(0, "PROVIDER_UNREACHABLE")
    assert second.wait_seconds(1) == 2
    assert second.wait_seconds(3) == 0
    second.failed(3, "PROVIDER_FAILED (HTTP 500)")
    second.succeeded()
    assert second.healthy


def test_a_model_that_waits_for_its_own_probe_gives_the_providers_back() -> None:
    first, second = models()
    for each in (first, second):
        each.failed(0, "PROVIDER_UNREACHABLE")
    first.failed(2, "PROVIDER_GARBAGE")  # Its own opens, and the provider was reached.
    assert first.wait_seconds(3) == 2
    assert second.wait_seconds(3) == 0


def test_a_probe_that_says_nothing_lets_another_one_through() -> None:
    first, second = models()
    for each in (first, second):
        each.failed(0, "PROVIDER_UNREACHABLE")
    assert first.wait_seconds(3) == 0
    assert second.wait_seconds(3) > 0
    first.left()
    assert second.wait_seconds(3) == 0
