"""What can be read off a request without a model call, in English and Korean. Pure.

Every feature is a number that means the same in both languages: length in English-equivalent words, shares and
capped counts between 0 and 1. Only the question (the last user message) is searched for cues; of the rest of the
prompt the sizes count. Long questions are searched in their first and last characters only, so that the cost of a
decision has a bound.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, field, fields

from services.router import cues

SEARCHED_HEAD_CHARS = 3000
SEARCHED_TAIL_CHARS = 1500
KOREAN_SHARE = 0.15
"""Share of Hangul among the letters from which a question counts as Korean (it may quote much English)."""
_CHARS_PER_WORD = 5.6
_WORDS_PER_HANGUL = 0.42
"""English words that one Hangul syllable is worth: parallel sentences have about 2.4 syllables per English word."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the features look at."""

    question: str
    """The text of the last user message."""
    system_chars: int = 0
    history_chars: int = 0
    user_turn_count: int = 1
    chunk_count: int = 0
    chunk_chars: int = 0
    chunk_hangul_share: float = 0.0
    tool_count: int = 0
    image_count: int = 0
    wants_schema: bool = False
    wants_json: bool = False


@dataclass(frozen=True, slots=True)
class Features:
    """The features of one request, each 0..1 unless said otherwise."""

    language: str = field(metadata={"text": True})
    """"ko", "en" or "other"."""
    words: float
    """Length of the question in English-equivalent words, unbounded."""
    length: float
    code: float
    code_task: float
    """1 when code is to be written, repaired or explained, not just shown."""
    maths: float
    reasoning: float
    multi_step: float
    choices: float
    """1 for a multiple-choice question."""
    creative: float
    """Something is to be written, planned or designed."""
    transform: float
    """Summaries, translation, rewriting, extraction."""
    explain: float
    """Explanations, comparisons, recommendations."""
    why: float
    lookup: float
    """A short question for one fact or one how-to."""
    format_demand: float
    turns: float
    context: float
    tools: float
    expert: float
    """Words of law, medicine, finance or science."""
    log_chars: float = 0.0
    """Logarithm of the characters of the question, unbounded; as are the next three."""
    log_lines: float = 0.0
    log_longest_line: float = 0.0
    question_marks: float = 0.0
    """A count, up to 5."""
    digit_share: float = 0.0
    capital_share: float = 0.0
    comma_share: float = 0.0
    word_chars: float = 0.0
    """Mean characters of a word over ten, up to 2."""
    vocabulary: float = 0.0
    """Different words per word."""
    negation: float = 0.0
    quotes: float = 0.0
    """Quotation marks over ten, up to 1."""
    symbols: float = 0.0
    """1 with a backslash or dollar sign: formulas."""
    blanks: float = 0.0
    """1 with an underscore: something to be filled in, or an identifier."""
    superlative: float = 0.0

    def numbers(self) -> dict[str, float]:
        """The numeric features by name."""
        return {item.name: getattr(self, item.name) for item in fields(self) if not item.metadata.get("text")}


_HANGUL = re.compile(r"[\uac00-\ud7a3\u1100-\u11ff\u3130-\u318f]")
_WORD = re.compile(r"[a-z0-9][a-z0-9;'-]*[+#]*")
_ENGLISH = cues.english_index()
_KOREAN = cues.korean_pieces()
_LETTERS = re.compile(r"[^\W\d_]")
_LATIN = re.compile(r"[A-Za-z]")

