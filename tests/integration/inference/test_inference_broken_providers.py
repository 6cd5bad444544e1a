"""Providers that stall, repeat themselves, break off, send too much, or say when to come back: over real sockets."""

from __future__ import annotations

import asyncio
import json
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tenth.inference.v1 import inference_pb2
from tenth.type.v1 import receipt_pb2

from mesh.errors import TenthError
from mesh.status import detail
from services.inference.call import CallRules
from services.inference.providers import Chances
from tests.integration.inference.test_inference_providers import (
    ANSWER,
    ERROR,
    USAGE,
    Handler,
    _until,
    events,
    hang,
    mesh_over,
    openai_backend,
    piece,
    reply,
)


class Waits:
    """Takes the place of waiting: notes how long, and goes on at once."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def half_of(raw: bytes, *, reset: bool) -> Handler:
    """A whole answer of which half is sent before the connection ends."""

    async def handler(_: dict[str, Any], __: dict[str, str], writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        writer.write(head.encode() + raw[: len(raw) // 2])
        await writer.drain()
        if reset:
            writer.transport.abort()
        else:
            writer.close()

    return handler


async def test_a_date_in_retry_after_is_waited_for_against_the_providers_own_clock(tmp_path: Path) -> None:
    waits = Waits()
    # Its clock is a day behind ours; it asks for one second.
    script = (
        reply(
            429, ERROR, retry_after=formatdate(1_700_000_001, usegmt=True), date=formatdate(1_700_000_000, usegmt=True)
        ),
        reply(200, ANSWER),
    )
    chances = Chances(sleep=waits, random=lambda: 0.5, now=lambda: 1_700_086_400.0)
    async with mesh_over(tmp_path, *script, chances=chances) as mesh:
        await mesh.stub.GenerateText(mesh.request(), timeout=5)
        assert waits.seconds == [pytest.approx(1.05)]
        assert len(mesh.provider.bodies) == 2


async def test_a_date_too_far_away_is_passed_on(tmp_path: Path) -> None:
    chances = Chances(sleep=Waits(), random=lambda: 0.5, now=lambda: 1_700_000_000.0)
    script = reply(429, ERROR, retry_after=formatdate(1_700_000_030, usegmt=True))
    async with mesh_over(tmp_path, script, chances=chances) as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.stub.GenerateText(mesh.request(), timeout=5)
        assert caught.value.retry_after_seconds == pytest.approx(30)
        assert len(mesh.provider.bodies) == 1


async def test_tries_without_a_word_of_when_are_spread_by_chance(tmp_path: Path) -> None:
    waits, drawn = Waits(), iter([0.0, 1.0])
    chances = Chances(sleep=waits, random=lambda: next(drawn))
    async with mesh_over(tmp_path, reply(503, ERROR), chances=chances) as mesh:
        with pytest.raises(TenthError):
            await mesh.stub.GenerateText(mesh.request(), timeout=5)
    assert waits.seconds == [pytest.approx(0.05), pytest.approx(0.2)]


async def test_an_overloaded_provider_is_tried_again(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, reply(529, ERROR), reply(200, ANSWER), chances=Chances(sleep=Waits())) as mesh:
        await mesh.stub.GenerateText(mesh.request(), timeout=5)
        assert len(mesh.provider.bodies) == 2


async def test_a_stall_within_a_stream_ends_it_before_the_deadline(tmp_path: Path) -> None:
    async def silent(_: dict[str, Any], __: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        raw = f"data: {json.dumps(piece('Hello.'))}\n\n".encode()
        writer.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
        await writer.drain()
        await asyncio.sleep(30)

    async with mesh_over(tmp_path, silent, silence_seconds=0.2) as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.stream(20)
        assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "PROVIDER_STALLED")
        spent = detail(caught.value, receipt_pb2.SpentDetail)
        assert isinstance(spent, receipt_pb2.SpentDetail)
        assert spent.attempts[0].usage.output_token_count == 2
        assert mesh.ending() == ("FAILED", 40, 2, True)


async def test_comments_are_no_silence_and_the_first_byte_may_be_late(tmp_path: Path) -> None:
    async def slow(body: dict[str, Any], headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.5)  # It thinks: longer than the silence allowed within an answer.
        for _ in range(4):
            writer.write(b"5\r\n: x\n\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.15)
        raw = f"data: {json.dumps(piece('Hello.', 'stop'))}\n\ndata: [DONE]\n\n".encode()
        writer.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n0\r\n\r\n")

    async with mesh_over(tmp_path, slow, silence_seconds=0.3) as mesh:
        assert (await mesh.stream(20))[-1].HasField("finished")


async def test_a_host_that_does_not_exist_costs_nothing(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, hang, url="http://nobody.invalid/v1") as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.stub.GenerateText(mesh.request(), timeout=10)
        assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "PROVIDER_UNREACHABLE")
        assert mesh.ending() == ("FAILED", 0, 0, False)


@pytest.mark.parametrize("reset", [True, False])
async def test_a_whole_answer_that_breaks_off_is_charged_by_estimate(tmp_path: Path, reset: bool) -> None:
    async with mesh_over(tmp_path, half_of(json.dumps(ANSWER).encode(), reset=reset)) as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.stub.GenerateText(mesh.request(), timeout=5)
        assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "PROVIDER_INCOMPLETE")
        assert mesh.ending() == ("FAILED", 40, 0, True)


async def test_a_stream_reset_in_the_middle_is_charged_for_what_came(tmp_path: Path) -> None:
    async def reset(_: dict[str, Any], __: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        raw = f"data: {json.dumps(piece('Hello.'))}\n\n".encode()
        writer.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0.2)  # Let it be read: a reset throws away what is still in the receiver's hands.
        writer.transport.abort()

    async with mesh_over(tmp_path, reset) as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.stream()
        assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "PROVIDER_INCOMPLETE")
        assert mesh.ending() == ("FAILED", 40, 2, True)


@pytest.mark.parametrize("text", ["{", "nul", '"text"', "[" * 100_000, '{"choices": [{"message": "x"}]}', ""])
@pytest.mark.parametrize("streamed", [False, True])
async def test_garbage_of_every_kind_is_typed(tmp_path: Path, text: str, streamed: bool) -> None:
    script = events(text) if streamed else reply(200, text)
    async with mesh_over(tmp_path, script) as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.ask(5, streamed=streamed)
        assert caught.value.reason in ("PROVIDER_GARBAGE", "PROVIDER_INCOMPLETE")
        assert mesh.ending() == ("FAILED", 40, 0, True)


async def test_an_event_without_end_is_given_up(tmp_path: Path) -> None:
    async def endless(_: dict[str, Any], __: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {")
        for _number in range(64):
            writer.write(b" " * 1_048_576)
            await writer.drain()

    async with mesh_over(tmp_path, endless) as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.stream(30)
        assert caught.value.reason == "PROVIDER_GARBAGE"
        assert "no end" in caught.value.message


async def test_a_large_event_is_taken_whole(tmp_path: Path) -> None:
    text = "word " * 400_000
    async with mesh_over(tmp_path, events(piece(text), piece("", "stop"), USAGE, "[DONE]")) as mesh:
        got = await mesh.stream(30)
        assert got[1].delta.text == text
        assert mesh.ending() == ("FINISHED", 9, 2, False)


def numbered(*items: tuple[str, object]) -> Handler:
    async def handler(_: dict[str, Any], __: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for number, item in items:
            data = item if isinstance(item, str) else json.dumps(item)
            writer.write(f"id: {number}\ndata: {data}\n\n".encode())
        await writer.drain()
        writer.close()

    return handler


async def test_a_numbered_event_that_comes_again_is_taken_once(tmp_path: Path) -> None:
    once = ("1", piece("ha")), ("2", piece("ha")), ("3", piece("!", "stop")), ("4", USAGE), ("5", "[DONE]")
    twice = [each for item in once for each in (item, item)]
    async with mesh_over(tmp_path, numbered(*twice)) as mesh:
        got = await mesh.stream()
        assert "".join(event.delta.text for event in got) == "haha!"
        assert mesh.ending() == ("FINISHED", 9, 2, False)


async def test_an_id_that_every_event_has_is_no_number(tmp_path: Path) -> None:
    items = [piece("the "), piece("more "), piece("the "), piece("merrier", "stop"), USAGE, "[DONE]"]
    async with mesh_over(tmp_path, numbered(*(("completion-1", item) for item in items))) as mesh:
        got = await mesh.stream()
        assert "".join(event.delta.text for event in got) == "the more the merrier"


async def test_a_byte_order_mark_and_empty_data_are_no_garbage(tmp_path: Path) -> None:
    async def handler(_: dict[str, Any], __: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n\xef\xbb\xbf")
        for item in (piece("Hello."), "", piece("", "stop"), USAGE, "[DONE]"):
            writer.write(f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n".encode())
        writer.close()

    async with mesh_over(tmp_path, handler) as mesh:
        assert [event.delta.text for event in await mesh.stream() if event.HasField("delta")] == ["Hello."]


async def test_a_connection_that_breaks_after_all_of_an_answer_came_loses_nothing(tmp_path: Path) -> None:
    async def handler(_: dict[str, Any], __: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for item in (piece("Hello."), piece("", "stop"), USAGE):
            data = f"data: {json.dumps(item)}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await writer.drain()
        writer.transport.abort()

    async with mesh_over(tmp_path, handler) as mesh:
        await mesh.stream()
        assert mesh.ending() == ("FINISHED", 9, 2, False)


async def test_usage_that_comes_twice_is_billed_once_and_a_repeated_end_is_left_out(tmp_path: Path) -> None:
    end = piece("!", "stop")
    async with mesh_over(tmp_path, events(piece("ha"), piece("ha"), end, end, USAGE, USAGE, "[DONE]")) as mesh:
        got = await mesh.stream()
        # Two equal pieces are two pieces ("haha"): without numbers nobody could tell.
        assert "".join(event.delta.text for event in got) == "haha!"
        assert mesh.ending() == ("FINISHED", 9, 2, False)


async def test_usage_that_contradicts_itself_is_read_the_dearer_way(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 50}}
    async with mesh_over(tmp_path, reply(200, {**ANSWER, "usage": usage})) as mesh:
        await mesh.stub.GenerateText(mesh.request(), timeout=5)
        assert mesh.ending() == ("FINISHED", 50, 2, False)


async def test_a_wrong_content_type_around_a_good_body_is_read_and_a_stream_of_another_type_is_not(
    tmp_path: Path,
) -> None:
    async with mesh_over(tmp_path, reply(200, ANSWER, "text/html")) as mesh:
        await mesh.stub.GenerateText(mesh.request(), timeout=5)
        with pytest.raises(TenthError) as caught:
            await mesh.stream(5, request_id="r2")
        assert caught.value.reason == "PROVIDER_GARBAGE"


async def test_one_turn_at_a_time_is_waited_for_or_refused_with_a_time(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def gated(body: dict[str, Any], headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await reply(200, ANSWER)(body, headers, writer)

    async with mesh_over(tmp_path, gated, max_concurrent=1) as mesh:
        first = asyncio.ensure_future(mesh.stub.GenerateText(mesh.request(), timeout=20))
        await _until(lambda: len(mesh.provider.bodies) == 1)
        # An answer is taken to last a second until one was seen: half a second is not enough to wait for one.
        with pytest.raises(TenthError) as caught:
            await mesh.stub.GenerateText(mesh.request(request_id="r2"), timeout=0.5)
        assert (caught.value.code.name, caught.value.reason) == ("RESOURCE_EXHAUSTED", "PROVIDER_BUSY")
        assert caught.value.retry_after_seconds == pytest.approx(1.0)
        assert mesh.ending() == ("FAILED", 0, 0, False)
        second = asyncio.ensure_future(mesh.stub.GenerateText(mesh.request(request_id="r3"), timeout=20))
        await asyncio.sleep(0.05)
        assert len(mesh.provider.bodies) == 1, "the second one waits for its turn"
        gate.set()
        await asyncio.gather(first, second)
        assert len(mesh.provider.bodies) == 2
        listed = (await mesh.stub.ListServedModels(inference_pb2.ListServedModelsRequest(), timeout=5)).models[0]
        assert listed.healthy, "waiting is not the provider's fault"


async def test_what_a_model_does_not_take_is_dropped_or_refused_as_declared(tmp_path: Path) -> None:
    rules = CallRules({"temperature": "drop", "seed": "refuse"}, "max_completion_tokens")
    make = partial(openai_backend, rules=rules)
    async with mesh_over(tmp_path, reply(200, ANSWER), make=make) as mesh:
        request = mesh.request()
        request.sampling.temperature = 0.5
        await mesh.stub.GenerateText(request, timeout=5)
        body = mesh.provider.bodies[0]
        assert "temperature" not in body
        assert (body["max_completion_tokens"], "max_tokens" in body) == (30, False)
        request = mesh.request(request_id="r2")
        request.sampling.seed = 7
        with pytest.raises(TenthError) as caught:
            await mesh.stub.GenerateText(request, timeout=5)
        assert (caught.value.code.name, caught.value.field) == ("UNIMPLEMENTED", "generation.sampling.seed")
        assert len(mesh.provider.bodies) == 1
        assert mesh.ending() == ("FAILED", 0, 0, False)


async def test_azure_has_its_own_path_version_and_header(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, reply(200, ANSWER), api_version="2025-04-01-preview") as mesh:
        await mesh.stub.GenerateText(mesh.request(), timeout=5)
        assert mesh.provider.paths == ["/v1/openai/deployments/gpt-x/chat/completions?api-version=2025-04-01-preview"]
        assert mesh.provider.headers[0]["api-key"] == "sk-test"
        assert "authorization" not in mesh.provider.headers[0]
        listed = (await mesh.stub.ListServedModels(inference_pb2.ListServedModelsRequest(), timeout=5)).models[0]
        assert listed.backend == "azure"


async def test_a_stable_prefix_becomes_openais_cache_key_and_nothing_elsewhere(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, reply(200, ANSWER), sandbox=True) as mesh:
        for number, (count, version) in enumerate([(1, "a"), (1, "a"), (1, "b"), (0, "a")]):
            request = mesh.request(request_id=f"r{number}", stable_prefix_message_count=count, prefix_version=version)
            await mesh.stub.GenerateText(request, timeout=5)
        first, same, other, none = (body.get("prompt_cache_key") for body in mesh.provider.bodies)
        assert first
        assert first == same != other
        assert none is None
    async with mesh_over(tmp_path / "other", reply(200, ANSWER)) as mesh:
        await mesh.stub.GenerateText(mesh.request(stable_prefix_message_count=1), timeout=5)
        assert "prompt_cache_key" not in mesh.provider.bodies[0]
