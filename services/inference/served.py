"""A served model, and one attempt on it while it runs: its span, its meters, what it has spent."""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry.trace import Span
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2

from services.inference import convert
from services.inference.attempts import timestamp
from services.inference.backend import Backend
from services.inference.batch_items import ProviderBatches
from services.inference.circuits import SharedCircuit
from services.inference.hedging import NUMBER_OFFSET
from services.inference.models import Model
from services.inference.policy import Circuit, Generation, Meter
from services.inference.usage import Usage


@dataclass(frozen=True, slots=True)
class ServedBatches:
    """The batch interface of a model's provider, and how it is doing, apart from the online one."""

    provider: ProviderBatches
    circuit: Circuit | SharedCircuit


@dataclass(slots=True)
class Served:
    """A catalogue model, what runs it, and how it is doing; ``batches`` None: its provider takes none."""

    model: Model
    backend: Backend
    circuit: Circuit | SharedCircuit
    running: int = 0
    batches: ServedBatches | None = None


class Attempt:
    """One attempt in progress: its span, its meter, its records."""

    __slots__ = ("first_token_seconds", "generation", "meter", "served", "span", "started")

    def __init__(self, generation: Generation, served: Served, span: Span, meter: Meter, started: float) -> None:
        self.generation = generation
        self.served = served
        self.span = span
        self.started = started
        self.meter = meter
        self.first_token_seconds: float | None = None

    def first_token(self, now: float) -> None:
        """Note when the first piece came, by the servicer's clock (seconds)."""
        if self.first_token_seconds is None:
            self.first_token_seconds = now - self.started

    @property
    def answered_beside(self) -> int:
        """The number of the attempt that answered, where it was the second one; else 0."""
        return self.generation.attempt + NUMBER_OFFSET if self.meter.second_won else 0

    def beside(self) -> list[receipt_pb2.OverheadItem]:
        """What an attempt that lost against the answer's has spent."""
        loser = self.meter.loser
        number = self.generation.attempt + (0 if self.meter.second_won else NUMBER_OFFSET)
        return self.spent(loser, number, "hedged_attempt") if loser is not None else []

    def spent(self, meter: Meter, number: int, kind: str) -> list[receipt_pb2.OverheadItem]:
        """One item, or nothing where nothing was spent."""
        usage = meter.usage()
        if usage == Usage():
            return []
        item = receipt_pb2.OverheadItem(
            kind=kind,
            model=self.generation.model,
            usage=convert.usage_to_proto(usage),
            attempt=number,
            quantized=self.served.backend.quantized,
        )
        return [item]


def numbered(event: ledger_pb2.AttemptEvent, number: int, now: float) -> ledger_pb2.AttemptEvent:
    """The same event of another attempt, at another time (seconds since 1970)."""
    other = ledger_pb2.AttemptEvent()
    other.CopyFrom(event)
    other.attempt = number
    other.event_time.CopyFrom(timestamp(now))
    return other
