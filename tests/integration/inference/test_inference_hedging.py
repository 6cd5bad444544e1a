"""A second attempt beside a late first one, over real sockets: who answers, and who is paid."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tenth.inference.v1 import inference_pb2
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2

from mesh.errors import TenthError
from mesh.status import detail
from services.inference.backend import Backend
from services.inference.hedging import NUMBER_OFFSET, HedgedBackend, HedgeDelay
from services.inference.providers import Chances, Endpoint, ProviderClient
from tests.integration.inference.test_inference_providers import (
    ANSWER,
    ERROR,
    USAGE,
    Handler,
    Mesh,
    _until,
    events,
    hang,
    mesh_over,
    openai_backend,
    piece,
    reply,
)


def hedged(endpoint: Endpoint, chances: Chances, seconds: float = 0.1) -> tuple[ProviderClient, Backend]:
    client, backend = openai_backend(endpoint, chances)
    return client, HedgedBackend(backend, HedgeDelay(seconds), chances.clock)


def after(opened: asyncio.Event, handler: Handler) -> Handler:
    async def late(body: dict[str, Any], headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await opened.wait()
        await handler(body, headers, writer)

    return late


def records(mesh: Mesh) -> dict[int, list[tuple[str, int, int, bool]]]:
    """By attempt, what was written of it in order: kind, input, output, estimated."""
    found: dict[int, list[tuple[str, int, int, bool]]] = {}
    for record in mesh.records():
        usage = record.usage
        kind = ledger_pb2.AttemptKind.Name(record.kind)[13:]
        row = (kind, usage.input_token_count, usage.output_token_count, usage.estimated)
        found.setdefault(record.attempt, []).append(row)
    return found


STARTED = ("STARTED", 40, 30, True)
SECOND = 1 + NUMBER_OFFSET


async def test_the_second_answers_for_a_first_that_hangs_and_both_are_paid(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, hang, reply(200, ANSWER), make=hedged) as mesh:
        response = await mesh.stub.GenerateText(mesh.request(), timeout=10)
        assert response.completion.message.parts[0].text == "Hello."
        assert response.completion.usage.input_token_count == 9
        assert response.attempt == SECOND
        (lost,) = response.overheads
        assert (lost.kind, lost.model, lost.attempt) == ("hedged_attempt", "gpt", 1)
        assert lost.usage.estimated
        assert [headers["x-request-id"] for headers in mesh.provider.headers] == ["r1/1", f"r1/{SECOND}"]
        # Asked for whole, it is written to its end: as long an answer as the winner's is the guess.
        assert records(mesh) == {
            1: [STARTED, ("CANCELLED", 40, 2, True)],
            SECOND: [STARTED, ("FINISHED", 9, 2, False)],
        }


async def test_the_first_may_still_win(tmp_path: Path) -> None:
    opened = asyncio.Event()
    async with mesh_over(tmp_path, after(opened, reply(200, ANSWER)), hang, make=hedged) as mesh:
        call = asyncio.ensure_future(mesh.stub.GenerateText(mesh.request(), timeout=10))
        await _until(lambda: len(mesh.provider.bodies) == 2)
        opened.set()
        response = await call
        assert response.attempt == 0
        assert [(item.attempt, item.usage.input_token_count) for item in response.overheads] == [(SECOND, 40)]
        assert records(mesh)[1][-1] == ("FINISHED", 9, 2, False)
        assert records(mesh)[SECOND] == [STARTED, ("CANCELLED", 40, 2, True)]


async def test_a_quick_answer_is_asked_for_once(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, reply(200, ANSWER), make=partial(hedged, seconds=5)) as mesh:
        response = await mesh.stub.GenerateText(mesh.request(), timeout=10)
        assert (len(response.overheads), len(mesh.provider.bodies)) == (0, 1)
        assert (await _stream(mesh, events(piece("Hello.", "stop"), USAGE)))[-1].finished.attempt == 0
        assert set(records(mesh)) == {1}


async def _stream(mesh: Mesh, handler: Handler) -> list[inference_pb2.StreamGenerateTextResponse]:
    mesh.provider.handlers = [handler]
    return await mesh.stream(10, request_id="r2")


async def test_a_stream_races_to_its_first_piece(tmp_path: Path) -> None:
    script = hang, events(piece("Hel"), piece("lo.", "stop"), USAGE, "[DONE]")
    async with mesh_over(tmp_path, *script, make=hedged) as mesh:
        got = await mesh.stream(10)
        assert "".join(event.delta.text for event in got) == "Hello."
        finished = got[-1].finished
        assert finished.attempt == SECOND
        assert [(item.attempt, item.usage.output_token_count) for item in finished.overheads] == [(1, 0)]
        assert records(mesh) == {
            1: [STARTED, ("CANCELLED", 40, 0, True)],
            SECOND: [STARTED, ("FINISHED", 9, 2, False)],
        }


async def test_a_stream_that_has_begun_is_not_asked_for_again(tmp_path: Path) -> None:
    async def slow(_: dict[str, Any], __: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        writer.write(f"data: {json.dumps(piece('Hel'))}\n\n".encode())
        await writer.drain()
        await asyncio.sleep(0.6)
        writer.write(f"data: {json.dumps(piece('lo.', 'stop'))}\n\ndata: {json.dumps(USAGE)}\n\n".encode())
        await writer.drain()
        writer.close()

    async with mesh_over(tmp_path, slow, make=partial(hedged, seconds=0.3)) as mesh:
        assert (await mesh.stream(10))[-1].HasField("finished")
        assert len(mesh.provider.bodies) == 1


async def test_a_failure_before_the_second_is_not_hedged_and_one_after_it_is_waited_out(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, reply(500, ERROR), make=hedged) as mesh:
        with pytest.raises(TenthError):
            await mesh.stub.GenerateText(mesh.request(), timeout=10)
        assert set(records(mesh)) == {1}
    opened = asyncio.Event()
    script = after(opened, reply(500, ERROR)), after(opened, reply(200, ANSWER))
    async with mesh_over(tmp_path / "later", *script, make=hedged) as mesh:
        call = asyncio.ensure_future(mesh.stub.GenerateText(mesh.request(), timeout=10))
        await _until(lambda: len(mesh.provider.bodies) == 2)
        opened.set()
        response = await call
        assert response.attempt == SECOND
        assert len(response.overheads) == 0, "an error status costs nothing"
        assert records(mesh)[1][-1] == ("CANCELLED", 0, 0, False)


async def test_when_both_fail_both_are_told(tmp_path: Path) -> None:
    opened = asyncio.Event()
    script = after(opened, reply(200, "{")), after(opened, reply(200, "{"))
    async with mesh_over(tmp_path, *script, make=hedged) as mesh:
        call = asyncio.ensure_future(mesh.stub.GenerateText(mesh.request(), timeout=10))
        await _until(lambda: len(mesh.provider.bodies) == 2)
        opened.set()
        with pytest.raises(TenthError) as caught:
            await call
        assert caught.value.reason == "PROVIDER_GARBAGE"
        spent = detail(caught.value, receipt_pb2.SpentDetail)
        assert isinstance(spent, receipt_pb2.SpentDetail)
        assert [(item.attempt, item.kind) for item in spent.attempts] == [
            (1, "failed_attempt"),
            (SECOND, "hedged_attempt"),
        ]
        assert [rows[-1] for rows in records(mesh).values()] == [("FAILED", 40, 0, True)] * 2


async def test_a_caller_who_leaves_ends_both(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, hang, make=hedged) as mesh:
        request = inference_pb2.StreamGenerateTextRequest(generation=mesh.request())
        call = mesh.stub.StreamGenerateText(request, timeout=10)
        reading = asyncio.ensure_future(anext(aiter(call)))
        await _until(lambda: len(mesh.provider.bodies) == 2)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await _until(lambda: len(mesh.records()) == 4)
        assert [rows[-1] for rows in records(mesh).values()] == [("CANCELLED", 40, 0, True)] * 2


async def test_a_request_that_waits_for_its_turn_is_not_asked_twice(tmp_path: Path) -> None:
    opened = asyncio.Event()
    script = after(opened, reply(200, ANSWER)), reply(200, ANSWER)
    async with mesh_over(tmp_path, *script, make=partial(hedged, seconds=0.2), max_concurrent=1) as mesh:
        first = asyncio.ensure_future(mesh.stub.GenerateText(mesh.request(), timeout=20))
        await _until(lambda: len(mesh.provider.bodies) == 1)
        second = asyncio.ensure_future(mesh.stub.GenerateText(mesh.request(request_id="r2"), timeout=20))
        await asyncio.sleep(0.4)
        opened.set()
        await asyncio.gather(first, second)
        assert {record.attempt for record in mesh.records() if record.request_id == "r2"} == {1}


def test_the_delay_becomes_the_95th_percentile_of_what_was_seen() -> None:
    delay = HedgeDelay(2.0)
    for number in range(19):
        delay.note(number / 100)
    assert delay.seconds == 2.0
    for number in range(19, 101):
        delay.note(number / 100)
    assert delay.seconds == pytest.approx(0.95)
    note: Callable[[float], None] = delay.note
    for _ in range(200):
        note(5.0)
    assert delay.seconds == 5.0
