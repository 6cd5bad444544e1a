"""What the ``tenth`` commands do, over RPC alone. Each returns the process's exit status."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.trace.v1 import trace_pb2, trace_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from formats.openai import completion_request, parse_json, read_jsonl, text_message
from formats.openai_answers import LAYERS
from tenth_client import traces
from tenth_client.client import Client
from tenth_client.connection import Tls, find
from tenth_client.errors import TenthClientError
from tenth_client.money import usd
from tenth_client.processes import health_of, healthy
from tenth_client.replay import Played, counts, play, summarize, waterfall
from tenth_client.rpc import Rpc, replicas

Command = Callable[[Rpc, argparse.Namespace, Console], Awaitable[int]]

_READ = ledger_pb2_grpc.LedgerReadServiceStub
_WRITE = ledger_pb2_grpc.LedgerServiceStub
_OUTCOMES = {
    receipt_pb2.HOP_OUTCOME_OK: "ok",
    receipt_pb2.HOP_OUTCOME_SKIPPED: "skipped",
    receipt_pb2.HOP_OUTCOME_DISABLED: "disabled",
    receipt_pb2.HOP_OUTCOME_DEGRADED: "degraded",
}


def with_rpc(command: Command) -> Callable[[argparse.Namespace, Console], Awaitable[int]]:
    """The command with a connection opened from its arguments around it."""

    async def run(arguments: argparse.Namespace, console: Console) -> int:
        tls = Tls(arguments.tls_ca, arguments.tls_cert, arguments.tls_key) if arguments.tls_ca else None
        connection = find(address=arguments.address, api_key=arguments.api_key, data_dir=arguments.data_dir, tls=tls)
        async with Rpc(connection) as rpc:
            return await command(rpc, arguments, console)

    return run


async def trace(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Print a span tree."""
    trace_id, spans = await fetch_trace(rpc, arguments.id)
    if not spans:
        console.print(
            f"no trace of {arguments.id} has arrived (spans come within a second of the request)", markup=False
        )
        return 1
    console.print(traces.render(trace_id, spans, everything=arguments.all), markup=False, soft_wrap=True)
    return 0


async def fetch_trace(rpc: Rpc, wanted: str) -> tuple[str, list[traces.SpanView]]:
    """A trace by trace id or request id, from Jaeger when TENTH_JAEGER_URL is set, else from the collector."""
    found = await _fetch_trace(rpc, wanted)
    if found[1] or traces.is_trace_id(wanted):
        return found
    # No span says this request id (or not yet): the receipt knows the trace.
    try:
        async with client_of(rpc) as client:
            facts = (await client.receipt(wanted)).facts
    except TenthClientError:
        return found
    return await _fetch_trace(rpc, facts.trace_id) if facts.trace_id else found


async def _fetch_trace(rpc: Rpc, wanted: str) -> tuple[str, list[traces.SpanView]]:
    jaeger = os.environ.get("TENTH_JAEGER_URL", "")
    if jaeger:
        return await asyncio.to_thread(traces.from_jaeger, jaeger, wanted)
    request = trace_pb2.GetTraceRequest(trace_id=wanted)
    try:
        response = await rpc.call("collector", trace_pb2_grpc.TraceServiceStub, "GetTrace", request)
    except TenthClientError as error:
        if error.code is grpc.StatusCode.NOT_FOUND:
            return "", []
        raise
    return response.trace_id, traces.from_proto(response)


