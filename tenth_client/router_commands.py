"""``tenth router``: how routing does, its outcome log, and what another policy would have done; over RPC alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from tenth.router.v1 import router_pb2, router_pb2_grpc

from tenth_client import router_views as views
from tenth_client.cache_words import LANGUAGES, language
from tenth_client.commands import Command
from tenth_client.errors import TenthClientError
from tenth_client.router_files import line_of, merged, read_log, read_policy
from tenth_client.rpc import Rpc
from tenth_client.times import parse_time

_STUB = router_pb2_grpc.RouterServiceStub
_PAGE = 500
_SECONDS = 60.0


def add_commands(action: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """The arguments of every action. ``action`` makes a connected parser of a name, its command and its help."""
    sub = action("report", report, "quality seen beside quality predicted, costs, drift, and what learning cost")
    _since(sub)
    _lang(sub)
    sub.add_argument("--json", action="store_true", help="as JSON, a line for each replica")

    sub = action("export", export, "write the outcome log as JSON lines to standard output")
    _since(sub)
    sub.add_argument("--without-embeddings", action="store_true", help="smaller; enough for a replay by features")

    sub = action("replay", replay, "decide an exported log again under another policy; spends nothing")
    sub.add_argument("log", type=Path, metavar="LOG", help="what `tenth router export` wrote")
    sub.add_argument(
        "--policy", type=Path, required=True, metavar="FILE",
        help="YAML with any of catalog and rules (files beside it), quality_target and strategy",
    )  # fmt: skip
    sub.add_argument("--count", type=int, default=10, help="rows of the largest changes (default: %(default)s)")
    sub.add_argument("--json", type=Path, metavar="OUT", help="write the sums there as well")
    _lang(sub)

    action("models", models, "the catalogue with health, prices and speeds")


async def report(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """The report of every router replica."""
    request = router_pb2.GetReportRequest(start_time=_start(arguments))
    addresses = rpc.replicas("router")
    answers = await rpc.call_each("router", _STUB, "GetReport", request, seconds=_SECONDS)
    lang = language(arguments.lang)
    for index, (address, answer) in enumerate(zip(addresses, answers, strict=True)):
        if arguments.json:
            found = json_format.MessageToDict(answer, preserving_proto_field_name=True)
            console.print(json.dumps({"replica": address, **found}, ensure_ascii=False), markup=False, soft_wrap=True)
            continue
        if index:
            console.print()
        if len(addresses) > 1:
            console.print(address, style="bold", markup=False)
        console.print(views.report(answer, lang))
    return 0


async def export(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """The tenant's outcomes, one a request; of several replicas, what all of them know of it."""
    start = _start(arguments)
    addresses = rpc.replicas("router")
    count = 0
    if len(addresses) == 1:
        async for outcome in _outcomes(rpc, addresses[0], start, arguments.without_embeddings):
            console.file.write(line_of(outcome) + "\n")
            count += 1
    else:
        found = [
            outcome
            for address in addresses
            async for outcome in _outcomes(rpc, address, start, arguments.without_embeddings)
        ]
        for outcome in merged(found):
            console.file.write(line_of(outcome) + "\n")
            count += 1
    Console(stderr=True, highlight=False).print(f"{count:,} {'outcome' if count == 1 else 'outcomes'} written")
    return 0


async def replay(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Decide a log again; 1 when it holds no decision."""
    policy = read_policy(arguments.policy)
    outcomes = merged(read_log(arguments.log))
    decided = [outcome for outcome in outcomes if outcome.model]
    if not decided:
        console.print(f"{arguments.log} holds no decision", markup=False)
        return 1
    sums = views.ReplaySums()
    address = rpc.replicas("router")[0]
    for start in range(0, len(decided), _PAGE):
        page = decided[start : start + _PAGE]
        try:
            answer = await rpc.call_at(address, _STUB, "ReplayOutcomes", policy.request(page), seconds=_SECONDS)
        except TenthClientError as error:
            if error.field in ("catalog_yaml", "rules_yaml"):
                raise ValueError(policy.in_words(error.message)) from None
            raise
        for outcome, again in zip(page, answer.outcomes, strict=True):
            sums.add(outcome.model, again)
    console.print(views.replay(sums, len(outcomes) - len(decided), arguments.count, language(arguments.lang)))
    if arguments.json:
        arguments.json.write_text(json.dumps(sums.report(), indent=2) + "\n", "utf-8")
    return 0


async def models(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """The catalogue as the router has it."""
    found: list[router_pb2.CatalogModel] = []
    token = version = ""
    while True:
        request = router_pb2.ListModelsRequest(page_size=_PAGE, page_token=token)
        answer = await rpc.call("router", _STUB, "ListModels", request)
        found += answer.models
        token, version = answer.next_page_token, answer.catalog_version
        if not token:
            break
    console.print(views.models(found))
    console.print(f"\ncatalogue {version}; prices in USD per million tokens", markup=False)
    return 0


async def _outcomes(
    rpc: Rpc, address: str, start: Timestamp | None, without_embeddings: bool
) -> AsyncIterator[router_pb2.Outcome]:
    token = ""
    while True:
        request = router_pb2.ListOutcomesRequest(
            page_size=_PAGE, page_token=token, start_time=start, without_embeddings=without_embeddings
        )
        answer = await rpc.call_at(address, _STUB, "ListOutcomes", request, seconds=_SECONDS)
        outcomes: Sequence[router_pb2.Outcome] = answer.outcomes
        for outcome in outcomes:
            yield outcome
        token = answer.next_page_token
        if not token:
            return


def _since(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--since", default="", metavar="DATE", help="only decisions from then on (ISO 8601, UTC)")


def _lang(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--lang", choices=LANGUAGES, default=None, help="language (default: by LC_ALL or LANG)")


def _start(arguments: argparse.Namespace) -> Timestamp | None:
    return parse_time(arguments.since, "--since") if arguments.since else None
