"""Learning from settled usage: what an RPC hands over after a provider billed a call."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from services.compressor.corrections import Corrections

log = logging.getLogger("tenth.compressor.tokens")


class CorrectionStore(Protocol):
    """Keeps learned corrections between runs."""

    def save(self, text: str) -> None:
        """Keep this JSON in place of what was kept. May block; raises OSError."""
        ...


class SettledUsage:
    """Feeds corrections, and keeps them when a factor changed (rarely, so every sample is not written)."""

    def __init__(self, corrections: Corrections, store: CorrectionStore | None) -> None:
        """Without a store, factors are learned anew by each process."""
        self._corrections = corrections
        self._store = store
        self._saving = asyncio.Lock()

    async def learn(self, model: str, told_tokens: int, billed_tokens: int, correction: float | None = None) -> None:
        """One settled call: the count that was told for its prompt and the input tokens billed, cached ones included.

        ``correction`` is the factor that the told count already had (``ModelCounter.correction``); without it, today's
        is taken, which is wrong for the few calls in flight while a factor changes. Never raises for a failing store.
        """
        used = self._corrections.factor(model) if correction is None else correction
        if used <= 0 or not self._corrections.observe(model, round(told_tokens / used), billed_tokens):
            return
        log.info("tokens of %s are now corrected by %.3f", model, self._corrections.factor(model))
        if self._store is None:
            return
        async with self._saving:
            try:
                await asyncio.to_thread(self._store.save, self._corrections.to_json())
            except OSError as error:
                log.warning("the token corrections could not be kept: %s", error)
