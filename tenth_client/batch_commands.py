"""``tenth batch``: files of requests that can wait, over RPC alone."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from tenth.batch.v1 import batch_pb2

from tenth_client import batch_views as views
from tenth_client.batch_files import FORMATS, content_id, result_line, tags_of, uuid_of, window_seconds
from tenth_client.batch_words import text
from tenth_client.batches import Batches
from tenth_client.cache_words import LANGUAGES, language
from tenth_client.commands import Command
from tenth_client.files import STANDARD, spooled, whole
from tenth_client.rpc import Rpc

LANES = ("local", "openai", "anthropic", "online")
_OLD_SECONDS = 60.0
"""A batch that is older than this when it is handed out was there before; clocks of two machines differ by less."""
_TENTHS = 10
"""Lines about a batch that is watched where nothing can move: one each time so many parts of it are done."""


def add_commands(action: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """The arguments of every action. ``action`` makes a connected parser of a name, its command and its help."""
    sub = action("submit", submit, "send a file of requests as one batch; a file with errors spends nothing")
    sub.add_argument("file", metavar="FILE", help="JSONL in OpenAI's batch format, or bodies; also gzip; - reads stdin")
    sub.add_argument("--deadline", default="24h", metavar="LENGTH", help="1m to 7d (default: %(default)s)")
    sub.add_argument("--lane", action="append", default=[], choices=LANES, help="only this lane; repeatable (all)")
    sub.add_argument("--project", default="", help="the project that pays")
    sub.add_argument("--user", default="", help="the end user, for callers who may name one")
    sub.add_argument("--tag", action="append", default=[], metavar="KEY=VALUE", help="a label of all items; repeatable")
    ids = sub.add_mutually_exclusive_group()
    ids.add_argument(
        "--request-id", default="", metavar="UUID",
        help="the same id is the same batch (default: made from the file's content)",
    )  # fmt: skip
    ids.add_argument("--new", action="store_true", help="a new batch, even of content that was submitted before")
    sub.add_argument("--watch", action="store_true", help="then watch it until it has ended")
    _json(sub)
    _lang(sub)

    for name, command, what in (
        ("show", show, "one batch: how far it is, what it cost and saved"),
        ("watch", watch, "watch a batch until it has ended; 1 when items failed"),
        ("cancel", cancel, "stop a batch; what ran is billed"),
        ("retry", retry, "run the failed items again"),
    ):
        sub = action(name, command, what)
        sub.add_argument("id", help="batch id")
        if name == "retry":
            sub.add_argument("--watch", action="store_true", help="then watch it until it has ended")
        if name != "watch":
            _json(sub)
        _lang(sub)

    sub = action("list", listing, "the tenant's batches, newest first")
    sub.add_argument("--count", type=int, default=20, help="at most so many (default: %(default)s)")
    sub.add_argument("--json", action="store_true", help="as JSON, a line for each")
    _lang(sub)

    sub = action("results", results, "the results as JSON lines; of a running batch it waits for the rest")
    sub.add_argument("id", help="batch id")
    sub.add_argument("--in-order", action="store_true", help="in the input's order, not as they come")
    sub.add_argument("--out", default=STANDARD, metavar="FILE[.gz]", help="a file (default: standard output)")
    sub.add_argument(
        "--format", choices=FORMATS, default="openai",
        help="openai: OpenAI's batch output lines, amounts under `tenth`; full: everything (default: %(default)s)",
    )  # fmt: skip
    _lang(sub)


async def submit(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Create a batch; 1 when the file has errors, or with --watch when items failed."""
    lang = language(arguments.lang)
    window = window_seconds(arguments.deadline, "--deadline")
    tags = tags_of(arguments.tag, "--tag")
    started = time.time()
    with spooled(arguments.file) as name:
        path = Path(name)
        request_id = uuid_of(arguments.request_id, "--request-id") if arguments.request_id else ""
        request_id = request_id or (str(uuid.uuid4()) if arguments.new else content_id(path))
        async with _batches(rpc) as batches:
            created = await batches.create(
                path,
                completion_window_seconds=window,
                request_id=request_id,
                user_id=arguments.user,
                project_id=arguments.project,
                tags=tags,
                lanes=arguments.lane,
            )
    if created.line_errors:
        errors = created.line_errors
        console.print(views.line_errors(errors, lang))
        said = text("one_error" if len(errors) == 1 else "nothing_spent", lang, file=arguments.file, count=len(errors))
        console.print(said, style="red", markup=False, soft_wrap=True)
        return 1
    batch = created.batch
    if arguments.json:
        _print_json(batch, console)
    else:
        if not arguments.watch:
            console.print(views.one(batch, time.time(), lang))
        if batch.create_time.ToNanoseconds() / 1e9 < started - _OLD_SECONDS:
            console.print(text("before", lang), style="yellow")
        elif not (arguments.new or arguments.request_id):
            console.print(text("repeat", lang, id=request_id), style="dim", markup=False, soft_wrap=True)
    if arguments.watch:
        return await _watch(rpc, batch.batch_id, console, lang)
    if not arguments.json:
        console.print(text("next", lang, id=batch.batch_id), markup=False, soft_wrap=True)
    return 0


