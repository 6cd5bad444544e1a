"""A catalogue model that cannot be served here, and why."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from mesh.errors import Code, TenthError
from services.inference.backend import Answer
from services.inference.errors import Reason
from services.inference.models import Model
from services.inference.policy import Event, Generation, Meter


class UnavailableBackend:
    """Refuses everything with its reason."""

    quantized = False
    bills_abandoned = False

    def __init__(self, model: Model, kind: str, reason: str, code: Reason | None = None) -> None:
        """``reason`` is for people; ``code`` None: by ``kind``."""
        self._code = code
        self.kind = kind
        self.provider = model.provider.name
        self.provider_model = model.provider_model
        self._model = model.name
        self._reason = reason

    def unavailable_reason(self) -> str:
        """Why."""
        return self._reason

    async def generate(self, generation: Generation, meter: Meter) -> Answer:
        """Raises."""
        raise self.unavailable_error()

    async def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event]:
        """Raises."""
        raise self.unavailable_error()
        yield  # Makes this a generator.

    def unavailable_error(self) -> TenthError:
        """Why, with a reason: a provider without a key is not configured, a local model not served here."""
        reason = self._code or (Reason.MODEL_UNAVAILABLE if self.kind == "vllm" else Reason.PROVIDER_NOT_CONFIGURED)
        return TenthError(Code.UNAVAILABLE, reason, f"{self._model}: {self._reason}")
