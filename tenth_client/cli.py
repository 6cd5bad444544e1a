"""The ``tenth`` command: its arguments, and what runs for each."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from formats.openai import FormatError
from tenth_client import (
    batch_commands,
    budgets,
    cache_commands,
    commands,
    compress_command,
    model_commands,
    plans,
    prices,
    router_commands,
)
from tenth_client.batch_layer import missing_batch_layer
from tenth_client.capacity.command import capacity, capacity_arguments
from tenth_client.chat import ask, chat
from tenth_client.errors import TenthClientError
from tenth_client.local import missing_local_model
from tenth_client.money import usd
from tenth_client.processes import StartError
from tenth_client.reporting import commands as reporting
from tenth_client.up import Mesh, MeshOptions

_COLOURS = ("cyan", "green", "yellow", "blue", "magenta", "bright_cyan", "bright_green", "bright_yellow")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit status: 1 for a failure, 2 for wrong arguments."""
    parsed = parser().parse_args(arguments)
    # Piped output is not for a screen of 80 columns.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    try:
        status = asyncio.run(parsed.run(parsed, console))
    except TenthClientError as error:
        status = _fail(str(error))
        if error.spent is not None:
            print(f"request {error.spent.request_id} spent {usd(error.spent_nano_usd, 9)}", file=sys.stderr)
    except (FormatError, LookupError, StartError, FileNotFoundError, IsADirectoryError, ValueError) as error:
        status = _fail(str(error))
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    raise SystemExit(status)


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    top = argparse.ArgumentParser(prog="tenth", description="The same answers for a tenth of the price.")
    commands_of = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace, Console], Awaitable[int]], text: str
    ) -> argparse.ArgumentParser:
        sub = commands_of.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    up = add("up", _up, "start the whole mesh on this machine")
    up.add_argument(
        "--models-dir",
        type=Path,
        default=Path(os.environ.get("TENTH_MODELS_DIR", ".models")),
        help="model folders (default: %(default)s)",
    )
    up.add_argument(
        "--deploy-dir",
        type=Path,
        default=Path("deploy"),
        help="catalog.yaml, callers.yaml, namespaces.yaml, routing.yaml (default: %(default)s)",
    )
    up.add_argument("--no-model", action="store_true", help="without the local model")
    up.add_argument("--no-batch", action="store_true", help="without the batch layer (and Temporal)")
    up.add_argument(
        "--sandbox",
        choices=("auto", "off", "instant"),
        default="auto",
        help="who plays providers without a key: the local model (auto), canned text (instant), nobody (off)",
    )
    up.add_argument(
        "--replicas",
        action="append",
        default=[],
        metavar="SERVICE=N",
        help="several processes of a service; may be repeated",
    )
    up.add_argument("--free-ports", action="store_true", help="choose free ports instead of the usual ones")
    up.add_argument("--quiet", action="store_true", help="logs go to the files only")
    up.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("TENTH_DATA_DIR", ".data")),
        help="all durable files (default: %(default)s)",
    )

    with_rpc = commands.with_rpc
    for name, command, text in (
        ("ask", ask, "ask one question"),
        ("chat", chat, "talk to the mesh; every answer shows its model, cost and saving"),
    ):
        sub = _connected(add(name, with_rpc(command), text))
        sub.add_argument("--system", default="", help="standing instructions")
        sub.add_argument("--model", default="", help="a catalogue model that must answer")
        sub.add_argument("--max-tokens", type=int, default=0, help="most output tokens")
        sub.add_argument("--namespace", default="", help="the cache's namespace to ask in")
        sub.add_argument("--user", default="", help="the end user who asks")
        sub.add_argument("--no-cache", action="store_true", help="neither look up nor store")
        if name == "ask":
            sub.add_argument("question", help="the question; - reads it from standard input")

    trace = _connected(add("trace", with_rpc(commands.trace), "show a request's span tree with decisions and money"))
    trace.add_argument("id", help="trace id or request id")
    trace.add_argument("--all", action="store_true", help="client spans and every attribute too")

    replay = _connected(
        add("replay", with_rpc(commands.replay), "play a JSONL file of OpenAI-format requests and add the savings up")
    )
    replay.add_argument("file", type=Path, help="one request a line; also OpenAI's batch format")
    replay.add_argument("--concurrency", type=int, default=4, help="requests at a time (default: %(default)s)")
    replay.add_argument("--json", type=Path, metavar="OUT", help="write the sums there as well")

    _connected(add("status", with_rpc(commands.status), "health of every service, and the served models"))

    reporting.add_commands(lambda name, command, text: _connected(add(name, with_rpc(command), text)))

    switch = _connected(add("switch", with_rpc(commands.switch), "turn a layer off or on (kill switch)"))
    switch.add_argument("layer", choices=("cache", "routing", "compression", "batch"))
    switch.add_argument("state", choices=("on", "off"))
    switch.add_argument("--tenant", default="*", help='the tenant (default: "*", all)')

    budget = add("budget", _nothing, "budgets and where they stand").add_subparsers(metavar="ACTION", required=True)
    standing = _connected(budget.add_parser("list", help="budgets with what is spent and reserved"))
    standing.set_defaults(run=with_rpc(budgets.budget_list))
    standing.add_argument("--tenant", default="", help="the tenant (default: the caller's own)")
    setting = _connected(budget.add_parser("set", help="create or replace a budget"))
    setting.set_defaults(run=with_rpc(budgets.budget_set))
    setting.add_argument("name")
    setting.add_argument("--limit", required=True, metavar="USD", help="the limit in USD")
    setting.add_argument("--tenant", default="demo", help="the tenant (default: %(default)s)")
    setting.add_argument("--window", choices=("day", "week", "month", "total", "rolling"), default="month")
    setting.add_argument("--rolling", default="", metavar="LENGTH", help="with a rolling window: 30m, 12h, 7d, ...")
    setting.add_argument("--time-zone", default="UTC", help="IANA name (default: %(default)s)")
    setting.add_argument("--user", help="only this user's requests")
    setting.add_argument("--project", help="only this project's requests")
    setting.add_argument("--model", help="only this model's requests")
    setting.add_argument("--tag", metavar="KEY[=VALUE]", help="only requests with this tag")
    setting.add_argument("--soft", action="store_true", help="report only, refuse nothing")
    setting.add_argument(
        "--alert", type=int, nargs="+", default=[], metavar="PERCENT", help="alert when so much is spent"
    )
    setting.add_argument("--alert-url", default="", metavar="URL", help="where alerts are posted, https")
    setting.add_argument(
        "--ladder",
        default="",
        metavar="STEP=PERCENT,...",
        help="what is left before refusal: cache-only, batch, cheaper-tier, each from a percent of the limit on",
    )
    deleting = _connected(budget.add_parser("delete", help="delete a budget; callers.yaml must not name it any more"))
    deleting.set_defaults(run=with_rpc(budgets.budget_delete))
    deleting.add_argument("name")
    deleting.add_argument("--tenant", default="demo", help="the tenant (default: %(default)s)")

    explain = _connected(
        add("explain", with_rpc(commands.explain), "what each layer would do with a request; spends nothing")
    )
    explain.add_argument("request", metavar="FILE|TEXT", help="a JSON file in OpenAI's format, or a question")

    text = "what compression would cut of a prompt, in colours, with tokens and dollars; only --tokenwise spends"
    compress_command.add_arguments(_connected(add("compress", with_rpc(compress_command.compress), text)))

    receipt = _connected(add("receipt", with_rpc(commands.receipt), "the receipt of a request"))
    receipt.add_argument("id", help="request id")

    cache = add("cache", _nothing, "look into the semantic cache").add_subparsers(metavar="ACTION", required=True)

    def action_of(group: Any) -> Callable[[str, commands.Command, str], argparse.ArgumentParser]:
        def action(name: str, command: commands.Command, text: str) -> argparse.ArgumentParser:
            sub = _connected(group.add_parser(name, help=text, description=text))
            sub.set_defaults(run=with_rpc(command))
            return sub

        return action

    cache_commands.add_commands(action_of(cache))
    batch = add("batch", _nothing, "files of requests that can wait: submit, watch, results")
    batch_commands.add_commands(action_of(batch.add_subparsers(metavar="ACTION", required=True)))
    router = add("router", _nothing, "how routing does, and what another policy would do")
    router_commands.add_commands(action_of(router.add_subparsers(metavar="ACTION", required=True)))
    model = add("model", _nothing, "quantize model folders, and measure what that cost them")
    model_commands.add_commands(model.add_subparsers(metavar="ACTION", required=True))
    _price_commands(add)
    _plan_commands(add)
    return top


