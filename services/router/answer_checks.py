"""What is plainly wrong with an answer, seen from its request, in English and Korean. Pure, no model call.

``fault`` names the first thing that is wrong, or nothing. The checks are for a cheap model's first answer: a needless
fault costs an escalation, a missed one a bad answer, and whatever is not plainly wrong passes. The cues are bounded:
of an answer the first characters are searched for a refusal and the last ones for repetition.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool call: the tool's name and its arguments as the model wrote them."""

    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request demands of its answer."""

    question: str
    """The text of the last user message."""
    instructions: str = ""
    """The system messages' text."""
    wants_json: bool = False
    json_schema: str = ""
    """JSON Schema as text; empty: any object."""
    must_call_tool: bool = False
    tool_name: str = ""
    """The tool that must be called; empty: any."""
    tool_names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer. ``finish`` is "stop", "length", "tool_calls", "content_filter" or ""."""

    text: str
    finish: str = "stop"
    tool_uses: Sequence[ToolUse] = ()


_SEARCHED_CHARS = 240
_REPETITION_CHARS = 1500
_SHORT_ANSWER_CHARS = 60
"""Up to this length an answer without Hangul may be a name or a term."""
_KOREAN_FROM, _LATIN_FROM = 0.3, 0.8
"""Share of a question's letters from which it is Korean, and English; between them nothing is demanded."""
_FOREIGN_LETTERS = 12

_HANGUL = re.compile(r"[\uac00-\ud7a3\u1100-\u11ff\u3130-\u318f]")
_LATIN = re.compile(r"[A-Za-z]")
_LETTER = re.compile(r"[^\W\d_]")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"'})

