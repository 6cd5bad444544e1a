"""Where the sandbox's text comes from: the local model through inference, or at once from nowhere."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.auth import Identity, set_identity
from sandbox.usage import text_of

_ROLES = {
    "system": chat_pb2.ROLE_SYSTEM,
    "developer": chat_pb2.ROLE_SYSTEM,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
    "tool": chat_pb2.ROLE_USER,  # The small model knows no tools; it reads results as text.
}
_REASONS = {chat_pb2.FINISH_REASON_LENGTH: "length"}
_TEXT = (
    "the answer is that a sandbox writes plain words at once so every figure about cost and time is about the mesh and "
    "none of it is about a model which would take longer and say something better than this"
)
_WORDS = _TEXT.split()
_PAUSE_WORDS = 64


class Writer(Protocol):
    """Writes an answer piece by piece; the last item is the finish reason alone."""

    def write(self, body: dict[str, Any], limit: int) -> AsyncGenerator[tuple[str, str]]:
        """(piece of text, "") for each piece, then ("", finish reason)."""
        ...


class InstantWriter:
    """Fixed text after a fixed time: the same request gives the same answer."""

    def __init__(self, latency_seconds: float, words: int) -> None:
        self._latency = latency_seconds
        self._words = words

    async def write(self, body: dict[str, Any], limit: int) -> AsyncGenerator[tuple[str, str]]:
        """Words chosen by the digest of the messages."""
        if self._latency:
            await asyncio.sleep(self._latency)
        digest = hashlib.sha256(repr(body.get("messages")).encode()).digest()
        count = min(self._words, limit)
        for index in range(count):
            if index % _PAUSE_WORDS == _PAUSE_WORDS - 1:
                await asyncio.sleep(0)  # A long answer must notice that its reader has left.
            word = _WORDS[(digest[index % 32] + index) % len(_WORDS)]
            yield (f" {word}" if index else word), ""
        yield "", "length" if count < self._words else "stop"


class ModelWriter:
    """The local model's text, through the inference service, unmetered."""

    def __init__(self, stub: inference_pb2_grpc.InferenceServiceAsyncStub, model: str, timeout_seconds: float) -> None:
        self._stub = stub
        self._model = model
        self._timeout = timeout_seconds

    async def write(self, body: dict[str, Any], limit: int) -> AsyncGenerator[tuple[str, str]]:
        """The small model's answer to the same messages."""
        set_identity(Identity(tenant_id="sandbox", caller="sandbox", service="sandbox"))
        request = inference_pb2.GenerateTextRequest(
            request_id=str(uuid.uuid4()),
            attempt=1,
            model=self._model,
            purpose=inference_pb2.PURPOSE_SANDBOX,
            messages=[
                chat_pb2.ChatMessage(
                    role=_ROLES.get(message.get("role", ""), chat_pb2.ROLE_USER),
                    parts=[chat_pb2.ContentPart(text=text_of(message))],
                )
                for message in body["messages"]
            ],
        )
        request.sampling.max_output_tokens = limit
        for name in ("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty"):
            value = body.get(name)
            if value is not None:
                setattr(request.sampling, name, value)
        stop = body.get("stop")
        request.sampling.stop.extend([stop] if isinstance(stop, str) else stop or [])
        schema = (body.get("response_format") or {}).get("json_schema") or {}
        if schema.get("schema"):
            request.response_format.kind = chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA
            request.response_format.name = schema.get("name", "answer")
            request.response_format.json_schema = json.dumps(schema["schema"])
        elif (body.get("response_format") or {}).get("type") == "json_object":
            request.response_format.kind = chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT
        call = self._stub.StreamGenerateText(
            inference_pb2.StreamGenerateTextRequest(generation=request), timeout=self._timeout
        )
        async for event in call:
            if event.HasField("delta") and event.delta.text:
                yield event.delta.text, ""
            elif event.HasField("finished"):
                yield "", _REASONS.get(event.finished.finish_reason, "stop")
