"""LoRA adapters of the local model: whether a folder holds one, and a Backend that answers with one put on."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path

from mesh.errors import Code, TenthError
from services.inference.backend import Answer, Backend
from services.inference.errors import Reason
from services.inference.model_folder import FolderError, header
from services.inference.policy import Event, Generation, Meter

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM's engine can be set up for; a smaller one runs in the next larger."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter (Hu et al., arXiv:2106.09685) in PEFT's form; ``number`` from 1, unique in the engine."""

    name: str
    folder: Path
    rank: int
    number: int


def read_adapter(name: str, folder: Path, number: int) -> Adapter:
    """The adapter in a folder. Raises ADAPTER_UNAVAILABLE saying what to do."""

    def unusable(said: str) -> TenthError:
        return TenthError(Code.UNAVAILABLE, Reason.ADAPTER_UNAVAILABLE, f"the adapter {name!r}: {said}")

    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except OSError:
        raise unusable(
            f"there is no {file}; save the adapter there (PEFT's save_pretrained), or take the key `adapter` off the "
            "model's catalogue entry"
        ) from None
    except ValueError:
        raise unusable(f"{file} is not JSON; save the adapter again") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise unusable(f"{file} is of no LoRA adapter (peft_type); the engine takes no other kind")
    rank = config.get("r")
    if not isinstance(rank, int) or not 0 < rank <= RANKS[-1]:
        raise unusable(f"its rank is {rank!r}; the engine takes 1 to {RANKS[-1]}")
    if not any((folder / each).is_file() for each in ("adapter_model.safetensors", "adapter_model.bin")):
        raise unusable(f"{folder} has no adapter_model.safetensors; save the adapter again")
    weights = folder / "adapter_model.safetensors"
    if weights.is_file():
        try:
            header(weights)
        except FolderError as error:
            raise unusable(str(error)) from error
    return Adapter(name, folder, rank, number)


def engine_rank(adapters: tuple[Adapter, ...]) -> int:
    """The rank that an engine for these adapters is set up for."""
    most = max(adapter.rank for adapter in adapters)
    return next(rank for rank in RANKS if rank >= most)


class AdaptedBackend:
    """The local engine's Backend with an adapter put on; the engine serves the plain model beside it."""

    def __init__(self, backend: Backend, adapter: str) -> None:
        self.inner = backend
        self._adapter = adapter
        self.kind = backend.kind
        self.provider = backend.provider
        self.provider_model = f"{backend.provider_model}+{adapter}"
        self.quantized = backend.quantized
        self.bills_abandoned = backend.bills_abandoned

    def unavailable_reason(self) -> str:
        """The engine's."""
        return self.inner.unavailable_reason()

    def unavailable_error(self) -> TenthError | None:
        """The engine's."""
        return self.inner.unavailable_error()

    async def generate(self, generation: Generation, meter: Meter) -> Answer:
        """The whole answer."""
        return await self.inner.generate(replace(generation, adapter=self._adapter), meter)

    def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event]:
        """Pieces as the engine makes them."""
        return self.inner.stream(replace(generation, adapter=self._adapter), meter)
