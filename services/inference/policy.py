"""What a generation is, in plain Python, and the decisions about it that need no provider.

Pure: no gRPC, no protobuf, no HTTP, no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from services.inference.errors import prompt_too_long, unsupported
from services.inference.usage import Usage

PROMPT_LOGPROBS_FIELD = "generation.prompt_logprobs"


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: an https: or data: URL."""

    url: str
    detail: str = "auto"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call, or in a stream a piece of one: pieces of equal index belong together."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message; roles are "system", "user", "assistant" and "tool"."""

    role: str
    parts: tuple[str | Image, ...]
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""

    @property
    def text(self) -> str:
        """All text parts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; ``parameters`` is a JSON Schema or None."""

    name: str
    description: str
    parameters: dict[str, Any] | None


class ResponseKind(Enum):
    """The form of an answer."""

    TEXT = "text"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters; None takes the model's own default."""

    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    top_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation to make. ``messages`` already hold the retrieved passages."""

    request_id: str
    attempt: int
    model: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: str = ""
    """"", "auto", "none", "required", or "named" with ``tool_choice_name``."""
    tool_choice_name: str = ""
    response: ResponseKind = ResponseKind.TEXT
    schema_name: str = ""
    schema: dict[str, Any] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    estimated_input: int = 0
    prompt_logprobs: bool = False
    """The prompt is the one message's text, without the chat template, and each of its tokens is scored."""
    tenant_id: str = ""
    traceparent: str = ""
    stable_messages: int = 0
    """Leading messages that earlier requests began with byte for byte, by the compressor; 0: none, or not known."""
    prefix_version: str = ""
    adapter: str = ""
    """The LoRA adapter that the local engine puts on; empty: none."""
    batch: bool = False
    """True: nobody waits for it; interactive work goes first."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of one output token, with its strongest alternatives."""

    token: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptToken:
    """One token of a prompt: its characters in the text, end exclusive, and the natural logarithm of its probability
    given those before it; None for the first, which has none before it.

    Tokens that share a character (bytes of one) each have the whole of it in their place.
    """

    start: int
    end: int
    logprob: float | None


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of an answer (or, whole, the answer itself)."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt: tuple[PromptToken, ...] = ()
    """The prompt's tokens, once per answer, where the generation asks for them."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer: "stop", "length", "tool_calls" or "content_filter", and what it used."""

    finish_reason: str
    usage: Usage


Event = Delta | Finished

CountTokens = Callable[[str], int]
"""Counts the tokens of a text, where the provider does not."""


@dataclass(slots=True)
class Meter:
    """What one attempt has used so far, whichever way it ends.

    The backend keeps it up to date, so that a cancelled or broken attempt is charged what was emitted. ``reached`` says
    that the provider got the request: before that nothing was spent. ``final`` says that ``reported`` is of the whole
    answer: False while a stream runs whose provider reports as it goes along.
    """

    estimated_input: int
    count_tokens: CountTokens
    reached: bool = False
    reported: Usage | None = None
    final: bool = True
    emitted: list[str] = field(default_factory=list)
    on_second: Callable[[], None] | None = None
    """Writes a second attempt beside this one down before it begins; None: there may be none."""
    second: Meter | None = None
    """Of the second attempt, once it has begun."""
    second_won: bool = False
    queued_seconds: float = 0.0
    """How long it waited for a turn at its provider."""

    def begin_second(self) -> None:
        """A second attempt begins. Raises TenthError where it cannot be written down."""
        assert self.on_second is not None
        self.on_second()
        self.second = Meter(self.estimated_input, self.count_tokens)

    @property
    def winner(self) -> Meter:
        """Of the attempt whose answer is given."""
        return self.second if self.second is not None and self.second_won else self

    @property
    def loser(self) -> Meter | None:
        """Of the attempt beside it; None: there was none."""
        return self if self.winner is not self else self.second

    def emit(self, delta: Delta) -> None:
        """Remember what a piece held, for the case that nobody reports usage."""
        self.emitted.extend(part for part in (delta.text, delta.reasoning) if part)
        self.emitted.extend(call.name + call.arguments for call in delta.tool_calls)

    def usage(self) -> Usage:
        """What was used, as reported; what was not is counted here, and marks the whole as estimated.

        The input is then as estimated at admission. A report that is not final, or says nothing of an answer that
        came, stands where it says more than what was emitted.
        """
        said = self.reported
        if said is None:
            if not self.reached:
                return Usage()
            said = Usage()
        if said.estimated:
            return said
        whole = self.final and (said.output > 0 or not self.emitted)
        if said.input and whole:
            return said
        output = said.output
        if not whole and self.emitted:
            output = max(output, self.count_tokens("".join(self.emitted)))
        return replace(said, input=said.input or self.estimated_input, output=output, estimated=True)


