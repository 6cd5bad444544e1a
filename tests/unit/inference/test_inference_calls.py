"""Waits, turns, declared parameters, and the Messages format: no I/O."""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from typing import Any

import pytest

from mesh.catalog import CatalogError
from mesh.errors import TenthError
from services.inference.call import CallRules, fitted
from services.inference.messages_wire import BlockReader, delta_of, request_body, stop_reason_of
from services.inference.models import parse_catalog
from services.inference.openai import prompt_cache_key
from services.inference.policy import Delta, Generation, Image, Message, ResponseKind, Sampling, Tool, ToolCall
from services.inference.retries import backoff_seconds, retry_after_seconds, spread_seconds
from services.inference.slots import Slots
from tests.unit.inference.test_inference_catalog import GOOD

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"retry-after": formatdate(NOW + 90, usegmt=True), "date": formatdate(NOW + 60, usegmt=True)}, 30.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1000000"}, None),
    ],
)
def test_what_a_provider_says_of_when_to_come_back(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, NOW) == seconds


def test_waits_are_spread_by_chance_within_their_bounds() -> None:
    assert [backoff_seconds(0.1, tries, lambda: 0.0) for tries in range(3)] == pytest.approx([0.05, 0.1, 0.2])
    assert [backoff_seconds(0.1, tries, lambda: 1.0) for tries in range(3)] == pytest.approx([0.1, 0.2, 0.4])
    assert spread_seconds(10, lambda: 0.0) == 10
    assert spread_seconds(10, lambda: 1.0) == pytest.approx(11)


async def test_turns_are_first_come_first_served_and_given_back_by_the_cancelled() -> None:
    slots = Slots("p", 1, lambda: 0.0)
    order: list[int] = []

    async def run(number: int) -> None:
        async with slots.hold(None):
            order.append(number)

    async with slots.hold(None):
        tasks = [asyncio.create_task(run(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert (slots.running, slots.waiting) == (1, 3)
        tasks[1].cancel()
        await asyncio.sleep(0)
        assert slots.waiting == 2
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2]
    assert (slots.running, slots.waiting) == (0, 0)


async def test_a_turn_that_cannot_come_in_time_is_refused_at_once() -> None:
    clock = [0.0]
    slots = Slots("p", 2, lambda: clock[0])
    for _ in range(50):  # Answers take ten seconds here.
        async with slots.hold(None):
            clock[0] += 10
    async with slots.hold(None), slots.hold(None):
        with pytest.raises(TenthError) as caught:
            async with slots.hold(4.0):
                raise AssertionError("there is no turn")
        assert caught.value.retry_after_seconds == pytest.approx(5, rel=0.01)
        assert caught.value.reason == "PROVIDER_BUSY"


def generation(*messages: Message, **changes: Any) -> Generation:
    return Generation("r", 1, "m", messages or (Message("user", ("Hi",)),), **changes)


def test_parameters_are_dropped_or_refused_only_where_they_are_given() -> None:
    rules = CallRules({"temperature": "drop", "logprobs": "refuse", "stop": "drop"})
    plain = generation()
    assert fitted(plain, rules) is plain
    made = fitted(generation(sampling=Sampling(temperature=0.0, top_p=0.5, stop=("x",))), rules)
    assert made.sampling == Sampling(top_p=0.5)
    with pytest.raises(TenthError) as caught:
        fitted(generation(sampling=Sampling(top_logprobs=3)), rules)
    assert caught.value.field == "generation.sampling.top_logprobs_count"


WITH_RULES = GOOD.replace(
    "key_env: OPENAI_API_KEY}",
    "key_env: OPENAI_API_KEY, max_concurrent_requests: 7, hedge_after_seconds: 1.5,"
    " output_limit_name: max_completion_tokens, unsupported: {temperature: drop, seed: drop}}\n"
    '  claude: {backend: anthropic, base_url: "https://api.anthropic.com/v1"}\n'
    '  azure: {backend: azure, base_url: "https://x.openai.azure.com", api_version: "2025-04-01"}',
)


def test_the_catalogue_declares_how_models_are_called() -> None:
    text = WITH_RULES + (
        "  own: {<<: *m, provider: openai, provider_model: o, hedge_after_seconds: 2,"
        " unsupported: {temperature: take, stop: refuse}}\n"
        "  sonnet: {<<: *m, provider: claude, provider_model: s, unsupported: {temperature: refuse}}\n"
        "  deployed: {<<: *m, provider: azure, provider_model: d}\n"
        "  tuned: {<<: *m, adapter: support-lora}\n"
    )
    models = parse_catalog(text, "c.yaml")
    assert models["big"].rules == CallRules({"temperature": "drop", "seed": "drop"}, "max_completion_tokens", 1.5)
    assert models["big"].provider.max_concurrent_requests == 7
    own = models["own"].rules
    assert (own.unsupported, own.hedge_after_seconds) == ({"seed": "drop", "stop": "refuse"}, 2.0)
    claude = models["sonnet"].rules.unsupported
    assert (claude["temperature"], claude["top_p"], claude["logprobs"]) == ("refuse", "drop", "refuse")
    assert models["deployed"].provider.api_version == "2025-04-01"
    assert models["tuned"].adapter == "support-lora"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("temperature: drop", "temprature: drop", r"providers\.openai\.unsupported\.temprature: unknown key"),
        ("temperature: drop", "temperature: ignore", r"providers\.openai\.unsupported\.temperature: 'ignore' is none"),
        ("temperature: drop", "prompt_cache_hint: refuse", "can be dropped, not refused"),
        ("max_completion_tokens", "most_tokens", r"output_limit_name: 'most_tokens' is none of"),
        ("hedge_after_seconds: 1.5", "hedge_after_seconds: 0", "hedge_after_seconds"),
        ("max_concurrent_requests: 7", "max_concurrent_requests: 0", "max_concurrent_requests"),
        (', api_version: "2025-04-01"', "", "needed by the backend azure"),
        ("{backend: vllm}", "{backend: vllm, hedge_after_seconds: 1}", "is not asked twice"),
        ("provider_model: gpt-big", "provider_model: gpt-big, adapter: a", "only an engine of one's own"),
    ],
)
def test_what_is_wrong_in_a_declaration_is_named(old: str, new: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        parse_catalog(WITH_RULES.replace(old, new, 1), "c.yaml")


def body_of(made: Generation, *, hints: bool = True, stream: bool = False) -> dict[str, Any]:
    return request_body(made, "claude", 99, stream=stream, hints=hints)


def test_everything_reaches_the_messages_api_in_its_words() -> None:
    made = generation(
        Message("system", ("Be short.",)),
        Message("user", ("See", Image("data:image/png;base64,QUJD"), Image("https://x/y"))),
        Message("assistant", (), tool_calls=(ToolCall(0, "c1", "f", '{"a": 1}'), ToolCall(1, "c2", "f", ""))),
        Message("tool", ("2",), tool_call_id="c1"),
        Message("tool", ("3",), tool_call_id="c2"),
        Message("user", (" ",)),
        tools=(Tool("f", "adds", {"type": "object"}), Tool("g", "", None)),
        tool_choice="required",
        response=ResponseKind.JSON_SCHEMA,
        schema={"type": "object"},
        sampling=Sampling(stop=("x",), max_output_tokens=7),
        stable_messages=1,
    )
    body = body_of(made, stream=True)
    assert body["system"] == [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}]
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][0]["content"][1:] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
        {"type": "image", "source": {"type": "url", "url": "https://x/y"}},
    ]
    assert body["messages"][1]["content"] == [
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "c2", "name": "f", "input": {}},
    ]
    assert [block["tool_use_id"] for block in body["messages"][2]["content"]] == ["c1", "c2"]
    assert body["tools"][1] == {"name": "g", "input_schema": {"type": "object", "properties": {}}}
    assert body["tool_choice"] == {"type": "any"}
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    assert (body["max_tokens"], body["stop_sequences"], body["stream"]) == (7, ["x"], True)
    assert "cache_control" not in str(body_of(made, hints=False))
    assert body_of(generation())["max_tokens"] == 99


