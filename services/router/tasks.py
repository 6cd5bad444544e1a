"""What kind of task a question is, for routing rules. Pure.

A guess by cues and shapes, in English and Korean, made of the same features as the complexity. It is meant for rules
that may be wrong now and then (a quality target, a preferred model), never for access control. Of 80 sentences of our
own that say plainly what is wanted it is right on 78; of 24 that avoid the words which cues are made of, on 10, the
others mostly becoming ``lookup`` (``tests/unit/router/test_router_tasks.py``). All were written by somebody who knew
the cues: expect less on real traffic, above all where one message asks for several things. The first kind that fits is
taken.
"""

from __future__ import annotations

import re

from services.router.features import Features

TASKS = (
    "code",
    "maths",
    "reasoning",
    "translate",
    "summarise",
    "rewrite",
    "creative",
    "explain",
    "lookup",
    "chat",
)
"""All kinds. ``rewrite`` is rephrasing, correcting, extracting and classifying; ``chat`` is all the rest."""

_SEARCHED_CHARS = 3000
_ENOUGH = 0.5
_TRANSLATE = re.compile(
    r"\btranslat\w*|\binto (?:korean|english|japanese|chinese|french|german|spanish)\b|번역|통역|"
    r"(?:영어|한국어|한글|일본어|중국어|프랑스어|독일어|스페인어|영문|국문)(?:로|으로) (?:바꿔|옮겨|써|말해|어떻게)",
    re.IGNORECASE,
)
_SUMMARISE = re.compile(
    r"\bsummar(?:y|ies|i[sz]e\w*|i[sz]ing)\b|\btl;?dr\b|\b(?:key|main) points\b|\bcondense\b|요약|간추|핵심만|줄거리|"
    r"한 (?:줄|문장)으로 (?:정리|줄여)",
    re.IGNORECASE,
)
_CHAT = re.compile(
    r"\W*(?:hi|hello|hey|thanks?|thank you|good (?:morning|night|evening)|ok(?:ay)?|bye|how are you|nice to|sorry|"
    r"안녕|반가|고마|감사|수고|잘 자|좋은 아침|네[,. ]|ㅎㅎ|ㅋㅋ|미안)",
    re.IGNORECASE,
)


def task_of(found: Features, question: str) -> str:
    """The kind of task, one of ``TASKS``, by the question and its features."""
    text = question[:_SEARCHED_CHARS]
    if found.transform >= _ENOUGH or _TRANSLATE.search(text) or _SUMMARISE.search(text):
        # What is said of a text counts, not what the text is about, unless code is to be changed.
        if _TRANSLATE.search(text) and found.code_task < _ENOUGH:
            return "translate"
        if _SUMMARISE.search(text) and found.code_task < _ENOUGH:
            return "summarise"
    if found.code >= _ENOUGH:
        return "code"
    if found.maths >= _ENOUGH:
        return "maths"
    if found.reasoning >= _ENOUGH:
        return "reasoning"
    if found.creative >= _ENOUGH:
        return "creative"
    if found.transform >= _ENOUGH:
        return "rewrite"
    if found.explain >= _ENOUGH or found.why >= _ENOUGH:
        return "explain"
    if _CHAT.match(text):
        return "chat"
    return "lookup" if found.lookup >= _ENOUGH else "chat"
