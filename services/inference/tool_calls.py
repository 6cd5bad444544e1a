"""Tool calls of the local engine: what the model's chat template is told of tools, and the calls in what it writes.

A format is one of vLLM's tool parsers, by the name that vLLM's own server knows it by (``--tool-call-parser``). vLLM is
imported where a format is opened: in the engine's thread, while the model loads.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.inference.errors import unsupported
from services.inference.policy import Delta, Generation, Message, ResponseKind, Tool, ToolCall
from services.inference.schema_cost import MOST_REPEATS, repeats

log = logging.getLogger("tenth.inference.vllm")

TOOLS_FIELD = "generation.tools"
_UNNAMED = "it does not call tools: its catalogue entry has no tool_format"
_PROBE = Tool("tenth_probe", "Says hello.", None)
_HERMES, _DEEPSEEK = ("<tool_call>",), ("<｜tool▁calls▁begin｜>",)
_LLAMA, _QWEN_XML = ("<|python_tag|>", "{"), ("<tool_call>", "<function=")
_MARKERS: Mapping[str, tuple[str, ...]] = {
    "hermes": _HERMES,
    "qwen3_json": _HERMES,
    "longcat": ("<longcat_tool_call>",),
    "llama3_json": _LLAMA,
    "llama4_json": _LLAMA,
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v31": _DEEPSEEK,
    "qwen3_coder": _QWEN_XML,
    "qwen3_xml": _QWEN_XML,
}
"""What begins a call, of the parsers that find none where it is absent (by their source, vLLM 0.32)."""
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}

Reader = Callable[[str], Delta | None]
"""The calls in a whole answer, and the text before them; None: there are none, or they cannot be read."""


class ToolAnswer:
    """One answer while it is written, to a request with tools.

    Text is given as it comes until a call may have begun. From there it is held back: the calls are given whole, at the
    end, or the text as it is where they cannot be read.
    """

    def __init__(
        self,
        read: Reader,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        markers: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        forced: bool = False,
    ) -> None:
        """``markers`` begin a call wherever one is; none: a call may begin with anything, so all is held back.

        ``tools`` are as the chat template takes them, ``parameters`` vLLM's SamplingParams that go with them;
        ``forced`` says that nothing but calls can be written.
        """
        self.tools = [dict(tool) for tool in tools]
        self.parameters = dict(parameters or {})
        self.forced = forced
        self._read = read
        self._markers = () if forced else tuple(markers)
        self._text = ""
        self._given = 0

    def take(self, piece: str) -> str:
        """Add what the model wrote: the text that can be given now."""
        self._text += piece
        return self._give(self._safe_end())

    def end(self, finish_reason: str) -> tuple[Delta, str]:
        """What is still to be given, and how the answer ended: "tool_calls" instead of "stop" where it has calls."""
        found = self._read(self._text)
        if found is None or not found.tool_calls:
            return Delta(text=self._give(len(self._text))), finish_reason
        given = self._text[: self._given]
        text = found.text.rstrip()
        rest = text[len(given) :] if text.startswith(given) else ""
        return Delta(text=rest, tool_calls=found.tool_calls), "tool_calls" if finish_reason == "stop" else finish_reason

    def _give(self, end: int) -> str:
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _safe_end(self) -> int:
        """Where the text ends that certainly comes before a call. White space before a call belongs to the call."""
        if not self._markers:
            return 0
        end = min(self._begin(marker) for marker in self._markers)
        return self._given + len(self._text[self._given : end].rstrip())

    def _begin(self, marker: str) -> int:
        """Where the marker begins, or may be beginning at the text's end."""
        end = self._text.find(marker, self._given)
        if end >= 0:
            return end
        overlap = min(len(marker) - 1, len(self._text))
        while overlap and not self._text.endswith(marker[:overlap]):
            overlap -= 1
        return len(self._text) - overlap


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one loaded model is told of tools, and how its calls are read."""

    name: str = ""
    parser: Any = None
    """vLLM's ToolParser class."""
    tokenizer: Any = None
    """The parser's own, with the vocabulary at hand; used for no text."""
    refusal: str = _UNNAMED
    """Why the model takes no tools, and what to do; empty: it does."""

    def answer(self, generation: Generation) -> ToolAnswer | None:
        """What reads the answer; None where the model is not to know of tools. Raises UNSUPPORTED."""
        if not generation.tools or generation.tool_choice == "none":
            return None
        model, forced = generation.model, generation.tool_choice in ("required", "named")
        if self.refusal:
            raise unsupported(f"{model}: {self.refusal}", TOOLS_FIELD)
        if generation.response is not ResponseKind.TEXT and not forced:
            raise unsupported(f"{model} does not take tools and a form of JSON at once", "generation.response_format")
        if sum(repeats(tool.parameters) for tool in generation.tools) > MOST_REPEATS:
            raise unsupported(f"{model}: the tools' patterns repeat more than {MOST_REPEATS} times", TOOLS_FIELD)
        from vllm.exceptions import VLLMClientError

        tools = [_tool(tool) for tool in generation.tools]
        try:
            request = _request(tools, generation)
            parser = self.new_parser(request)
            parameters, written_as_json = _constraint(parser, request, forced)
        except (ValueError, VLLMClientError) as error:
            raise unsupported(f"{model}: these tools cannot be given to it: {error}", TOOLS_FIELD) from error
        if written_as_json:
            named = generation.tool_choice_name if generation.tool_choice == "named" else ""
            read: Reader = lambda text: _read_json(text, named)  # noqa: E731  # it is the one line
        else:
            read = lambda text: _read(parser, request, text)  # noqa: E731
        return ToolAnswer(read, tools=tools, markers=_MARKERS.get(self.name, ()), parameters=parameters, forced=forced)

    def new_parser(self, request: Any) -> Any:
        """A parser for one answer: some keep what they have read."""
        parser = self.parser(self.tokenizer, request.tools)
        if hasattr(parser, "skip_reasoning_parsing"):
            parser.skip_reasoning_parsing = True  # Thoughts stay in the text, as without tools.
        return parser


