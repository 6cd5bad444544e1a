"""What makes two requests the same: the exact key and the semantic scope. Pure.

Both are SHA-256 over a canonical form in which every value carries its type and its length, so that no text can
pretend to be a field boundary. The tenant is the first field of either.

- The exact key covers the tenant and everything that changes the answer.
- The semantic scope is the hard filter of the vector search: the same, less the tier floor (checked against the
  tier of the stored answer instead) and less the wording of the last user turn, plus the embedder's version.
- The scope of one user's own entries is the semantic scope and the user. Nobody else's search has it.

Either has 64 hex characters. The first 16 are the tenant's mark, a digest of the tenant alone: so it can be checked
whose a key is, and an import can neither replace another tenant's entry nor crowd the search of another tenant.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL = 1, 2, 3, 4
"""The numbers of tenth.type.v1.Role."""
MARK_CHARACTERS = 16
"""Of a key: 64 bits say whose it is, the other 192 which request."""

Value = str | bytes | int | float | bool | None | tuple["Value", ...]


class Language(StrEnum):
    """The script that a question is written in."""

    KOREAN = "ko"
    ENGLISH = "en"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Message:
    """One message: what of it reaches the model."""

    role: int
    parts: tuple[tuple[str, str], ...]
    """(kind, content): ("text", the text) or ("image", detail and URL)."""
    name: str = ""
    tool_calls: tuple[tuple[str, str, str], ...] = ()
    tool_call_id: str = ""

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "\n".join(content for kind, content in self.parts if kind == "text")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call."""

    name: str
    description: str
    parameters: str
    has_side_effects: bool


@dataclass(frozen=True, slots=True)
class Question:
    """A request, as far as the cache has to know it. ``sampling`` holds (name, value) of the fields that are set."""

    tenant_id: str
    namespace: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: tuple[int, str] = (0, "")
    response_format: tuple[int, str, str] = (0, "", "")
    sampling: tuple[tuple[str, Value], ...] = ()
    chunks: tuple[tuple[str, str, str], ...] = ()
    """(chunk id, document id, text) in order."""
    tier_floor: int = 0
    quality_target: float | None = None
    model: str = ""
    user_id: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    cache_mode: int = 0
    max_age_seconds: float | None = None

    @property
    def last_turn(self) -> str:
        """The text of the last user message; empty when the conversation does not end with one."""
        last = self.messages[-1] if self.messages else None
        return canonical_text(last.text) if last is not None and last.role == ROLE_USER else ""

    @property
    def is_follow_up(self) -> bool:
        """True when a user turn came before the last one."""
        return sum(message.role == ROLE_USER for message in self.messages) > 1

    @property
    def character_count(self) -> int:
        """All text of the request, characters."""
        count = sum(len(content) for message in self.messages for _, content in message.parts)
        count += sum(len(call[2]) for message in self.messages for call in message.tool_calls)
        count += sum(len(text) for _, _, text in self.chunks)
        return count + sum(len(tool.description) + len(tool.parameters) for tool in self.tools)


def tenant_mark(tenant_id: str) -> str:
    """The beginning of every key and scope of a tenant, 16 hex characters."""
    return _digest(("tenant", 1, tenant_id))[:MARK_CHARACTERS]


def exact_key(question: Question) -> str:
    """Hex SHA-256 of everything that decides the answer. Requests with the same key are the same request."""
    return _marked(
        question.tenant_id,
        (
            "exact",
            1,
            question.tenant_id,
            question.namespace,
            question.tier_floor,
            *_circumstances(question),
            *(_message(message) for message in question.messages),
        ),
    )


def semantic_scope(question: Question, embedder: str) -> str:
    """Hex SHA-256 of the hard filter: entries of other scopes are never compared.

    All messages but the last are part of it word for word, so a follow-up meets only entries of the same
    conversation so far.
    """
    last = question.messages[-1]
    # The last turn's text is what similarity is for; all else of it stays hard.
    turn: tuple[Value, ...] = (last.role, last.name, last.tool_calls, last.tool_call_id)
    return _marked(
        question.tenant_id,
        (
            "scope",
            2,
            question.tenant_id,
            question.namespace,
            embedder,
            language(question.last_turn).value,
            *_circumstances(question),
            *(_message(message) for message in question.messages[:-1]),
            turn,
        ),
    )


def own_scope(scope: str, user_id: str) -> str:
    """Hex SHA-256 of the scope of the entries that one user alone is served."""
    return _digest(("own", 1, scope, user_id))


def scopes_of(question: Question, embedder: str) -> tuple[str, ...]:
    """The scopes that a question may be answered from: the tenant's, and its user's own."""
    scope = semantic_scope(question, embedder)
    return (scope, own_scope(scope, question.user_id)) if question.user_id else (scope,)


