"""A model's circuit and its provider's, as one. Pure.

What is wrong with a connection or a key is wrong for every model of the provider: it opens the provider's circuit, so
that others do not each have to find it out. Everything else (an error status, garbage) opens the model's own.
"""

from __future__ import annotations

from services.inference.errors import Reason
from services.inference.policy import Circuit

_OF_THE_PROVIDER = frozenset({Reason.PROVIDER_UNREACHABLE, Reason.PROVIDER_UNAUTHENTICATED})
_SAYS_NOTHING = frozenset({Reason.PROVIDER_TIMEOUT, Reason.PROVIDER_STALLED, Reason.PROVIDER_INCOMPLETE})
"""Failures after which nobody knows whether the provider would take another model's call."""


class SharedCircuit:
    """Whether calls to one model make sense now, its provider's state counted in; as ``Circuit`` is used."""

    def __init__(self, own: Circuit, provider: Circuit) -> None:
        """``provider`` is shared by the provider's models."""
        self._own = own
        self._provider = provider

    @property
    def healthy(self) -> bool:
        """True while both are."""
        return self._own.healthy and self._provider.healthy

    @property
    def reason(self) -> str:
        """Why not."""
        return self._own.reason or self._provider.reason

    def wait_seconds(self, now: float) -> float:
        """0 when a call may be made (the caller must then report how it went), else how long to wait."""
        wait = self._provider.wait_seconds(now)
        if wait:
            return wait
        wait = self._own.wait_seconds(now)
        if wait:
            self._provider.left()
        return wait

    def succeeded(self) -> None:
        """A call went well."""
        self._own.succeeded()
        self._provider.succeeded()

    def failed(self, now: float, reason: str) -> None:
        """A call failed through the provider's fault; ``reason`` begins with the error's."""
        self._own.failed(now, reason)
        what = reason.partition(" ")[0]
        if what in _OF_THE_PROVIDER:
            self._provider.failed(now, reason)
        elif what in _SAYS_NOTHING:
            self._provider.left()
        else:
            self._provider.succeeded()  # It was reached and it answered.

    def left(self) -> None:
        """A call ended without saying anything about the provider (cancelled, the caller's mistake)."""
        self._own.left()
        self._provider.left()
