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
    "margin": ("margin", "how much nearer than the next other answer"),
    "share": ("agreement", "share of the neighbours with this answer"),
    "weighted_share": ("near agreement", "the same, near ones count more"),
    "nearest": ("nearest", "1: it is the nearest answer"),
    "run": ("run", "nearest neighbours in a row with this answer"),
    "near_five": ("nearest five", "how near the nearest five with this answer are"),
    "numbers": ("numbers", "a number or unit differs"),
    "identifiers": ("identifiers", "a code, version or name of a product differs"),
    "dates": ("dates", "a date or time differs"),
    "negation": ("negation", "one says not, the other does not"),
    "antonyms": ("opposites", "one says the opposite: on, off"),
    "asked_for": ("asked for", "who, when, where, why, how much differ"),
    "names": ("names", "a person, place or product differs"),
    "argument_order": ("word order", "who does what to whom is swapped"),
    "particles": ("particles", "a word has another role in the sentence"),
    "modality": ("modality", "can, must and may differ"),
    "language": ("language", "the two are written in different scripts"),
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
    "margin": ("여유", "다음 다른 답보다 얼마나 더 가까운지"),
    "share": ("이웃 일치", "이웃 가운데 같은 답의 비율"),
    "weighted_share": ("가까운 일치", "같은 비율, 가까울수록 크게 셈"),
    "nearest": ("가장 가까움", "1이면 가장 가까운 답"),
    "run": ("연속", "가까운 순서로 같은 답이 이어진 비율"),
    "near_five": ("가까운 다섯", "가까운 다섯 중 같은 답의 유사도"),
    "numbers": ("숫자", "숫자나 단위가 다름"),
    "identifiers": ("식별자", "코드, 판, 제품 이름이 다름"),
    "dates": ("날짜", "날짜나 시간이 다름"),
    "negation": ("부정", "한쪽만 부정함 (안, 못, -지 않)"),
    "antonyms": ("반대말", "서로 반대되는 말 (켜다, 끄다)"),
    "asked_for": ("묻는 것", "누가, 언제, 어디, 왜, 얼마가 다름"),
    "names": ("이름", "사람, 장소, 제품의 이름이 다름"),
    "argument_order": ("순서", "누가 누구에게인지가 뒤바뀜"),
    "particles": ("조사", "같은 낱말의 조사가 다름"),
    "modality": ("양태", "할 수 있다, 해야 한다, 해도 된다가 다름"),
    "language": ("언어", "두 질문의 글자가 다름"),
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
    "key": ("exact key", "정확 키"),
    "none": (
        "No stored question can be compared with it.",
        "비교할 수 있는 저장된 질문이 없습니다.",
    ),
    "served": ("would be served", "씀"),
    "refused": ("would not be served", "쓰지 않음"),
    "similarity": ("similarity {value}", "유사도 {value}"),
    "probability": ("probability that its answer is right {value}", "답이 맞을 확률 {value}"),
    "of_needed": (", needs {value}", ", {value} 필요"),
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
_VERDICTS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), english, korean)
    for pattern, english, korean in (
        (rf"similarity (?P<a>[-\d.]+), {_NEED}", r"similarity \g<a>, needs \g<need>", r"유사도 \g<a>, \g<need> 필요"),
        (
            rf"probability (?P<a>[-\d.]+), {_NEED}",
            r"probability that the answer is right \g<a>, needs \g<need>",
            r"답이 맞을 확률 \g<a>, \g<need> 필요",
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
        (r"an identical request is in flight", "an identical request is being answered", "똑같은 요청에 답하는 중"),
        (r"the last turn holds more than text", "the question holds more than text", "질문에 글이 아닌 것이 있음"),
        (r"the question is longer than the embedder reads", "the question is longer than the embedder reads",
         "질문이 임베더가 읽는 길이보다 김"),
        (r"the embedder cannot read this script", "the embedder cannot read this script", "임베더가 읽지 못하는 글자"),
    )
)  # fmt: skip
"""Sentences of the cache's verdicts: the pattern, English and Korean."""
_WHOLE = ("follow-up", "the embedder cannot read Hangul")
"""What stands before a colon in some of them; before the colon of any other line stands the name of its guard."""


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
    return FEATURES[lang].get(_plain(name), (name, ""))


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


def _plain(name: str) -> str:
    """The name under which a feature of a guard and the guard itself are one."""
    return name.removeprefix("guard_").replace(" ", "_")


def _sentence(line: str, lang: str) -> str:
    for pattern, english, korean in _VERDICTS:
        match = pattern.fullmatch(line)
        if match is None:
            continue
        said = match.expand(korean if lang == "ko" else english)
        rest = match.groupdict().get("rest")
        return said.replace(rest, _sentence(rest, lang)) if rest else said
    return line
