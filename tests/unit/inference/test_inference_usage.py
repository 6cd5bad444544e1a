"""Usage as each provider documents it, in figures of our own, and what we make of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.catalog import CatalogError
from services.inference.models import parse_catalog
from services.inference.policy import Delta, Meter
from services.inference.usage import MOST_TOKENS, Family, Usage, UsageReader, as_count, family_of, normalise

OPENAI, ANTHROPIC, GEMINI = Family.OPENAI, Family.ANTHROPIC, Family.GEMINI
DEEPSEEK, VLLM, UNKNOWN = Family.DEEPSEEK, Family.VLLM, Family.UNKNOWN


def told(counts: tuple[int, ...]) -> Usage:
    """Usage from its counts; those left out are 0."""
    filled = [*counts, 0, 0, 0, 0, 0, 0]
    return Usage(filled[0], filled[1], filled[2], filled[3], filled[4], filled[5])


# Name, family, the usage object, what it is: input, cached, write_5m, write_1h, output, reasoning.
TABLE: list[tuple[str, Family, dict[str, Any], tuple[int, ...]]] = [
    (
        "openai chat, everything inside",
        OPENAI,
        {
            "prompt_tokens": 3100,
            "completion_tokens": 412,
            "total_tokens": 3512,
            "prompt_tokens_details": {"cached_tokens": 2944, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 256,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 40,
            },
        },
        (3100, 2944, 0, 0, 412, 256),
    ),
    ("openai chat, plain", OPENAI, {"prompt_tokens": 17, "completion_tokens": 5, "total_tokens": 22}, (17, 0, 0, 0, 5)),
    (
        "openai chat, audio is inside both and is not lost",
        OPENAI,
        {
            "prompt_tokens": 130,
            "completion_tokens": 90,
            "prompt_tokens_details": {"audio_tokens": 110, "cached_tokens": 0},
            "completion_tokens_details": {"audio_tokens": 70, "reasoning_tokens": 0},
        },
        (130, 0, 0, 0, 90),
    ),
    (
        "openai chat, written to the cache",
        OPENAI,
        {
            "prompt_tokens": 2700,
            "prompt_tokens_details": {"cached_tokens": 2000, "cache_write_tokens": 500},
            "completion_tokens": 8,
        },
        (2700, 2000, 500, 0, 8),
    ),
    (
        "openai responses",
        OPENAI,
        {
            "input_tokens": 2700,
            "input_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 0},
            "output_tokens": 900,
            "output_tokens_details": {"reasoning_tokens": 832},
            "total_tokens": 3600,
        },
        (2700, 1024, 0, 0, 900, 832),
    ),
    (
        "openai, a tool call without a word is output",
        OPENAI,
        {"prompt_tokens": 81, "completion_tokens": 19, "completion_tokens_details": {"reasoning_tokens": 0}},
        (81, 0, 0, 0, 19),
    ),
    (
        "openai, details are null",
        OPENAI,
        {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None},
        (9, 0, 0, 0, 2),
    ),
    ("openai, details of a wrong type", OPENAI, {"prompt_tokens": 9, "prompt_tokens_details": [3]}, (9, 0, 0, 0, 0)),
    (
        "openai, a total that contradicts is not read",
        OPENAI,
        {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 500},
        (9, 0, 0, 0, 2),
    ),
    (
        "openai, more cached than there was: the larger stands",
        OPENAI,
        {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 12}, "completion_tokens": 2},
        (12, 12, 0, 0, 2),
    ),
    (
        "openai, more reasoning than output: the larger stands",
        OPENAI,
        {"prompt_tokens": 9, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 7}},
        (9, 0, 0, 0, 7, 7),
    ),
    ("openai, null and negative", OPENAI, {"prompt_tokens": None, "completion_tokens": -4}, (0, 0, 0, 0, 0)),
    ("openai, texts of digits count", OPENAI, {"prompt_tokens": "31", "completion_tokens": "4x"}, (31, 0, 0, 0, 0)),
    ("openai, a truth is no count", OPENAI, {"prompt_tokens": True, "completion_tokens": 3.0}, (0, 0, 0, 0, 3)),
    ("openai, beyond belief", OPENAI, {"prompt_tokens": 10**30, "completion_tokens": 1}, (0, 0, 0, 0, 1)),
    (
        "anthropic, the remainder, read, and written for both lives",
        ANTHROPIC,
        {
            "input_tokens": 21,
            "cache_read_input_tokens": 8000,
            "cache_creation_input_tokens": 700,
            "cache_creation": {"ephemeral_5m_input_tokens": 450, "ephemeral_1h_input_tokens": 250},
            "output_tokens": 310,
            "server_tool_use": {"web_search_requests": 1},
            "service_tier": "standard",
        },
        (8721, 8000, 450, 250, 310),
    ),
    (
        "anthropic, written, life not told: five minutes is the default",
        ANTHROPIC,
        {"input_tokens": 4, "cache_creation_input_tokens": 1800, "cache_read_input_tokens": 0, "output_tokens": 6},
        (1804, 0, 1800, 0, 6),
    ),
    (
        "anthropic, only the lives",
        ANTHROPIC,
        {"input_tokens": 4, "cache_creation": {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70}},
        (104, 0, 30, 70, 0),
    ),
    (
        "anthropic, everything was cached",
        ANTHROPIC,
        {"input_tokens": 0, "cache_read_input_tokens": 512, "output_tokens": 3},
        (512, 512, 0, 0, 3),
    ),
    (
        "anthropic, no cache, nulls",
        ANTHROPIC,
        {
            "input_tokens": 40,
            "cache_creation_input_tokens": None,
            "cache_read_input_tokens": None,
            "cache_creation": None,
            "output_tokens": 12,
        },
        (40, 0, 0, 0, 12),
    ),
    (
        "anthropic, its own compatible endpoint",
        ANTHROPIC,
        {"prompt_tokens": 66, "completion_tokens": 20, "total_tokens": 86, "prompt_tokens_details": None},
        (66, 0, 0, 0, 20),
    ),
    (
        "anthropic, a gateway that includes the cached ones",
        ANTHROPIC,
        {
            "prompt_tokens": 5021,
            "completion_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": 4000},
            "cache_read_input_tokens": 4000,
            "cache_creation_input_tokens": 1000,
        },
        (5021, 4000, 1000, 0, 20),
    ),
    (
        "anthropic, a gateway that passes the remainder",
        ANTHROPIC,
        {"prompt_tokens": 21, "completion_tokens": 20, "cache_read_input_tokens": 4000},
        (4021, 4000, 0, 0, 20),
    ),
    (
        "gemini, thoughts beside the answer",
        GEMINI,
        {
            "promptTokenCount": 150,
            "cachedContentTokenCount": 100,
            "candidatesTokenCount": 30,
            "thoughtsTokenCount": 400,
            "totalTokenCount": 580,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 90}, {"modality": "AUDIO", "tokenCount": 60}],
        },
        (150, 100, 0, 0, 430, 400),
    ),
    (
        "gemini, the prompt of a tool's use is input",
        GEMINI,
        {
            "promptTokenCount": 150,
            "toolUsePromptTokenCount": 75,
            "candidatesTokenCount": 30,
            "totalTokenCount": 255,
        },
        (225, 0, 0, 0, 30),
    ),
    (
        "gemini, it thought and said nothing",
        GEMINI,
        {"promptTokenCount": 12, "thoughtsTokenCount": 64, "totalTokenCount": 76},
        (12, 0, 0, 0, 64, 64),
    ),
    (
        "gemini, a total that has more than the parts",
        GEMINI,
        {"promptTokenCount": 12, "candidatesTokenCount": 8, "totalTokenCount": 50},
        (12, 0, 0, 0, 38, 30),
    ),
    (
        "gemini compatible, thoughts in the total alone",
        GEMINI,
        {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 50},
        (12, 0, 0, 0, 38, 30),
    ),
    (
        "gemini compatible, thoughts named too",
        GEMINI,
        {
            "prompt_tokens": 12,
            "completion_tokens": 8,
            "total_tokens": 50,
            "completion_tokens_details": {"reasoning_tokens": 30},
        },
        (12, 0, 0, 0, 38, 30),
    ),
    (
        "gemini compatible, already inside",
        GEMINI,
        {
            "prompt_tokens": 12,
            "completion_tokens": 38,
            "total_tokens": 50,
            "completion_tokens_details": {"reasoning_tokens": 30},
        },
        (12, 0, 0, 0, 38, 30),
    ),
    ("gemini compatible, no total", GEMINI, {"prompt_tokens": 12, "completion_tokens": 8}, (12, 0, 0, 0, 8)),
    (
        "gemini compatible, a total that is too small",
        GEMINI,
        {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 3},
        (12, 0, 0, 0, 8),
    ),
    (
        "deepseek, hits and misses",
        DEEPSEEK,
        {
            "prompt_tokens": 900,
            "prompt_cache_hit_tokens": 832,
            "prompt_cache_miss_tokens": 68,
            "completion_tokens": 500,
            "total_tokens": 1400,
            "completion_tokens_details": {"reasoning_tokens": 450},
        },
        (900, 832, 0, 0, 500, 450),
    ),
    (
        "deepseek, the split alone",
        DEEPSEEK,
        {"prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 6, "completion_tokens": 5},
        (70, 64, 0, 0, 5),
    ),
    (
        "deepseek, the same in two names counts once",
        DEEPSEEK,
        {
            "prompt_tokens": 90,
            "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 26,
            "prompt_tokens_details": {"cached_tokens": 64},
            "completion_tokens": 5,
        },
        (90, 64, 0, 0, 5),
    ),
    (
        "vllm, as it is started by default",
        VLLM,
        {"prompt_tokens": 31, "total_tokens": 47, "completion_tokens": 16, "prompt_tokens_details": None},
        (31, 0, 0, 0, 16),
    ),
    (
        "vllm with details",
        VLLM,
        {"prompt_tokens": 310, "completion_tokens": 16, "prompt_tokens_details": {"cached_tokens": 304}},
        (310, 304, 0, 0, 16),
    ),
    (
        "unknown, reasoning in the total alone",
        UNKNOWN,
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "total_tokens": 341,
            "completion_tokens_details": {"reasoning_tokens": 300},
        },
        (32, 0, 0, 0, 309, 300),
    ),
    (
        "unknown, less reasoning than answer, in the total alone",
        UNKNOWN,
        {
            "prompt_tokens": 32,
            "completion_tokens": 90,
            "total_tokens": 142,
            "completion_tokens_details": {"reasoning_tokens": 20},
        },
        (32, 0, 0, 0, 110, 20),
    ),
    (
        "unknown, Anthropic's names",
        UNKNOWN,
        {"input_tokens": 10, "cache_read_input_tokens": 90, "output_tokens": 2},
        (100, 90, 0, 0, 2),
    ),
    (
        "unknown, Responses' names",
        UNKNOWN,
        {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12},
        (10, 0, 0, 0, 2),
    ),
    (
        "unknown, DeepSeek's names",
        UNKNOWN,
        {"prompt_cache_hit_tokens": 8, "prompt_cache_miss_tokens": 2},
        (10, 8, 0, 0, 0),
    ),
    ("unknown, Gemini's names", UNKNOWN, {"promptTokenCount": 8, "candidatesTokenCount": 2}, (8, 0, 0, 0, 2)),
    ("unknown, a total alone says nothing of the sides", UNKNOWN, {"total_tokens": 12}, (0, 0, 0, 0, 0)),
    ("nothing", UNKNOWN, {}, (0, 0, 0, 0, 0)),
]


@pytest.mark.parametrize(("family", "raw", "expected"), [pytest.param(*row[1:], id=row[0]) for row in TABLE])
def test_usage_is_normalised(family: Family, raw: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert normalise(family, raw) == told(expected)


@pytest.mark.parametrize(("family", "raw", "expected"), [pytest.param(*row[1:], id=row[0]) for row in TABLE])
def test_a_report_that_comes_twice_counts_once(family: Family, raw: dict[str, Any], expected: tuple[int, ...]) -> None:
    reader = UsageReader(family)
    for _ in range(3):
        said = reader.read({"usage": raw})
    assert (said or Usage()) == told(expected)


# Name, family, the stream's events, what is known at its end.
STREAMS: list[tuple[str, Family, list[dict[str, Any]], tuple[int, ...]]] = [
    (
        "openai, once at the end",
        OPENAI,
        [
            {"choices": [{"delta": {"content": "a"}}], "usage": None},
            {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 1}},
        ],
        (7, 0, 0, 0, 1),
    ),
    (
        "responses, in the event that completes",
        OPENAI,
        [
            {"type": "response.created", "response": {"usage": None}},
            {"type": "response.completed", "response": {"usage": {"input_tokens": 7, "output_tokens": 4}}},
        ],
        (7, 0, 0, 0, 4),
    ),
    (
        "anthropic, message_start and cumulative deltas",
        ANTHROPIC,
        [
            {
                "type": "message_start",
                "message": {
                    "usage": {
                        "input_tokens": 14,
                        "cache_read_input_tokens": 2000,
                        "cache_creation_input_tokens": 300,
                        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 300},
                        "output_tokens": 2,
                    }
                },
            },
            {"type": "content_block_delta", "delta": {"text": "x"}},
            {"type": "message_delta", "usage": {"output_tokens": 40}},
            {"type": "message_delta", "usage": {"output_tokens": 95}},
        ],
        (2314, 2000, 0, 300, 95),
    ),
    (
        "anthropic, a server's tools let the input grow",
        ANTHROPIC,
        [
            {"type": "message_start", "message": {"usage": {"input_tokens": 14, "output_tokens": 1}}},
            {
                "type": "message_delta",
                "usage": {"input_tokens": 900, "cache_read_input_tokens": 50, "output_tokens": 60},
            },
        ],
        (950, 50, 0, 0, 60),
    ),
    (
        "gemini, with every piece",
        GEMINI,
        [
            {"usageMetadata": {"promptTokenCount": 9, "thoughtsTokenCount": 30, "totalTokenCount": 39}},
            {
                "usageMetadata": {
                    "promptTokenCount": 9,
                    "candidatesTokenCount": 12,
                    "thoughtsTokenCount": 30,
                    "totalTokenCount": 51,
                }
            },
        ],
        (9, 0, 0, 0, 42, 30),
    ),
    (
        "vllm, continuous",
        VLLM,
        [{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": n}} for n in (0, 1, 2)],
        (9, 0, 0, 0, 2),
    ),
    (
        "moonshot, in the choice",
        UNKNOWN,
        [{"choices": [{"delta": {}, "usage": {"prompt_tokens": 9, "completion_tokens": 2}}]}],
        (9, 0, 0, 0, 2),
    ),
    ("of wrong types throughout", UNKNOWN, [{"choices": "x", "usage": 3, "message": [1]}, {"choices": [4]}], (0,)),
]


@pytest.mark.parametrize(("family", "events", "expected"), [pytest.param(*row[1:], id=row[0]) for row in STREAMS])
def test_a_stream_is_read_to_its_end(family: Family, events: list[dict[str, Any]], expected: tuple[int, ...]) -> None:
    reader = UsageReader(family)
    known: Usage | None = None
    for event in events:
        known = reader.read(event) or known
    assert (known or Usage()) == told(expected)


@pytest.mark.parametrize(
    ("backend", "host", "family"),
    [
        ("vllm", "", VLLM),
        ("openai", "api.openai.com", OPENAI),
        ("openai", "acme.openai.azure.com", OPENAI),
        ("openai", "api.anthropic.com", ANTHROPIC),
        ("openai", "generativelanguage.googleapis.com", GEMINI),
        ("openai", "asia-northeast3-aiplatform.googleapis.com", GEMINI),
        ("openai", "api.deepseek.com", DEEPSEEK),
        ("openai", "api.openai.com.evil.example", UNKNOWN),
        ("openai", "localhost", UNKNOWN),
    ],
)
def test_the_family_follows_from_the_host(backend: str, host: str, family: Family) -> None:
    assert family_of(backend, host) is family


def test_the_catalogue_may_name_the_family() -> None:
    text = """
