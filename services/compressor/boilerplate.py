"""Sentences that tell a model nothing, in English and Korean. Pure.

The lists are closed: a sentence goes only when all of it matches. What carries a role, a field, a tone, a name, a
language, a format, a limit, a number or a negation does not match and stays ("You are a friendly assistant.", "당신은
은행 상담원입니다.", "Answer the question in Korean.").
"""

from __future__ import annotations

import re

_HELPFUL = r"(?:(?:very |highly |extremely )?(?:helpful|useful|capable|intelligent)(?:,? (?:and )?)){0,4}"
_MACHINE = (
    r"(?:ai |artificial intelligence |virtual |digital |language model ){0,3}"
    r"(?:assistant|language model|chatbot|bot|ai)"
)
_USERS = r"(?: (?:the |your )?(?:users?|people|humans?))"
_NEEDS = r"(?: with (?:their|any|all(?: of)? their) (?:questions|requests|tasks|needs|queries))?"

_OPENINGS = [
    # "You are a helpful AI assistant that helps users with their questions."
    rf"you(?: are|'re|’re) an? {_HELPFUL}{_MACHINE}(?: (?:that|who) (?:helps|assists)(?:{_USERS})?{_NEEDS})?[.!]",
    rf"(?:please )?act as an? {_HELPFUL}{_MACHINE}[.!]",
    rf"(?:your|the) (?:task|job|goal|role|purpose) is to (?:help|assist)(?:{_USERS})?{_NEEDS}[.!]",
    r"(?:please )?answer (?:the|any|all|my)(?: user's| users'| following)? questions? (?:to the best of your"
    r" ability|as best (?:as )?you can)[.!]",
    r"(?:the following|this|below) is a conversation between a (?:user|human) and an? (?:ai )?(?:assistant"
    r"|chatbot|ai)[.!]",
    # "당신은 도움이 되는 AI 어시스턴트입니다."
    r"(?:당신은|너는|귀하는) (?:(?:매우 |아주 )?(?:도움이 되는|도움을 주는|유용한|유능한|똑똑한|뛰어난|훌륭한),?"
    r" ?){0,4}"
    r"(?:사용자를 돕는 |사용자를 도와주는 |사용자에게 도움을 주는 )?"
    r"(?:(?:AI|인공지능|에이아이|가상|디지털|대화형|대규모) ?){0,3}"
    r"(?:어시스턴트|비서|도우미|챗봇|조수|언어 ?모델|AI|인공지능)(?:입니다|이다|야|이야)[.!]",
    r"(?:당신의|너의) (?:역할|임무|목표|일)(?:은|는) 사용자(?:를|의 질문을|의 요청을) (?:돕는|도와주는)"
    r" 것(?:입니다|이다|이야)[.!]",
    r"(?:사용자의 |다음 |아래 )?질문에 (?:최선을 다해|최대한 성실히|성실하게) (?:답변?해 ?(?:주세요|주십시오|줘)"
    r"|답변?하세요|답변?하십시오|답변?합니다)[.!]",
]
_CLOSINGS = [
    r"(?:please )?(?:feel free to |don['’]t hesitate to )?(?:let me know|ask|reach out)(?: me)? if you (?:have|need)"
    r"(?: any)?(?: other| further| more)? (?:questions?|help|assistance|clarification)(?: or (?:concerns|need(?:"
    r" any)? further (?:help|assistance)))?[.!]",
    r"i hope (?:this|that) helps[.!]",
    r"is there anything else (?:i can (?:help|assist)(?: you)? with|you(?:'d| would) like to know)(?: today)?\?",
    r"(?:추가로 |더 )?(?:궁금한|궁금하신) (?:점|사항|것)이 (?:더 )?(?:있으시면|있다면|있으면) (?:언제든지 "
    r"|언제든 |편하게 )?"
    r"(?:말씀해 ?주세요|물어보세요|질문해 ?주세요|문의해 ?주세요|알려 ?주세요)[.!]",
    r"(?:이 답변이 )?도움이 되(?:었|셨)(?:기를 바랍니다|으면 좋겠습니다|길 바랍니다)[.!]",
]
_OPENING = re.compile("(?:" + "|".join(_OPENINGS) + r")(?=\s|\Z)", re.IGNORECASE)
_CLOSING = re.compile(r"(?<![^\s])(?:" + "|".join(_CLOSINGS) + r")\s*\Z", re.IGNORECASE)
_CLOSING_CHARS = 240
_BLANKS = re.compile(r"\s*+")


def opening_end(text: str) -> int:
    """Where the contentless sentences at the front of a system message end; 0 when there are none."""
    end = at = 0
    while match := _OPENING.match(text, at):
        end = match.end()
        at = _BLANKS.match(text, end).end()  # type: ignore[union-attr]  # It matches nothing too.
    return end


def closing_start(text: str) -> int:
    """Where the contentless sentence at the end of an answer begins; the text's length when there is none.

    An answer that is nothing else stays.
    """
    match = _CLOSING.search(text, max(0, len(text) - _CLOSING_CHARS))
    if match is None or not text[: match.start()].strip():
        return len(text)
    return match.start()
