"""What tools cost in OpenAI's chat format. Pure.

The recipe is OpenAI's (cookbook, "How to count tokens with tiktoken", section on tool calls): a function costs 7
tokens (10 by cl100k_base), its ``name:description``, 3 once if it has parameters, then for each parameter 3 and
``name:type:description``, -3 and 3 a value for an enum; 12 at the end. It is given for flat parameters only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from services.compressor.vocabularies import Count

_FUNCTION_TOKENS = {"o200k_base": 7, "cl100k_base": 10}
_PROPERTIES_TOKENS = 3
_PROPERTY_TOKENS = 3
_ENUM_TOKENS = -3
_ENUM_ITEM_TOKENS = 3
_END_TOKENS = 12


def openai_tool_tokens(tools: Sequence[str], encoding: str, count: Count) -> int | None:
    """Tokens of tools given as JSON texts; None where the recipe does not tell (nested or odd parameters)."""
    if not tools:
        return 0
    per_function = _FUNCTION_TOKENS.get(encoding)
    if per_function is None:
        return None
    total = _END_TOKENS
    for text in tools:
        cost = _function_tokens(text, count)
        if cost is None:
            return None
        total += per_function + cost
    return total


def _function_tokens(text: str, count: Count) -> int | None:
    try:
        function = json.loads(text)["function"]
        name, description = function["name"], function.get("description") or ""
        parameters = function.get("parameters") or {}
        properties = parameters.get("properties") or {}
        total = count(f"{name}:{_bare(description)}")
        if properties:
            total += _PROPERTIES_TOKENS
        for key, schema in properties.items():
            cost = _property_tokens(key, schema, count)
            if cost is None:
                return None
            total += cost
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return total


def _property_tokens(key: str, schema: dict[str, Any], count: Count) -> int | None:
    kind = schema["type"]
    # Of anything but a scalar with a description and an enum the recipe says nothing.
    if kind not in ("string", "number", "integer", "boolean") or not {"type", "description", "enum"} >= schema.keys():
        return None
    total = _PROPERTY_TOKENS + count(f"{key}:{kind}:{_bare(schema.get('description') or '')}")
    if "enum" in schema:
        total += _ENUM_TOKENS + sum(_ENUM_ITEM_TOKENS + count(str(item)) for item in schema["enum"])
    return total


def _bare(description: str) -> str:
    return description.removesuffix(".")