@dataclass(frozen=True, slots=True)
class Ability:
    """What a catalogue model can do."""

    tools: bool = False
    json_schema: bool = False
    vision: bool = False


def with_passages(messages: Sequence[Message], passages: Sequence[str]) -> tuple[Message, ...]:
    """The messages with the retrieved passages before the last user message's text.

    The form is fixed, because the compressor counts it too: ``Context:\\n[1] text\\n[2] text\\n\\n`` and then the
    question. Without a user message the passages become a user message of their own, at the end.
    """
    if not passages:
        return tuple(messages)
    lines = "".join(f"[{number}] {text}\n" for number, text in enumerate(passages, start=1))
    block = f"Context:\n{lines}\n"
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message.role == "user":
            first, rest = (message.parts[:1], message.parts[1:]) if message.parts else ((), ())
            if first and isinstance(first[0], str):
                parts: tuple[str | Image, ...] = (block + first[0], *rest)
            else:
                parts = (block, *message.parts)
            return (*messages[:index], replace(message, parts=parts), *messages[index + 1 :])
    return (*messages, Message("user", (block,)))


def limited(generation: Generation, most: int) -> Generation:
    """The generation with a limit of its output, at most the model's own (tokens)."""
    limit = min(generation.sampling.max_output_tokens or most, most)
    return replace(generation, sampling=replace(generation.sampling, max_output_tokens=limit))


def check_abilities(generation: Generation, ability: Ability) -> None:
    """Refuse what the model cannot do, before anything is spent. Raises UNSUPPORTED naming the field."""
    name = generation.model
    if generation.tools and generation.tool_choice != "none" and not ability.tools:
        raise unsupported(f"{name} does not call tools", "generation.tools")
    if generation.response is not ResponseKind.TEXT and not ability.json_schema:
        raise unsupported(f"{name} does not write JSON to a schema", "generation.response_format")
    if not ability.vision and any(isinstance(part, Image) for m in generation.messages for part in m.parts):
        raise unsupported(f"{name} does not see pictures", "generation.messages")


def check_prompt_logprobs(generation: Generation, backend: str) -> None:
    """Refuse prompt log probabilities of a backend other than "vllm", before anything is spent. Raises UNSUPPORTED.

    OpenAI-compatible servers tell them, if at all, of the prompt as their chat template makes it and without places in
    the text, so that nothing could be said of a character.
    """
    if generation.prompt_logprobs and backend != "vllm":
        raise unsupported(f"{generation.model} does not tell the prompt's probabilities", PROMPT_LOGPROBS_FIELD)


def room_for_output(model: str, context_window: int, prompt_tokens: int, wanted: int) -> int:
    """The most tokens that may be made: as wanted, or what the window has left. Raises PROMPT_TOO_LONG."""
    room = context_window - prompt_tokens
    if room < 1:
        raise prompt_too_long(model, context_window, prompt_tokens)
    return min(wanted, room)


def worst_case(generation: Generation, max_output_tokens: int) -> Usage:
    """Most that an attempt can use, as far as is known before it: written down when it starts."""
    wanted = generation.sampling.max_output_tokens or max_output_tokens
    return Usage(input=generation.estimated_input, output=min(wanted, max_output_tokens), estimated=True)


class Circuit:
    """Whether calls to one model make sense now.

    After ``limit`` failures in a row it opens: calls are refused for ``open_seconds``, then one call is let through to
    probe; its success closes the circuit, its failure opens it again. (Nygard, Release It!, 2007.)
    """

    def __init__(self, limit: int, open_seconds: float) -> None:
        self._limit = limit
        self._open_seconds = open_seconds
        self._failures = 0
        self._open_until = 0.0
        self._probing = False
        self.reason = ""

    @property
    def healthy(self) -> bool:
        """False from the ``limit``-th failure in a row until a call succeeds."""
        return self._failures < self._limit

    def wait_seconds(self, now: float) -> float:
        """0 when a call may be made (the caller must then report how it went), else how long to wait."""
        if self.healthy:
            return 0.0
        if now < self._open_until:
            return self._open_until - now
        if self._probing:
            return self._open_seconds
        self._probing = True
        return 0.0

    def succeeded(self) -> None:
        """A call went well."""
        self._failures, self._probing, self.reason = 0, False, ""

    def failed(self, now: float, reason: str) -> None:
        """A call failed through the provider's fault."""
        self._failures += 1
        self._probing = False
        self._open_until = now + self._open_seconds
        self.reason = reason

    def left(self) -> None:
        """A call ended without saying anything about the provider (cancelled, the caller's mistake)."""
        self._probing = False