providers:
  gateway: {backend: openai, base_url: "https://llm.example/v1", usage: anthropic}
  google: {backend: openai, base_url: "https://generativelanguage.googleapis.com/v1beta/openai/"}
models:
  one: {provider: gateway, provider_model: m, context_window_tokens: 10, max_output_tokens: 5}
  two: {provider: google, provider_model: m, context_window_tokens: 10, max_output_tokens: 5}
"""
    models = parse_catalog(text, "c.yaml")
    assert models["one"].provider.family is ANTHROPIC
    assert models["two"].provider.family is GEMINI
    with pytest.raises(CatalogError, match=r"providers\.gateway\.usage: 'guess' is none of openai, anthropic"):
        parse_catalog(text.replace("anthropic", "guess"), "c.yaml")


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (3, 3),
        (0, 0),
        (-3, 0),
        ("12", 12),
        ("-1", 0),
        ("\N{SUPERSCRIPT TWO}", 0),
        ("1" * 40, 0),
        (2.0, 2),
        (2.5, 0),
        (float("nan"), 0),
        (float("inf"), 0),
        (True, 0),
        (None, 0),
        ([1], 0),
        (MOST_TOKENS, MOST_TOKENS),
        (MOST_TOKENS + 1, 0),
    ],
)
def test_what_counts_as_a_count(value: object, count: int) -> None:
    assert as_count(value) == count


_VALUES = st.one_of(st.none(), st.booleans(), st.integers(-9, 10**14), st.floats(), st.text(max_size=3))
_NAMES = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "prompt_cache_hit_tokens",
    "prompt_cache_miss_tokens",
    "promptTokenCount",
    "candidatesTokenCount",
    "thoughtsTokenCount",
    "totalTokenCount",
)
_DETAILS = st.dictionaries(
    st.sampled_from(
        (
            "cached_tokens",
            "cache_write_tokens",
            "reasoning_tokens",
            "ephemeral_5m_input_tokens",
            "ephemeral_1h_input_tokens",
        )
    ),
    _VALUES,
)
_OBJECTS = ("prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "cache_creation")
_RAW = st.fixed_dictionaries(
    {}, optional={**dict.fromkeys(_NAMES, _VALUES), **dict.fromkeys(_OBJECTS, _DETAILS | _VALUES)}
)


@given(st.sampled_from(Family), st.lists(_RAW, min_size=1, max_size=3))
def test_whatever_a_provider_reports_the_parts_fit_the_whole(family: Family, raws: list[dict[str, Any]]) -> None:
    reader = UsageReader(family)
    for raw in raws:
        usage = reader.read({"usage": raw}) or Usage()
        assert usage.cached + usage.write_5m + usage.write_1h <= usage.input < 2**63
        assert 0 <= usage.reasoning <= usage.output < 2**63
        assert min(usage.cached, usage.write_5m, usage.write_1h) >= 0
        assert not usage.estimated


# The report, whether it is final, what was emitted (tokens are characters), and what is charged.
@pytest.mark.parametrize(
    ("reported", "final", "emitted", "expected"),
    [
        (None, True, "", Usage(40, estimated=True)),
        (None, False, "abc", Usage(40, output=3, estimated=True)),
        (Usage(9, output=2), True, "abc", Usage(9, output=2)),
        (Usage(9, output=0), True, "", Usage(9)),
        (Usage(9, output=0), True, "abc", Usage(9, output=3, estimated=True)),
        (Usage(0, output=2), True, "abc", Usage(40, output=2, estimated=True)),
        (Usage(9, 4, output=1), False, "abc", Usage(9, 4, output=3, estimated=True)),
        (Usage(9, output=70, reasoning=60), False, "abc", Usage(9, output=70, reasoning=60, estimated=True)),
        (Usage(9, output=2, estimated=True), True, "abc", Usage(9, output=2, estimated=True)),
    ],
)
def test_what_was_not_told_is_counted_and_marked(
    reported: Usage | None, final: bool, emitted: str, expected: Usage
) -> None:
    meter = Meter(40, len, reached=True, reported=reported, final=final)
    meter.emit(Delta(text=emitted))
    assert meter.usage() == expected


@pytest.mark.parametrize(("backend", "family"), [("anthropic", Family.ANTHROPIC), ("azure", Family.OPENAI)])
def test_a_backend_with_a_format_of_its_own_says_the_family_behind_any_host(backend: str, family: Family) -> None:
    assert family_of(backend, "gateway.example") is family
