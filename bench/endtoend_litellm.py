"""LiteLLM's proxy on the same requests against the same sandbox: its complexity router and its exact cache.

Its own rules choose among the same models (``auto_router/complexity_router``); requests with recorded outcomes have a
router of the recorded pair alone, as ours has a tier floor. Its in-memory cache is on, apart for each mix. It has no
compression, and no batches that a gateway would form by itself: what can wait is asked online. Its semantic cache needs
a Redis or Qdrant server, which this benchmark does not start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
import yaml

from bench.endtoend_deploy import HERE
from bench.endtoend_play import HEAD, MAX_OUTPUT_TOKENS, Outcome
from bench.endtoend_rows import MAIN, OMNIS, STRONG, WEAK, Ask
from bench.endtoend_workload import Arrival
from bench.peers import KEY
from services.compressor.prompt import context_lead

SMALL = "gpt-4o-mini"
ANY, RECORDED, OMNIS_PAIR = "any-model", "recorded-pair", "omnisbench-pair"
"""Its routers: of all models, of the recorded pair, of omnisbench's."""
CACHE_KEY_HEADER = "x-litellm-cache-key"
MODEL_HEADER = "x-litellm-model-id"
_MILLION = 1_000_000
_NANO = 1_000_000_000


def configuration(upstream_url: str) -> dict[str, Any]:
    """The proxy's configuration: every model played by the sandbox, three routers over them, the cache."""
    models = [SMALL, WEAK[MAIN], STRONG[MAIN], WEAK[OMNIS], STRONG[OMNIS]]
    return {
        "model_list": [
            *(
                {
                    "model_name": name,
                    "litellm_params": {"model": f"openai/{name}", "api_base": upstream_url, "api_key": "bench"},
                    "model_info": {"id": name},
                }
                for name in models
            ),
            _router(ANY, SMALL, WEAK[MAIN], STRONG[MAIN]),
            _router(RECORDED, WEAK[MAIN], WEAK[MAIN], STRONG[MAIN]),
            _router(OMNIS_PAIR, WEAK[OMNIS], WEAK[OMNIS], STRONG[OMNIS]),
        ],
        "litellm_settings": {"cache": True, "cache_params": {"type": "local"}, "telemetry": False, "drop_params": True},
        "general_settings": {"master_key": KEY},
    }


def _router(name: str, simple: str, medium: str, strong: str) -> dict[str, Any]:
    tiers = {"SIMPLE": simple, "MEDIUM": medium, "COMPLEX": strong, "REASONING": strong}
    return {
        "model_name": name,
        "litellm_params": {
            "model": "auto_router/complexity_router",
            "complexity_router_config": {"tiers": tiers},
            "complexity_router_default_model": medium,
        },
    }


