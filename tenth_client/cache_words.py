"""The words of ``tenth cache``, English and Korean: features, guards, verdicts, reasons.

What is not listed here is shown as the cache says it: a newer cache may have names of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

LANGUAGES = ("en", "ko")

_FEATURES_EN = {
    "similarity": ("similarity", "how near the two questions are in meaning, 1 the same"),
    "letters": ("letter groups", "share of letter groups in both"),
    "letter_pairs": ("letter pairs", "share of letter pairs in both"),
    "words": ("words", "share of the words in both"),
    "contained": ("contained", "share of the shorter one's words in the other"),
    "only_asked": ("new words", "words that only the asked question has"),
    "only_stored": ("lost words", "words that only the stored question has"),
    "length_ratio": ("length ratio", "how far the lengths are apart, 0 alike"),
    "length": ("length", "how long the asked question is"),
    "high_similarity": ("high similarity", "what the similarity is above 0.95"),
    "high_letters": ("many letters", "what the letters in common are above 0.6"),
    "same_words": ("same words", "1: the content words are the same"),
    "one_word_apart": ("one word apart", "1: one content word more or less"),
    "few_words_apart": ("few words apart", "1: at most one content word of each is its own"),
    "no_difference": ("no difference", "1: no guard sees a difference"),
    "similarity_letters": ("similarity and letters", "both at once"),
    "similarity_words": ("similarity and words", "both at once"),
    "margin": ("margin", "how much nearer than the next other answer"),
    "second_margin": ("second margin", "the same for the second question with this answer"),
    "mean_margin": ("mean margin", "the same for the three nearest of each"),
    "letters_margin": ("letter margin", "more letters in common than the next other answer"),
    "letters_mean_margin": ("mean letter margin", "the same for the three nearest of each"),
    "share": ("agreement", "share of the neighbours with this answer"),
    "weighted_share": ("near agreement", "the same, near ones count more"),
    "votes": ("votes", "neighbours with this answer"),
    "different": ("disagreement", "how many different answers the neighbours have"),
    "nearest": ("nearest", "1: it is the nearest answer"),
    "run": ("run", "nearest neighbours in a row with this answer"),
    "near_five": ("nearest five", "how near the nearest five with this answer are"),
    "numbers": ("numbers", "a number or unit differs"),
    "one_number": ("one number", "only one of the two has numbers"),
    "identifiers": ("identifiers", "a code, path, version or quotation differs"),
    "times": ("times", "a day, month, season or part of the day differs"),
    "things": ("things", "a city, firm, appliance or the like differs"),
    "negation": ("negation", "one says not, the other does not"),
    "negation_scope": ("denied word", "what one denies the other affirms"),
    "polarity": ("negation", "only one of the two says not"),
    "alternatives": ("alternatives", "what one does not want the other wants"),
    "antonyms": ("opposites", "one says the opposite: on, off"),
    "asked_for": ("asked for", "who, when, where, why, how much differ"),
    "modality": ("modality", "may, must and should differ"),
    "acts": ("question or order", "one asks whether, the other tells to do it"),
    "names": ("names", "a person, place or product differs"),
    "argument_order": ("word order", "who does what to whom is swapped"),
    "particles": ("particles", "a word has another role in the sentence"),
    "one_time": ("one time", "only one names a time"),
    "one_thing": ("one thing", "only one names a city, firm, appliance or the like"),
    "one_name": ("one name", "only one has a name"),
    "one_alternative": ("one alternative", "only one wants what the other does not"),
    "one_asks": ("one asks", "only one asks who, when, where, why, how much"),
    "other_act": ("kind of sentence", "question, order and prohibition differ"),
    "guard_words": ("other words", "each has a word that the other lacks"),
    "right_count": ("reported right", "reports that its answer was right"),
    "wrong_count": ("reported wrong", "reports that its answer was wrong"),
}
_FEATURES_KO = {
    "similarity": ("유사도", "두 질문의 뜻이 얼마나 가까운지, 1이면 같음"),
    "letters": ("글자 겹침", "함께 있는 글자 묶음의 비율"),
    "letter_pairs": ("두 글자 겹침", "함께 있는 두 글자 묶음의 비율"),
    "words": ("낱말 겹침", "함께 있는 낱말의 비율"),
    "contained": ("포함", "짧은 쪽 낱말이 다른 쪽에 있는 비율"),
    "only_asked": ("물은 쪽 낱말", "물은 질문에만 있는 낱말 수"),
    "only_stored": ("저장된 쪽 낱말", "저장된 질문에만 있는 낱말 수"),
    "length_ratio": ("길이 차이", "길이가 얼마나 다른지, 0이면 같음"),
    "length": ("길이", "물은 질문의 길이"),
    "high_similarity": ("높은 유사도", "유사도가 0.95를 넘는 만큼"),
    "high_letters": ("많은 글자", "글자 겹침이 0.6을 넘는 만큼"),
    "same_words": ("같은 낱말", "1이면 내용 낱말이 같음"),
    "one_word_apart": ("한 낱말 차이", "1이면 내용 낱말 하나가 더 있거나 없음"),
    "few_words_apart": ("적은 낱말 차이", "1이면 서로에게 없는 내용 낱말이 하나씩 이하"),
    "no_difference": ("차이 없음", "1이면 가드가 본 차이가 없음"),
    "similarity_letters": ("유사도와 글자", "둘을 함께 봄"),
    "similarity_words": ("유사도와 낱말", "둘을 함께 봄"),
    "margin": ("여유", "다음 다른 답보다 얼마나 더 가까운지"),
    "second_margin": ("둘째 여유", "같은 답의 두 번째 질문이 얼마나 더 가까운지"),
    "mean_margin": ("평균 여유", "가까운 셋의 평균이 얼마나 더 가까운지"),
    "letters_margin": ("글자 여유", "다음 다른 답보다 글자가 얼마나 더 겹치는지"),
    "letters_mean_margin": ("글자 평균 여유", "가까운 셋의 글자가 얼마나 더 겹치는지"),
    "share": ("이웃 일치", "이웃 가운데 같은 답의 비율"),
    "weighted_share": ("가까운 일치", "같은 비율, 가까울수록 크게 셈"),
    "votes": ("이웃 수", "같은 답을 가진 이웃의 수"),
    "different": ("다른 답", "이웃의 답이 얼마나 서로 다른지"),
    "nearest": ("가장 가까움", "1이면 가장 가까운 답"),
    "run": ("연속", "가까운 순서로 같은 답이 이어진 비율"),
    "near_five": ("가까운 다섯", "가까운 다섯 중 같은 답의 유사도"),
    "numbers": ("숫자", "숫자나 단위가 다름"),
    "one_number": ("한쪽 숫자", "한쪽에만 숫자가 있음"),
    "identifiers": ("식별자", "코드, 경로, 판, 따옴표 안의 글이 다름"),
    "times": ("시간", "요일, 달, 계절, 시간대가 다름"),
    "things": ("대상", "도시, 회사, 가전 등이 다름"),
    "negation": ("부정", "한쪽만 부정함 (안, 못, -지 않)"),
    "negation_scope": ("부정한 말", "한쪽이 부정한 말을 다른 쪽은 긍정함"),
    "polarity": ("부정", "한쪽만 부정함 (안, 못, -지 않)"),
    "alternatives": ("대신", "한쪽이 원하지 않는 것을 다른 쪽이 원함"),
    "antonyms": ("반대말", "서로 반대되는 말 (켜다, 끄다)"),
    "asked_for": ("묻는 것", "누가, 언제, 어디, 왜, 얼마가 다름"),
    "modality": ("양태", "할 수 있다, 해야 한다, 해도 된다가 다름"),
    "acts": ("질문과 명령", "한쪽은 할지 묻고 다른 쪽은 하라고 함"),
    "names": ("이름", "사람, 장소, 제품의 이름이 다름"),
    "argument_order": ("순서", "누가 누구에게인지가 뒤바뀜"),
    "particles": ("조사", "같은 낱말의 조사가 다름"),
    "one_time": ("한쪽 시간", "한쪽에만 시간이 있음"),
    "one_thing": ("한쪽 대상", "한쪽에만 도시, 회사, 가전 등이 있음"),
    "one_name": ("한쪽 이름", "한쪽에만 이름이 있음"),
    "one_alternative": ("한쪽 대신", "다른 쪽이 원하지 않는 것을 한쪽만 원함"),
    "one_asks": ("한쪽 물음", "한쪽만 누가, 언제, 어디, 왜, 얼마를 물음"),
    "other_act": ("문장 종류", "질문, 명령, 금지가 다름"),
    "guard_words": ("다른 낱말", "서로 상대에게 없는 낱말이 있음"),
    "right_count": ("맞았다는 보고", "답이 맞았다는 보고의 수"),
    "wrong_count": ("틀렸다는 보고", "답이 틀렸다는 보고의 수"),
}
FEATURES: Mapping[str, Mapping[str, tuple[str, str]]] = {"en": _FEATURES_EN, "ko": _FEATURES_KO}
"""Label and explanation of features and guards, by language and name."""

REASONS: Mapping[str, tuple[str, str]] = {
    "cache_mode_off": ("the request switches the cache off", "요청이 캐시를 끔"),
    "temperature": ("its temperature asks for variety", "온도가 높아 매번 다른 답을 원함"),
    "tool_side_effects": ("a tool of it changes something", "도구가 무언가를 바꿈"),
    "time_bound": ("it asks about now: today, prices, weather", "지금에 관한 질문 (오늘, 가격, 날씨)"),
    "personal_data": ("it holds personal data", "개인 정보가 들어 있음"),
    "too_large": ("it is too long", "너무 김"),
    "share_only": ("it was for its followers alone", "함께 기다린 요청에만 주는 답"),
    "cache_mode_read": ("the request may only read", "읽기만 하는 요청"),
    "truncated": ("the answer was cut off", "답이 중간에 잘림"),
    "unfinished": ("the answer did not end by itself", "답이 끝나지 않음"),
    "empty": ("the answer is empty", "답이 비어 있음"),
    "below_tier_floor": ("a weaker tier answered than was asked for", "요구한 것보다 약한 등급이 답함"),
    "other_model": ("another model answered than was asked for", "요구한 것과 다른 모델이 답함"),
    "write_rate": ("too many answers were stored in a minute", "1분에 저장한 답이 너무 많음"),
    "other_tenant": ("it was exported by another tenant", "다른 테넌트가 내보낸 항목"),
    "expired": ("its time is up (--renew takes it all the same)", "기한이 지남 (--renew로 가져올 수 있음)"),
    "already_stored": ("it is there already", "이미 저장되어 있음"),
}
"""Why a request is bypassed, an answer not stored, an item not taken in."""

MODES: Mapping[str, tuple[str, str]] = {
    "strict": ("the same question in other words", "말만 다른 같은 질문"),
    "faq": ("questions with the same intent share one answer", "뜻이 같은 질문은 답을 함께 씀"),
    "off": ("exact hits only", "똑같은 질문만"),
}

TIERS = {0: ("-", "-"), 1: ("simple", "단순"), 2: ("medium", "중간"), 3: ("complex", "복잡")}

_TEXTS: Mapping[str, tuple[str, str]] = {
    "hit": ("HIT: a stored answer would be served", "적중: 저장된 답을 씁니다"),
    "miss": ("MISS: a model would answer", "적중 없음: 모델이 답합니다"),
    "bypass": ("BYPASS: the cache is not asked", "건너뜀: 캐시를 쓰지 않습니다"),
    "why": ("why", "이유"),
    "asked": ("compared text", "비교한 글"),
    "mode": ("mode", "방식"),
    "needs": ("needs probability {value}", "필요한 확률 {value}"),
    "never": ("no probability is high enough for its bound", "허용 오류를 지킬 수 있는 확률이 없음"),
    "key": ("exact key", "정확 키"),
    "none": (
        "No stored question can be compared with it.",
        "비교할 수 있는 저장된 질문이 없습니다.",
    ),
    "served": ("would be served", "씀"),
    "refused": ("would not be served", "쓰지 않음"),
    "similarity": ("similarity {value}", "유사도 {value}"),
    "probability": ("probability that its answer is right {value}", "답이 맞을 확률 {value}"),
    "feature": ("what was compared", "비교한 것"),
    "value": ("value", "값"),
    "adds": ("adds", "기여"),
    "bar": ("wrong | right", " 틀림 | 맞음"),
    "legend": ("- speaks against its answer, + for it", "-는 틀린 답이라는 쪽, +는 맞는 답이라는 쪽"),
    "smaller": ("and {count} smaller ones: --all", "작은 것 {count}개 더: --all"),
    "answered": ("answered by {model}, tier {tier}", "답한 모델 {model}, 등급 {tier}"),
    "hits": ("served {count} times", "{count}번 씀"),
    "reports": ("reported right {right}, wrong {wrong}", "맞음 {right}, 틀림 {wrong} 보고"),
    "shared": ("for every user", "모든 사용자에게"),
    "private": ("for its own user alone", "물은 사용자에게만"),
    "until": ("until {time}", "{time}까지"),
    "entry": ("entry {id}", "항목 {id}"),
}
"""Headings and lines of the explanation; ``{...}`` is filled in."""

_NEED = r"needs (?P<need>[-\d.e]+)"
_BASIS = r"(?P<basis>(?: \(.+\))?)"
_VERDICTS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), english, korean)
    for pattern, english, korean in (
        (rf"similarity (?P<a>[-\d.]+), {_NEED}", r"similarity \g<a>, needs \g<need>", r"유사도 \g<a>, \g<need> 필요"),
        (
            rf"probability (?P<a>[-\d.]+), {_NEED}{_BASIS}",
            r"probability that the answer is right \g<a>, needs \g<need>\g<basis>",
            r"답이 맞을 확률 \g<a>, \g<need> 필요\g<basis>",
        ),
        (
            rf"probability (?P<a>[-\d.]+), no threshold holds the namespace's bound{_BASIS}",
            r"probability that the answer is right \g<a>; none is high enough for the namespace's bound\g<basis>",
            r"답이 맞을 확률 \g<a>, 네임스페이스의 허용 오류를 지킬 수 있는 확률이 없음\g<basis>",
        ),
        (r"similarity (?P<a>[-\d.]+)", r"similarity \g<a>", r"유사도 \g<a>"),
        (
            rf"follow-up: 2-4-gram overlap of the last turns (?P<a>[\d.]+), {_NEED}",
            r"a follow-up question: the words of the two overlap by \g<a>, needs \g<need>",
            r"이어지는 질문: 글자 겹침 \g<a>, \g<need> 필요",
        ),
        (
            rf"the embedder cannot read Hangul: 2-4-gram overlap (?P<a>[\d.]+), {_NEED}",
            r"the embedder cannot read Hangul; the letters overlap by \g<a>, needs \g<need>",
            r"임베더가 한글을 읽지 못함; 글자 겹침 \g<a>, \g<need> 필요",
        ),
        (
            r"the embedder cannot read Hangul: every content word is in both",
            "the embedder cannot read Hangul; every content word is in both",
            "임베더가 한글을 읽지 못함; 모든 낱말이 양쪽에 있음",
        ),
        (r"the embedder cannot read Hangul: only one has (?P<a>.+)",
         r"the embedder cannot read Hangul; only one of the two says \g<a>",
         r"임베더가 한글을 읽지 못함; 한쪽에만 \g<a> 있음"),
        (r"only one is negative", "only one of the two says not", "한쪽만 부정함"),
        (r"only one denies (?P<a>.+)", r"only one of the two denies \g<a>",
         r"한쪽만 \g<a> 부정함"),
        (r"only one wants (?P<a>.+)", r"only one of the two wants \g<a>", r"한쪽만 \g<a> 원함"),
        (r"only one asks (?P<a>.+)", r"only one of the two asks \g<a>", r"한쪽만 \g<a> 물음"),
        (r"(?P<a>.+) and (?P<b>.+) are denied the other way round", r"one denies \g<a>, the other \g<b>",
         r"한쪽은 \g<a>, 다른 쪽은 \g<b> 부정함"),
        (r"(?P<a>.+) and (?P<b>.+) have changed places", r"\g<a> and \g<b> have changed places",
         r"\g<a>, \g<b> 자리가 뒤바뀜"),
        (r"(?P<a>.+) against (?P<b>.+) as (?P<c>from|than)", r"one has \g<a>, the other \g<b> as \g<c>",
         r"\g<c> 한쪽은 \g<a>, 다른 쪽은 \g<b>"),
        (r"none against (?P<a>.+)", r"only the stored question has \g<a>", r"저장된 질문에만 \g<a> 있음"),
        (r"(?P<a>.+) against none", r"only the asked question has \g<a>", r"물은 질문에만 \g<a> 있음"),
        (r"only one has (?P<a>.+)", r"only one of the two says \g<a>", r"한쪽에만 \g<a> 있음"),
        (r"asks (?P<a>.+) against (?P<b>.+)", r"one asks \g<a>, the other \g<b>",
         r"한쪽은 \g<a>, 다른 쪽은 \g<b> 물음"),
        (r"(?P<a>.+) is (?P<b>.+) against (?P<c>.+)", r"\g<a> is \g<b> in one, \g<c> in the other",
         r"\g<a> 한쪽은 \g<b>, 다른 쪽은 \g<c>"),
        (r"(?P<a>.+) against (?P<b>.+)", r"one says \g<a>, the other \g<b>", r"한쪽은 \g<a>, 다른 쪽은 \g<b>"),
        (r"(?P<a>\d+) s old, tier (?P<b>\d)", r"\g<a> s old, tier \g<b>", r"\g<a>초 됨, 등급 \g<b>"),
        (r"older than the (?P<a>.+) s asked for", r"older than the \g<a> s asked for", r"요구한 \g<a>초보다 오래됨"),
        (r"answered by tier (?P<a>\d), below the floor (?P<b>\d)",
         r"answered by tier \g<a>, below the floor \g<b>", r"등급 \g<a>이 답함, 요구한 등급은 \g<b>"),
        (r"expired", "its time is up", "기한이 지남"),
        (r"same canonical request", "the same request was answered before", "똑같은 요청에 이미 답함"),
        (r"nothing similar enough is stored", "nothing similar enough is stored", "충분히 비슷한 질문이 없음"),
        (r"no exact match; (?P<rest>.+)", r"no exact match; \g<rest>", r"똑같은 요청이 없음; \g<rest>"),
        (r"no exact match \((?P<old>.+)\); (?P<rest>.+)", r"no exact match that holds (\g<old>); \g<rest>",
         r"쓸 수 있는 똑같은 요청이 없음 (\g<old>); \g<rest>"),
        (r"the namespace serves exact hits only: (?P<rest>.+)", r"the namespace serves exact hits only: \g<rest>",
         r"네임스페이스가 똑같은 질문만 답함: \g<rest>"),
        (r"the namespace is set to exact hits only", "the namespace is set to exact hits only",
         "네임스페이스가 똑같은 질문만 쓰도록 설정됨"),
        (r"no threshold was calibrated for this embedder in this language and mode",
         "this embedder was not calibrated for this language and mode",
         "이 임베더는 이 언어와 방식에 맞추어 보정되지 않음"),
        (r"the conversation does not end with a user turn", "the conversation does not end with a user's question",
         "대화가 사용자의 질문으로 끝나지 않음"),
        (r"the last turn is empty", "the question is empty", "질문이 비어 있음"),
        (r"the nearest entry was deleted in this moment", "the nearest entry was deleted in this moment",
         "가장 가까운 항목이 방금 삭제됨"),
        (r"an identical request is in flight", "an identical request is being answered", "똑같은 요청에 답하는 중"),
        (r"the last turn holds more than text", "the question holds more than text", "질문에 글이 아닌 것이 있음"),
        (r"the question is longer than the embedder reads", "the question is longer than the embedder reads",
         "질문이 임베더가 읽는 길이보다 김"),
        (r"the embedder cannot read this script", "the embedder cannot read this script", "임베더가 읽지 못하는 글자"),
    )
)  # fmt: skip
"""Sentences of the cache's verdicts: the pattern, English and Korean."""
_WHOLE = ("follow-up", "the embedder cannot read Hangul", "no exact match; the namespace serves exact hits only")
"""What stands before a colon in some of them; before the colon of any other line stands the name of its guard."""


