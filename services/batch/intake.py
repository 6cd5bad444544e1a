"""A batch's input, item by item: read, checked and told of with its line, then handed on in groups to be stored.

Pure but for the sink. Memory holds one group of items, one line, and of each item a few dozen bytes that tell whether
its ids or its request came before. Nothing is handed on once an error was found.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from tenth.batch.v1 import batch_pb2, stored_pb2
from tenth.type.v1 import chat_pb2

from formats.openai import FormatError
from mesh.errors import Code, Reason, TenthError, invalid_argument, required
from mesh.validation import check_labels, validate
from services.batch.errors import Reason as BatchReason
from services.batch.lines import LineFormatError, LineSplitter, check_custom_id, read_line

LANES = ("local", "openai", "anthropic", "online")
MIN_WINDOW_SECONDS, MAX_WINDOW_SECONDS = 60, 7 * 86_400
_MAX_GROUP_BYTES = 16_000_000
MAX_OBJECTS = 2000
"""Input objects of a batch: each costs its workflow some events, of which Temporal allows 50,000."""
_MAX_USERS = 1000
_ID_BYTES = 12
_MAX_TEXT = 300

Sink = Callable[[int, list[stored_pb2.StoredItem]], Awaitable[None]]
"""Stores a group of items under its number, from 0."""
Pause = Callable[[], Awaitable[None]]
"""Lets others work: reading lines takes the processor for milliseconds at a time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch may be, and how many items are stored together."""

    items_per_object: int
    max_item_count: int
    max_batch_bytes: int
    max_line_bytes: int
    max_prompt_bytes: int
    max_error_count: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What an input without errors was."""

    item_count: int
    object_count: int
    digest: bytes
    user_ids: tuple[str, ...]
    more_user_ids: bool