def test_a_breakpoint_stands_at_the_end_of_the_stable_prefix() -> None:
    turns = [Message("system", ("S",)), Message("user", ("a",)), Message("assistant", ("b",)), Message("user", ("c",))]
    body = body_of(generation(*turns, stable_messages=2))
    assert "cache_control" not in body["system"][0]
    assert body["messages"][0]["content"][-1]["cache_control"] == {"type": "ephemeral"}
    assert str(body).count("cache_control") == 1


@pytest.mark.parametrize(
    "made",
    [
        generation(response=ResponseKind.JSON_OBJECT),
        generation(Message("user", (Image("data:image/png,raw"),))),
    ],
)
def test_what_the_messages_api_cannot_do_is_refused(made: Generation) -> None:
    with pytest.raises(TenthError) as caught:
        body_of(made)
    assert caught.value.code.name == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("said", "ours"),
    [("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"),
     ("refusal", "content_filter"), ("model_context_window_exceeded", "length"), ("new_reason", "stop"),
     (None, ""), ("", "")],
)  # fmt: skip
def test_stop_reasons(said: object, ours: str) -> None:
    assert stop_reason_of(said) == ours


def test_content_blocks_become_one_answer() -> None:
    content = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "He"},
        {"type": "text", "text": "llo"},
        {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "é"}},
        {"type": "unheard_of"},
    ]
    assert delta_of(content) == Delta("Hello", "hm", (ToolCall(0, "c", "f", '{"a": "é"}'),))


def test_blocks_of_a_stream_and_their_repeats() -> None:
    reader = BlockReader()
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    piece = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "ha"}}
    stop = {"type": "content_block_stop", "index": 0}
    call = {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "c", "name": "f"}}
    events = [start, start, piece, piece, stop, piece, start, call, {"type": "content_block_stop", "index": 1}]
    got = [delta for event in events if (delta := reader.read(event))]
    assert [delta.text for delta in got] == ["ha", "ha", "", ""]
    assert got[2].tool_calls == (ToolCall(0, "c", "f", ""),)
    assert got[3].tool_calls == (ToolCall(0, "", "", "{}"),)
    with pytest.raises(KeyError):
        reader.read({"type": "content_block_delta", "index": 0})


def test_a_cache_key_is_of_tenant_model_rules_and_instructions() -> None:
    system, first = Message("system", ("S",)), Message("user", ("a",))
    base = generation(system, first, tenant_id="t", stable_messages=1, prefix_version="v")
    grown = generation(
        system, first, Message("assistant", ("b",)), first, tenant_id="t", stable_messages=2, prefix_version="v"
    )
    assert prompt_cache_key(base) == prompt_cache_key(grown), "the key stays while the conversation grows"
    other_tenant = generation(system, first, tenant_id="u", stable_messages=1, prefix_version="v")
    other_rules = generation(system, first, tenant_id="t", stable_messages=1, prefix_version="w")
    assert len({prompt_cache_key(each) for each in (base, other_tenant, other_rules)}) == 3
    assert prompt_cache_key(generation(system, first)) == ""