async def replay(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Play a file; 1 when any request failed or the sums do not add up."""
    lines = read_jsonl(arguments.file)
    if not lines:
        console.print(f"{arguments.file} holds no request", markup=False)
        return 1
    requests = [line.request for line in lines]
    async with client_of(rpc) as client:
        results, seconds = await play_with_bar(client, requests, arguments.concurrency, console)
    summary = summarize(results, seconds)
    console.print(waterfall(summary))
    console.print()
    console.print(counts(summary))
    for played in results:
        if played.error is not None:
            where = f"line {lines[played.index].number}: {played.error} (request {played.request_id})"
            console.print(where, style="red", markup=False, soft_wrap=True)
    if arguments.json:
        report = {**summary.report(), "request_ids": [played.request_id for played in results]}
        arguments.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return 0 if summary.failed == 0 and summary.identity_holds else 1


async def play_with_bar(
    client: Client, requests: list[chat_pb2.CompletionRequest], concurrency: int, console: Console
) -> tuple[list[Played], float]:
    """Play requests under a progress bar; the results, and the seconds it took."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    started = time.perf_counter()
    saved = 0
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("playing", total=len(requests))

        def done(played: Played) -> None:
            nonlocal saved
            if played.receipt is not None:
                saved += played.receipt.baseline_nano_usd - played.receipt.actual_nano_usd
            progress.update(bar, advance=1, description=f"playing, saved {usd(saved)}")

        results = await play(client, requests, concurrency=concurrency, on_done=done)
    return results, time.perf_counter() - started


async def status(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Health of every process; 1 when one is not serving."""
    connection = rpc.connection
    credentials = connection.tls.credentials() if connection.tls else None
    pairs = [(name, address) for name, joined in connection.addresses.items() for address in replicas(joined)]

    async def check(name: str, address: str) -> str:
        if name == "sandbox":
            return "SERVING" if await healthy(address, "tcp") else "UNAVAILABLE"
        return await health_of(address, 3.0, credentials)

    states = await asyncio.gather(*(check(name, address) for name, address in pairs))
    table = _table("service", "address", "health")
    for (name, address), state in zip(pairs, states, strict=True):
        table.add_row(name, address, Text(state, style="green" if state == "SERVING" else "red"))
    console.print(table)
    await _served_models(rpc, console)
    await _books(rpc, console)
    return 0 if all(state == "SERVING" for state in states) else 1


async def _served_models(rpc: Rpc, console: Console) -> None:
    request = inference_pb2.ListServedModelsRequest()
    try:
        response = await rpc.call("inference", inference_pb2_grpc.InferenceServiceStub, "ListServedModels", request)
    except (TenthClientError, LookupError) as error:
        console.print(f"models: {error}", style="red", markup=False)
        return
    table = _table("model", "provider", "backend", "quantized", "running", "health")
    for model in response.models:
        health = Text("healthy", style="green") if model.healthy else Text(model.reason or "unhealthy", style="red")
        if model.healthy and model.reason:
            health.append(f" ({model.reason})", style="yellow")
        quantized = "yes" if model.quantized else ""
        table.add_row(model.model, model.provider, model.backend, quantized, str(model.running_count), health)
    console.print()
    console.print(table)


async def _books(rpc: Rpc, console: Console) -> None:
    try:
        books = await rpc.call("ledger", _READ, "GetBooksStatus", ledger_pb2.GetBooksStatusRequest())
    except (TenthClientError, LookupError) as error:
        console.print(f"books: {error}", style="red", markup=False)
        return
    console.print(
        f"\nbooks: {books.receipt_count} receipts, {books.open_reservation_count} open reservations "
        f"({usd(books.open_reserved_nano_usd)}), {books.unreceipted_request_count} requests without a receipt yet, "
        f"{books.identity_violation_count} identity violations"
    )


async def switch(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Turn a layer off or on."""
    request = ledger_pb2.SetLayerSwitchRequest(
        tenant_id=arguments.tenant, layer=arguments.layer, disabled=arguments.state == "off"
    )
    response = await rpc.call("ledger", _WRITE, "SetLayerSwitch", request)
    off = ", ".join(response.disabled_layers) or "none"
    console.print(f"layers off for {arguments.tenant}: {off}", markup=False)
    return 0


async def explain(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """What each layer would do."""
    async with client_of(rpc) as client:
        response = await client.explain(request_of(arguments.request))
    console.print(_hops(response.hops))
    route = response.route
    if route.model:
        console.print(f"\nroute: {route.model}", markup=False)
    for strategy in response.compression:
        console.print(f"compression: {str(strategy).strip()}".replace("\n", "  "), markup=False, soft_wrap=True)
    if response.cache.outcome:
        console.print(f"cache: {response.cache.outcome} {response.cache.reason}".rstrip(), markup=False)
    console.print(f"worst case that would be reserved: {usd(response.worst_case_nano_usd, 9)}")
    console.print()
    console.print(receipt_table(response.expected_receipt, "expected receipt"))
    return 0


async def receipt(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """The receipt of a request, with its hops."""
    async with client_of(rpc) as client:
        found = await client.receipt(arguments.id)
    facts = found.facts
    state = "final" if found.state == receipt_pb2.RECEIPT_STATE_FINAL else "pending: not yet in the ledger"
    console.print(receipt_table(found, f"receipt of {facts.request_id} ({state})"))
    kind = f", {facts.cache_hit_kind} hit" if facts.cache_hit else ", failed" if facts.failed else ""
    console.print(
        f"\nmodel {facts.model or '-'}{kind}; tokens {facts.usage.input_token_count} in "
        f"({facts.original_input_token_count} before compression), {facts.usage.output_token_count} out; "
        f"tenant {facts.tenant_id}; trace {facts.trace_id or '-'}",
        markup=False,
        soft_wrap=True,
    )
    if facts.hops:
        console.print()
        console.print(_hops(facts.hops))
    for item in facts.overheads:
        console.print(f"overhead {item.kind} {item.model}: {usd(item.cost_nano_usd, 9)}", markup=False)
    return 0


def receipt_table(found: receipt_pb2.Receipt, title: str) -> Table:
    """One receipt as a waterfall."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("step")
    table.add_column("USD", justify="right")
    table.add_row(f"baseline ({found.facts.baseline_model or 'none'})", usd(found.baseline_nano_usd, 9))
    for saving in found.savings:
        name = LAYERS.get(saving.layer, str(saving.layer)).replace("_", " ")
        table.add_row(f"- {name}", usd(-saving.saving_nano_usd, 9))
    table.add_row("+ overhead", usd(found.overhead_nano_usd, 9), end_section=True)
    table.add_row("= actual", usd(found.actual_nano_usd, 9), style="bold")
    return table


def _hops(hops: Iterable[receipt_pb2.Hop]) -> Table:
    table = _table("hop", "outcome", "ms", "decision")
    for hop in hops:
        milliseconds = hop.duration.ToNanoseconds() / 1e6
        table.add_row(hop.name, _OUTCOMES.get(hop.outcome, "?"), f"{milliseconds:.1f}", Text(hop.reason))
    return table


def client_of(rpc: Rpc) -> Client:
    """A client of the connection's orchestrator."""
    connection = rpc.connection
    return Client(connection.address("orchestrator"), connection.api_key, tls=connection.tls)


def request_of(text: str) -> chat_pb2.CompletionRequest:
    """The request in a JSON file (the first line of a JSONL one), or one made of the text itself."""
    path = Path(text)
    try:
        is_file = path.is_file()
    except OSError:
        is_file = False  # Too long for a file name: a question.
    if not is_file:
        return chat_pb2.CompletionRequest(messages=[text_message(chat_pb2.ROLE_USER, text)])
    if path.suffix == ".jsonl":
        lines = read_jsonl(path)
        if not lines:
            raise ValueError(f"{path} holds no request")
        return lines[0].request
    return completion_request(parse_json(path.read_bytes()))


def _table(*columns: str) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    numbers = {"ms", "limit", "spent", "reserved", "left", "running"}
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table
