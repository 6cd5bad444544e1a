"""Wire messages to and from the plain types of keys, policy and store."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError
from tenth.cache.v1 import cache_pb2
from tenth.type.v1 import chat_pb2

from mesh.errors import invalid_argument, required
from services.cache.feedback import Standing
from services.cache.keys import Message, Question, Tool, Value, answer_digest
from services.cache.namespaces import MAX_NAMESPACE_CHARACTERS, NamespacePolicy
from services.cache.policy import Answer
from services.cache.sharing import Said
from services.cache.store import Entry, tag

DEFAULT_NAMESPACE = "default"
_SAMPLING = ("temperature", "top_p", "max_output_tokens", "seed", "frequency_penalty", "presence_penalty")


def question_from_proto(request: chat_pb2.CompletionRequest, tenant_id: str, user_id: str = "") -> Question:
    """A request as the cache sees it; ``user_id`` is whose it is where it does not say. Raises INVALID_ARGUMENT."""
    if not request.messages:
        raise required("request.messages")
    if len(request.namespace) > MAX_NAMESPACE_CHARACTERS:
        raise invalid_argument(
            f"a namespace has at most {MAX_NAMESPACE_CHARACTERS} characters", field="request.namespace"
        )
    policy = request.policy
    return Question(
        tenant_id=tenant_id,
        namespace=request.namespace or DEFAULT_NAMESPACE,
        messages=tuple(_message(message, index) for index, message in enumerate(request.messages)),
        tools=tuple(
            Tool(tool.name, tool.description, tool.parameters_json_schema, tool.has_side_effects)
            for tool in request.tools
        ),
        tool_choice=(int(request.tool_choice.mode), request.tool_choice.name),
        response_format=(
            int(request.response_format.kind),
            request.response_format.name,
            request.response_format.json_schema,
        ),
        sampling=_sampling(request.sampling),
        chunks=tuple((chunk.chunk_id, chunk.document_id, chunk.text) for chunk in request.retrieved_chunks),
        tier_floor=int(policy.tier_floor),
        quality_target=policy.quality_target if policy.HasField("quality_target") else None,
        model=policy.model,
        user_id=request.user_id or user_id,
        tags=tuple(sorted(request.tags.items())),
        cache_mode=int(policy.cache_mode),
        max_age_seconds=policy.cache_max_age.ToNanoseconds() / 1e9 if policy.HasField("cache_max_age") else None,
    )


def answer_from_proto(completion: chat_pb2.Completion, limit: int = 0) -> Answer:
    """What of an answer decides whether it is stored; ``limit`` is the request's max_output_tokens, 0 for none."""
    message = completion.message
    text = any(part.text.strip() for part in message.parts)
    return Answer(
        finish_reason=int(completion.finish_reason),
        model=completion.model,
        tier=int(completion.tier),
        is_empty=not text and not message.tool_calls,
        reached_limit=0 < limit <= completion.usage.output_token_count,
    )


def said(completion: bytes) -> Said:
    """What a stored answer says. Nothing that could agree with another where the bytes are no answer."""
    try:
        message = chat_pb2.Completion.FromString(completion).message
    except DecodeError:
        return Said("", "")
    text = "".join(part.text for part in message.parts)
    media = any(part.HasField("image") for part in message.parts)
    if media or not (text.strip() or message.tool_calls):
        return Said("", "")
    digest = answer_digest(text, ((call.name, call.arguments_json) for call in message.tool_calls))
    return Said(digest, "" if message.tool_calls else text)


def provenance(entry: Entry, hit_count: int) -> cache_pb2.Provenance:
    """Where an entry's answer comes from; ``hit_count`` is how often it was served before."""
    message = cache_pb2.Provenance(
        model=entry.model,
        tier=entry.tier,
        price_book_version=entry.price_book_version,
        hit_count=hit_count,
        right_count=entry.right_count,
        wrong_count=entry.wrong_count,
        shared=not entry.owner,
    )
    message.expire_time.FromNanoseconds(int(entry.expires * 1e9))
    return message


def tag_keywords(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Tags as keywords of an entry."""
    return tuple(tag(key, value) for key, value in sorted(tags.items()))


def namespace_to_proto(name: str, policy: NamespacePolicy, standing: Standing) -> cache_pb2.Namespace:
    """The rules and the evidence of a namespace."""
    message = cache_pb2.Namespace(
        namespace=name,
        mode=policy.mode.value,
        max_wrong_hits_per_thousand=policy.max_wrong_hits_per_thousand,
        sharing_user_count=policy.sharing_user_count,
        suspended=bool(standing.suspended),
        suspended_reason=standing.suspended,
        lookup_count=standing.lookups,
        semantic_hit_count=standing.hits,
        right_count=standing.right,
        wrong_count=standing.wrong,
    )
    message.ttl.FromNanoseconds(int(policy.ttl_seconds * 1e9))
    return message


def _message(message: chat_pb2.ChatMessage, index: int) -> Message:
    if message.role == chat_pb2.ROLE_UNSPECIFIED or message.role not in chat_pb2.Role.values():
        raise invalid_argument("a message needs a known role", field=f"request.messages[{index}].role")
    return Message(
        role=int(message.role),
        parts=tuple(_part(part) for part in message.parts),
        name=message.name,
        tool_calls=tuple((call.id, call.name, call.arguments_json) for call in message.tool_calls),
        tool_call_id=message.tool_call_id,
    )


def _part(part: chat_pb2.ContentPart) -> tuple[str, str]:
    if part.HasField("image"):
        return ("image", f"{part.image.detail or 'auto'} {part.image.url}")
    return ("text", part.text)


def _sampling(sampling: chat_pb2.SamplingParameters) -> tuple[tuple[str, Value], ...]:
    values: list[tuple[str, Value]] = []
    for field, value in sampling.ListFields():
        if field.name in _SAMPLING:
            values.append((field.name, value))
        elif field.name == "stop":
            values.append((field.name, tuple(value)))
        else:
            # Also fields that a newer revision adds: unknown to us, they still change the answer.
            values.append((field.name, str(value)))
    return tuple(values)
