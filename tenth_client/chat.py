"""``tenth ask`` and ``tenth chat``: answers as they stream, each with its model, cost and saving."""

from __future__ import annotations

import argparse
import asyncio
import sys

from rich.console import Console
from tenth.type.v1 import chat_pb2, receipt_pb2

from formats.openai import text_message
from tenth_client.client import Client
from tenth_client.errors import TenthClientError
from tenth_client.money import percent, usd
from tenth_client.rpc import Rpc


async def ask(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """One question, streamed."""
    question = sys.stdin.read() if arguments.question == "-" else arguments.question
    async with _client(rpc) as client:
        await _turn(client, console, [*_system(arguments), text_message(chat_pb2.ROLE_USER, question)], arguments)
    return 0


async def chat(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """A conversation: /new forgets it, /quit (or the end of input) ends."""
    console.print("[dim]/new starts over, /quit ends[/]")
    history = _system(arguments)
    async with _client(rpc) as client:
        while True:
            line = await asyncio.to_thread(_read_line)
            if line is None or line.strip() == "/quit":
                return 0
            if not line.strip():
                continue
            if line.strip() == "/new":
                history = _system(arguments)
                continue
            history.append(text_message(chat_pb2.ROLE_USER, line))
            try:
                text = await _turn(client, console, history, arguments)
            except TenthClientError as error:
                console.print(f"[red]{error}[/]")
                history.pop()
                continue
            history.append(text_message(chat_pb2.ROLE_ASSISTANT, text))


def describe(model: str, receipt: receipt_pb2.Receipt, request_id: str) -> str:
    """One line under an answer: who answered, what it cost, what was saved against which baseline."""
    facts = receipt.facts
    saved = receipt.baseline_nano_usd - receipt.actual_nano_usd
    source = f"{facts.cache_hit_kind or 'cache'} hit ({model})" if facts.cache_hit else model
    return (
        f"{source} · cost {usd(receipt.actual_nano_usd)} · saved {usd(saved)} "
        f"({percent(saved, receipt.baseline_nano_usd)} of {facts.baseline_model or 'no baseline'}) · {request_id}"
    )


async def _turn(
    client: Client, console: Console, messages: list[chat_pb2.ChatMessage], arguments: argparse.Namespace
) -> str:
    pieces: list[str] = []
    request_id = model = ""
    events = client.stream(
        messages,
        sampling=_sampling(arguments),
        policy=_policy(arguments),
        user_id=arguments.user,
        namespace=arguments.namespace,
    )
    async for event in events:
        if event.started is not None:
            request_id, model = event.started.request_id, event.started.model
        if event.text:
            pieces.append(event.text)
            console.print(event.text, end="", markup=False, soft_wrap=True)
        if event.delta is not None:
            for call in event.delta.tool_calls:
                console.print(f"{call.name}{call.arguments_json}", end="", markup=False)
        if event.finished is not None:
            console.print()
            line = describe(event.finished.model or model, event.finished.receipt, request_id)
            console.print(line, style="dim", markup=False, soft_wrap=True)
    return "".join(pieces)


def _client(rpc: Rpc) -> Client:
    connection = rpc.connection
    return Client(connection.address("orchestrator"), connection.api_key, tls=connection.tls)


def _system(arguments: argparse.Namespace) -> list[chat_pb2.ChatMessage]:
    return [text_message(chat_pb2.ROLE_SYSTEM, arguments.system)] if arguments.system else []


def _sampling(arguments: argparse.Namespace) -> chat_pb2.SamplingParameters | None:
    return chat_pb2.SamplingParameters(max_output_tokens=arguments.max_tokens) if arguments.max_tokens else None


def _policy(arguments: argparse.Namespace) -> chat_pb2.RequestPolicy | None:
    if not arguments.model and not arguments.no_cache:
        return None
    mode = chat_pb2.CACHE_MODE_OFF if arguments.no_cache else chat_pb2.CACHE_MODE_UNSPECIFIED
    return chat_pb2.RequestPolicy(model=arguments.model, cache_mode=mode)


def _read_line() -> str | None:
    try:
        return input("> ")
    except EOFError:
        return None
