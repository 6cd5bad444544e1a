"""What every way of generating text has in common.

One Protocol, so that an engine of another kind (vLLM's AsyncLLM on CUDA, several engines behind Ray) is one more class
and nothing else changes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from mesh.errors import TenthError
from services.inference.policy import Delta, Event, Finished, Generation, Meter


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. ``first_token_seconds`` counts from the call; None: not known, it came in one piece."""

    delta: Delta
    finished: Finished
    first_token_seconds: float | None = None


class Backend(Protocol):
    """Generates text for one catalogue model.

    Both methods keep ``meter`` up to date while they work, raise TenthError on failure, and stop the generation when
    they are cancelled or the iterator is closed.
    """

    kind: str
    """"vllm", "openai", "azure" or "anthropic"."""
    provider: str
    """The provider as shown to people, e.g. "openai (sandbox)"."""
    provider_model: str
    """The model's name at the provider."""
    quantized: bool
    """True when it runs quantized on own hardware."""

    bills_abandoned: bool
    """True when a whole answer costs the same whether anybody waits for it or not."""

    async def generate(self, generation: Generation, meter: Meter) -> Answer:
        """The whole answer."""
        ...

    def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event]:
        """Pieces as they come, then exactly one Finished."""
        ...

    def unavailable_reason(self) -> str:
        """Why it cannot work now, for a person; empty when it can."""
        ...

    def unavailable_error(self) -> TenthError | None:
        """The same as an error with its reason; None when it can work."""
        ...