class HttpAsker:
    """Asks a running proxy, or with ``direct_body`` the models themselves."""

    def __init__(self, url: str, codes: Mapping[str, str], body: Callable[[Ask, str], dict[str, Any]]) -> None:
        """``url`` ends before ``/chat/completions``; ``body`` makes the request of an ask in a namespace of caches."""
        self._url = url
        self._codes = codes
        self._body = body
        self._prices = {**prices(MAIN), **prices(OMNIS)}

    async def play(
        self, stream: Sequence[Arrival], namespace: str, concurrency: int, per_second: float = 0.0
    ) -> list[Outcome]:
        """Every request's outcome, in order; as ``endtoend_play.Player.play``."""
        scale = len(stream) / (stream[-1].seconds or 1.0) / per_second if per_second and stream else 0.0
        begun = time.monotonic()
        waiting = iter(stream)
        found: list[Outcome] = []
        # Connections are dropped before the server does it: a POST is not sent again.
        connector = aiohttp.TCPConnector(limit=64, keepalive_timeout=2)
        async with aiohttp.ClientSession(connector=connector) as http:

            async def worker() -> None:
                for arrival in waiting:
                    if scale:
                        await asyncio.sleep(max(0.0, begun + arrival.seconds * scale - time.monotonic()))
                    found.append(await self._one(http, arrival, namespace))

            await asyncio.gather(*(worker() for _ in range(concurrency)))
        return sorted(found, key=lambda each: each.index)

    async def _one(self, http: aiohttp.ClientSession, arrival: Arrival, namespace: str) -> Outcome:
        body = self._body(arrival.ask, namespace)
        started = time.perf_counter()
        try:
            url = f"{self._url}/chat/completions"
            async with http.post(url, json=body, headers={"authorization": f"Bearer {KEY}"}) as reply:
                if reply.status != 200:
                    return Outcome(arrival.index, error=f"HTTP {reply.status}")
                answer = await reply.json()
                headers = reply.headers
        except (aiohttp.ClientError, ValueError) as error:
            return Outcome(arrival.index, error=type(error).__name__)
        milliseconds = (time.perf_counter() - started) * 1000
        model = headers.get(MODEL_HEADER) or str(answer.get("model", ""))
        return self._outcome(arrival, answer, model, milliseconds, hit=CACHE_KEY_HEADER in headers)

    def _outcome(
        self, arrival: Arrival, answer: Mapping[str, Any], model: str, milliseconds: float, *, hit: bool
    ) -> Outcome:
        usage = answer["usage"]
        tokens, written = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        read = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        text = str(answer["choices"][0]["message"]["content"])
        head = HEAD.match(text)
        strong = self._prices[STRONG[arrival.ask.catalog]]
        baseline, plain = cost(strong, tokens, 0, written), cost(self._prices[model], tokens, 0, written)
        actual = 0 if hit else cost(self._prices[model], tokens, read, written)
        return Outcome(
            index=arrival.index,
            model=model,
            hit="exact" if hit else "",
            code=head[1] if head else self._codes.get(text, ""),
            prompt=(head[2] or "") if head else "",
            baseline=baseline,
            baseline_prompt_cached=cost(strong, tokens, read, written),
            actual=actual,
            savings={"cache": baseline} if hit else {"routing": baseline - plain, "prompt_cache": plain - actual},
            baseline_input_tokens=tokens,
            input_tokens=tokens,
            cached_tokens=read,
            output_tokens=written,
            milliseconds=milliseconds,
        )


def body_of(ask: Ask, namespace: str) -> dict[str, Any]:
    """The request as an OpenAI client would send it, passages before the question as inference writes them."""
    *before, last = ask.messages
    question = {**last, "content": context_lead(ask.chunks) + last["content"]}
    model = ANY if not ask.correct else OMNIS_PAIR if ask.catalog == OMNIS else RECORDED
    return {
        "model": model,
        "messages": [*before, question],
        "temperature": 0,
        "max_tokens": MAX_OUTPUT_TOKENS,
        "cache": {"namespace": namespace},
    }


def direct_body(ask: Ask, namespace: str) -> dict[str, Any]:
    """The request as it goes to the strong model with nothing between."""
    body = body_of(ask, namespace)
    del body["cache"]
    return body | {"model": STRONG[ask.catalog]}


def prices(catalog: str) -> dict[str, tuple[float, float, float]]:
    """USD per million tokens by model: input, input read from the provider's prompt cache, output."""
    content = yaml.safe_load((HERE / f"endtoend_catalog_{catalog}.yaml").read_text("utf-8"))
    return {
        row["model"]: (float(row["input"]), float(row.get("cached_input", row["input"])), float(row["output"]))
        for row in content["prices"]
        if "input" in row
    }


def cost(price: tuple[float, float, float], tokens: int, read: int, written: int) -> int:
    """Nano-USD of one request; ``read`` of the input tokens come from the provider's prompt cache."""
    fresh, cached, output = price
    return round(((tokens - read) * fresh + read * cached + written * output) * _NANO / _MILLION)
