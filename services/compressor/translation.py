"""Between the wire's messages and plain prompts."""

from __future__ import annotations

import json

from tenth.compressor.v1 import compressor_pb2
from tenth.type.v1 import chat_pb2

from mesh.errors import invalid_argument
from services.compressor.modes import RETRIEVAL
from services.compressor.policy import Compressed, Step
from services.compressor.prompt import ASSISTANT, SYSTEM, TOOL, USER, Call, Message, Prompt

_ROLES = {
    chat_pb2.ROLE_SYSTEM: SYSTEM,
    chat_pb2.ROLE_USER: USER,
    chat_pb2.ROLE_ASSISTANT: ASSISTANT,
    chat_pb2.ROLE_TOOL: TOOL,
}


def prompt_of(request: chat_pb2.CompletionRequest) -> Prompt:
    """The prompt in plain types. Raises INVALID_FIELD for a message without a role."""
    return Prompt(
        messages=tuple(_message(at, message) for at, message in enumerate(request.messages)),
        chunks=tuple(chunk.text for chunk in request.retrieved_chunks),
        tools=tuple(_tool_text(tool) for tool in request.tools),
        response_schema=request.response_format.json_schema,
        settled=bool(request.retrieved_chunks) and all(chunk.settled for chunk in request.retrieved_chunks),
    )


def _message(at: int, message: chat_pb2.ChatMessage) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise invalid_argument("the role is not known", field=f"request.messages[{at}].role")
    return Message(
        index=at,
        role=role,
        texts=tuple(part.text for part in message.parts if part.WhichOneof("content") != "image"),
        image_details=tuple(part.image.detail for part in message.parts if part.WhichOneof("content") == "image"),
        name=message.name,
        calls=tuple(Call(call.id, call.name, call.arguments_json) for call in message.tool_calls),
        answers=message.tool_call_id,
        pinned=message.pinned,
    )


def result_of(step: Step, why_not: str) -> compressor_pb2.StrategyResult:
    """What a strategy did; ``why_not`` says why chunks are not ranked by vectors."""
    ranked_otherwise = step.strategy == RETRIEVAL and why_not
    return compressor_pb2.StrategyResult(
        strategy=step.strategy,
        removed_token_count=step.removed_token_count,
        reason=f"{step.reason} ({why_not})" if ranked_otherwise else step.reason,
        before_token_count=step.before_token_count,
        after_token_count=step.before_token_count - step.removed_token_count,
        expected_saving_nano_usd=round(step.saving_nano_usd),
        cut_message_indexes=[at for at in step.cut_messages if at >= 0],
        cut_chunk_indexes=step.cut_chunks,
        # A summary has no place in the request.
        edited_message_indexes=[at for at in step.edited_messages if at >= 0],
        edited_chunk_indexes=step.edited_chunks,
    )


def messages_of(asked: chat_pb2.CompletionRequest, done: Compressed) -> list[chat_pb2.ChatMessage]:
    """The messages to send; one that was not in the request (a summary) is a system message."""
    return [
        restored(asked.messages[message.index], message)
        if message.index >= 0
        else chat_pb2.ChatMessage(
            role=chat_pb2.ROLE_SYSTEM, parts=[chat_pb2.ContentPart(text=text) for text in message.texts]
        )
        for message in done.prompt.messages
    ]


def chunks_of(asked: chat_pb2.CompletionRequest, done: Compressed) -> list[chat_pb2.RetrievedChunk]:
    """The chunks to send, with what is left of their texts."""
    result = []
    for at, text in zip(done.chunk_positions, done.prompt.chunks, strict=True):
        chunk = chat_pb2.RetrievedChunk()
        chunk.CopyFrom(asked.retrieved_chunks[at])
        chunk.text, chunk.settled = text, chunk.settled or done.prompt.settled
        result.append(chunk)
    return result


def restored(original: chat_pb2.ChatMessage, message: Message) -> chat_pb2.ChatMessage:
    """The original message with the shortened texts in their places."""
    texts = [part.text for part in original.parts if part.WhichOneof("content") != "image"]
    if tuple(texts) == message.texts:
        return original
    result = chat_pb2.ChatMessage()
    result.CopyFrom(original)
    rest = iter(message.texts)
    for part in result.parts:
        if part.WhichOneof("content") != "image":
            part.text = next(rest)
    return result


def _tool_text(tool: chat_pb2.Tool) -> str:
    """A tool as the JSON that a provider is sent; a schema that is no JSON is counted as the text it is."""
    schema = tool.parameters_json_schema or "{}"
    head = json.dumps({"name": tool.name, "description": tool.description}, ensure_ascii=False, separators=(",", ":"))
    return f'{{"type":"function","function":{head[:-1]},"parameters":{schema}}}}}'
