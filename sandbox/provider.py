"""The sandbox provider: ``python -m sandbox.provider --listen 127.0.0.1:7190``.

Speaks the OpenAI wire format and Anthropic's, and says in every answer that it is a sandbox. It counts what it served,
so that a test can compare a ledger with "the provider's own" books, and it fails, or says a given text, on demand.

    POST /v1/chat/completions   whole and streamed        GET  /sandbox/stats   its books
    POST /v1/messages           whole and streamed        POST /sandbox/fail    {"mode", "count", "model"?}
    GET  /v1/models                                       POST /sandbox/say     {"model", "texts"}
                                                          POST /sandbox/forget  empties its prompt caches
    /v1/files, /v1/batches      OpenAI's batches          GET  /sandbox/batches how often each custom id was run
    /v1/messages/batches        Anthropic's batches       POST /sandbox/batches a BatchPlan: what goes wrong, how slowly

``TENTH_SANDBOX_BATCH_PLAN`` is a BatchPlan (batch_runs.py) as JSON that holds from the start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import uvicorn
from opentelemetry.context import attach
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tenth.inference.v1 import inference_pb2_grpc

from mesh.auth import Signer, read_key
from mesh.channel import connect
from mesh.errors import Code, TenthError
from mesh.settings import MeshSettings, load
from mesh.telemetry import TRACEPARENT, parent_context, start_telemetry
from sandbox import recorded
from sandbox.anthropic_batches import MessageBatchEndpoints
from sandbox.batch_runs import BatchClock, BatchControl, BatchPlan, Responder
from sandbox.books import Books, Failure
from sandbox.messages import HEADERS, MessagesEndpoint, Shared
from sandbox.openai_batches import OpenAiBatchEndpoints
from sandbox.usage import PromptCache, encode, prompt_tokens, usage_object
from sandbox.writers import InstantWriter, ModelWriter, Writer

log = logging.getLogger("tenth.sandbox")

FINGERPRINT = "tenth-sandbox"
"""``system_fingerprint`` of every answer."""
MODES = ("429", "500", "503", "garbage", "half_stream", "hang")
_HANG_SECONDS = 600


class Provider:
    """The HTTP application."""

    def __init__(
        self,
        writer: Writer,
        max_tokens: int,
        plan: BatchPlan | None = None,
        chat_responder: Responder | None = None,
        message_responder: Responder | None = None,
    ) -> None:
        """``plan`` is of batches. The responders answer the items of batches; None: as the online endpoints do."""
        self._writer = writer
        self._max_tokens = max_tokens
        self._cache = PromptCache()
        self._failures: list[Failure] = []
        self._said: dict[str, deque[str]] = {}
        self.books = Books()
        self._messages = MessagesEndpoint(Shared(writer.write, self._next_failure, self.books, max_tokens))
        self.batches = BatchControl(plan or BatchPlan(), BatchClock(), Counter())
        self.openai_batches = OpenAiBatchEndpoints(self.batches, chat_responder or self.chat_answer)
        self.message_batches = MessageBatchEndpoints(self.batches, message_responder or self.message_answer)
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/messages", self.message, methods=["POST"]),
                Route("/v1/models", self.models, methods=["GET"]),
                Route("/sandbox/stats", self.stats, methods=["GET"]),
                Route("/sandbox/fail", self.fail, methods=["POST"]),
                Route("/sandbox/say", self.say, methods=["POST"]),
                Route("/sandbox/forget", self.forget, methods=["POST"]),
                Route("/sandbox/batches", self.batch_books, methods=["GET"]),
                Route("/sandbox/batches", self.batch_plan, methods=["POST"]),
                *self.openai_batches.routes(),
                *self.message_batches.routes(),
            ]
        )

    async def models(self, request: Request) -> Response:
        """The models asked for so far; any name is played."""
        data = [{"id": name, "object": "model", "owned_by": FINGERPRINT} for name in sorted(self.books.requests)]
        return JSONResponse({"object": "list", "data": data}, headers=HEADERS)

    async def stats(self, request: Request) -> Response:
        """The books."""
        return JSONResponse(self.books.to_json(), headers=HEADERS)

    async def fail(self, request: Request) -> Response:
        """Let the next ``count`` requests fail; count 0 clears what was asked before."""
        try:
            body = await request.json()
            failure = Failure(str(body["mode"]), int(body.get("count", 1)), str(body.get("model") or ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return _error(400, 'expected {"mode": ..., "count": n, "model": optional}')
        if failure.mode not in MODES:
            return _error(400, f"mode is none of {', '.join(MODES)}")
        if failure.count <= 0:
            self._failures.clear()
        else:
            self._failures.append(failure)
        return JSONResponse({"ok": True}, headers=HEADERS)

    async def say(self, request: Request) -> Response:
        """Let a model's next answers be these texts, one each; for a judge, whose words matter."""
        try:
            body = await request.json()
            model, texts = str(body["model"]), [str(text) for text in body["texts"]]
        except (ValueError, KeyError, TypeError):
            return _error(400, 'expected {"model": ..., "texts": [...]}')
        self._said[model] = deque(texts)
        return JSONResponse({"ok": True}, headers=HEADERS)

    async def forget(self, request: Request) -> Response:
        """Empty the prompt caches, so that the next measurement starts cold."""
        self._cache.clear()
        self._messages.forget()
        return JSONResponse({"ok": True}, headers=HEADERS)

    async def batch_books(self, request: Request) -> Response:
        """How often each custom id was run."""
        return JSONResponse({"runs": self.batches.runs}, headers=HEADERS)

    async def batch_plan(self, request: Request) -> Response:
        """Let the batches created from now on go as the plan in the body says; an empty one clears it."""
        try:
            self.batches.plan = BatchPlan.from_json((await request.body()).decode())
        except ValueError as error:
            return _error(400, str(error))
        return JSONResponse({"ok": True}, headers=HEADERS)

    async def chat_answer(self, body: dict[str, Any], request_id: str) -> tuple[int, dict[str, Any]]:
        """What the chat endpoint answers to a body: the status and the object."""
        return _object(await self._respond(_whole(body), request_id))

    async def message_answer(self, body: dict[str, Any], request_id: str) -> tuple[int, dict[str, Any]]:
        """What the Messages endpoint answers to a body: the status and the object."""
        return _object(await self._messages.respond(_whole(body), request_id))

    async def message(self, request: Request) -> Response:
        """A message of the Messages API."""
        attach(parent_context(request.headers.get(TRACEPARENT)))
        return await self._messages(request)

    async def chat(self, request: Request) -> Response:
        """A chat completion."""
        # One task per request: what is set here ends with it.
        attach(parent_context(request.headers.get(TRACEPARENT)))
        try:
            body = json.loads(await request.body())
        except ValueError:
            return _error(400, "the request is not JSON")
        return await self._respond(body, request.headers.get("x-request-id", ""))

    async def _respond(self, body: Any, request_id: str) -> Response:
        try:
            model, messages = body["model"], body["messages"]
            if not isinstance(model, str) or not isinstance(messages, list) or not messages:
                raise ValueError
            limit = body.get("max_completion_tokens") or body.get("max_tokens") or self._max_tokens
            limit = min(int(limit), self._max_tokens)
            ids = prompt_tokens(body)
        except (ValueError, KeyError, TypeError, AttributeError):
            return _error(400, "the request is no chat completion request")
        mode = self._next_failure(model)
        if mode:
            self.books.failures[model] += 1
            log.info("failing on request: %s", mode)
        if mode in ("429", "500", "503"):
            headers = {"retry-after": "2"} if mode == "429" else {}
            return _error(int(mode), f"sandbox failure {mode}", headers)
        if mode == "garbage":
            return Response("<html>not what you asked for</html>", media_type="text/html", headers=HEADERS)
        if mode == "hang":
            await asyncio.sleep(_HANG_SECONDS)
            return _error(500, "sandbox failure hang")
        cached = self._cache.lookup(model, ids)
        answer = _Answer(self, body, model, request_id, len(ids), cached, limit)
        if body.get("stream"):
            events = answer.events(half=mode == "half_stream")
            return StreamingResponse(events, media_type="text/event-stream", headers=HEADERS)
        return await answer.whole(half=mode == "half_stream")

    async def write(self, body: dict[str, Any], limit: int) -> AsyncGenerator[tuple[str, str]]:
        """The writer's pieces, or the text that was asked for."""
        said = self._said.get(str(body["model"]))
        if said:
            yield said.popleft(), ""
            yield "", "stop"
            return
        async with aclosing(self._writer.write(body, limit)) as pieces:
            async for each in pieces:
                yield each

    def _next_failure(self, model: str) -> str:
        for failure in self._failures:
            if failure.model in ("", model):
                failure.count -= 1
                if failure.count == 0:
                    self._failures.remove(failure)
                return failure.mode
        return ""


