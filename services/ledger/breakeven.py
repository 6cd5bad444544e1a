"""From which traffic on own hardware is cheaper than each API model. Pure arithmetic on list prices.

The model: own hardware costs the same whether it works or not; an API costs by the request. The hardware's input and
output throughput are measured apart, each saturated, and a request takes its share of both in turn. So

    seconds of a request = input tokens / input rate + output tokens / output rate
    requests a day       = paid seconds of a day / seconds of a request
    break-even           = cost of the hardware a day / price of the request at the API

and where the break-even is more than the hardware can serve, more hardware does not help: it costs more in the same
proportion. People, power for owned machines and the answers' quality are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

from mesh.errors import Code, TenthError, invalid_argument
from mesh.money import MAX_NANO_USD, round_half_even
from mesh.receipt import AMOUNT_OUT_OF_RANGE, CPU, Price, PriceBook, Usage, actual_cost
from services.ledger.hardware import check_hardware, check_units
from services.ledger.prices import GPU_PREFIX

_DAY_SECONDS = 86_400
_FASTEST = 1e9
_LONGEST = 10**9


@dataclass(frozen=True, slots=True)
class Machine:
    """Own hardware as a whole: rates are those of all its units together, tokens per second.

    ``paid_share`` is the share of the hours that are paid for (and served in), above 0 to 1; 0 stands for 1.
    """

    hardware: str
    unit_count: int
    output_rate: float
    input_rate: float
    paid_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """The average request, tokens."""

    input: int
    output: int


@dataclass(frozen=True, slots=True)
class BreakEven:
    """One API model. ``requests_per_day`` 0: own hardware never is cheaper, ``beyond_capacity`` says why."""

    model: str
    request_cost: int
    requests_per_day: float
    utilization: float
    beyond_capacity: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The hardware's cost a day, what it can serve, what a request costs at full use, and each API model."""

    day_cost: int
    capacity_per_day: float
    request_cost: int
    models: tuple[BreakEven, ...]


def check(machine: Machine, request: Request) -> None:
    """Refuse figures that are not positive and finite, naming the field."""
    check_hardware(machine.hardware, "request.hardware")
    check_units(machine.unit_count, "request.unit_count")
    for field, rate in (
        ("output_tokens_per_second", machine.output_rate),
        ("input_tokens_per_second", machine.input_rate),
    ):
        if not (math.isfinite(rate) and 0 < rate <= _FASTEST):
            raise invalid_argument(f"{rate} is not above 0 and up to {_FASTEST:.0f}", field=f"request.{field}")
    for field, count in (("input_token_count", request.input), ("output_token_count", request.output)):
        if not 1 <= count <= _LONGEST:
            raise invalid_argument(f"{count} is not within 1..{_LONGEST}", field=f"request.{field}")
    if not (math.isfinite(machine.paid_share) and 0 <= machine.paid_share <= 1):
        raise invalid_argument(f"{machine.paid_share} is not within 0..1", field="request.paid_share")


def plan(machine: Machine, request: Request, book: PriceBook, hour_price: int, own: Collection[str] = ()) -> Plan:
    """Compare with every API model of the book that makes text at a confirmed price.

    ``hour_price`` is nano-USD for an hour of one unit; ``own`` names self-hosted models, which are left out, as are
    hardware and embeddings. The earliest break-even comes first, models never beaten last. Raises INVALID_FIELD,
    and AMOUNT_OUT_OF_RANGE for amounts past int64.
    """
    check(machine, request)
    paid = Fraction(machine.paid_share) or Fraction(1)
    seconds = request.input / Fraction(machine.input_rate) + request.output / Fraction(machine.output_rate)
    capacity = _DAY_SECONDS * paid / seconds
    day = hour_price * machine.unit_count * 24 * paid
    usage = Usage(request.input, request.output)
    found = [
        _compare(price.model, actual_cost(price, usage), day, capacity)
        for price in book.values()
        if _is_api(price) and price.model not in own
    ]
    found.sort(key=lambda each: (not each.requests_per_day, each.requests_per_day, -each.request_cost, each.model))
    return Plan(_amount(day), float(capacity), _amount(day / capacity), tuple(found))


def _is_api(price: Price) -> bool:
    """True for a model that makes text for money: embeddings have no output price, own models one of quantization."""
    hardware = price.model == CPU or price.model.startswith(GPU_PREFIX) or price.cpu_hour or price.gpu_hour
    own = price.quantized_input is not None or price.quantized_output is not None
    return price.confirmed and price.output > 0 and not hardware and not own


def _compare(model: str, cost: int, day: Fraction, capacity: Fraction) -> BreakEven:
    per_day = day / cost if cost else None
    if per_day is None or per_day > capacity:
        return BreakEven(model, cost, 0.0, 0.0, beyond_capacity=per_day is not None)
    return BreakEven(model, cost, float(per_day), float(per_day / capacity), beyond_capacity=False)


def _amount(exact: Fraction) -> int:
    amount = round_half_even(exact)
    if amount > MAX_NANO_USD:
        raise TenthError(Code.OUT_OF_RANGE, AMOUNT_OUT_OF_RANGE, "the amount does not fit 64 bits", "request")
    return amount
