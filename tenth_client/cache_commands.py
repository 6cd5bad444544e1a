"""``tenth cache``: what is stored and why it hits, entries out and in, over RPC alone."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.type.v1 import chat_pb2

from formats.openai import FormatError, text_message
from tenth_client import cache_views as views
from tenth_client.cache_files import Item, line_of, read_items, writing
from tenth_client.cache_words import LANGUAGES, language, reason
from tenth_client.commands import Command, request_of
from tenth_client.errors import TenthClientError
from tenth_client.files import STANDARD, spooled
from tenth_client.rpc import Rpc

_STUB = cache_pb2_grpc.CacheServiceStub
_SHARED_STORE = "qdrant_server"
"""The store that all replicas share; with any other each has entries of its own."""
_CHUNK = 200
"""Items sent in one call: what a broken connection makes be sent again."""
_TOGETHER = 8
_MOST_ERRORS = 20
_EXPORT_SECONDS = 24 * 3600.0
_IMPORT_SECONDS = 600.0


def add_commands(action: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """The arguments of every action. ``action`` makes a connected parser of a name, its command and its help."""
    sub = action("stats", stats, "what is stored, hits and misses, and why not")
    sub.add_argument("--namespace", default="", help="only this one")
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = action("inspect", inspect, "what a lookup would find, and why, feature by feature")
    sub.add_argument("request", metavar="FILE|TEXT", help="a JSON file in OpenAI's format, or a question")
    sub.add_argument("--namespace", default="", help="the namespace asked in")
    sub.add_argument("--system", default="", metavar="TEXT", help="the system prompt it is asked with")
    sub.add_argument("--user", default="", help="the end user who asks")
    sub.add_argument("--count", type=int, default=5, help="most candidates, 1 to 100 (default: %(default)s)")
    sub.add_argument("--all", action="store_true", help="every feature, not the strongest alone")
    sub.add_argument("--lang", choices=LANGUAGES, default=None, help="language (default: by LC_ALL or LANG)")

    sub = action("namespaces", namespaces, "rules, evidence and state of each namespace")
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = action("restore", restore, "let a suspended namespace serve by meaning again; its evidence starts anew")
    sub.add_argument("namespace")

    sub = action("invalidate", invalidate, "delete entries; filters are joined by AND")
    sub.add_argument("--namespace", default="", help="only this namespace")
    sub.add_argument("--namespace-prefix", default="", metavar="TEXT", help="only namespaces that begin so")
    sub.add_argument("--question-prefix", default="", metavar="TEXT", help="only questions that begin so")
    sub.add_argument("--entry", action="append", default=[], metavar="ID", help="an entry id; may be repeated")
    sub.add_argument("--document", default="", metavar="ID", help="only answers that used this document")
    sub.add_argument("--tag", action="append", default=[], metavar="KEY=VALUE", help="only with this tag; repeatable")
    sub.add_argument("--all", action="store_true", help="everything of the tenant")
    sub.add_argument("--dry-run", action="store_true", help="only count")

    sub = action("export", export, "write the tenant's entries to a file of JSON lines")
    sub.add_argument("file", metavar="FILE.jsonl[.gz]", help="the file, or - for standard output")
    sub.add_argument("--namespace", default="", help="only this one")

    sub = action("import", import_file, "take in an export, or questions with answers of your own")
    sub.add_argument("file", metavar="FILE", help="JSON lines or .csv, plain or gzip; - reads JSON lines")
    sub.add_argument("--namespace", default="", help="for questions that name none")
    sub.add_argument("--renew", action="store_true", help="exported entries count as answered now, expired ones too")
    sub.add_argument("--encoding", default="utf-8", help="of a CSV file, such as cp949 (default: %(default)s)")
    sub.add_argument("--dry-run", action="store_true", help="check the file and ask the cache; store nothing")


async def stats(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Counts of every cache replica as one."""
    cache = await _reach(rpc, arguments.namespace)
    found = views.totals(cache.stats, cache.shared)
    if arguments.json:
        console.print_json(json.dumps(found, ensure_ascii=False))
    else:
        console.print(views.stats(found), markup=False)
    return 0