def _price_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """``tenth prices`` and ``tenth rate``."""
    actions = add("prices", _nothing, "the price book").add_subparsers(metavar="ACTION", required=True)

    def action(of: Any, name: str, command: commands.Command, text: str) -> argparse.ArgumentParser:
        sub = _connected(of.add_parser(name, help=text, description=text))
        sub.set_defaults(run=commands.with_rpc(command))
        return sub

    def begin(sub: argparse.ArgumentParser, text: str, *, required: bool = False) -> None:
        sub.add_argument("--from", dest="start", default="", metavar="DATE", required=required, help=text)

    file = action(actions, "import", prices.import_file, "compare a price file with the book; --apply adds it")
    file.add_argument("file", type=Path, help="LiteLLM's price map (JSON), or YAML as deploy/catalog.yaml; also gzip")
    file.add_argument("--format", choices=prices.FORMATS, default="", help="what it is (default: by the file's name)")
    file.add_argument("--source", default="", help="where it is from; needed for LiteLLM's map")
    begin(file, "when its prices begin to hold; needed for LiteLLM's map")
    file.add_argument("--apply", action="store_true", help="import it; without this only the diff is shown")
    file.add_argument("--all", action="store_true", help="show new, unchanged and skipped rows too")
    for option, text in (("take", "the file's price shall hold"), ("keep", "the book's price stays")):
        file.add_argument(f"--{option}", action="append", default=[], metavar="MODEL", help=f"{text}; '*' for all")
    file.add_argument("--only", action="append", default=[], metavar="MODEL", help="only this model of the file")
    shown = action(actions, "show", prices.show, "everything that the book says of a model")
    shown.add_argument("model")
    listed = action(actions, "list", prices.listing, "the prices that hold")
    listed.add_argument("--match", default="", metavar="TEXT", help="only models with this in their name")
    listed.add_argument("--unconfirmed", action="store_true", help="only those that wait for a person")
    for sub in (shown, listed):
        sub.add_argument("--at", default="", metavar="DATE", help="at this time (ISO 8601, UTC; default: now)")
    vouch = action(actions, "confirm", prices.confirm, "vouch for prices of zero, or others in doubt")
    vouch.add_argument("model", nargs="+")
    begin(vouch, "the price that began then (default: the one that holds now)")

    actions = add("rate", _nothing, "dated exchange rates for reports").add_subparsers(metavar="ACTION", required=True)
    rate = action(actions, "add", prices.rate_add, "add a rate; a rate is never changed, a later one takes its place")
    rate.add_argument("currency", help="ISO 4217 code, as KRW")
    rate.add_argument("units", help="units of it for one USD")
    begin(rate, "from when it holds", required=True)
    rate.add_argument("--source", required=True, help="where it is from")
    rates = action(actions, "list", prices.rate_list, "the rates")
    rates.add_argument("--currency", default="", help="only this currency")


