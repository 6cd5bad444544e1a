"""What providers report as usage, in one form. Pure: the JSON goes in, token counts come out.

Providers count the same tokens in different places: inside a number or beside it. Which way a provider counts is its
``Family``, a fact of its catalogue entry; field names choose between the shapes of one family. Where a report
contradicts itself, the reading that charges more stands: money must never be missing.

Modalities (audio, pictures) are parts of the input and output counts with every provider here; they are not told
apart, and so not lost either. Fees per tool call (web search) are not tokens and are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MOST_TOKENS = 10**12
"""A larger count is no count of tokens; it would not fit the books either."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one generation: ``input`` includes cached and written ones, ``output`` includes reasoning."""

    input: int = 0
    cached: int = 0
    write_5m: int = 0
    write_1h: int = 0
    output: int = 0
    reasoning: int = 0
    estimated: bool = False


class Family(StrEnum):
    """How a provider counts."""

    OPENAI = "openai"
    """Cached and written tokens inside the input, reasoning inside the output."""
    ANTHROPIC = "anthropic"
    """``input_tokens`` is the uncached remainder; read and written tokens stand beside it."""
    GEMINI = "gemini"
    """Cached tokens inside the prompt; thoughts beside the answer, in the total."""
    DEEPSEEK = "deepseek"
    """As OpenAI's, the prompt split into hits and misses."""
    VLLM = "vllm"
    """As OpenAI's; cached tokens only where the server was started with them."""
    UNKNOWN = "unknown"
    """Told by the names of the fields; what only the total has is output."""


_HOSTS = {
    "api.openai.com": Family.OPENAI,
    "openai.azure.com": Family.OPENAI,
    "services.ai.azure.com": Family.OPENAI,
    "api.anthropic.com": Family.ANTHROPIC,
    "generativelanguage.googleapis.com": Family.GEMINI,
    "aiplatform.googleapis.com": Family.GEMINI,
    "api.deepseek.com": Family.DEEPSEEK,
}


_BACKENDS = {"vllm": Family.VLLM, "anthropic": Family.ANTHROPIC, "azure": Family.OPENAI}


def family_of(backend: str, host: str) -> Family:
    """The family of a provider whose catalogue entry names none: by its backend and its URL's host."""
    if backend in _BACKENDS:
        return _BACKENDS[backend]
    for known, family in _HOSTS.items():
        if host == known or host.endswith(("." + known, "-" + known)):  # "-": Vertex's regions.
            return family
    return Family.UNKNOWN


