"""The ``output`` strategy: a limit on the answer, and a hint to be brief, from its predicted length. Pure; opt-in.

The prediction is the router's. The limit is a net against answers that run away, not a knife: it lies well above the
prediction, never above what was asked for, and never below what a JSON schema or code needs, for an answer cut off is
paid for and useless. The hint asks for about half of a long prediction; it is one of a few fixed sentences, put at the
end of the last user message, so that no cached prefix changes.

A hint's own cost, in cl100k_base tokens with its line break: English 10, Korean 21; it is in ``hint_token_count``. The
hint is only given where the tokens that it may save are at least ten times as many.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

TARGETS = (50, 100, 200, 400, 800)
"""Words that a hint asks for at most."""
_TOKENS_PER_WORD, _TOKENS_PER_WORD_KO = 1.4, 3.2
_HINT_TOKENS, _HINT_TOKENS_KO = 10, 21
_LEAST_GAIN = 10
_STRING_TOKENS, _VALUE_TOKENS, _KEY_TOKENS = 64, 8, 6
_DEPTH = 12
_WANTS_LENGTH = re.compile(
    r"\b(?:detail(?:ed|s)?|in depth|essay|story|article|report|step[- ]by[- ]step|thorough(?:ly)?|long|full"
    r"|comprehensive|complete|translate|rewrite|proofread|list all|everything"
    r"|\d+[- ](?:words?|pages?|paragraphs?|sentences?))\b"
    r"|자세|상세|구체적|에세이|이야기를? 써|소설|보고서|단계별|길게|전부|모두|번역|다시 써|교정"
    r"|\d+ ?(?:자|단어|페이지|문단|문장)",
    re.IGNORECASE,
)
_WANTS_CODE = re.compile(
    r"```|\b(?:code|function|script|program|class|sql|query|regex|html|css|json|yaml|dockerfile"
    r"|implement|refactor|unit tests?)\b"
    r"|코드|함수|스크립트|프로그램|구현|쿼리|리팩터|정규식",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """Bounds of limits and hints, in tokens."""

    headroom: float = 2.5
    """The limit is so many times the prediction."""
    least_tokens: int = 256
    """No limit lies below."""
    code_least_tokens: int = 2048
    """Nor below this where code is asked for."""
    hint_from_tokens: int = 200
    """Shorter predictions get no hint."""


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """What to ask for; ``max_output_tokens`` None leaves it to the model, an empty ``hint`` adds nothing."""

    max_output_tokens: int | None
    hint: str
    hint_token_count: int
    reason: str


def plan_output(
    predicted_tokens: float,
    asked_max_tokens: int | None,
    question: str,
    settings: OutputSettings,
    response_schema: str = "",
    wants_json: bool = False,
    has_tools: bool = False,
) -> OutputPlan:
    """The limit and the hint for one request. A prediction that is no positive number changes nothing."""
    if not math.isfinite(predicted_tokens) or predicted_tokens <= 0:
        return OutputPlan(asked_max_tokens, "", 0, "no prediction")
    least, why = settings.least_tokens, "predicted length"
    structured = bool(response_schema) or wants_json
    code = _WANTS_CODE.search(question) is not None
    if structured:
        need = schema_tokens(response_schema) if response_schema else None
        if need is None:
            return OutputPlan(asked_max_tokens, "", 0, "JSON without a bound")
        least, why = max(least, 2 * need), "JSON schema"
    if code or has_tools:
        least, why = max(least, settings.code_least_tokens), "code" if code else "tools"
    limit = max(least, math.ceil(settings.headroom * predicted_tokens))
    if asked_max_tokens is not None:
        limit = min(limit, asked_max_tokens)
    hint, cost = "", 0
    if not structured and not code and not has_tools and not _WANTS_LENGTH.search(question):
        hint, cost = brevity_hint(predicted_tokens, question, settings)
    return OutputPlan(limit, hint, cost, f"at most {limit} tokens by {why}" + (", brevity hint" if hint else ""))


def brevity_hint(predicted_tokens: float, question: str, settings: OutputSettings) -> tuple[str, int]:
    """A sentence that asks for about half of the prediction, and its tokens; empty where it would not pay."""
    korean = re.search(r"[\uac00-\ud7a3]", question) is not None
    per_word = _TOKENS_PER_WORD_KO if korean else _TOKENS_PER_WORD
    cost = _HINT_TOKENS_KO if korean else _HINT_TOKENS
    if predicted_tokens < settings.hint_from_tokens:
        return "", 0
    target = next((words for words in reversed(TARGETS) if words * per_word <= predicted_tokens / 2), None)
    if target is None or predicted_tokens - target * per_word < _LEAST_GAIN * cost:
        return "", 0
    if korean:
        return f"(핵심만 {target}단어 이내로 답해 주세요.)", cost
    return f"(Answer in at most {target} words.)", cost


def schema_tokens(schema: str) -> int | None:
    """About how many tokens an answer to a JSON schema needs; None when it has no bound or cannot be read."""
    try:
        found = json.loads(schema)
    except (ValueError, RecursionError):
        return None
    return _need(found, _DEPTH)


def _need(schema: object, depth: int) -> int | None:
    """Tokens of one value, generously. References, patterns of keys and free objects have no bound."""
    if not isinstance(schema, dict) or depth == 0 or "$ref" in schema or "patternProperties" in schema:
        return None
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list):
            needs = [_need(one, depth - 1) for one in schema[key]]
            return None if None in needs else sum(need for need in needs if need is not None)
    if isinstance(schema.get("enum"), list):
        return max((len(str(value)) for value in schema["enum"]), default=1) + 2
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), None)
    if kind == "object":
        properties = schema.get("properties")
        if not isinstance(properties, dict) or schema.get("additionalProperties", True) is not False:
            return None
        needs = [_need(value, depth - 1) for value in properties.values()]
        if None in needs:
            return None
        return 4 + sum(need + _KEY_TOKENS for need in needs if need is not None)
    if kind == "array":
        most = schema.get("maxItems")
        need = _need(schema.get("items"), depth - 1)
        return most * (need + 2) + 4 if isinstance(most, int) and need is not None else None
    if kind == "string":
        most = schema.get("maxLength")
        # A character is at most three tokens (Hangul, emoji); most are far less. A string without a bound has none.
        return most + 2 if isinstance(most, int) else None
    return _VALUE_TOKENS if kind in ("number", "integer", "boolean", "null") else None
