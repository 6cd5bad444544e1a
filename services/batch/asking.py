"""What two questions must have in common before their meaning is compared, and a prompt as far as its order goes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from tenth.inference.v1 import inference_pb2
from tenth.type.v1 import chat_pb2


def context_digest(request: chat_pb2.CompletionRequest, embedder: str) -> bytes:
    """Digest of all that changes an answer beside the conversation's last message: system prompt and history, tools,
    format, sampling, passages, namespace, policy; and of the model that made the embedding.
    """
    context = chat_pb2.CompletionRequest()
    context.CopyFrom(request)
    for name in ("request_id", "user_id", "project_id", "tags"):
        context.ClearField(name)
    del context.messages[-1:]
    digest = hashlib.blake2b(embedder.encode(), digest_size=16)
    digest.update(context.SerializeToString(deterministic=True))
    return digest.digest()


def texts(generation: inference_pb2.GenerateTextRequest) -> Iterator[str]:
    """A prompt's texts in the order in which the model reads them: tools, messages, passages before the last one."""
    for tool in generation.tools:
        yield f"{tool.name}\0{tool.description}\0{tool.parameters_json_schema}"
    last = len(generation.messages) - 1
    for place, message in enumerate(generation.messages):
        if place == last:
            yield from (chunk.text for chunk in generation.retrieved_chunks)
        calls = "".join(f"{call.name}{call.arguments_json}" for call in message.tool_calls)
        text = "".join(part.text or part.image.url for part in message.parts)
        yield f"{message.role}\0{text}{calls}"
