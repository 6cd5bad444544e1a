"""A second computation of a price, in Decimal and by another way, to hold the first one against."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, localcontext

from mesh.receipt import Price, Usage


def decimal_cost(
    price: Price, usage: Usage, *, batch: bool = False, flex: bool = False, quantized: bool = False
) -> int:
    """What a usage costs, nano-USD: one exact sum over one denominator, divided and rounded once."""
    per = {
        name: getattr(price, name) for name in ("input", "output", "cached_input", "cache_write_5m", "cache_write_1h")
    }
    for step in price.steps:
        if step.above < usage.input:
            for name in per:
                if getattr(step, name) is not None:
                    per[name] = getattr(step, name)
                else:
                    per[name] = getattr(price, name)
    rest = usage.input - usage.cached - usage.write_5m - usage.write_1h
    written = ((usage.cached, "cached_input"), (usage.write_5m, "cache_write_5m"), (usage.write_1h, "cache_write_1h"))
    money_in = rest * per["input"] + sum(
        count * (per["input"] if per[name] is None else per[name]) for count, name in written
    )
    thought = per["output"] if price.reasoning_output is None else price.reasoning_output
    money_out = (usage.output - usage.reasoning) * per["output"] + usage.reasoning * thought
    over_in = over_out = 1
    for applies, name in ((batch, "batch"), (flex and not batch, "flex"), (quantized, "quantized")):
        part_in, part_out = getattr(price, f"{name}_input"), getattr(price, f"{name}_output")
        if applies and part_in is not None and price.input:
            money_in, over_in = money_in * part_in, over_in * price.input
        if applies and part_out is not None and price.output:
            money_out, over_out = money_out * part_out, over_out * price.output
    with localcontext() as context:
        context.prec = 400
        sum_in, sum_out = Decimal(money_in) * over_out, Decimal(money_out) * over_in
        exact = (sum_in + sum_out) / (Decimal(over_in) * over_out * 1_000_000)
        return int(exact.quantize(Decimal(1), ROUND_HALF_EVEN)) + (price.request_fee or 0)