_TOKENS: Mapping[str, str] = {
    "when": "언제", "where": "어디", "who": "누구", "why": "왜", "how": "어떻게", "amount": "얼마",
    "duration": "얼마 동안", "frequency": "얼마나 자주", "size": "크기", "speed": "빠르기",
    "ask": "질문", "do": "명령", "forbid": "금지",
    "may": "해도 되는지", "must": "해야 하는지", "should": "하는 것이 좋은지", "none": "없음",
    "from": "출발점", "to": "도착점", "than": "비교 기준", "subject": "주어", "object": "목적어",
    "year": "년", "month": "개월", "week": "주", "day": "일", "hour": "시간", "minute": "분", "second": "초",
    " (the pair alone)": " (두 질문만 비교)", " (near entries with the same answer)": " (같은 답의 이웃까지 비교)",
    " (the same letters)": " (띄어쓰기와 끝의 부호만 다름)",
}  # fmt: skip
"""Korean for what guards name by a word of their own; words of the questions stand in quotation marks."""


def language(chosen: str | None, environ: Mapping[str, str] | None = None) -> str:
    """The language asked for, else that of LC_ALL, LC_MESSAGES or LANG, where it is one of ours; else English."""
    if chosen:
        return chosen
    env = os.environ if environ is None else environ
    locale = next((env[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if env.get(name)), "")
    return "ko" if locale.lower().startswith("ko") else "en"


def text(name: str, lang: str, **values: object) -> str:
    """A heading or line of the explanation."""
    return _TEXTS[name][LANGUAGES.index(lang)].format(**values)


def feature(name: str, lang: str) -> tuple[str, str]:
    """Label and explanation of a feature or guard; its name alone when it is not known."""
    known = FEATURES[lang]
    return known.get(name) or known.get(name.removeprefix("guard_").replace(" ", "_"), (name, ""))


def reason(name: str, lang: str) -> str:
    """A reason in words; itself when it is not known."""
    found = REASONS.get(name)
    return found[LANGUAGES.index(lang)] if found else name


def mode(name: str, lang: str) -> str:
    """What a mode means; empty when it is not known."""
    found = MODES.get(name)
    return found[LANGUAGES.index(lang)] if found else ""


def tier(number: int, lang: str) -> str:
    """A tier's name."""
    found = TIERS.get(number)
    return found[LANGUAGES.index(lang)] if found else str(number)


def verdict(line: str, lang: str) -> str:
    """A line of a verdict in plain words, without its "ok" or "refused"; itself when it is not known."""
    for prefix in ("the nearest is ", "refused: ", "ok: "):
        line = line.removeprefix(prefix)
    head, mark, rest = line.partition(": ")
    if mark and head not in _WHOLE:
        return f"{feature(head, lang)[0]}: {_sentence(rest, lang)}"
    said = _sentence(line, lang)
    return reason(line, lang) if said == line else said


def _sentence(line: str, lang: str) -> str:
    for pattern, english, korean in _VERDICTS:
        match = pattern.fullmatch(line)
        if match is None:
            continue
        said = korean if lang == "ko" else english
        for name, value in match.groupdict().items():
            inner = _sentence(value, lang) if name in ("rest", "old") else _token(value, lang)
            said = said.replace(rf"\g<{name}>", inner)
        return said
    return line


def _token(value: str, lang: str) -> str:
    """What a guard names, in the language; words of the questions as they are."""
    if lang != "ko":
        return value
    if value in _TOKENS:
        return _TOKENS[value]
    return ", ".join(" ".join(_TOKENS.get(word, word) for word in part.split(" ")) for part in value.split(", "))