class _Answer:
    """One answer on its way."""

    def __init__(
        self,
        provider: Provider,
        body: dict[str, Any],
        model: str,
        request_id: str,
        prompt: int,
        cached: int,
        limit: int,
    ) -> None:
        self._provider = provider
        self._body = body
        self._model = model
        self._request_id = request_id
        self._prompt = prompt
        self._cached = cached
        self._limit = limit
        self._id = f"chatcmpl-sandbox-{uuid.uuid4().hex[:24]}"
        self._created = int(time.time())

    async def whole(self, *, half: bool) -> Response:
        """In one response; a failing writer is an HTTP error, as a provider's would be."""
        text, reason = "", ""
        try:
            async for piece, ending in self._provider.write(self._body, self._limit):
                text += piece
                reason = ending
        except TenthError as error:
            self._provider.books.failures[self._model] += 1
            return _error(400 if error.code is Code.INVALID_ARGUMENT else 503, str(error))
        usage = self._served(text, whole=True)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": None if half else self._ending(text, reason),
            "logprobs": None,
        }
        return JSONResponse(
            {**self._head("chat.completion"), "choices": [choice], "usage": usage},
            headers={**HEADERS, "x-request-id": self._id},
        )

    async def events(self, *, half: bool) -> AsyncIterator[bytes]:
        """As server-sent events."""
        head = json.dumps(self._head("chat.completion.chunk"), separators=(",", ":"))[:-1]
        text, reason, done = "", "", False
        try:
            yield _event(head, {"role": "assistant", "content": ""})
            async with aclosing(self._provider.write(self._body, self._limit)) as pieces:
                async for piece, ending in pieces:
                    reason = ending
                    if piece:
                        text += piece
                        yield _event(head, {"content": piece})
                        if half:
                            return
            yield _event(head, {}, self._ending(text, reason))
            done = True
            usage = self._served(text, whole=True)
            if (self._body.get("stream_options") or {}).get("include_usage"):
                yield f'data: {head},"choices":[],"usage":{json.dumps(usage)}}}\n\n'.encode()
            yield b"data: [DONE]\n\n"
        except TenthError as error:
            yield f"data: {json.dumps({'error': {'message': str(error), 'type': 'server_error'}})}\n\n".encode()
        finally:
            if not done and text:
                self._served(text, whole=False)

    def _ending(self, text: str, reason: str) -> str:
        """The writer counts by its own tokenizer: what is short of the limit by ours was not cut by it."""
        return "stop" if reason == "length" and len(encode(text)) < self._limit else reason

    def _served(self, text: str, *, whole: bool) -> dict[str, Any]:
        usage = usage_object(self._prompt, self._cached, len(encode(text)))
        self._provider.books.served(self._model, self._request_id, usage, whole=whole)
        return usage

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": FINGERPRINT,
        }