_REFUSAL_EN = re.compile(
    r"\bI(?:'m| am) (?:sorry|afraid)[^.!?\n]{0,60}\b(?:can(?:'t|not)|unable|not able|don't (?:know|have))"
    r"|\bI (?:can(?:'t|not)|am unable to|am not able to|won't|will not) (?:\w+ )?"
    r"(?:help|assist|answer|provide|do that|comply|fulfil|access|tell|give|determine|find)\b"
    r"|\bI'm (?:unable|not able) to\b"
    r"|^\W*(?:sorry, )?I (?:really )?(?:don't|do not) (?:actually )?"
    r"(?:know|have (?:enough |any |access to |the |that |sufficient )*(?:information|context|data|details|knowledge))"
    r"|\b[Aa]s an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"|^\W*(?:[Ii]t is|[Ii]t's|[Tt]his is) not (?:mentioned|specified|stated|provided)\b"
    r"|\b(?:context|passage|text|document|information)s?(?: provided| given)? (?:does not|doesn't|do not|don't) "
    r"(?:\w+ )?(?:mention|provide|contain|specify|include|say|state)"
)
_REFUSAL_KO = re.compile(
    r"(?:죄송|미안|유감)[^\n]{0,60}(?:답변|대답|도와|도움|제공|알려|말씀)[^\n.]{0,12}(?:수 없|어렵|못|불가)"
    r"|(?:답변|대답)(?:을|은|해)?\s?(?:드릴|해 ?드릴|할|드리기)\s?(?:수 없|수가 없|어렵|힘들)"
    r"|(?:도와|알려|말씀)\s?(?:드릴|줄|드리기)\s?(?:수 없|수가 없|어렵|힘들)"
    r"|^\W*(?:죄송[^\n.]{0,12}[.,]?\s*)?(?:저는|저도|제가|잘|전혀|글쎄요,?)?\s*(?:잘\s?)?모르(?:겠|는|ㅂ|니)"
    r"|^\W*(?:죄송[^\n.]{0,12}[.,]?\s*)?(?:정확히 |정확하게 )?알 수(?:가)? 없(?:습니다|어요|음)"
    r"|(?:문서|문맥|본문|자료|내용|지문)(?:에는|에서는|에|에서|만으로는)[^\n.]{0,30}"
    r"(?:언급되|나와 ?있지|정보가 없|알 수 없|찾을 수 없|포함되어 있지|명시되)[^\n.]{0,8}(?:지 않|없|않)?"
    r"|(?:관련|해당|충분한)(?:된)?\s?정보(?:가|를)\s?(?:없|부족|찾을 수 없|가지고 있지)"
    r"|저는 (?:AI|인공지능|언어 ?모델)"
)
_TRANSLATES = re.compile(
    r"translat|번역|통역|how (?:do|would|can) (?:you|i|we) say\b|(?:뭐|어떻게)라?고? (?:하|말하|표현하)"
    r"|\b(?:quote|repeat|proofread|paraphrase|rewrite|rephrase)\b|교정|고쳐|바꿔",
    re.IGNORECASE,
)
_LANGUAGE_NAMED = re.compile(
    r"\b(?:english|korean|hangul|japanese|chinese|french|german|spanish|italian|russian|vietnamese|arabic|thai|hindi"
    r"|language)\b|영어|영문|한국어|한글|국문|일본어|중국어|불어|프랑스어|독일어|스페인어|베트남어|러시아어|언어|translat|번역",
    re.IGNORECASE,
)
_PROGRAMMING = (
    r"\bpython|\bjava(?:script)?\b|\bjs\b|\btypescript|\bc\+\+|\bc#|\brust\b|\bgolang|\bin go\b|\bsql\b|\bbash\b"
    r"|\bshell\b|\bkotlin|\bswift\b|\bruby\b|\bphp\b|\bhtml\b|\bcss\b|\bregex|파이썬|자바|코틀린|스위프트|리액트"
)
_CODE_WANTED = re.compile(
    r"\b(?:write|implement|generate|give me|show me|create|provide)\b[^.?!\n]{0,40}"
    r"\b(?:code(?! of\b| name| word| red)|snippet|regex|regular expression|unit tests?)\b"
    r"|(?<!할인 )(?<!쿠폰 )(?<!인증 )(?<!초대 )코드(?:를|로|도)?\s?(?:\S+\s){0,3}(?:작성|짜|만들|구현|보여)",
    re.IGNORECASE,
)
_PROGRAM_WANTED = re.compile(
    r"\b(?:write|implement|generate|give me|create|code)\b[^.?!\n]{0,60}"
    r"\b(?:function|script|program|query|class|method)\b"
    r"|(?:함수|스크립트|프로그램|쿼리|클래스|정규식)(?:을|를)?\s?(?:\S+\s){0,3}(?:작성|짜|만들|구현)",
    re.IGNORECASE,
)
_LANGUAGE_OF_CODE = re.compile(_PROGRAMMING, re.IGNORECASE)
_LOOKS_LIKE_CODE = re.compile(
    r"`|^\s*(?:def|class|import|from|function|const|let|var|public|#include|SELECT|fn|func)\b|[{};]\s*$|=>|\w\(.*\)\s*[:{;=]",
    re.MULTILINE | re.IGNORECASE,
)
_REPETITION_WANTED = re.compile(r"\brepeat|\btimes\b|반복|번 (?:써|적|말|출력)|lyrics|가사", re.IGNORECASE)
_REPEATED = re.compile(r"(?=([^\n]{3,80}?)\1{5,})", re.DOTALL)
_REPEATED_SPAN = 50
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "number": (int, float),
    "integer": int,
}


def fault(wanted: Wanted, answer: Answer) -> str:
    """What is plainly wrong with the answer, for a person; empty when nothing is."""
    if answer.finish == "length":
        return "cut off"
    if answer.finish == "content_filter":
        return "withheld by the provider"
    if answer.tool_uses or wanted.must_call_tool:
        return _tool_fault(wanted, answer)
    text = answer.text.strip()
    if wanted.wants_json and text:
        return _json_fault(wanted.json_schema, text)
    if not any(letter.isalnum() for letter in text):
        return "empty"
    if _repeats(wanted.question, text):
        return "repeats itself"
    if refuses(wanted.question, text):
        return "refuses or does not know"
    if _wrong_language(wanted, text):
        return "in another language than the question"
    if wants_code(wanted.question) and not _LOOKS_LIKE_CODE.search(text):
        return "without the code that was asked for"
    return ""