def open_tool_format(name: str, tokenizer: Any) -> ToolFormat:
    """The format of that name, tried out on the model's tokenizer and chat template.

    Where it cannot be used, the model is served without tools: the result says why, and so does the log.
    """
    if not name:
        return ToolFormat()
    refusal, parser, cached = "", None, None
    try:
        from vllm.tokenizers.hf import get_cached_tokenizer
        from vllm.tool_parsers import ToolParserManager

        if name not in ToolParserManager.list_registered():
            known = ", ".join(ToolParserManager.list_registered())
            raise ValueError(f"tool_format {name!r} is none of vLLM's: {known}")
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hello"}],
            tools=[_tool(_PROBE)],
            add_generation_prompt=True,
            tokenize=False,
        )
        if _PROBE.name not in text:
            raise ValueError(
                "its chat template ignores tools; take a model whose chat_template.jinja renders them, or take "
                "tool_format off its catalogue entry"
            )
        parser, cached = ToolParserManager.get_tool_parser(name), get_cached_tokenizer(tokenizer)
        request = _request([_tool(_PROBE)], Generation("", 1, "", ()))
        ToolFormat(name, parser, cached, "").new_parser(request).extract_tool_calls("Hello", request)
    except Exception as error:  # A parser may raise anything; text is served all the same.
        refusal = f"it cannot call tools in the format {name!r}: {error}"
        log.error("tools are not served: %s", refusal)
    return ToolFormat(name, parser, cached, refusal)


def chat_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them: the arguments of calls are objects, and a result knows its tool's name.

    Source: vLLM's server (``_postprocess_messages``), and Transformers' documentation of tool use.
    """
    names: dict[str, str] = {}
    result: list[dict[str, Any]] = []
    for message in messages:
        rendered: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.tool_calls:
            names.update((call.id, call.name) for call in message.tool_calls)
            rendered["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": _object(call.arguments) or {}},
                }
                for call in message.tool_calls
            ]
        if message.role == "tool":
            rendered["tool_call_id"] = message.tool_call_id
            name = message.name or names.get(message.tool_call_id, "")
            if name:
                rendered["name"] = name
        result.append(rendered)
    return result


def _tool(tool: Tool) -> dict[str, Any]:
    # Templates take the parameters for granted.
    parameters = tool.parameters if tool.parameters is not None else dict(_NO_PARAMETERS)
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _request(tools: list[dict[str, Any]], generation: Generation) -> Any:
    """The tools as vLLM's parsers take them: in a request to vLLM's own server. Raises ValueError."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    choice: Any = generation.tool_choice or "auto"
    if choice == "named":
        choice = {"type": "function", "function": {"name": generation.tool_choice_name}}
    said = [{"role": "user", "content": ""}]  # The parsers do not read it.
    return ChatCompletionRequest.model_validate({"messages": said, "tools": tools, "tool_choice": choice})


def _constraint(parser: Any, request: Any, forced: bool) -> tuple[dict[str, Any], bool]:
    """vLLM's sampling parameters for a request; True: the answer will be JSON instead of the model's own form."""
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.tool_parsers.tool_strict_level import ToolStrictLevel
    from vllm.tool_parsers.utils import get_json_schema_from_tools

    if forced:
        tag = parser.get_structural_tag(request, strict_level=ToolStrictLevel.PARAMETER)
        if tag is None:
            schema = get_json_schema_from_tools(request.tool_choice, request.tools)
            return {"structured_outputs": StructuredOutputsParams(json=schema)}, True
        form = tag.model_dump()
        _bound_white_space(form)
        request.structured_outputs = StructuredOutputsParams(structural_tag=json.dumps(form))
    # Where the marks of a call are special tokens, they must stay in the text.
    parameters = {"skip_special_tokens": parser.adjust_request(request).skip_special_tokens}
    if forced:
        parameters["structured_outputs"] = request.structured_outputs
    return parameters, False


def _bound_white_space(form: Any) -> None:
    """A small model spends its whole answer on white space where a schema allows it; structural tags allow it."""
    if isinstance(form, dict):
        if form.get("type") == "json_schema" and "max_whitespace_cnt" in form:
            form["max_whitespace_cnt"] = 1
            return
        for value in form.values():
            _bound_white_space(value)
    elif isinstance(form, list):
        for value in form:
            _bound_white_space(value)


def _read(parser: Any, request: Any, text: str) -> Delta | None:
    try:
        found = parser.extract_tool_calls(text, request)
    except Exception:
        log.warning("a tool parser failed on an answer, which is given as it is", exc_info=True)
        return None
    if not found.tools_called:
        return None
    calls = tuple(
        ToolCall(index, call.id, call.function.name, call.function.arguments)
        for index, call in enumerate(found.tool_calls)
    )
    return Delta(text=found.content or "", tool_calls=calls)


def _read_json(text: str, named: str) -> Delta | None:
    """An answer to vLLM's schema for formats without a grammar: the named tool's arguments, or a list of calls."""
    from vllm.renderers.chat_utils import make_tool_call_id

    try:
        value = json.loads(text)
        calls = [(named, value)] if named else [(call["name"], call["parameters"]) for call in value]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # Cut off by the output limit.
    return Delta(
        tool_calls=tuple(
            ToolCall(index, make_tool_call_id(), name, json.dumps(arguments, ensure_ascii=False))
            for index, (name, arguments) in enumerate(calls)
        )
    )


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
