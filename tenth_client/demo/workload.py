"""The demo's requests, made from workload.yaml in an order that is always the same.

``python -m tenth_client.demo.workload > workload.jsonl`` writes them as a file for ``tenth replay``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from importlib import resources
from typing import Any

import yaml
from tenth.type.v1 import chat_pb2

from tenth_client.openai_format import completion_request

MAX_TOKENS = 24
"""Output tokens per answer: enough to read, few enough for two cores."""
_SEED = 20261122
_REPEATS = {"faq_en": 18, "faq_ko": 10, "rag": 4}
"""How many are asked again, word for word or with a greeting."""


def bodies(max_tokens: int = MAX_TOKENS) -> list[dict[str, Any]]:
    """The 200 requests as OpenAI-format bodies, in order."""
    source = yaml.safe_load(resources.files(__package__).joinpath("workload.yaml").read_text("utf-8"))
    # Where an answer comes from the cache depends on the order: the same shuffle every time.
    order = random.Random(_SEED)  # noqa: S311  (a workload, no secret)
    made: list[dict[str, Any]] = []
    repeated: list[dict[str, Any]] = []
    for kind in ("faq_en", "faq_ko", "rag", "long", "multi_turn", "coding", "reasoning", "tasks"):
        some = list(_of_kind(kind, source, max_tokens))
        made.extend(some)
        repeated.extend(order.sample(some, _REPEATS.get(kind, 0)))
    order.shuffle(made)
    for number, body in enumerate(repeated):
        # Asked again at some later point than the first time, every third time with a greeting before it.
        again = _greeted(body) if number % 3 == 2 else body
        made.insert(order.randint(made.index(body) + 1, len(made)), again)
    return made


def requests(max_tokens: int = MAX_TOKENS) -> list[chat_pb2.CompletionRequest]:
    """The 200 requests as the mesh takes them."""
    return [completion_request(body) for body in bodies(max_tokens)]


def _of_kind(kind: str, source: dict[str, Any], max_tokens: int) -> Iterator[dict[str, Any]]:
    if kind.startswith("faq_"):
        language = kind.removeprefix("faq_")
        for phrasings in source[kind]:
            for question in phrasings:
                yield _body("support", language, [question], max_tokens, source[f"support_system_{language}"])
    elif kind == "rag":
        for language in ("en", "ko"):
            found = [_passages(entry) for entry in source[f"rag_{language}"]]
            for place, entry in enumerate(source[f"rag_{language}"]):
                # As retrievers do it: the right document's passages among those of two others.
                others = [found[(place + step) % len(found)] for step in (1, 2)]
                passages = [*others[0], *found[place], *others[1]]
                for question in entry["questions"]:
                    body = _body("rag", language, [question], max_tokens, source[f"rag_system_{language}"])
                    body["tenth"]["retrieved_chunks"] = passages
                    body["tenth"]["policy"] = {"compression_mode": "balanced"}
                    yield body
    elif kind == "long":
        for language in ("en", "ko"):
            for question in source[f"long_questions_{language}"]:
                yield _body("operations", language, [question], max_tokens, source[f"long_system_{language}"])
    elif kind == "multi_turn":
        for language in ("en", "ko"):
            for turns in source[f"multi_turn_{language}"]:
                yield _body("support", language, turns, max_tokens, source[f"support_system_{language}"])
    else:
        for language in ("en", "ko"):
            for question in source[f"{kind}_{language}"]:
                yield _body(kind, language, [question], max_tokens)


def _greeted(body: dict[str, Any]) -> dict[str, Any]:
    *before, last = body["messages"]
    question = str(last["content"])
    korean = body["tenth"]["tags"]["language"] == "ko"
    greeting = f"안녕하세요. {question}" if korean else f"Hello, {question[0].lower()}{question[1:]}"
    return {**body, "messages": [*before, {**last, "content": greeting}]}


def _passages(entry: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {"chunk_id": f"{entry['document']}-{number}", "text": text, "document_id": entry["document"]}
        for number, text in enumerate(entry["chunks"], start=1)
    ]


def _body(application: str, language: str, turns: list[str], max_tokens: int, system: str = "") -> dict[str, Any]:
    messages = [{"role": "system", "content": system.strip()}] if system else []
    roles = ("user", "assistant")
    messages += [{"role": roles[index % 2], "content": text} for index, text in enumerate(turns)]
    return {
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "tenth": {"tags": {"application": application, "language": language}},
    }


def main() -> None:
    """Write the requests as JSONL."""
    for body in bodies():
        print(json.dumps(body, ensure_ascii=False))


if __name__ == "__main__":
    main()