def refuses(question: str, text: str) -> bool:
    """True when an answer declines or says that it does not know. What was to be translated or rewritten may."""
    if _TRANSLATES.search(question):
        return False
    head = text[:_SEARCHED_CHARS].translate(_QUOTES)
    return bool(_REFUSAL_EN.search(head) or _REFUSAL_KO.search(head))


def wants_code(question: str) -> bool:
    """True when code is to be written."""
    return bool(
        _CODE_WANTED.search(question) or (_PROGRAM_WANTED.search(question) and _LANGUAGE_OF_CODE.search(question))
    )


def _tool_fault(wanted: Wanted, answer: Answer) -> str:
    if not answer.tool_uses:
        return "without the tool call that was demanded"
    for use in answer.tool_uses:
        if wanted.tool_names and use.name not in wanted.tool_names:
            return "calls a tool that there is not"
        if wanted.tool_name and use.name != wanted.tool_name:
            return "calls another tool than demanded"
        if not isinstance(_parsed(use.arguments_json or "{}"), dict):
            return "calls a tool with arguments that are no JSON object"
    return ""


def _json_fault(schema_text: str, text: str) -> str:
    value = _parsed(text)
    if value is None:
        return "not JSON"
    schema = _parsed(schema_text) if schema_text else {"type": "object"}
    if not isinstance(schema, dict):
        return ""
    return "" if _fits(value, schema) else "not JSON of the demanded form"


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    """Type and required keys, at the top and one level down. Whole schemas are the provider's work."""
    if not _of_type(value, schema.get("type")):
        return False
    if not isinstance(value, dict):
        return True
    required, properties = schema.get("required"), schema.get("properties")
    if isinstance(required, list) and any(key not in value for key in required):
        return False
    if not isinstance(properties, dict):
        return True
    return all(
        _of_type(value[key], inner.get("type"))
        for key, inner in properties.items()
        if key in value and isinstance(inner, dict)
    )


def _of_type(value: Any, name: Any) -> bool:
    kind = _TYPES.get(name) if isinstance(name, str) else None
    if kind is None:
        return True
    if isinstance(value, bool) and name != "boolean":
        return False
    return isinstance(value, kind) or (name == "integer" and isinstance(value, float) and value.is_integer())


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _wrong_language(wanted: Wanted, text: str) -> bool:
    asked = wanted.question + "\n" + wanted.instructions
    if _LANGUAGE_NAMED.search(asked):
        return False
    hangul, latin, letters = _letters(_CODE.sub(" ", wanted.question))
    prose = _CODE.sub(" ", text)
    own_hangul, own_latin, own_letters = _letters(prose)
    if not letters or not own_letters:
        return False
    if hangul / letters >= _KOREAN_FROM:
        return not own_hangul and len(prose.strip()) > _SHORT_ANSWER_CHARS
    if latin / letters >= _LATIN_FROM and not hangul and not _HANGUL.search(wanted.instructions):
        return own_letters >= _FOREIGN_LETTERS and own_latin / own_letters < _KOREAN_FROM
    return False


def _letters(text: str) -> tuple[int, int, int]:
    """Counts of Hangul, Latin and all letters."""
    return len(_HANGUL.findall(text)), len(_LATIN.findall(text)), len(_LETTER.findall(text))


def _repeats(question: str, text: str) -> bool:
    if _REPETITION_WANTED.search(question):
        return False
    tail = text[-_REPETITION_CHARS:]
    for found in _REPEATED.finditer(tail):
        unit = found.group(1)
        if _LETTER.search(unit):
            count = 1
            while tail.startswith(unit, found.start() + count * len(unit)):
                count += 1
            if count * len(unit) >= _REPEATED_SPAN:
                return True
    lines = [line.strip() for line in tail.splitlines() if len(line.strip()) >= 8 and _LETTER.search(line)]
    return len(lines) >= 6 and Counter(lines).most_common(1)[0][1] > len(lines) / 2
