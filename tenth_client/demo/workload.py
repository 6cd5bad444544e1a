"""The demo's requests, made from workload.yaml in an order that is always the same, and the help centre's answers.

``python -m tenth_client.demo.workload > workload.jsonl`` writes the requests as a file for ``tenth replay``,
``... workload --faq > faq.jsonl`` the help centre as one for ``tenth cache import``.

Who asks matters to the cache. Customers (questions of the help centre, conversations) each have a user id; an answer
that a model gave one of them is another's only when a second one got the same. Their questions of the help centre go
to the namespace HELP_CENTRE, whose answers an operator imported. Colleagues' tools (documents, code, tasks) ask with
the team's own account, without a user: what they were answered is the team's.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from importlib import resources
from typing import Any

import yaml
from tenth.type.v1 import chat_pb2

from formats.openai import completion_request

MAX_TOKENS = 24
"""Output tokens per answer: enough to read, few enough for two cores."""
_SEED = 20261122
_REPEATS = {"faq_en": 8, "faq_ko": 4, "rag": 12, "long": 4, "tasks": 4}
"""How many are asked again, word for word or with a greeting."""
HELP_CENTRE = "help-centre"
"""The namespace of the curated answers; namespaces.yaml has its rules."""


def bodies(max_tokens: int = MAX_TOKENS) -> list[dict[str, Any]]:
    """The 200 requests as OpenAI-format bodies, in order."""
    source = _read("workload.yaml")
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
    return [_from_customer(body, number) for number, body in enumerate(made, start=1)]


def help_centre(max_tokens: int = MAX_TOKENS) -> list[dict[str, Any]]:
    """The help centre as lines of ``tenth cache import``, each asked under the circumstances of the requests."""
    workload, lines = _read("workload.yaml"), []
    for language, entries in _read("faq.yaml").items():
        for entry in entries:
            # Words are at most tokens: a hit is not credited with more than the answer would have cost.
            tokens = min(max_tokens, len(entry["answer"].split()))
            for question in entry["questions"]:
                request = _help_body(question, language, max_tokens, workload)
                lines.append(
                    {"request": request, "answer": entry["answer"], "output_tokens": tokens, "tags": {"source": "faq"}}
                )
    return lines


def right_answers() -> dict[str, str]:
    """The help centre's answer to each customer's question, with or without a greeting: both files have one order."""
    workload, centre = _read("workload.yaml"), _read("faq.yaml")
    return {
        question: entry["answer"]
        for language, entries in centre.items()
        for entry, phrasings in zip(entries, workload[f"faq_{language}"], strict=True)
        for plain in phrasings
        for question in (plain, _with_greeting(plain, language))
    }


def rules() -> str:
    """The demo's rules of namespaces, as YAML."""
    return _text("namespaces.yaml")


def requests(max_tokens: int = MAX_TOKENS) -> list[chat_pb2.CompletionRequest]:
    """The 200 requests as the mesh takes them."""
    return [completion_request(body) for body in bodies(max_tokens)]


def _of_kind(kind: str, source: dict[str, Any], max_tokens: int) -> Iterator[dict[str, Any]]:
    if kind.startswith("faq_"):
        language = kind.removeprefix("faq_")
        for phrasings in source[kind]:
            for question in phrasings:
                yield _help_body(question, language, max_tokens, source)
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


def _help_body(question: str, language: str, max_tokens: int, source: dict[str, Any]) -> dict[str, Any]:
    body = _body("support", language, [question], max_tokens, source[f"support_system_{language}"])
    body["tenth"]["namespace"] = HELP_CENTRE
    return body


def _from_customer(body: dict[str, Any], number: int) -> dict[str, Any]:
    """The body as another customer's, where customers ask."""
    if body["tenth"]["tags"]["application"] != "support":
        return body
    return {**body, "tenth": {**body["tenth"], "user_id": f"customer-{number}"}}


def _greeted(body: dict[str, Any]) -> dict[str, Any]:
    *before, last = body["messages"]
    greeting = _with_greeting(str(last["content"]), body["tenth"]["tags"]["language"])
    return {**body, "messages": [*before, {**last, "content": greeting}]}


def _with_greeting(question: str, language: str) -> str:
    return f"안녕하세요. {question}" if language == "ko" else f"Hello, {question[0].lower()}{question[1:]}"


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


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(_text(name)))


def main() -> None:
    """Write the requests, or the help centre, as JSONL."""
    for line in help_centre() if "--faq" in sys.argv[1:] else bodies():
        print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