_CODE_SHAPE = re.compile(
    r"```|^\s*(?:def|class|import|from \w+ import|#include|public |private |func |fn |const |let |var )"
    r"|\bSELECT\b.+\bFROM\b|[{};]\s*$|=>|->\s*\w+:|\w+\([^)\n]*\)\s*[:{;]|Traceback|\w+Error:|</?\w+>|\$\(|>>> ",
    re.MULTILINE,
)
# A pattern is only tried on text that has one of these: most questions have none, and looking is cheap.
_CODE_HINTS = (
    *("```", "{", "}", ";", "=>", "->", "Error:", "Traceback", "<", "$(", ">>> ", "):", "def ", "class ", "import "),
    *("#include", "public ", "private ", "func ", "fn ", "const ", "let ", "var ", "SELECT"),
)
_MATHS_HINTS = ("\\", "$", "+", "*", "/", "^", "×", "÷", "=", "<", ">", "%", "√", "∫", "∑", "≤", "≥", "π", "-", "(x)")
_NUMBER = re.compile(r"\d[\d,.]*")
_KOREAN_NUMBER = re.compile(r"(?:^|\s)(?:한|두|세|네|다섯|여섯|일곱|여덟|아홉|열|절반)(?=\s)")
_MATHS_SHAPE = re.compile(
    r"\\(?:frac|sum|int|sqrt|mathbb|begin|cdot|times|le|ge)|\$[^$\n]+\$|\d\s*[-+*/^×÷=]\s*\d|[a-z]\s*[=<>]\s*-?\d"
    r"|\b[fgh]\(x\)|\^\d|\d+\s*%|√|∫|∑|≤|≥|π"
)
_LOOKUP_EN = re.compile(
    r"^\W*(?:hi|hello|hey|thanks?|ok(?:ay)?|yes|no|please|who|where|when|which|what(?:'s| is| are| was| time)|is|are|"
    r"do|does|did|can|could|will|has|have|how (?:do|can|to) (?:i|we|you)?|i |my |the |tell me|show me|need)",
    re.IGNORECASE,
)
_CHOICES = re.compile(r"^\s*\(?[A-Ea-e①-⑤1-5][.):]?\s*\S.*(?:\n\s*\(?[A-Ea-e①-⑤1-5][.):]?\s*\S.*){2,}", re.MULTILINE)
_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SENTENCE_END = re.compile(r"[.!?。]+(?:\s|$)|\n+")
_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)


def hangul_share(text: str) -> float:
    """Share of Hangul among the letters, 0..1."""
    letters = len(_LETTERS.findall(text))
    return len(_HANGUL.findall(text)) / letters if letters else 0.0


def extract(prompt: Prompt) -> Features:
    """The features of a prompt."""
    question = prompt.question
    text = question
    if len(text) > SEARCHED_HEAD_CHARS + SEARCHED_TAIL_CHARS:
        text = text[:SEARCHED_HEAD_CHARS] + "\n" + text[-SEARCHED_TAIL_CHARS:]
    hangul, latin, letters = _letters(text)
    korean = letters > 0 and hangul / letters >= KOREAN_SHARE
    scale = len(question) / len(text) if text else 1.0
    words = scale * (hangul * _WORDS_PER_HANGUL + max(0.0, len(text) - hangul * 1.3) / _CHARS_PER_WORD)

    found = _cues(text, latin=latin > 0, hangul=hangul > 0)

    def share(kind: str, full: int) -> float:
        return min(1.0, found.get(kind, 0) / full)

    numbers = len(_NUMBER.findall(text)) + found.get("number", 0)
    if hangul:
        numbers += len(_KOREAN_NUMBER.findall(text))
    maths_shape = min(1.0, _shapes(_MATHS_SHAPE, _MATHS_HINTS, text) / 2)
    maths = min(1.0, share("maths", 2) * min(1.0, 0.35 + 0.325 * min(numbers, 2)) + 0.7 * maths_shape)
    code_shape = min(1.0, _shapes(_CODE_SHAPE, _CODE_HINTS, text) / 3)
    code = min(1.0, code_shape + 0.5 * share("code", 1) + 0.3 * share("code", 3))
    sentences = 1 + len(_SENTENCE_END.findall(text.strip().rstrip(".!?。")))
    items = len(_ITEM.findall(text))
    choices = 1.0 if _CHOICES.search(text) else 0.0
    # Two comparisons or more are an ordering to be worked out.
    reasoning = max(share("reasoning", 2), 1.0 if found.get("than", 0) >= 2 else 0.0)
    creative = share("make", 1) * min(1.0, 0.4 + 0.6 * share("made", 1))
    explain = share("explain", 1) * (0.7 + 0.3 * share("explain", 2))
    transform = share("transform", 1)
    short = words <= 22 and sentences <= 2
    plain = max(code, maths, creative, choices, transform, explain) < 0.5 and reasoning < 0.5
    lookup_shape = korean or bool(_LOOKUP_EN.search(text))
    context_words = (prompt.history_chars + prompt.chunk_chars + prompt.system_chars / 4) / _CHARS_PER_WORD
    return Features(
        language="ko" if korean else "en" if latin >= 0.8 * letters or not letters else "other",
        words=words,
        length=_log_share(words, 8.0, 400.0),
        code=code,
        code_task=min(1.0, code * 1.5) * max(share("code_verb", 1), code_shape * 0.8),
        maths=maths,
        reasoning=reasoning,
        multi_step=min(1.0, 0.5 * share("step", 4) + 0.12 * max(0, min(sentences, 8) - 2) + 0.1 * min(items, 5)),
        choices=choices,
        creative=creative,
        transform=transform,
        explain=explain,
        why=share("why", 1),
        lookup=(1.0 if lookup_shape else 0.6) if short and plain else 0.0,
        format_demand=max(share("format", 2), 1.0 if prompt.wants_schema else 0.6 if prompt.wants_json else 0.0),
        turns=min(1.0, max(0, prompt.user_turn_count - 1) / 8),
        context=_log_share(context_words, 60.0, 6000.0),
        tools=min(1.0, prompt.tool_count / 4),
        expert=share("expert", 2),
        **_shape(text, len(question)),
    )


