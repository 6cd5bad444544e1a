"""Prompt log probabilities: what may be asked for with them, of whom, and how they are told."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from tenth.inference.v1 import inference_pb2

from mesh.errors import TenthError
from services.inference.convert import generation_from_proto, prompt_tokens_to_proto
from services.inference.policy import Delta, Generation, PromptToken, check_prompt_logprobs

USER = {"role": "ROLE_USER", "parts": [{"text": "봄은 "}, {"text": "짧다"}]}
BASE: dict[str, Any] = {"requestId": "r", "attempt": 1, "model": "m", "messages": [USER], "promptLogprobs": True}


def convert(**changes: Any) -> Generation:
    request = ParseDict({**BASE, **changes}, inference_pb2.GenerateTextRequest())
    return generation_from_proto(request, tenant_id="acme", traceparent="")


def test_one_message_of_text_is_the_prompt() -> None:
    generation = convert()
    assert generation.prompt_logprobs
    assert generation.messages[0].text == "봄은 짧다"
    assert not convert(promptLogprobs=False).prompt_logprobs


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": [USER, USER]},
        {"messages": [{"role": "ROLE_USER", "parts": [{"text": ""}]}]},
        {"messages": [{"role": "ROLE_USER", "parts": [{"text": "x"}, {"image": {"url": "https://x/y.png"}}]}]},
        {"messages": [{"role": "ROLE_ASSISTANT", "parts": [{"text": "x"}], "toolCalls": [{"id": "1", "name": "f"}]}]},
        {"retrievedChunks": [{"text": "a passage"}]},
        {"tools": [{"name": "f"}]},
        {"responseFormat": {"kind": "RESPONSE_FORMAT_KIND_JSON_OBJECT"}},
    ],
)
def test_what_a_plain_prompt_has_no_place_for_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TenthError) as caught:
        convert(**changes)
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "generation.prompt_logprobs")
    assert convert(**{**changes, "promptLogprobs": False}) is not None


def test_other_backends_refuse_by_field() -> None:
    check_prompt_logprobs(convert(), "vllm")
    check_prompt_logprobs(convert(promptLogprobs=False), "openai")
    with pytest.raises(TenthError) as caught:
        check_prompt_logprobs(convert(), "openai")
    assert (caught.value.reason, caught.value.field) == ("UNSUPPORTED", "generation.prompt_logprobs")


def test_only_the_first_token_has_no_probability() -> None:
    first, second = prompt_tokens_to_proto(Delta(prompt=(PromptToken(0, 1, None), PromptToken(0, 2, 0.0))))
    assert (first.start_character, first.end_character, first.HasField("logprob")) == (0, 1, False)
    assert (second.start_character, second.end_character, second.HasField("logprob")) == (0, 2, True)
    assert second.logprob == 0.0
