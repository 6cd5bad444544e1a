"""Tool calls of the local engine: vLLM's real parsers on made answers, and what a chat template is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh.errors import TenthError
from services.inference.policy import Delta, Generation, Message, ResponseKind, Tool, ToolCall
from services.inference.tool_calls import ToolAnswer, ToolFormat, chat_messages, open_tool_format

# vLLM and torch warn of their own deprecations while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

WEATHER = Tool(
    "get_weather",
    "The weather of a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
CLOCK = Tool("get_time", "", None)
HERMES = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
)
DEAF = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
FIRST = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
SECOND = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
XML = "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>"
DEEPSEEK = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)
BROKEN = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par'


def tokenizer(template: str) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=plain, chat_template=template)


@pytest.fixture(scope="module")
def hermes() -> ToolFormat:
    return open_tool_format("hermes", tokenizer(HERMES))


def asked(choice: str = "auto", name: str = "", **changes: Any) -> Generation:
    whole = {"tools": (WEATHER, CLOCK), "tool_choice": choice, "tool_choice_name": name, **changes}
    return Generation("r", 1, "small", (Message("user", ("Hi",)),), **whole)


def answer(format_: ToolFormat, generation: Generation) -> ToolAnswer:
    found = format_.answer(generation)
    assert found is not None
    return found


def written(reading: ToolAnswer, text: str, size: int, reason: str = "stop") -> tuple[str, Delta, str]:
    """What is given while an answer comes in pieces of ``size`` characters, then at its end."""
    early = "".join(reading.take(text[start : start + size]) for start in range(0, len(text), size))
    return early, *reading.end(reason)


@pytest.mark.parametrize("size", [1, 3, 7, 500])
@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        (FIRST, "", [("get_weather", {"city": "Paris"})]),
        (f"I look.\n\n{FIRST}", "I look.", [("get_weather", {"city": "Paris"})]),
        (f"{FIRST}\n{SECOND}", "", [("get_weather", {"city": "Paris"}), ("get_time", {})]),
        (
            '찾아볼게요 <tool_call>{"name": "get_weather", "arguments": {"city": "서울특별시 종로구"}}</tool_call>',
            "찾아볼게요",
            [("get_weather", {"city": "서울특별시 종로구"})],
        ),
        (FIRST.removesuffix("</tool_call>"), "", [("get_weather", {"city": "Paris"})]),
    ],
)
def test_calls_are_read_whole_at_the_end_in_pieces_of_any_size(
    hermes: ToolFormat, text: str, said: str, calls: list[tuple[str, dict[str, Any]]], size: int
) -> None:
    early, rest, reason = written(answer(hermes, asked()), text, size)
    assert (early, rest.text) == (said, "")
    assert [(call.name, json.loads(call.arguments)) for call in rest.tool_calls] == calls
    assert [call.index for call in rest.tool_calls] == list(range(len(calls)))
    assert len({call.id for call in rest.tool_calls} - {""}) == len(calls)
    assert reason == "tool_calls"


@pytest.mark.parametrize("size", [1, 4, 500])
@pytest.mark.parametrize(
    ("name", "tokens", "call"),
    [
        ("qwen3_json", (), FIRST),
        ("longcat", (), FIRST.replace("tool_call>", "longcat_tool_call>")),
        ("llama3_json", ("<|python_tag|>",), '{"name": "get_weather", "parameters": {"city": "Paris"}}'),
        (
            "llama4_json",
            ("<|python_tag|>",),
            '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}',
        ),
        ("deepseek_v31", DEEPSEEK, '{begin}{one}get_weather{between}{{"city": "Paris"}}{last}{end}'),
        ("qwen3_coder", (), f"<tool_call>\n{XML}\n</tool_call>"),
        ("qwen3_xml", (), XML),
    ],
)
def test_other_formats_stream_text_before_a_call(name: str, tokens: tuple[str, ...], call: str, size: int) -> None:
    words = tokenizer(HERMES)
    words.add_special_tokens({"additional_special_tokens": list(tokens)})
    format_ = open_tool_format(name, words)
    if tokens == DEEPSEEK:
        call = call.format(**dict(zip(("begin", "end", "one", "last", "between"), tokens, strict=True)))
    early, rest, reason = written(answer(format_, asked()), f"I look.\n{call}", size)
    assert (early, rest.text, reason) == ("I look.", "", "tool_calls")
    assert [(found.name, json.loads(found.arguments)) for found in rest.tool_calls] == [
        ("get_weather", {"city": "Paris"})
    ]
    plain = "a < b <｜tool and no call\n"
    early, rest, reason = written(answer(format_, asked()), plain, size)
    assert (early + rest.text, rest.tool_calls, reason) == (plain, (), "stop")
    assert early == plain.rstrip()


def test_korean_arguments_stay_korean(hermes: ToolFormat) -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": "\\uc11c\\uc6b8"}}</tool_call>'
    _, rest, _ = written(answer(hermes, asked()), text, 4)
    assert rest.tool_calls[0].arguments == '{"city": "서울"}'


@pytest.mark.parametrize("size", [1, 500])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is sunny.\n",
        "a < b, and <tool is no call ",
        "ends with <tool_",
        f"I look. {BROKEN}",
        f"{FIRST}\n{BROKEN}",
        '<tool_call>["no call"]</tool_call> and more',
        '<tool_call>{"name": "get_weather"}</tool_call>',
    ],
)
def test_what_is_no_call_is_given_as_it_is(hermes: ToolFormat, text: str, size: int) -> None:
    early, rest, reason = written(answer(hermes, asked()), text, size)
    assert early + rest.text == text
    assert rest.tool_calls == ()
    assert reason == "stop"


def test_text_is_given_at_once_until_a_call_may_have_begun(hermes: ToolFormat) -> None:
    reading = answer(hermes, asked())
    assert reading.take("It is ") == "It is"
    assert reading.take("sunny. <to") == " sunny."
    assert reading.take("ast> is bread <tool_call>") == " <toast> is bread"
    assert reading.take("anything") == ""
    assert reading.end("length") == (Delta(text=" <tool_call>anything"), "length")


def test_an_answer_that_was_cut_off_says_so_although_it_has_calls(hermes: ToolFormat) -> None:
    _, rest, reason = written(answer(hermes, asked()), FIRST, 5, "length")
    assert (len(rest.tool_calls), reason) == (1, "length")


@pytest.mark.parametrize(("choice", "name", "tools"), [("required", "", 2), ("named", "get_time", 1)])
def test_a_forced_call_is_a_grammar_and_no_text_comes_of_it(
    hermes: ToolFormat, choice: str, name: str, tools: int
) -> None:
    reading = answer(hermes, asked(choice, name))
    form = json.loads(reading.parameters["structured_outputs"].structural_tag)["format"]
    assert len({tag["begin"] for tag in form["tags"]}) == 2 * tools, "with and without a line break"
    assert all(tag["content"]["max_whitespace_cnt"] == 1 for tag in form["tags"])
    assert reading.parameters["skip_special_tokens"] is False
    assert written(reading, SECOND, 3)[0] == ""


def test_a_form_without_a_grammar_is_json_to_a_schema() -> None:
    from vllm.tool_parsers.xlam_tool_parser import xLAMToolParser

    assert xLAMToolParser.structural_tag_model is None
    format_ = open_tool_format("xlam", tokenizer(HERMES))
    required = answer(format_, asked("required"))
    assert required.parameters["structured_outputs"].json["items"]["anyOf"][0]["properties"]["name"]["enum"] == [
        "get_weather"
    ]
    text = '[{"name": "get_weather", "parameters": {"city": "서울"}}, {"name": "get_time", "parameters": {}}]'
    early, rest, reason = written(required, text, 9)
    assert (early, rest.text, reason) == ("", "", "tool_calls")
    assert [(call.name, call.arguments) for call in rest.tool_calls] == [
        ("get_weather", '{"city": "서울"}'),
        ("get_time", "{}"),
    ]
    named = answer(format_, asked("named", "get_weather"))
    assert named.parameters["structured_outputs"].json == WEATHER.parameters
    _, rest, _ = written(named, '{"city": "Paris"}', 4)
    assert (rest.tool_calls[0].name, rest.tool_calls[0].arguments) == ("get_weather", '{"city": "Paris"}')
    cut = written(answer(format_, asked("named", "get_weather")), '{"city": "Par', 4, "length")
    assert cut == ("", Delta(text='{"city": "Par'), "length")


def test_a_parser_that_tells_of_no_mark_holds_everything_back() -> None:
    reading = answer(open_tool_format("xlam", tokenizer(HERMES)), asked())
    assert written(reading, "It is sunny.", 3) == ("", Delta(text="It is sunny."), "stop")


def test_the_request_s_own_tools_are_not_changed(hermes: ToolFormat) -> None:
    parameters = {"type": "object", "properties": {"c": {"$ref": "#/$defs/c"}}, "$defs": {"c": {"type": "string"}}}
    before = json.dumps(parameters)
    for format_ in (hermes, open_tool_format("xlam", tokenizer(HERMES))):
        answer(format_, asked("required", tools=(Tool("f", "", parameters),)))
        assert json.dumps(parameters) == before


def test_no_tools_or_none_wanted_is_an_answer_as_ever(hermes: ToolFormat) -> None:
    assert hermes.answer(asked("none")) is None
    assert hermes.answer(asked(tools=())) is None
    assert ToolFormat().answer(asked("none")) is None


@pytest.mark.parametrize(
    ("name", "template", "said"),
    [
        ("", HERMES, "has no tool_format"),
        ("hermse", HERMES, "'hermse' is none of vLLM's: .*hermes"),
        ("hermes", DEAF, "its chat template ignores tools; take a model whose chat_template.jinja renders them"),
        ("hermes", "{{ raise_exception('no tools') }}", "no tools"),
        ("mistral", HERMES, "could not locate the tool call token"),
        ("openai", HERMES, "in the format 'openai'"),
    ],
)
def test_a_format_that_cannot_be_used_says_what_to_do(name: str, template: str, said: str) -> None:
    format_ = open_tool_format(name, tokenizer(template))
    with pytest.raises(TenthError, match=rf"small: .*{said}") as caught:
        format_.answer(asked())
    assert (caught.value.reason, caught.value.field) == ("UNSUPPORTED", "generation.tools")
    assert format_.answer(asked("none")) is None


def test_tools_and_json_at_once_are_refused_unless_a_call_is_forced(hermes: ToolFormat) -> None:
    with pytest.raises(TenthError) as caught:
        hermes.answer(asked(response=ResponseKind.JSON_OBJECT))
    assert (caught.value.reason, caught.value.field) == ("UNSUPPORTED", "generation.response_format")
    assert answer(hermes, asked("required", response=ResponseKind.JSON_OBJECT)).forced


def test_messages_as_a_chat_template_takes_them() -> None:
    calls = (ToolCall(0, "c1", "get_weather", '{"city": "서울"}'), ToolCall(1, "c2", "get_time", "{not JSON"))
    messages = (
        Message("user", ("Hi",), name="someone"),
        Message("assistant", (), tool_calls=calls),
        Message("tool", ("sunny",), tool_call_id="c1"),
        Message("tool", ("noon",), name="clock", tool_call_id="c2"),
    )
    assert chat_messages(messages) == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "서울"}}},
                {"id": "c2", "type": "function", "function": {"name": "get_time", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "c1", "name": "get_weather"},
        {"role": "tool", "content": "noon", "tool_call_id": "c2", "name": "clock"},
    ]


def test_the_template_is_given_tools_with_parameters(hermes: ToolFormat) -> None:
    text = tokenizer(HERMES).apply_chat_template(
        [{"role": "user", "content": "Hi"}], tools=answer(hermes, asked()).tools, tokenize=False
    )
    assert '"name": "get_weather", "description": "The weather of a city."' in text
    assert '"name": "get_time", "description": "", "parameters": {"type": "object", "properties": {}}' in text