async def show(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """One batch as it stands."""
    async with _batches(rpc) as batches:
        _show(await batches.get(arguments.id), arguments, console)
    return 0


async def listing(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """The newest batches."""
    if arguments.count < 1:
        raise ValueError("--count: at least 1")
    async with _batches(rpc) as batches:
        found = await batches.newest(arguments.count)
    if arguments.json:
        for batch in found:
            _print_json(batch, console)
    else:
        console.print(views.many(found, time.time(), language(arguments.lang)))
    return 0


async def watch(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Show a batch until it has ended; 1 unless every item was answered."""
    return await _watch(rpc, arguments.id, console, language(arguments.lang))


async def cancel(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Stop a batch."""
    async with _batches(rpc) as batches:
        _show(await batches.cancel(arguments.id), arguments, console)
    return 0


async def retry(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Run the failed items again."""
    async with _batches(rpc) as batches:
        _show(await batches.retry_failed(arguments.id), arguments, console)
    return await _watch(rpc, arguments.id, console, language(arguments.lang)) if arguments.watch else 0


async def results(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Write the results; 1 when one of them is an error."""
    count = failed = 0
    with _lines(arguments.out, console) as write:
        async with _batches(rpc) as batches:
            async for result in batches.results(arguments.id, in_input_order=arguments.in_order):
                write(result_line(result, arguments.format))
                count += 1
                failed += bool(result.error_reason)
    talk = Console(stderr=True, highlight=False) if arguments.out == STANDARD else console
    said = text("written", language(arguments.lang), count=f"{count:,}", failed=f"{failed:,}", file=arguments.out)
    talk.print(said, markup=False, soft_wrap=True)
    return 1 if failed else 0


async def _watch(rpc: Rpc, batch_id: str, console: Console, lang: str) -> int:
    last = batch_pb2.Batch()
    try:
        async with _batches(rpc) as batches:
            if console.is_terminal:
                with Live(console=console, auto_refresh=False) as live:
                    async for last in batches.watch(batch_id):
                        live.update(views.moving(last, time.time(), lang), refresh=True)
            else:
                said = (-1, -1)
                async for last in batches.watch(batch_id):
                    part = _TENTHS * (last.done_count + last.failed_count) // max(last.item_count, 1)
                    if (last.state, part) != said:
                        said = (last.state, part)
                        console.print(views.line(last, time.time(), lang), markup=False, soft_wrap=True)
    except asyncio.CancelledError:
        console.print(text("goes_on", lang, id=batch_id), markup=False, soft_wrap=True)
        raise
    if last.failed_count:
        said_of = text("retry", lang, failed=f"{last.failed_count:,}", id=batch_id)
        console.print(said_of, style="yellow", markup=False, soft_wrap=True)
    return 0 if last.state == batch_pb2.BATCH_STATE_DONE and not last.failed_count else 1


def _show(batch: batch_pb2.Batch, arguments: argparse.Namespace, console: Console) -> None:
    if arguments.json:
        _print_json(batch, console)
    else:
        console.print(views.one(batch, time.time(), language(arguments.lang)))


def _print_json(batch: batch_pb2.Batch, console: Console) -> None:
    console.print(views.as_json(batch), markup=False, soft_wrap=True)


@contextlib.contextmanager
def _lines(path: str, console: Console) -> Iterator[Callable[[bytes], object]]:
    """Where lines go: the console's own file, or one that appears whole."""
    if path == STANDARD:
        yield lambda line: console.file.write(line.decode("utf-8"))
        return
    with whole(path) as file:
        yield file.write


def _batches(rpc: Rpc) -> Batches:
    connection = rpc.connection
    return Batches(connection.address("batch"), connection.api_key, tls=connection.tls)


def _json(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="as JSON")


def _lang(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--lang", choices=LANGUAGES, default=None, help="language (default: by LC_ALL or LANG)")
