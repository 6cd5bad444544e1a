"""Anthropic's Messages wire format for the sandbox: whole and streamed, with a simulated prompt cache.

As the API of 2026-10-21 does it: sampling parameters are refused, tokens are cached only up to a ``cache_control``
breakpoint, and ``input_tokens`` is what was neither read from the cache nor written to it.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from mesh.errors import Code, TenthError
from sandbox.usage import CACHE_MINIMUM_TOKENS, PromptCache, encode, prompt_tokens, usage_object

HEADERS = {"x-tenth-sandbox": "this is not a real provider"}
_HANG_SECONDS = 600
_REFUSED = ("temperature", "top_p", "top_k")
_ERRORS = {
    400: "invalid_request_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
_STOPS = {"length": "max_tokens"}


class Books(Protocol):
    """Where what was served is written down."""

    def served(self, model: str, request_id: str, usage: dict[str, Any], *, whole: bool) -> None:
        """One answer, or what was sent of it."""
        ...

    def failed(self, model: str) -> None:
        """One failure."""
        ...


@dataclass(frozen=True, slots=True)
class Shared:
    """What this format has in common with the other one: writer, books, failures, the longest answer (tokens)."""

    write: Callable[[dict[str, Any], int], AsyncGenerator[tuple[str, str]]]
    next_failure: Callable[[str], str]
    books: Books
    max_tokens: int


class MessagesEndpoint:
    """``POST /v1/messages``."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._cache = PromptCache()

    def forget(self) -> None:
        """Empty the prompt cache."""
        self._cache.clear()

    async def __call__(self, request: Request) -> Response:
        """A message."""
        try:
            body = json.loads(await request.body())
        except ValueError:
            return error(400, "the request is not JSON")
        return await self.respond(body, request.headers.get("x-request-id", ""))

    async def respond(self, body: Any, request_id: str) -> Response:
        """The answer to a request's body; ``request_id`` goes into the books."""
        try:
            model = body["model"]
            limit = min(int(body["max_tokens"]), self._shared.max_tokens)
            chat, marked = _chat(body)
            prompt = prompt_tokens(chat)
            if not isinstance(model, str) or not body["messages"] or limit < 1:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            return error(400, "the request is no Messages request")
        for name in _REFUSED:
            if name in body:
                return error(400, f"{name}: Extra inputs are not permitted")
        mode = self._shared.next_failure(model)
        if mode:
            self._shared.books.failed(model)
        if mode in ("429", "500", "503"):
            return error(int(mode), f"sandbox failure {mode}", {"retry-after": "2"} if mode == "429" else {})
        if mode == "garbage":
            return Response("<html>not what you asked for</html>", media_type="text/html", headers=HEADERS)
        if mode == "hang":
            await asyncio.sleep(_HANG_SECONDS)
            return error(500, "sandbox failure hang")
        read = self._cache.lookup(model, marked) if marked else 0
        written = len(marked) - read if len(marked) >= CACHE_MINIMUM_TOKENS else 0
        answer = _Message(self._shared, chat, model, request_id, (len(prompt), read, written), limit)
        half = mode == "half_stream"
        if body.get("stream"):
            return StreamingResponse(answer.events(half=half), media_type="text/event-stream", headers=HEADERS)
        return await answer.whole(half=half)


class _Message:
    def __init__(
        self,
        shared: Shared,
        chat: dict[str, Any],
        model: str,
        request_id: str,
        tokens: tuple[int, int, int],
        limit: int,
    ) -> None:
        """``tokens``: of the prompt, and of it read from the cache and written to it."""
        self._shared = shared
        self._chat = chat
        self._model = model
        self._request_id = request_id
        self._prompt, self._read, self._written = tokens
        self._limit = limit
        self._id = f"msg_sandbox_{uuid.uuid4().hex[:24]}"

    async def whole(self, *, half: bool) -> Response:
        text, reason = "", ""
        try:
            async for piece, ending in self._shared.write(self._chat, self._limit):
                text += piece
                reason = ending
        except TenthError as failure:
            self._shared.books.failed(self._model)
            return error(400 if failure.code is Code.INVALID_ARGUMENT else 529, str(failure))
        self._served(text, whole=True)
        message = self._head() | {
            "content": [{"type": "text", "text": text}],
            "stop_reason": None if half else self._ending(text, reason),
            "usage": self._usage(len(encode(text))),
        }
        return JSONResponse(message, headers=HEADERS)

    async def events(self, *, half: bool) -> AsyncIterator[bytes]:
        text, reason, done = "", "", False
        try:
            yield _event("message_start", message=self._head() | {"content": [], "usage": self._usage(1)})
            yield _event("ping")
            yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
            async with aclosing(self._shared.write(self._chat, self._limit)) as pieces:
                async for piece, ending in pieces:
                    reason = ending
                    if piece:
                        text += piece
                        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
                        if half:
                            return
            yield _event("content_block_stop", index=0)
            done = True
            self._served(text, whole=True)
            yield _event(
                "message_delta",
                delta={"stop_reason": self._ending(text, reason), "stop_sequence": None},
                usage={"output_tokens": len(encode(text))},
            )
            yield _event("message_stop")
        except TenthError as error:
            yield _event("error", error={"type": "overloaded_error", "message": str(error)})
        finally:
            if not done and text:
                self._served(text, whole=False)

    def _ending(self, text: str, reason: str) -> str:
        """The writer counts by its own tokenizer: what is short of the limit by ours was not cut by it."""
        cut = reason == "length" and len(encode(text)) >= self._limit
        return _STOPS["length"] if cut else "end_turn"

    def _served(self, text: str, *, whole: bool) -> None:
        usage = usage_object(self._prompt, self._read, len(encode(text)))
        self._shared.books.served(self._model, self._request_id, usage, whole=whole)

    def _usage(self, output: int) -> dict[str, Any]:
        return {
            "input_tokens": self._prompt - self._read - self._written,
            "cache_read_input_tokens": self._read,
            "cache_creation_input_tokens": self._written,
            "cache_creation": {"ephemeral_5m_input_tokens": self._written, "ephemeral_1h_input_tokens": 0},
            "output_tokens": output,
        }

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model, "stop_reason": None}


def _chat(body: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """The request in the other format, and the tokens of what lies before the last cache breakpoint."""
    messages: list[dict[str, Any]] = []
    marked_to = 0
    system = body.get("system") or []
    turns = [{"role": "system", "content": system}] if system else []
    for turn in (*turns, *body["messages"]):
        content = turn["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts = [_text(block) for block in blocks]
        messages.append({"role": turn["role"], "content": "".join(texts)})
        if any(isinstance(block, dict) and block.get("cache_control") for block in blocks):
            marked_to = len(messages)
    chat = {"messages": messages, "tools": body.get("tools") or [], "stop": body.get("stop_sequences")}
    schema = ((body.get("output_config") or {}).get("format") or {}).get("schema")
    if schema:
        chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    before = {"messages": messages[:marked_to], "tools": chat["tools"]}
    return chat, prompt_tokens(before) if marked_to else []


def _text(block: dict[str, Any]) -> str:
    kind = block.get("type")
    if kind == "tool_use":
        return json.dumps(block.get("input") or {})
    if kind == "tool_result":
        return str(block.get("content") or "")
    return str(block.get("text") or "")


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error in the API's form."""
    body = {"type": "error", "error": {"type": _ERRORS.get(status, "api_error"), "message": message}}
    return JSONResponse(body, status, headers={**HEADERS, **(headers or {})})
