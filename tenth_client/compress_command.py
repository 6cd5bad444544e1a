"""``tenth compress``: what the compressor would cut of a prompt, and what that saves. Nothing is sent to a model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from tenth.compressor.v1 import compressor_pb2, compressor_pb2_grpc
from tenth.type.v1 import chat_pb2

from formats.openai import COMPRESSION_MODES, FormatError, completion_request, read_jsonl, text_message
from tenth_client import compress_views as views
from tenth_client.cache_words import LANGUAGES, language
from tenth_client.compress_tokenwise import tokenwise
from tenth_client.rpc import Rpc

DEFAULT_MODEL = "gpt-4o"
STRATEGIES = ("summary", "cleanup", "retrieval", "history", "dedupe", "tools", "output")


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    sub.add_argument(
        "file",
        metavar="FILE",
        help="a request or a list of messages as JSON in OpenAI's form, else plain text; - reads",
    )
    sub.add_argument(
        "--model", default=DEFAULT_MODEL, help="the catalogue model that would answer (default: %(default)s)"
    )
    sub.add_argument(
        "--mode", choices=tuple(COMPRESSION_MODES), default="", help="how hard (default: the file's, else safe)"
    )
    sub.add_argument("--budget", type=int, default=None, metavar="TOKENS", help="most input tokens of the result")
    for option, text in (
        ("only", "this strategy alone; may be repeated"),
        ("without", "not this one; may be repeated"),
    ):
        sub.add_argument(f"--{option}", action="append", default=[], choices=STRATEGIES, help=text)
    sub.add_argument(
        "--tokenwise",
        type=float,
        default=None,
        metavar="SHARE",
        help="for texts used often: leave out this share of the tokens (0 to 0.9) of a text, or of a request's "
        "retrieved chunks, the words first that tell a small model least; asks that model, which costs",
    )
    sub.add_argument("--json", action="store_true", help="the figures as JSON; with --tokenwise what is left as well")
    sub.add_argument("--lang", choices=LANGUAGES, default=None, help="language (default: by LC_ALL or LANG)")


async def compress(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Ask the compressor, and show what it would do."""
    if arguments.tokenwise is not None:
        if arguments.mode or arguments.budget is not None or arguments.only or arguments.without:
            raise FormatError("", "--tokenwise goes with no other way to compress")
        texts = documents(arguments.file)
        return await tokenwise(rpc, texts, arguments, console)
    request = read(arguments.file)
    if arguments.mode:
        request.policy.compression_mode = COMPRESSION_MODES[arguments.mode]
    wanted = compressor_pb2.CompressPromptRequest(request=request, model=arguments.model)
    if arguments.budget is not None:
        wanted.token_budget = arguments.budget
    for name in STRATEGIES:
        if name in arguments.without or (arguments.only and name not in arguments.only):
            wanted.strategy_overrides.add(strategy=name, enabled=False)
        elif name in arguments.only:
            wanted.strategy_overrides.add(strategy=name, enabled=True)
    preview = compressor_pb2.PreviewCompressionRequest(compression=wanted)
    stub = compressor_pb2_grpc.CompressorServiceStub
    found = await rpc.call("compressor", stub, "PreviewCompression", preview, seconds=60)
    if arguments.json:
        console.print_json(json.dumps(views.as_json(found), ensure_ascii=False))
    else:
        console.print(views.preview(request, found, arguments.model, language(arguments.lang)))
    return 0


def read(name: str) -> chat_pb2.CompletionRequest:
    """The request in a file, or one made of its plain text. Raises FormatError and OSError."""
    return _read(name)[0]


def documents(name: str) -> list[tuple[str, str]]:
    """The texts of a file that may be pruned, with their names: its plain text, or its request's retrieved chunks.

    Raises FormatError, also for a request without chunks (its messages are never pruned), and OSError.
    """
    request, plain = _read(name)
    if plain:
        return [("", request.messages[0].parts[0].text)]
    if not request.retrieved_chunks:
        raise FormatError("", "only retrieved chunks are pruned, and the request has none; give a text as a plain file")
    return [(chunk.chunk_id or str(at), chunk.text) for at, chunk in enumerate(request.retrieved_chunks)]


def _read(name: str) -> tuple[chat_pb2.CompletionRequest, bool]:
    """The request, and whether the file is plain text."""
    raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    if name.endswith(".jsonl"):
        lines = read_jsonl(raw)
        if not lines:
            raise FormatError("", f"{name} holds no request")
        return lines[0].request, False
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError("", f"{name}: not UTF-8 at byte {error.start}") from None
    value = _json(text, must=name.endswith(".json"))
    if isinstance(value, dict) and ("messages" in value or name.endswith(".json")):
        return completion_request(value), False
    if isinstance(value, list) and (name.endswith(".json") or _messages(value)):
        return completion_request({"messages": value}), False
    if not text.strip():
        raise FormatError("", f"{name} is empty")
    return chat_pb2.CompletionRequest(messages=[text_message(chat_pb2.ROLE_USER, text)]), True


def _json(text: str, *, must: bool) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if must:
            raise FormatError("", f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        if must:
            raise FormatError("", "not JSON: nested too deeply") from None
    return None


def _messages(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(each, dict) and "role" in each for each in value)
