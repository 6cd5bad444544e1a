"""``tenth plan breakeven``, ``tenth idle`` and ``tenth savings``: own hardware and what is measured, over RPC alone."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from tenth_client.money import percent, usd
from tenth_client.rpc import Rpc
from tenth_client.times import parse_time

_READ = ledger_pb2_grpc.LedgerReadServiceStub
_SHOWN = 25
CONTROL_TAG = "tenth.control"
"""Tag of the requests that could have been drawn into the control share, whichever side they are on."""


def breakeven_arguments(sub: argparse.ArgumentParser) -> None:
    """The arguments of ``tenth plan breakeven``."""
    sub.add_argument("--hardware", required=True, help="the price book's name of its hour: gpu:KIND or cpu")
    sub.add_argument("--count", type=int, default=1, help="how many GPUs or cores (default: %(default)s)")
    sub.add_argument(
        "--output-tps", type=float, required=True, help="measured output tokens per second of all of them, saturated"
    )
    sub.add_argument(
        "--input-tps", type=float, required=True, help="measured input tokens per second of all of them, saturated"
    )
    sub.add_argument("--input", type=int, required=True, metavar="TOKENS", help="average input of a request")
    sub.add_argument("--output", type=int, required=True, metavar="TOKENS", help="average output of a request")
    sub.add_argument(
        "--paid-share", type=float, default=1.0, help="share of the hours paid for, above 0 to 1 (default: %(default)s)"
    )
    sub.add_argument("--match", default="", metavar="TEXT", help="only models with this in their name")
    sub.add_argument("--all", action="store_true", help=f"every model of the book, not the first {_SHOWN}")


def idle_arguments(sub: argparse.ArgumentParser) -> None:
    """The arguments of ``tenth idle``."""
    sub.add_argument("--since", default="", metavar="DATE", help="from this time (ISO 8601, UTC; default: 31 days)")
    sub.add_argument("--until", default="", metavar="DATE", help="before this time (ISO 8601, UTC; default: now)")


def savings_arguments(sub: argparse.ArgumentParser) -> None:
    """The arguments of ``tenth savings``."""
    sub.add_argument("--since", default="", metavar="DATE", help="from this time (ISO 8601, UTC)")
    sub.add_argument("--until", default="", metavar="DATE", help="before this time (ISO 8601, UTC)")
    sub.add_argument("--tenant", default="", help="only this tenant")
    sub.add_argument("--user", default="", help="only this user's requests")
    sub.add_argument("--project", default="", help="only this project's requests")
    sub.add_argument("--confidence", type=float, default=0.95, help="of the interval, 0.5 to 0.999 (default: 0.95)")
    sub.add_argument(
        "--all",
        action="store_true",
        help="compare with every other request, those too that could not be drawn (a model named, the cache off, ...)",
    )


async def breakeven(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """From which traffic on own hardware beats each API price. Raises ValueError for a share of nothing."""
    if arguments.paid_share == 0:
        raise ValueError("--paid-share 0: hardware that is never paid for serves nobody")
    request = ledger_pb2.PlanBreakEvenRequest(
        hardware=arguments.hardware,
        unit_count=arguments.count,
        output_tokens_per_second=arguments.output_tps,
        input_tokens_per_second=arguments.input_tps,
        input_token_count=arguments.input,
        output_token_count=arguments.output,
        paid_share=arguments.paid_share,
    )
    plan = await rpc.call("ledger", _READ, "PlanBreakEven", request)
    prices = await rpc.call("ledger", _READ, "ListPrices", ledger_pb2.ListPricesRequest(model=arguments.hardware))
    console.print(
        f"{arguments.count} x {arguments.hardware}: {usd(plan.day_nano_usd, 2)} a day, busy or idle. It can serve "
        f"{plan.capacity_per_day:,.0f} requests a day of {arguments.input:,} input and {arguments.output:,} output "
        f"tokens; at full use one costs {usd(plan.request_nano_usd)}.",
        markup=False,
        soft_wrap=True,
    )
    for price in prices.prices:
        hour = price.gpu_hour_nano_usd or price.cpu_hour_nano_usd
        console.print(f"An hour of one: {usd(hour)} ({price.source}).", markup=False, soft_wrap=True)
    found = [each for each in plan.models if arguments.match in each.model]
    shown = found if arguments.all else found[:_SHOWN]
    table = Table(show_edge=False, pad_edge=False)
    for name in ("API model", "a request there", "own is cheaper from", "own hardware is then busy"):
        table.add_column(name, justify="left" if name == "API model" else "right", overflow="fold")
    for each in shown:
        table.add_row(each.model, usd(each.request_nano_usd), *_verdict(each, plan.request_nano_usd))
    console.print()
    console.print(table)
    if len(shown) < len(found):
        console.print(f"and {len(found) - len(shown)} more: --all, or --match TEXT")
    console.print(
        "\nAssumes: the list prices that the book holds now, without the API's cache or batch discounts; the "
        "throughput given, kept at every hour that is paid for; reading and writing take turns on the hardware; "
        "answers that are as good. Staff, power of machines of your own and spare machines are not in it.",
        soft_wrap=True,
    )
    return 0


def _verdict(model: ledger_pb2.BreakEven, own_nano_usd: int) -> tuple[str, str]:
    if model.requests_per_day:
        return f"{model.requests_per_day:,.0f} a day", f"{100 * model.utilization:.1f}%"
    if not model.request_nano_usd:
        return "never: it is free", "-"
    return "never", f"at 100% still {own_nano_usd / model.request_nano_usd:.1f}x its price"


async def idle(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """What own hardware cost while it was busy and while it was idle, by node."""
    request = ledger_pb2.GetIdleCostRequest()
    if arguments.since:
        request.start_time.CopyFrom(parse_time(arguments.since, "--since"))
    if arguments.until:
        request.end_time.CopyFrom(parse_time(arguments.until, "--until"))
    response = await rpc.call("ledger", _READ, "GetIdleCost", request, seconds=60)
    if not response.nodes:
        console.print("no own hardware reported in this time")
        return 0
    table = Table(show_edge=False, pad_edge=False)
    for name in ("node", "hardware", "hours known", "busy", "cost while busy", "cost while idle"):
        table.add_column(name, justify="left" if name in ("node", "hardware") else "right", overflow="fold")
    for node in response.nodes:
        hours = node.duration.ToNanoseconds() / 3.6e12
        money = (usd(node.busy_nano_usd), usd(node.idle_nano_usd))
        table.add_row(node.node, node.hardware, f"{hours:,.2f}", f"{100 * node.busy_share:.1f}%", *money)
    console.print(table)
    busy = sum(node.busy_nano_usd for node in response.nodes)
    share = percent(response.idle_nano_usd, busy + response.idle_nano_usd)
    console.print(f"\nidle: {usd(response.idle_nano_usd)}, {share} of what the hardware cost in the time that is known")
    return 0


async def savings(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """What the control share says about the savings, in words."""
    request = ledger_pb2.GetMeasuredSavingsRequest(confidence=arguments.confidence)
    which = request.filter
    which.tenant_id, which.user_id, which.project_id = arguments.tenant, arguments.user, arguments.project
    if arguments.since:
        which.start_time.CopyFrom(parse_time(arguments.since, "--since"))
    if arguments.until:
        which.end_time.CopyFrom(parse_time(arguments.until, "--until"))
    if not arguments.all:
        which.tag_key = CONTROL_TAG
    found = await rpc.call("ledger", _READ, "GetMeasuredSavings", request, seconds=60)
    for line in words(found, arguments.confidence):
        console.print(line, markup=False, soft_wrap=True)
    return 0


def words(found: ledger_pb2.GetMeasuredSavingsResponse, confidence: float) -> list[str]:
    """The measurement in sentences."""
    control, treated = (
        f"{count:,} requests, {usd(round(mean))} each"
        for count, mean in (
            (found.control_count, found.control_mean_nano_usd),
            (found.treated_count, found.treated_mean_nano_usd),
        )
    )
    lines = [
        f"Really sent to the baseline model (the control share): {control}.",
        f"The others, with every layer and all overhead: {treated}.",
    ]
    if not found.measured:
        few = min(found.control_count, found.treated_count) < 2
        why = "one side has fewer than two requests" if few else "the control share's costs are too few or too uneven"
        return [*lines, f"Nothing can be said yet: {why}. A tenant's control_share sets how many are drawn (0: none)."]
    low, high = found.saving_low, found.saving_high
    verdict = "saved" if found.saving >= 0 else "cost more:"
    lines.append(
        f"Measured: the layers {verdict} {_share(abs(found.saving))}. With {100 * confidence:g}% confidence the saving "
        f"lies between {_share(low)} and {_share(high)}."
    )
    if low <= 0 <= high:
        lines.append("Zero lies within: whether they save at all is not shown yet.")
    stated = found.stated_saving
    if low <= stated <= high:
        lines.append(f"The receipts of the others state {_share(stated)}, which agrees.")
    else:
        side = "more" if stated > high else "less"
        lines.append(
            f"The receipts of the others state {_share(stated)}, {side} than was measured: the baseline model may "
            "write longer or shorter answers than the models that replaced it, whose tokens the receipts count."
        )
    return lines


def _share(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:.1f}%"