def _event(head: str, delta: dict[str, Any], reason: str = "") -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason or None, "logprobs": None}
    return f'data: {head},"choices":[{json.dumps(choice)}]}}\n\n'.encode()


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    kind = {400: "invalid_request_error", 429: "rate_limit_exceeded"}.get(status, "server_error")
    body = {"error": {"message": message, "type": kind, "code": kind, "param": None}}
    return JSONResponse(body, status, headers={**HEADERS, **(headers or {})})


def _whole(body: Any) -> Any:
    """A batch's item is answered whole, whatever it asks for."""
    return {**body, "stream": False} if isinstance(body, dict) else body


def _object(response: Response) -> tuple[int, dict[str, Any]]:
    """A whole answer taken apart; one that is not JSON counts as a failure, as it would in a batch."""
    try:
        return response.status_code, json.loads(bytes(response.body))
    except ValueError:
        return 500, {"error": {"message": "sandbox failure", "type": "server_error", "code": None, "param": None}}


async def serve(options: argparse.Namespace) -> None:
    """Wire and serve until SIGTERM."""
    mesh = load(MeshSettings)
    async with AsyncExitStack() as stack:
        telemetry = start_telemetry("sandbox", mesh)
        stack.callback(telemetry.close)
        writer: Writer
        if options.recorded:
            writer = recorded.RecordedWriter(recorded.read(options.recorded), options.recorded_prompts)
        elif options.instant:
            writer = InstantWriter(options.latency_ms / 1000, options.words)
        else:
            key = read_key(options.key_file or mesh.identity_key_file)
            channel = await stack.enter_async_context(
                connect(options.inference, mesh, telemetry, Signer(key, "sandbox"))
            )
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            writer = ModelWriter(stub, options.model, options.timeout_seconds)
        host, _, port = options.listen.rpartition(":")
        try:
            plan = BatchPlan.from_json(os.environ.get("TENTH_SANDBOX_BATCH_PLAN", ""))
        except ValueError as error:
            raise SystemExit(f"TENTH_SANDBOX_BATCH_PLAN: {error}") from None
        app = Provider(writer, options.max_tokens, plan).app
        config = uvicorn.Config(
            app,
            host=host,
            port=int(port),
            access_log=False,
            log_config=None,
            lifespan="off",
            timeout_graceful_shutdown=3,
            timeout_keep_alive=75,  # As providers do; clients drop idle connections earlier.
        )
        log.warning(
            "SANDBOX provider on %s: not a real model provider; text by %s", options.listen, writer.__class__.__name__
        )
        await uvicorn.Server(config).serve()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.provider", description="A labelled stand-in for providers."
    )
    parser.add_argument("--listen", default="127.0.0.1:7190", help="host:port (default %(default)s)")
    parser.add_argument("--inference", default="127.0.0.1:7104", help="the inference service that writes the text")
    parser.add_argument(
        "--model", default="smollm2-135m", help="the catalogue model that writes it (default %(default)s)"
    )
    parser.add_argument("--key-file", type=Path, help="identity key (default: TENTH_IDENTITY_KEY_FILE)")
    parser.add_argument(
        "--max-tokens", type=int, default=48, help="most output tokens of an answer (default %(default)s)"
    )
    parser.add_argument("--timeout-seconds", type=float, default=120, help="longest wait for the model")
    parser.add_argument("--instant", action="store_true", help="fixed text without a model, for measurements")
    parser.add_argument("--recorded", type=Path, help="answers by question and model, see sandbox/recorded.py")
    parser.add_argument("--recorded-prompts", type=Path, help="with --recorded: where kept prompts are written")
    parser.add_argument("--latency-ms", type=float, default=0, help="with --instant: time before the first word")
    parser.add_argument("--words", type=int, default=24, help="with --instant: length of the answer")
    asyncio.run(serve(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