def as_count(value: object) -> int:
    """A token count from a provider's JSON; what is none (absent, null, negative, a fraction, too large) counts as 0.

    Digits in a text are a count: protobuf's JSON form writes 64-bit numbers so.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len(str(MOST_TOKENS)):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_TOKENS else 0


def openai(raw: Mapping[str, Any]) -> Usage:
    """Chat Completions (``prompt_tokens``) and Responses (``input_tokens``).

    Source: OpenAI's API reference and its prompt caching guide: ``cached_tokens`` and ``cache_write_tokens`` are parts
    of the input, ``reasoning_tokens`` of the output, and so are rejected prediction tokens. A write is at one price,
    whatever its life, which stands under the 5-minute writes. The total is a sum of the others and is not read.
    """
    prompt, details = _either(raw, "prompt_tokens", "input_tokens")
    output, made = _either(raw, "completion_tokens", "output_tokens")
    return _inside(
        prompt,
        output,
        cached=as_count(details.get("cached_tokens")),
        write_5m=as_count(details.get("cache_write_tokens")),
        reasoning=as_count(made.get("reasoning_tokens")),
    )


def anthropic(raw: Mapping[str, Any]) -> Usage:
    """Messages (``input_tokens``), and the OpenAI-compatible endpoint (``prompt_tokens``).

    Source: Anthropic's prompt caching guide: the whole input is ``cache_read_input_tokens`` +
    ``cache_creation_input_tokens`` + ``input_tokens``; ``cache_creation`` splits the written ones by their life.
    Thinking is inside ``output_tokens``. The compatible endpoint does not cache and gives the whole as
    ``prompt_tokens``; gateways that pass cache counts on with it include them, and where those do not fit they must
    have been left out.
    """
    written = _object(raw.get("cache_creation"))
    read = as_count(raw.get("cache_read_input_tokens"))
    write_1h = as_count(written.get("ephemeral_1h_input_tokens"))
    write_5m = as_count(written.get("ephemeral_5m_input_tokens"))
    write_5m = max(write_5m, as_count(raw.get("cache_creation_input_tokens")) - write_1h)
    if "prompt_tokens" not in raw:
        prompt = as_count(raw.get("input_tokens")) + read + write_5m + write_1h
        thought = as_count(_object(raw.get("output_tokens_details")).get("thinking_tokens"))
        output = as_count(raw.get("output_tokens"))
        return _inside(prompt, output, cached=read, write_5m=write_5m, write_1h=write_1h, reasoning=thought)
    same = openai(raw)
    # Both names for the same tokens, where a gateway writes both.
    read, write_5m = max(read, same.cached), max(write_5m, same.write_5m - write_1h)
    beside = read + write_5m + write_1h
    prompt = as_count(raw["prompt_tokens"])
    prompt += beside if beside > prompt else 0
    return _inside(prompt, same.output, cached=read, write_5m=write_5m, write_1h=write_1h, reasoning=same.reasoning)


def gemini(raw: Mapping[str, Any]) -> Usage:
    """``usageMetadata`` of generateContent, and ``usage`` of the OpenAI-compatible endpoint.

    Source: the Gemini API's reference of UsageMetadata: ``promptTokenCount`` includes the cached content, tool-use
    prompts and thoughts are counted beside prompt and candidates, and the total has them all. The compatible endpoint
    leaves thoughts out of ``completion_tokens`` and has them in ``total_tokens``.
    """
    if "promptTokenCount" in raw or "totalTokenCount" in raw:
        prompt = as_count(raw.get("promptTokenCount")) + as_count(raw.get("toolUsePromptTokenCount"))
        answer = as_count(raw.get("candidatesTokenCount")) or as_count(raw.get("responseTokenCount"))
        cached, thoughts = as_count(raw.get("cachedContentTokenCount")), as_count(raw.get("thoughtsTokenCount"))
        total = as_count(raw.get("totalTokenCount"))
    else:
        same = openai(raw)
        prompt, answer, cached = same.input, same.output, same.cached
        thoughts = as_count(_object(raw.get("completion_tokens_details")).get("reasoning_tokens"))
        answer = as_count(raw.get("completion_tokens"))
        total = as_count(raw.get("total_tokens"))
        if total == prompt + answer and thoughts <= answer:
            return _inside(prompt, answer, cached=cached, reasoning=thoughts)  # Already counted inside.
    thoughts = max(thoughts, total - prompt - answer) if prompt else thoughts
    return _inside(prompt, answer + thoughts, cached=cached, reasoning=thoughts)


def deepseek(raw: Mapping[str, Any]) -> Usage:
    """DeepSeek's chat completions.

    Source: DeepSeek's API reference: ``prompt_tokens`` is ``prompt_cache_hit_tokens`` + ``prompt_cache_miss_tokens``;
    ``reasoning_tokens`` are inside ``completion_tokens``.
    """
    same = openai(raw)
    hit, miss = as_count(raw.get("prompt_cache_hit_tokens")), as_count(raw.get("prompt_cache_miss_tokens"))
    return _inside(max(same.input, hit + miss), same.output, cached=max(hit, same.cached), reasoning=same.reasoning)


def vllm(raw: Mapping[str, Any]) -> Usage:
    """A vLLM server's chat completions: OpenAI's form; ``prompt_tokens_details`` is null unless the server was started
    with ``--enable-prompt-tokens-details``. Nothing is written to a cache at a price.
    """
    same = openai(raw)
    return _inside(same.input, same.output, cached=same.cached, reasoning=same.reasoning)


def unknown(raw: Mapping[str, Any]) -> Usage:
    """A provider nobody described: the shape whose field names it uses.

    Some leave reasoning out of the answer's count and in the total (xAI does): what only the total has is output, the
    dearer side.
    """
    if "promptTokenCount" in raw or "totalTokenCount" in raw:
        return gemini(raw)
    if "cache_read_input_tokens" in raw or "cache_creation_input_tokens" in raw or "cache_creation" in raw:
        usage = anthropic(raw)
    elif "prompt_cache_hit_tokens" in raw or "prompt_cache_miss_tokens" in raw:
        usage = deepseek(raw)
    else:
        usage = openai(raw)
    unnamed = as_count(raw.get("total_tokens")) - usage.input - usage.output
    if unnamed <= 0 or not usage.input:
        return usage
    reasoning = max(usage.reasoning, unnamed)
    return _inside(usage.input, usage.output + unnamed, usage.cached, usage.write_5m, usage.write_1h, reasoning)


_READERS: Mapping[Family, Callable[[Mapping[str, Any]], Usage]] = {
    Family.OPENAI: openai,
    Family.ANTHROPIC: anthropic,
    Family.GEMINI: gemini,
    Family.DEEPSEEK: deepseek,
    Family.VLLM: vllm,
    Family.UNKNOWN: unknown,
}


def normalise(family: Family, raw: Mapping[str, Any]) -> Usage:
    """A provider's usage object as ours. A count of 0 in the result means that it was not told."""
    return _READERS[family](raw)