def answer_digest(text: str, tool_calls: Iterable[tuple[str, str]] = ()) -> str:
    """Hex SHA-256 of what an answer says: its text, and name and arguments of each tool call.

    Calls have an id of their own each time, and the order of keys in their arguments says nothing.
    """
    return _digest(
        ("answer", 1, canonical_text(text), tuple((name, _arguments(arguments)) for name, arguments in tool_calls))
    )


def embedded_text(question: Question, context_characters: int = 240) -> str:
    """The one text that stands for the question: the last turn, after a compact piece of the user turn before it.

    A follow-up such as "and on a phone?" means nothing to router and compressor alone.
    """
    turn = question.last_turn
    earlier = [message.text for message in question.messages[:-1] if message.role == ROLE_USER]
    if not turn or not earlier:
        return turn
    context = " ".join(canonical_text(earlier[-1]).split())
    if len(context) > context_characters:
        context = context[:context_characters].rsplit(" ", 1)[0]
    return f"{context}\n{turn}"


def language(text: str) -> Language:
    """Korean with any Hangul letter; English when all letters are Latin; else other. By script, not by dictionary."""
    latin = True
    for letter in text:
        if letter < "\u0080":
            continue
        if _is_hangul(letter):
            return Language.KOREAN
        # Letters with accents and typographic signs do not make a text foreign.
        if letter.isalpha() and letter >= "\u0250":
            latin = False
    return Language.ENGLISH if latin else Language.OTHER


def canonical_text(text: str) -> str:
    """NFC (Hangul typed on a Mac is decomposed), Unix line ends, no white space around.

    Of several lines the first keeps its indentation: without it, code and YAML say something else.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = text.replace("\r\n", "\n").rstrip()
    bare = text.lstrip()
    if "\n" not in bare:
        return bare
    before = text[: len(text) - len(bare)]
    return before[before.rfind("\n") + 1 :] + bare


def canonical(values: Iterable[Value]) -> bytes:
    """The canonical form: injective, because each value is written as type, length and content."""
    out = bytearray()
    for value in values:
        _write(out, value)
    return bytes(out)


def _is_hangul(letter: str) -> bool:
    return "\uac00" <= letter <= "\ud7a3" or "\u1100" <= letter <= "\u11ff" or "\u3130" <= letter <= "\u318f"


def _circumstances(question: Question) -> tuple[Value, ...]:
    # Compression mode, tier ceiling and completion window are left out: they decide what an answer may cost.
    return (
        question.model,
        question.quality_target,
        tuple((tool.name, tool.description, tool.parameters, tool.has_side_effects) for tool in question.tools),
        question.tool_choice,
        question.response_format,
        question.sampling,
        tuple((chunk_id, document, canonical_text(text)) for chunk_id, document, text in question.chunks),
    )


def _message(message: Message) -> Value:
    # Addresses are compared by the byte: two spellings of a letter may be two pictures.
    parts = tuple((kind, canonical_text(content) if kind == "text" else content) for kind, content in message.parts)
    return (message.role, parts, message.name, message.tool_calls, message.tool_call_id)


def _marked(tenant_id: str, values: tuple[Value, ...]) -> str:
    return tenant_mark(tenant_id) + _digest(values)[MARK_CHARACTERS:]


def _arguments(text: str) -> Value:
    try:
        # Numbers stay as they are written: 1 is not 1.0, and a float would not hold all of them.
        parsed = json.loads(text, parse_int=_Number, parse_float=_Number, object_pairs_hook=_Object)
        return ("json", _tagged(parsed))
    except (ValueError, RecursionError):
        return ("text", text)


class _Number(str):
    __slots__ = ()


class _Object(list[tuple[str, object]]):
    __slots__ = ()


def _tagged(value: object) -> Value:
    if isinstance(value, _Object):
        return ("object", *((key, _tagged(item)) for key, item in sorted(value, key=lambda pair: pair[0])))
    if isinstance(value, list):
        return ("array", *(_tagged(item) for item in value))
    if isinstance(value, _Number):
        return ("number", str(value))
    return value if value is None or isinstance(value, bool | float) else str(value)


def _digest(values: tuple[Value, ...]) -> str:
    return hashlib.sha256(canonical(values)).hexdigest()


def _write(out: bytearray, value: Value) -> None:
    if isinstance(value, str):
        # Lone surrogates cannot come over the wire, but must not break the key of a test or a tool.
        data = value.encode("utf-8", "surrogatepass")
        out += b"s%d:" % len(data)
        out += data
    elif isinstance(value, tuple):
        out += b"t%d:" % len(value)
        for item in value:
            _write(out, item)
    elif value is None:
        out += b"n"
    elif isinstance(value, bool):
        out += b"b1" if value else b"b0"
    elif isinstance(value, int):
        out += b"i%d;" % value
    elif isinstance(value, float):
        out += b"f%s;" % repr(value).encode()
    else:
        out += b"y%d:" % len(value)
        out += value