def _plan_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """``tenth plan``, ``tenth idle`` and ``tenth savings``."""
    with_rpc = commands.with_rpc
    actions = add("plan", _nothing, "own hardware against API prices").add_subparsers(metavar="ACTION", required=True)
    text = "from which traffic on own hardware is cheaper than each API model"
    breakeven = actions.add_parser("breakeven", help=text, description=text)
    breakeven.set_defaults(run=with_rpc(plans.breakeven))
    plans.breakeven_arguments(_connected(breakeven))
    text = "what a model needs of a GPU: weights, KV cache, sequences at once, tensor-parallel degree, cost"
    capacity_of = actions.add_parser("capacity", help=text, description=text)
    capacity_of.set_defaults(run=capacity)
    capacity_arguments(_connected(capacity_of))
    plans.idle_arguments(_connected(add("idle", with_rpc(plans.idle), "what own hardware cost while it was idle")))
    text = "what a control share that was really sent to the baseline says about the savings"
    plans.savings_arguments(_connected(add("savings", with_rpc(plans.savings), text)))


def _connected(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
    group = sub.add_argument_group("connection", "by default from the environment, then from DATA_DIR/client.json")
    group.add_argument("--address", default="", help="orchestrator, host:port (TENTH_ADDRESS)")
    group.add_argument("--api-key", default="", help="API key (TENTH_API_KEY)")
    group.add_argument("--data-dir", type=Path, default=None, help="where `tenth up` keeps its files (default: .data)")
    group.add_argument("--tls-ca", type=Path, default=None, help="PEM roots")
    group.add_argument("--tls-cert", type=Path, default=None, help="PEM certificate, for mutual TLS")
    group.add_argument("--tls-key", type=Path, default=None, help="PEM key, for mutual TLS")
    return sub


async def _nothing(arguments: argparse.Namespace, console: Console) -> int:
    return 2


async def _up(arguments: argparse.Namespace, console: Console) -> int:
    absent = "" if arguments.no_model else missing_local_model(arguments.deploy_dir, arguments.models_dir)
    if absent:
        console.print(f"[yellow]without the local model:[/] {absent}")
    no_batch = "" if arguments.no_batch else missing_batch_layer()
    if no_batch:
        console.print(f"[yellow]without the batch layer:[/] {no_batch}", soft_wrap=True)
    options = MeshOptions(
        data_dir=arguments.data_dir,
        models_dir=arguments.models_dir,
        deploy_dir=arguments.deploy_dir,
        local_model=not (arguments.no_model or absent),
        sandbox=arguments.sandbox,
        batch=not (arguments.no_batch or no_batch),
        free_ports=arguments.free_ports,
        replicas=_counts(arguments.replicas),
    )
    mesh = Mesh(options, say=printer(console, quiet=arguments.quiet))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    starting = asyncio.create_task(mesh.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            announce(mesh, console)
            await stopping
        console.print("stopping")
    finally:
        starting.cancel()
        stopping.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await mesh.stop()
    return 0


def printer(console: Console, *, quiet: bool = False) -> Callable[[str, str], None]:
    """Prints log lines with the service's name before them, a colour for each; quiet keeps the supervisor's own."""
    colours: dict[str, str] = {}

    def say(name: str, line: str) -> None:
        if quiet and not line.startswith("[supervisor]"):
            return
        colour = colours.setdefault(name, _COLOURS[len(colours) % len(_COLOURS)])
        console.print(Text.assemble((f"{name:>14} ", colour), ("| ", "dim"), line), soft_wrap=True)

    return say


def announce(mesh: Mesh, console: Console) -> None:
    """Say where everything is."""
    for name, address in mesh.addresses.items():
        console.print(f"  {name:<13} {address}")
    if mesh.played_providers:
        who = ", ".join(mesh.played_providers)
        console.print(
            f"[bold yellow]sandbox:[/] no API key for {who}: PLAYED BY {mesh.played_by.upper()}. "
            "Their answers are not theirs; their prices are the price book's."
        )
    console.print(
        f'The mesh is up. Data and logs: {mesh.data_dir}. Next, in another terminal: tenth ask "hello"', soft_wrap=True
    )


def _counts(values: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        service, _, number = value.partition("=")
        if not number.isdigit() or int(number) < 1:
            raise ValueError(f"--replicas {value}: write SERVICE=N with N of at least 1")
        counts[service] = int(number)
    return counts


def _fail(message: str) -> int:
    print(f"tenth: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