class UsageReader:
    """Reads the usage of one answer out of its body, or out of the events of its stream.

    Counts of a stream are cumulative with every provider that repeats them (vLLM's and Gemini's with each piece,
    Anthropic's in ``message_start`` and ``message_delta``): the largest of each count stands, and they are never added.
    """

    __slots__ = ("_family", "_seen")

    def __init__(self, family: Family) -> None:
        self._family = family
        self._seen: dict[str, Any] = {}

    def read(self, body: Mapping[str, Any]) -> Usage | None:
        """What is known after this body or event; None where it says nothing of usage.

        A usage of zeros says nothing: an answer is never free.
        """
        raw = _reported(body)
        if raw is None:
            return None
        _merge(self._seen, raw)
        usage = normalise(self._family, self._seen)
        return None if usage == Usage() else usage


def _reported(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Where the usage is: at the top, in the message that begins (Anthropic's streams), in the response that ends
    (Responses' streams), under Gemini's own name, or in the choice (Moonshot's streams)."""
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    for holder in (body, body.get("message"), body.get("response"), first):
        if isinstance(holder, dict):
            for name in ("usage", "usageMetadata"):
                raw = holder.get(name)
                if isinstance(raw, dict) and raw:
                    return raw
    return None


def _merge(seen: dict[str, Any], raw: Mapping[str, Any]) -> None:
    for name, value in raw.items():
        before = seen.get(name)
        if isinstance(value, dict):
            inner = before if isinstance(before, dict) else {}
            _merge(inner, value)
            seen[name] = inner
        elif not isinstance(before, dict) and as_count(value) >= as_count(before):
            seen[name] = value


def _either(raw: Mapping[str, Any], chat: str, responses: str) -> tuple[int, dict[str, Any]]:
    """A count and its details, by the name that is given."""
    name = chat if chat in raw else responses
    return as_count(raw.get(name)), _object(raw.get(f"{name}_details"))


def _inside(
    prompt: int, output: int, cached: int = 0, write_5m: int = 0, write_1h: int = 0, reasoning: int = 0
) -> Usage:
    """Counts whose parts are inside; a part that is larger than its whole makes the whole larger."""
    return Usage(
        input=max(prompt, cached + write_5m + write_1h),
        cached=cached,
        write_5m=write_5m,
        write_1h=write_1h,
        output=max(output, reasoning),
        reasoning=reasoning,
    )


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