async def inspect(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """What a lookup would find, on the replica that knows most."""
    request = request_of(arguments.request)
    request.namespace = arguments.namespace or request.namespace
    request.user_id = arguments.user or request.user_id
    if arguments.system:
        if any(message.role == chat_pb2.ROLE_SYSTEM for message in request.messages):
            raise ValueError("--system: the request has a system message already")
        request.messages.insert(0, text_message(chat_pb2.ROLE_SYSTEM, arguments.system))
    wanted = cache_pb2.InspectLookupRequest(request=request, candidate_count=arguments.count)
    answers = await rpc.call_each("cache", _STUB, "InspectLookup", wanted)
    answer = max(answers, key=lambda found: (found.outcome == "hit", len(found.candidates), _nearest(found)))
    console.print(views.explanation(answer, language(arguments.lang), arguments.all))
    return 0


async def namespaces(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """The namespaces in words."""
    answers = await rpc.call_each("cache", _STUB, "ListNamespaces", cache_pb2.ListNamespacesRequest())
    found = views.merged(answers)
    if arguments.json:
        from google.protobuf.json_format import MessageToDict

        rows = [MessageToDict(each, preserving_proto_field_name=True) for each in found]
        console.print_json(json.dumps(rows, ensure_ascii=False))
        return 0
    for index, each in enumerate(found):
        if index:
            console.print()
        console.print(views.namespace(each))
    if not found:
        console.print("no namespace yet: nothing was asked or stored")
    return 0


async def restore(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """End a suspension on every replica."""
    listed = cache_pb2.ListNamespacesResponse
    known = views.merged(await rpc.call_each("cache", _STUB, "ListNamespaces", cache_pb2.ListNamespacesRequest()))
    before = next((each for each in known if each.namespace == arguments.namespace), None)
    request = cache_pb2.RestoreNamespaceRequest(namespace=arguments.namespace)
    answers = await rpc.call_each("cache", _STUB, "RestoreNamespace", request)
    for each in views.merged([listed(namespaces=[answer.namespace]) for answer in answers]):
        console.print(views.namespace(each))
    if before is None:
        said = "nothing was asked or stored in a namespace of this name"
    elif before.suspended:
        said = "it serves by meaning again; its evidence starts anew"
    else:
        said = "it was not suspended; its evidence starts anew all the same"
    console.print(said, style="yellow" if before is None else None)
    return 0


async def invalidate(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Delete entries on every replica."""
    tags: dict[str, str] = {}
    for text in arguments.tag:
        key, mark, value = text.partition("=")
        if not mark or not key:
            raise ValueError(f"--tag {text}: write KEY=VALUE")
        tags[key] = value
    request = cache_pb2.InvalidateEntriesRequest(
        namespace=arguments.namespace,
        namespace_prefix=arguments.namespace_prefix,
        question_prefix=arguments.question_prefix,
        entry_ids=arguments.entry,
        document_id=arguments.document,
        tags=tags,
        all=arguments.all,
        dry_run=arguments.dry_run,
    )
    cache = await _reach(rpc)
    # Of one shared store every replica counts the same entries; all must hear of a deletion, for each has a memory.
    addresses = cache.owners if arguments.dry_run else cache.addresses
    count = 0
    for address in addresses:
        answer = await rpc.call_at(address, _STUB, "InvalidateEntries", request, seconds=120)
        count += answer.entry_count
    verb = "would be deleted" if arguments.dry_run else "deleted"
    console.print(f"{count:,} {'entry' if count == 1 else 'entries'} {verb}")
    return 0


async def export(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Write every entry of the tenant once; the newest of those that several replicas have."""
    cache = await _reach(rpc, arguments.namespace)
    talk = _talk(console, arguments.file)
    written: dict[str, int] = {}
    total = sum(answer.entry_count for answer in cache.stats[: len(cache.owners)])
    with _progress(talk) as progress, writing(arguments.file) as writer:
        bar = progress.add_task("exporting", total=total)
        async for entry in _entries(rpc, cache, arguments.namespace):
            progress.update(bar, advance=1)
            created = entry.create_time.ToNanoseconds()
            if written.get(entry.entry_id, -1) >= created:
                continue
            # A newer one after an older one is written as well: an import keeps the newer.
            written[entry.entry_id] = created
            writer.write(entry)
    count = len(written)
    said = f"{count:,} {'entry' if count == 1 else 'entries'} written to {arguments.file}"
    talk.print(said, markup=False, soft_wrap=True)
    return 0


async def import_file(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Take a file in, on every replica that has entries of its own; 1 when the file is wrong."""
    try:
        "".encode(arguments.encoding)
    except LookupError:
        raise ValueError(f"--encoding {arguments.encoding}: unknown") from None
    with spooled(arguments.file) as path:

        def items() -> Iterator[Item]:
            return read_items(path, encoding=arguments.encoding, namespace=arguments.namespace, renew=arguments.renew)

        # Checked whole before anything is sent: half an import helps nobody.
        checked = _check(items)
        for error in checked.errors:
            console.print(str(error), style="red", markup=False, soft_wrap=True)
        if checked.errors:
            console.print(f"{arguments.file}: nothing was taken in", markup=False, soft_wrap=True)
            return 1
        cache = await _reach(rpc)
        _say_embedders(checked, cache, console)
        if arguments.dry_run:
            return await _try(rpc, cache, items, checked, console)
        return await _send(rpc, cache, items, checked, console)


@dataclass(frozen=True, slots=True)
class _Cache:
    """The replicas of the cache. ``owners`` are those whose entries together are all."""

    addresses: tuple[str, ...]
    stats: tuple[cache_pb2.GetStatsResponse, ...]

    @property
    def shared(self) -> bool:
        return bool(self.stats) and all(answer.store == _SHARED_STORE for answer in self.stats)

    @property
    def owners(self) -> tuple[str, ...]:
        return self.addresses[:1] if self.shared else self.addresses


@dataclass(slots=True)
class _Checked:
    """What a file holds."""

    entries: int = 0
    pairs: int = 0
    embedders: dict[str, int] = field(default_factory=dict)
    errors: list[FormatError] = field(default_factory=list)


async def _reach(rpc: Rpc, namespace: str = "") -> _Cache:
    request = cache_pb2.GetStatsRequest(namespace=namespace)
    answers = await rpc.call_each("cache", _STUB, "GetStats", request)
    return _Cache(tuple(rpc.replicas("cache")), tuple(answers))


async def _entries(rpc: Rpc, cache: _Cache, namespace: str) -> AsyncIterator[cache_pb2.CacheEntry]:
    request = cache_pb2.ExportEntriesRequest(namespace=namespace)
    for address in cache.owners:
        stream = rpc.stream("cache", _STUB, "ExportEntries", request, seconds=_EXPORT_SECONDS, address=address)
        async for message in stream:
            yield message.entry


def _check(items: Callable[[], Iterator[Item]]) -> _Checked:
    """Read a whole file; its errors, line by line where the lines can be told apart."""
    checked = _Checked()
    try:
        for item in items():
            if item.message.HasField("entry"):
                checked.entries += 1
                embedder = item.message.entry.embedding.embedder
                checked.embedders[embedder] = checked.embedders.get(embedder, 0) + 1
            else:
                checked.pairs += 1
    except FormatError as error:
        checked.errors.append(error)
    if not checked.errors and not checked.entries and not checked.pairs:
        checked.errors.append(FormatError("", "nothing to take in"))
    return checked


def _say_embedders(checked: _Checked, cache: _Cache, console: Console) -> None:
    used = sorted({answer.embedder for answer in cache.stats})
    for name, count in sorted(checked.embedders.items()):
        if name and used and [name] != used:
            entries = "entry was" if count == 1 else "entries were"
            console.print(
                f"{count:,} {entries} embedded by {name}, the cache uses {', '.join(used)}: questions are embedded "
                "anew; those asked with a system prompt, earlier turns or parameters are found exactly alone",
                style="yellow", markup=False,
            )  # fmt: skip


async def _send(
    rpc: Rpc, cache: _Cache, items: Callable[[], Iterator[Item]], checked: _Checked, console: Console
) -> int:
    results = [cache_pb2.ImportEntriesResponse() for _ in cache.owners]
    done = 0
    with _progress(console) as progress:
        bar = progress.add_task("importing", total=checked.entries + checked.pairs)
        for chunk in _chunks(items()):
            try:
                answers = await asyncio.gather(*(_send_chunk(rpc, address, chunk) for address in cache.owners))
            except (TenthClientError, FormatError):
                if done:
                    console.print(
                        f"everything before line {chunk[0].line} is taken in; importing the file again is harmless"
                    )
                raise
            for result, answer in zip(results, answers, strict=True):
                result.stored_count += answer.stored_count
                for name, count in answer.not_stored_counts.items():
                    result.not_stored_counts[name] += count
            done = _advance(progress, bar, done, len(chunk))
    for address, result in zip(cache.owners, results, strict=True):
        where = f" on {address}" if len(cache.owners) > 1 else ""
        console.print(f"{result.stored_count:,} of {done:,} stored{where}", markup=False)
        if result.not_stored_counts:
            console.print(views.counts("not stored", result.not_stored_counts))
    return 0


async def _send_chunk(rpc: Rpc, address: str, chunk: Sequence[Item]) -> cache_pb2.ImportEntriesResponse:
    messages = [item.message for item in chunk]
    try:
        answer: cache_pb2.ImportEntriesResponse = await rpc.send(
            address, _STUB, "ImportEntries", messages, seconds=_IMPORT_SECONDS
        )
    except TenthClientError as error:
        raise line_of(error, chunk) or error from None
    return answer


async def _try(
    rpc: Rpc, cache: _Cache, items: Callable[[], Iterator[Item]], checked: _Checked, console: Console
) -> int:
    """Ask for each question what a lookup would do, and say what would become of it."""
    found: dict[str, int] = {}
    refused: list[tuple[int, str]] = []
    done = 0

    async def look_up(item: Item) -> str:
        if item.message.HasField("entry"):
            return "exported, of the right form (whether they are there already is not asked)"
        request = cache_pb2.LookupCompletionRequest(request=item.message.pair.request, dry_run=True)
        # With several stores the first one's word is taken: an import makes them all alike.
        try:
            looked = await rpc.call_at(cache.owners[0], _STUB, "LookupCompletion", request)
        except TenthClientError as error:
            raise FormatError(error.field, error.message, item.line) from None if error.field else error
        outcome = looked.WhichOneof("outcome")
        if outcome == "bypass":
            refused.append((item.line, str(looked.bypass.reason)))
            return "would be refused"
        if outcome == "hit":
            exact = looked.hit.kind == cache_pb2.HIT_KIND_EXACT
            return "would replace a stored answer" if exact else "new, but another stored answer fits it already"
        return "new"

    with _progress(console) as progress:
        bar = progress.add_task("asking", total=checked.entries + checked.pairs)
        for chunk in _chunks(items(), _TOGETHER):
            for what in await asyncio.gather(*(look_up(item) for item in chunk)):
                found[what] = found.get(what, 0) + 1
            done = _advance(progress, bar, done, len(chunk))
    for what, count in found.items():
        console.print(f"{count:,}  {what}")
    for line, name in sorted(refused)[:_MOST_ERRORS]:
        console.print(Text(f"line {line}: {name} ({reason(name, 'en')})", style="yellow"))
    if len(refused) > _MOST_ERRORS:
        console.print(f"and {len(refused) - _MOST_ERRORS:,} more")
    console.print("nothing was stored")
    return 0


def _advance(progress: Progress, bar: TaskID, done: int, count: int) -> int:
    progress.update(bar, advance=count)
    return done + count


def _chunks(items: Iterator[Item], count: int = _CHUNK) -> Iterator[list[Item]]:
    while chunk := list(islice(items, count)):
        yield chunk


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _talk(console: Console, file: str) -> Console:
    """Where to speak: not where the data goes."""
    return Console(stderr=True, highlight=False) if file == STANDARD else console


def _nearest(found: Any) -> float:
    return max((candidate.similarity for candidate in found.candidates), default=-1.0)