_NEGATION = frozenset(("not", "no", "never", "except", "neither", "without"))
_SUPERLATIVE = frozenset(("best", "most", "least", "largest", "primary", "main"))
_KOREAN_NEGATION = ("않", "아닌", "아니", "없", "못 ", "제외")
_KOREAN_SUPERLATIVE = ("가장", "최고", "제일", "최대", "최소")


def _shape(text: str, whole_chars: int) -> dict[str, float]:
    """How the text is written: what hardly costs anything to read and tells kinds of questions apart."""
    count = max(1, len(text))
    words = text.lower().split()
    distinct = set(words)
    lines = text.split("\n")
    upper = sum(map(text.count, _CAPITALS)) if text.isascii() else sum(map(str.isupper, text))
    return {
        "log_chars": math.log1p(whole_chars),
        "log_lines": math.log1p(len(lines) - 1),
        "log_longest_line": math.log1p(max(map(len, lines))),
        "question_marks": float(min(5, text.count("?"))),
        "digit_share": sum(map(text.count, "0123456789")) / count,
        "capital_share": upper / count,
        "comma_share": text.count(",") / count,
        "word_chars": min(2.0, (count - len(words)) / max(1, len(words)) / 10),
        "vocabulary": len(distinct) / max(1, len(words)),
        "negation": 1.0 if distinct & _NEGATION or any(piece in text for piece in _KOREAN_NEGATION) else 0.0,
        "quotes": min(1.0, text.count('"') / 10),
        "symbols": 1.0 if "\\" in text or "$" in text else 0.0,
        "blanks": 1.0 if "_" in text else 0.0,
        "superlative": 1.0 if distinct & _SUPERLATIVE or any(piece in text for piece in _KOREAN_SUPERLATIVE) else 0.0,
    }


def _shapes(pattern: re.Pattern[str], hints: tuple[str, ...], text: str) -> int:
    return len(pattern.findall(text)) if any(hint in text for hint in hints) else 0


def _letters(text: str) -> tuple[int, int, int]:
    """Hangul, Latin and all letters."""
    if text.isascii():
        return 0, len(text), len(text)  # Only shares and presence matter.
    return len(_HANGUL.findall(text)), len(_LATIN.findall(text)), len(_LETTERS.findall(text))


def _cues(text: str, *, latin: bool, hangul: bool) -> dict[str, int]:
    """Distinct cues by kind. Korean text is searched for English cues as well: it is full of technical terms."""
    found: dict[str, int] = {}
    if latin:
        words = _WORD.findall(text.lower())
        grams = set(words)
        grams.update(map(" ".join, itertools.pairwise(words)))
        grams.update(map(" ".join, zip(words, words[1:], words[2:], strict=False)))
        for gram in grams & _ENGLISH.keys():
            for kind in _ENGLISH[gram]:
                found[kind] = found.get(kind, 0) + 1
        found["than"] = words.count("than")
    if hangul:
        found["than"] = found.get("than", 0) + text.count("보다 ")
        for piece, kind in _KOREAN:
            if piece in text:
                found[kind] = found.get(kind, 0) + 1
    return found


def is_korean(prompt: Prompt, features: Features) -> bool:
    """True when the answer needs a model that is good at Korean: the question, or what it is about, is Korean."""
    return features.language == "ko" or (prompt.chunk_count > 0 and prompt.chunk_hangul_share >= 0.5)


def _log_share(value: float, low: float, high: float) -> float:
    """0 at ``low`` and below, 1 at ``high`` and above, logarithmic between."""
    if value <= low:
        return 0.0
    return min(1.0, math.log(value / low) / math.log(high / low))
