"""Items of a batch: read, checked, told of with their lines."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenth.batch.v1 import batch_pb2, stored_pb2
from tenth.type.v1 import chat_pb2

from mesh.errors import Code, TenthError
from services.batch.intake import MAX_OBJECTS, Intake, Limits, Taken, check_header

LIMITS = Limits(
    items_per_object=3,
    max_item_count=1000,
    max_batch_bytes=1_000_000,
    max_line_bytes=5000,
    max_prompt_bytes=2000,
    max_error_count=5,
)
BATCH = "00000000-0000-0000-0000-000000000001"


def header(**fields: Any) -> batch_pb2.BatchHeader:
    made = batch_pb2.BatchHeader(request_id=str(uuid.UUID(int=7)), **fields)
    if not made.HasField("completion_window"):
        made.completion_window.seconds = 3600
    return made


def item(custom_id: str = "a", text: str = "Hello?", **fields: Any) -> batch_pb2.BatchItem:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])
    return batch_pb2.BatchItem(custom_id=custom_id, request=chat_pb2.CompletionRequest(messages=[message], **fields))


def line(custom_id: str = "a", text: str = "Hello?", **body: Any) -> dict[str, Any]:
    content = {"messages": [{"role": "user", "content": text}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": content}


class Run:
    """An intake that keeps what it is given."""

    def __init__(
        self, head: batch_pb2.BatchHeader | None = None, limits: Limits = LIMITS, *, may_assert_user: bool = True
    ) -> None:
        self.groups: list[list[stored_pb2.StoredItem]] = []
        self.pauses = 0
        self.intake = Intake(BATCH, head or header(), limits, self._keep, self._pause, may_assert_user=may_assert_user)

    async def _keep(self, number: int, items: list[stored_pb2.StoredItem]) -> None:
        assert number == len(self.groups)
        self.groups.append(items)

    async def _pause(self) -> None:
        self.pauses += 1

    async def items(self, *items: batch_pb2.BatchItem) -> Taken:
        for one in items:
            await self.intake.item(one)
        return await self.intake.finish()

    async def jsonl(self, content: bytes, size: int = 10**9) -> Taken:
        for start in range(0, len(content), size):
            await self.intake.jsonl(content[start : start + size])
        return await self.intake.finish()

    @property
    def stored(self) -> list[stored_pb2.StoredItem]:
        return [one for group in self.groups for one in group]

    @property
    def told(self) -> list[tuple[int, str, str, str]]:
        return [(one.line, one.custom_id, one.reason, one.field) for one in self.intake.errors]


async def test_items_are_completed_by_the_head_and_grouped() -> None:
    run = Run(header(user_id="ann", project_id="p", tags={"team": "a", "kind": "b"}))
    own = str(uuid.UUID(int=9))
    taken = await run.items(
        item("a"), item("b", "Two?", user_id="bob", tags={"kind": "own"}), item("c", request_id=own), item("d", "Four")
    )
    assert (taken.item_count, taken.object_count) == (4, 2)
    assert [len(group) for group in run.groups] == [3, 1]
    assert [one.index for one in run.stored] == [0, 1, 2, 3]
    assert [one.line for one in run.stored] == [1, 2, 3, 4]
    first, second, third, _ = (one.request for one in run.stored)
    assert (first.user_id, first.project_id, dict(first.tags)) == ("ann", "p", {"team": "a", "kind": "b"})
    assert (second.user_id, dict(second.tags)) == ("bob", {"team": "a", "kind": "own"})
    assert first.request_id == str(uuid.uuid5(uuid.UUID(BATCH), "a"))
    assert third.request_id == own
    assert first.policy.completion_window.seconds == 3600
    assert taken.user_ids == ("ann", "bob")
    assert not taken.more_user_ids


async def test_the_same_request_is_known_by_all_but_its_ids() -> None:
    run = Run()
    await run.items(
        item("a"), item("b"), item("c", user_id="ann"), item("d", request_id=str(uuid.uuid4())), item("e", "Other?")
    )
    assert [one.same_as_index for one in run.stored] == [-1, 0, -1, 0, -1]


async def test_every_error_comes_with_its_line_and_nothing_is_stored_from_then_on() -> None:
    run = Run(limits=replace(LIMITS, items_per_object=2, max_error_count=100))
    reused = str(uuid.uuid4())
    lines = [
        json.dumps(line("a")),
        json.dumps(line("b", tenth={"request_id": reused})),
        "",
        "{no json",
        json.dumps(line("a", "Again?")),
        json.dumps(line("c", tenth={"request_id": reused.upper()})),
        json.dumps(line("d", "x" * 2500)),
        json.dumps(line("e", "x" * 6000)),
        json.dumps(line("f", max_tokens=0)),
        json.dumps(line("g", tenth={"namespace": "no spaces"})),
        json.dumps(line("h") | {"method": "GET"}),
        json.dumps(line("i")),
    ]
    await run.jsonl("\n".join(lines).encode(), size=17)
    assert run.told == [
        (4, "", "LINE_INVALID", ""),
        (5, "a", "CUSTOM_ID_REPEATED", "custom_id"),
        (6, "c", "REQUEST_ID_REPEATED", "request.request_id"),
        (7, "d", "PROMPT_TOO_LARGE", "request.messages"),
        (8, "", "LINE_TOO_LONG", ""),
        (9, "f", "LINE_INVALID", "max_tokens"),
        (10, "g", "INVALID_FIELD", "request.namespace"),
        (11, "h", "LINE_INVALID", "method"),
    ]
    assert "line 1 has it too" in run.intake.errors[1].message
    assert "line 2 has it too" in run.intake.errors[2].message
    assert [one.custom_id for one in run.stored] == ["a", "b"]


async def test_a_list_of_errors_is_cut_and_says_so() -> None:
    run = Run()
    await run.jsonl(b"{\n" * 12)
    assert [one.line for one in run.intake.errors] == [1, 2, 3, 4, 5, 0]
    assert run.intake.errors[-1].reason == "MORE_ERRORS"
    assert "12 errors in all" in run.intake.errors[-1].message


async def test_a_quoted_text_is_cut() -> None:
    run = Run()
    await run.jsonl(json.dumps(line(role="x") | {"body": {"messages": [{"role": "y" * 3000}]}}).encode())
    assert len(run.intake.errors[0].message) <= 300


async def test_only_a_caller_that_may_name_users_names_them() -> None:
    run = Run(may_assert_user=False)
    await run.items(item("a"), item("b", user_id="ann"), item("c", project_id="p"))
    assert run.told == [
        (2, "b", "USER_ASSERTION_FORBIDDEN", "request.user_id"),
        (3, "c", "USER_ASSERTION_FORBIDDEN", "request.project_id"),
    ]


async def test_tags_of_head_and_item_together_are_limited() -> None:
    run = Run(header(tags={f"h{number}": "x" for number in range(10)}))
    await run.items(item("a", tags={f"i{number}": "x" for number in range(7)}))
    assert run.told == [(1, "a", "INVALID_FIELD", "request.tags")]


@pytest.mark.parametrize(("changes", "count"), [({"max_item_count": 2}, 3), ({"max_batch_bytes": 60}, 5)])
async def test_a_batch_that_is_too_large_is_refused(changes: dict[str, int], count: int) -> None:
    run = Run(limits=replace(LIMITS, **changes))
    with pytest.raises(TenthError) as error:
        await run.items(*(item(str(number)) for number in range(count)))
    assert (error.value.code, error.value.reason) == (Code.INVALID_ARGUMENT, "BATCH_TOO_LARGE")


async def test_a_batch_of_too_many_small_objects_is_refused() -> None:
    run = Run(limits=replace(LIMITS, items_per_object=1, max_item_count=10_000, max_batch_bytes=10_000_000))
    with pytest.raises(TenthError) as error:
        await run.items(*(item(str(number)) for number in range(MAX_OBJECTS + 1)))
    assert error.value.reason == "BATCH_TOO_LARGE"
    assert "2,000 input objects" in error.value.message


async def test_an_empty_batch_is_refused() -> None:
    for content in (b"", b"\n\r\n  \n"):
        with pytest.raises(TenthError) as error:
            await Run().jsonl(content)
        assert error.value.reason == "BATCH_EMPTY"


async def test_items_and_pieces_do_not_mix() -> None:
    run = Run()
    await run.intake.item(item("a"))
    with pytest.raises(TenthError) as error:
        await run.intake.jsonl(b"{}")
    assert error.value.reason == "INPUT_ORDER"


async def test_long_items_make_small_groups() -> None:
    limits = replace(LIMITS, items_per_object=100, max_batch_bytes=10**9, max_line_bytes=10**8, max_prompt_bytes=10**8)
    run = Run(limits=limits)
    taken = await run.items(*(item(str(number), "x" * 9_000_000) for number in range(5)))
    assert [len(group) for group in run.groups] == [2, 2, 1]
    assert taken.object_count == 3


async def test_others_get_to_work_meanwhile() -> None:
    run = Run()
    await run.jsonl(b"".join(json.dumps(line(str(number))).encode() + b"\n" for number in range(100)))
    assert run.pauses == 3


async def digest(head: batch_pb2.BatchHeader | None = None, *items: batch_pb2.BatchItem) -> bytes:
    return (await Run(head).items(*items)).digest


async def test_the_digest_is_of_what_was_asked() -> None:
    same = await digest(None, item("a"), item("b"))
    assert await digest(None, item("a"), item("b")) == same
    text = (json.dumps(line("a")) + "\r\n\r\n" + json.dumps(line("b"), indent=None, separators=(" ,", " : "))).encode()
    assert (await Run().jsonl(text)).digest == same
    for head, items in (
        (None, (item("a"),)),
        (None, (item("b"), item("a"))),
        (None, (item("a"), item("b", "Other?"))),
        (None, (item("a"), item("b", request_id=str(uuid.uuid4())))),
        (header(user_id="ann"), (item("a"), item("b"))),
        (header(lanes=["local"]), (item("a"), item("b"))),
    ):
        assert await digest(head, *items) != same


@settings(max_examples=50)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=20), st.integers(1, 60))
async def test_the_size_of_pieces_changes_nothing(texts: list[str], size: int) -> None:
    lines = [json.dumps(line(str(number), f"-{text}"), ensure_ascii=False) for number, text in enumerate(texts)]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    whole, cut = Run(), Run()
    assert await whole.jsonl(content) == await cut.jsonl(content, size)
    assert whole.stored == cut.stored
    assert whole.told == cut.told


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"request_id": ""}, "header.request_id", "REQUIRED_FIELD"),
        ({"request_id": "seven"}, "header.request_id", "INVALID_FIELD"),
        ({"completion_window": {"seconds": 59}}, "header.completion_window", "INVALID_FIELD"),
        ({"completion_window": {"seconds": 7 * 86400, "nanos": 1}}, "header.completion_window", "INVALID_FIELD"),
        ({"completion_window": {}}, "header.completion_window", "INVALID_FIELD"),
        ({"lanes": ["local", "fast"]}, "header.lanes[1]", "INVALID_FIELD"),
        ({"lanes": ["local", "online", "local"]}, "header.lanes[2]", "INVALID_FIELD"),
        ({"user_id": "x" * 257}, "header.user_id", "INVALID_FIELD"),
        ({"tags": {"tenth.x": "y"}}, "header.tags", "INVALID_FIELD"),
    ],
)
def test_a_head_is_checked(change: dict[str, Any], field: str, reason: str) -> None:
    fields = {"request_id": str(uuid.UUID(int=7)), "completion_window": {"seconds": 60}} | change
    with pytest.raises(TenthError) as error:
        check_header(batch_pb2.BatchHeader(**fields), may_assert_user=True)
    assert (error.value.code, error.value.field, error.value.reason) == (Code.INVALID_ARGUMENT, field, reason)


def test_a_head_may_name_a_user_only_with_the_right_to() -> None:
    check_header(header(user_id="ann"), may_assert_user=True)
    with pytest.raises(TenthError) as error:
        check_header(header(user_id="ann"), may_assert_user=False)
    assert (error.value.code, error.value.field) == (Code.PERMISSION_DENIED, "header.user_id")


def test_a_request_id_has_one_form() -> None:
    head = header()
    head.request_id = "{00000000-0000-0000-0000-00000000ABCD}"
    check_header(head, may_assert_user=False)
    assert head.request_id == "00000000-0000-0000-0000-00000000abcd"