class Intake:
    """Takes in the items of one batch, in order. ``may_assert_user``: items may name users and projects."""

    def __init__(
        self,
        batch_id: str,
        header: batch_pb2.BatchHeader,
        limits: Limits,
        sink: Sink,
        pause: Pause,
        *,
        may_assert_user: bool,
    ) -> None:
        self._batch_id = uuid.UUID(batch_id)
        self._header = header
        self._limits = limits
        self._sink = sink
        self._pause = pause
        self._may_assert_user = may_assert_user
        self._splitter = LineSplitter(limits.max_line_bytes)
        self._group: list[stored_pb2.StoredItem] = []
        self._group_bytes = 0
        self._groups = 0
        self._count = 0
        self._bytes = 0
        self._lines = 0
        self._kind = ""
        self._digest = hashlib.sha256(_head_bytes(header))
        self._custom_ids: dict[bytes, int] = {}
        self._request_ids: dict[bytes, int] = {}
        self._requests: dict[bytes, int] = {}
        self._users: dict[str, None] = {}
        self._more_users = False
        self._errors: list[batch_pb2.LineError] = []
        self._error_count = 0

    async def item(self, item: batch_pb2.BatchItem) -> None:
        """Take one item; its line is its place, from 1. Raises INVALID_ARGUMENT for what ends the whole batch."""
        self._is("items")
        self._lines += 1
        size = item.ByteSize()
        self._weigh(size)
        if size > self._limits.max_line_bytes:
            self._too_long(self._lines)
            return
        try:
            custom_id = check_custom_id(item.custom_id)
        except FormatError as error:
            self._error(self._lines, "", BatchReason.LINE_INVALID, error.field, error.message)
            return
        await self._take(self._lines, custom_id, item.request)

    async def jsonl(self, piece: bytes) -> None:
        """Take a piece of a JSONL file. Raises INVALID_ARGUMENT for what ends the whole batch."""
        self._is("jsonl")
        self._weigh(len(piece))
        for line in self._splitter.feed(piece):
            await self._line(line.number, line.content)

    async def finish(self) -> Taken:
        """The end of the input. Raises INVALID_ARGUMENT for an empty one. With ``errors`` the answer means nothing."""
        for line in self._splitter.finish():
            await self._line(line.number, line.content)
        if not self._count and not self._error_count:
            raise TenthError(Code.INVALID_ARGUMENT, BatchReason.BATCH_EMPTY, "the batch holds no item")
        await self._hand_on()
        return Taken(self._count, self._groups, self._digest.digest(), tuple(self._users), self._more_users)

    @property
    def errors(self) -> list[batch_pb2.LineError]:
        """What is wrong so far, in the order of lines; a list that is cut says so in its last entry."""
        if self._error_count <= len(self._errors):
            return self._errors
        told = f"{self._error_count:,} errors in all; the first {len(self._errors):,} are listed"
        return [*self._errors, batch_pb2.LineError(reason=BatchReason.MORE_ERRORS, message=told)]

    async def _line(self, number: int, content: bytes | None) -> None:
        self._lines += 1
        if not self._lines % 32:
            await self._pause()
        if content is None:
            self._too_long(number)
            return
        try:
            custom_id, request = read_line(content, number)
        except LineFormatError as error:
            self._error(number, error.custom_id, BatchReason.LINE_INVALID, error.field, error.message)
            return
        await self._take(number, custom_id, request)

    async def _take(self, line: int, custom_id: str, request: chat_pb2.CompletionRequest) -> None:
        self._count += 1
        if self._count > self._limits.max_item_count:
            raise too_large(f"more than {self._limits.max_item_count:,} items")
        earlier = self._custom_ids.setdefault(_short(custom_id.encode()), line)
        if earlier != line:
            self._error(line, custom_id, BatchReason.CUSTOM_ID_REPEATED, "custom_id", f"line {earlier} has it too")
            return
        try:
            self._check(request)
        except TenthError as error:
            self._error(line, custom_id, error.reason, error.field, error.message)
            return
        given = request.SerializeToString(deterministic=True)
        for part in (custom_id.encode(), given):
            self._digest.update(len(part).to_bytes(8, "big") + part)
        if not self._same_id(line, custom_id, request):
            return
        self._complete(custom_id, request)
        try:
            check_labels(request)  # The head's tags are among them now.
        except TenthError as error:
            self._error(line, custom_id, error.reason, error.field, error.message)
            return
        index = self._count - 1
        same = self._requests.setdefault(_short(request_digest(request)), index)
        if request.user_id:
            self._user(request.user_id)
        if self._error_count:
            return
        self._group.append(
            stored_pb2.StoredItem(
                index=index,
                line=line,
                custom_id=custom_id,
                request=request,
                same_as_index=-1 if same == index else same,
            )
        )
        self._group_bytes += len(given)
        if len(self._group) >= self._limits.items_per_object or self._group_bytes >= _MAX_GROUP_BYTES:
            await self._hand_on()

    def _check(self, request: chat_pb2.CompletionRequest) -> None:
        validate(request, self._limits.max_prompt_bytes)
        if not self._may_assert_user and (request.user_id or request.project_id):
            raise _may_not_name("request.user_id" if request.user_id else "request.project_id")

    def _same_id(self, line: int, custom_id: str, request: chat_pb2.CompletionRequest) -> bool:
        if not request.request_id:
            return True
        request.request_id = str(uuid.UUID(request.request_id))
        earlier = self._request_ids.setdefault(_short(request.request_id.encode()), line)
        if earlier == line:
            return True
        told = f"line {earlier} has it too"
        self._error(line, custom_id, BatchReason.REQUEST_ID_REPEATED, "request.request_id", told)
        return False

    def _complete(self, custom_id: str, request: chat_pb2.CompletionRequest) -> None:
        """What the request does not say itself is said by the head."""
        header = self._header
        request.request_id = request.request_id or str(uuid.uuid5(self._batch_id, custom_id))
        request.user_id = request.user_id or header.user_id
        request.project_id = request.project_id or header.project_id
        request.policy.completion_window.CopyFrom(header.completion_window)
        for key, value in header.tags.items():
            if key not in request.tags:
                request.tags[key] = value

    def _user(self, user_id: str) -> None:
        if user_id in self._users:
            return
        if len(self._users) < _MAX_USERS:
            self._users[user_id] = None
        else:
            self._more_users = True

    async def _hand_on(self) -> None:
        if self._group and not self._error_count:
            if self._groups >= MAX_OBJECTS:
                most = MAX_OBJECTS * self._limits.items_per_object
                raise too_large(f"more than {MAX_OBJECTS:,} input objects, of {most:,} items or 32 GB")
            await self._sink(self._groups, self._group)
            self._groups += 1
        self._group = []
        self._group_bytes = 0

    def _is(self, kind: str) -> None:
        if self._kind not in ("", kind):
            raise invalid_argument(
                "items and JSONL pieces do not mix", field=kind.removesuffix("s"), reason=BatchReason.INPUT_ORDER
            )
        self._kind = kind

    def _weigh(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._limits.max_batch_bytes:
            raise too_large(f"more than {self._limits.max_batch_bytes:,} bytes")

    def _too_long(self, line: int) -> None:
        told = f"the line has more than {self._limits.max_line_bytes:,} bytes"
        self._error(line, "", BatchReason.LINE_TOO_LONG, "", told)

    def _error(self, line: int, custom_id: str, reason: str, field: str, message: str) -> None:
        self._group = []  # Never stored now.
        self._error_count += 1
        if len(self._errors) < self._limits.max_error_count:
            self._errors.append(
                batch_pb2.LineError(
                    line=line, custom_id=custom_id, reason=reason, field=_cut(field), message=_cut(message)
                )
            )


def check_header(header: batch_pb2.BatchHeader, *, may_assert_user: bool) -> None:
    """Check the head of a batch; makes its request_id canonical. Raises INVALID_ARGUMENT or PERMISSION_DENIED."""
    if not header.request_id:
        raise required("header.request_id")
    try:
        header.request_id = str(uuid.UUID(header.request_id))
    except ValueError:
        raise invalid_argument("must be a UUID", field="header.request_id") from None
    check_window(header.completion_window, "header.completion_window")
    if not may_assert_user and (header.user_id or header.project_id):
        raise _may_not_name("header.user_id" if header.user_id else "header.project_id")
    try:
        check_labels(chat_pb2.CompletionRequest(tags=header.tags, user_id=header.user_id, project_id=header.project_id))
    except TenthError as error:
        field = error.field.replace("request.", "header.", 1)
        raise invalid_argument(error.message, field=field, reason=error.reason) from None
    for index, lane in enumerate(header.lanes):
        if lane not in LANES:
            raise invalid_argument(f"no such lane; known: {', '.join(LANES)}", field=f"header.lanes[{index}]")
        if lane in header.lanes[:index]:
            raise invalid_argument("the lane stands twice", field=f"header.lanes[{index}]")


def check_window(window: Duration, field: str) -> float:
    """A completion window in seconds. Raises INVALID_ARGUMENT outside of 1 minute to 7 days."""
    seconds = window.seconds + window.nanos / 1e9
    if not MIN_WINDOW_SECONDS <= seconds <= MAX_WINDOW_SECONDS:
        raise invalid_argument("must be from 1 minute to 7 days", field=field)
    return seconds


def request_digest(request: chat_pb2.CompletionRequest) -> bytes:
    """SHA-256 of a request, its id left out, asker and all else in."""
    plain = chat_pb2.CompletionRequest()
    plain.CopyFrom(request)
    plain.ClearField("request_id")
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).digest()


def too_large(what: str) -> TenthError:
    """The input is more than this deployment takes."""
    return TenthError(Code.INVALID_ARGUMENT, BatchReason.BATCH_TOO_LARGE, f"a batch may not have {what}")


def _may_not_name(field: str) -> TenthError:
    return TenthError(
        Code.PERMISSION_DENIED, Reason.USER_ASSERTION_FORBIDDEN, "the caller may not name users or projects", field
    )


def _head_bytes(header: batch_pb2.BatchHeader) -> bytes:
    return header.SerializeToString(deterministic=True)


def _cut(text: str) -> str:
    """Messages quote the input, which may be long; a thousand of them fit into one answer."""
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def _short(text: bytes) -> bytes:
    """96 bits stand for an id: two of a million alike by chance are less likely than 1 in 10^16."""
    return hashlib.blake2b(text, digest_size=_ID_BYTES).digest()
