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
    "high_similarity": ("high similarity", "how far the similarity is above 0.95"),
    "high_letters": ("alike letters", "how far the letter groups are above 0.6"),
    "same_words": ("same words", "1: both have the same words"),
    "one_word_apart": ("one word apart", "1: one word more or less"),
    "few_words_apart": ("few words apart", "1: at most one word of its own in each"),
    "no_difference": ("no difference", "1: no rule found a difference"),
    "similarity_letters": ("similar in letters", "similarity times letter groups"),
    "similarity_words": ("similar in words", "similarity times words"),
    "margin": ("margin", "how much nearer than the next other answer"),
    "second_margin": ("second margin", "how much nearer its second neighbour is than the next other answer"),
    "mean_margin": ("mean margin", "how much nearer its three nearest are than those of the others"),
    "letters_margin": ("letter margin", "how many more letter groups agree than with the next other answer"),
    "letters_mean_margin": ("mean letter margin", "the same for the three most alike"),
    "votes": ("votes", "neighbours with this answer"),
    "different": ("answers around", "how many different answers the neighbours have, 1: all differ"),
    "share": ("agreement", "share of the neighbours with this answer"),
    "weighted_share": ("near agreement", "the same, near ones count more"),
    "nearest": ("nearest", "1: it is the nearest answer"),
    "run": ("run", "nearest neighbours in a row with this answer"),
    "near_five": ("nearest five", "how near the nearest five with this answer are"),
    "numbers": ("numbers", "a number or unit differs"),
    "one_number": ("one number", "only one has numbers"),
    "identifiers": ("identifiers", "an address, path, code or quotation differs"),
    "times": ("times", "another day, month or part of the day"),
    "one_time": ("one time", "only one names a time"),
    "things": ("things", "another city, country, firm or appliance"),
    "one_thing": ("one thing", "only one names such a thing"),
    "negation": ("negation", "one says not, the other does not"),
    "negation_scope": ("negation", "one denies what the other says"),
    "polarity": ("polarity", "only one of the two is negative"),
    "alternatives": ("alternatives", "wanted and not wanted are swapped"),
    "one_alternative": ("one alternative", "one does not want what the other wants"),
    "antonyms": ("opposites", "one says the opposite: on, off"),
    "asked_for": ("asked for", "who, when, where, why, how much differ"),
    "one_asks": ("one asks", "only one asks who, when, where, why, how"),
    "acts": ("acts", "whether to do it is asked in one, told to do in the other"),
    "other_act": ("other act", "question, order and prohibition differ"),
    "names": ("names", "a person, place or product differs"),
    "one_name": ("one name", "only one has a name"),
    "guard_words": ("other words", "each has a word that the other lacks"),
    "argument_order": ("word order", "who does what to whom is swapped"),
    "particles": ("particles", "a word has another role in the sentence"),
    "modality": ("modality", "can, must and may differ"),
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
    "high_letters": ("많은 글자 겹침", "글자 겹침이 0.6을 넘는 만큼"),
    "same_words": ("같은 낱말", "1이면 낱말이 모두 같음"),
    "one_word_apart": ("한 낱말 차이", "1이면 한 낱말이 더 있거나 없음"),
    "few_words_apart": ("적은 낱말 차이", "1이면 서로 다른 낱말이 하나 이하"),
    "no_difference": ("차이 없음", "1이면 규칙이 찾은 차이가 없음"),
    "similarity_letters": ("글자까지 비슷함", "유사도와 글자 겹침의 곱"),
    "similarity_words": ("낱말까지 비슷함", "유사도와 낱말 겹침의 곱"),
    "margin": ("여유", "다음 다른 답보다 얼마나 더 가까운지"),
    "second_margin": ("둘째 여유", "같은 답의 둘째 이웃이 다음 다른 답보다 얼마나 더 가까운지"),
    "mean_margin": ("평균 여유", "같은 답의 가까운 셋이 다른 답의 셋보다 얼마나 더 가까운지"),
    "letters_margin": ("글자 여유", "다음 다른 답보다 글자가 얼마나 더 겹치는지"),
    "letters_mean_margin": ("평균 글자 여유", "글자가 가장 겹치는 셋끼리 견준 것"),
    "votes": ("표", "같은 답을 가진 이웃 수"),
    "different": ("둘레의 답", "이웃의 서로 다른 답 비율, 1이면 모두 다름"),
    "share": ("이웃 일치", "이웃 가운데 같은 답의 비율"),
    "weighted_share": ("가까운 일치", "같은 비율, 가까울수록 크게 셈"),
    "nearest": ("가장 가까움", "1이면 가장 가까운 답"),
    "run": ("연속", "가까운 순서로 같은 답이 이어진 비율"),
    "near_five": ("가까운 다섯", "가까운 다섯 중 같은 답의 유사도"),
    "numbers": ("숫자", "숫자나 단위가 다름"),
    "one_number": ("한쪽 숫자", "한쪽에만 숫자가 있음"),
    "identifiers": ("식별자", "주소, 경로, 코드, 따온 말이 다름"),
    "times": ("때", "요일, 달, 하루의 때가 다름"),
    "one_time": ("한쪽 때", "한쪽에만 때가 있음"),
    "things": ("대상", "도시, 나라, 회사, 기기가 다름"),
    "one_thing": ("한쪽 대상", "한쪽에만 그런 대상이 있음"),
    "negation": ("부정", "한쪽만 부정함 (안, 못, -지 않)"),
    "negation_scope": ("부정", "한쪽이 말하는 것을 다른 쪽이 부정함"),
    "polarity": ("긍정과 부정", "한쪽만 부정하는 말"),
    "alternatives": ("고른 것", "원하는 것과 원하지 않는 것이 뒤바뀜"),
    "one_alternative": ("한쪽이 고른 것", "한쪽이 원하지 않는 것을 다른 쪽이 원함"),
    "antonyms": ("반대말", "서로 반대되는 말 (켜다, 끄다)"),
    "asked_for": ("묻는 것", "누가, 언제, 어디, 왜, 얼마가 다름"),
    "one_asks": ("한쪽 물음", "한쪽만 누가, 언제, 어디, 왜, 어떻게를 물음"),
    "acts": ("할지와 하라", "한쪽은 할지 묻고 다른 쪽은 하라고 함"),
    "other_act": ("말의 종류", "물음, 시킴, 막음이 다름"),
    "names": ("이름", "사람, 장소, 제품의 이름이 다름"),
    "one_name": ("한쪽 이름", "한쪽에만 이름이 있음"),
    "guard_words": ("다른 낱말", "서로 상대에게 없는 낱말이 있음"),
    "argument_order": ("순서", "누가 누구에게인지가 뒤바뀜"),
    "particles": ("조사", "같은 낱말의 조사가 다름"),
    "modality": ("양태", "할 수 있다, 해야 한다, 해도 된다가 다름"),
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
    "never": ("no probability is enough", "어떤 확률로도 쓰지 않음"),
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

_BASES: Mapping[str, tuple[str, str]] = {
    "the pair alone": ("by the two questions alone", "두 질문만 보고"),
    "the same letters": ("only spacing, case and final marks differ", "띄어쓰기와 문장 부호만 다름"),
    "near entries with the same answer": ("by near entries with the same answer", "같은 답의 이웃을 함께 보고"),
}
"""What a probability rests on, as the cache says it."""

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
        (
            rf"probability (?P<a>[-\d.]+), {_NEED} \((?P<basis>.+)\)",
            r"probability that the answer is right \g<a>, needs \g<need> (\g<basis>)",
            r"답이 맞을 확률 \g<a>, \g<need> 필요 (\g<basis>)",
        ),
        (
            r"probability (?P<a>[-\d.]+), no threshold holds the namespace's bound \((?P<basis>.+)\)",
            r"probability that the answer is right \g<a>, but no threshold holds the namespace's bound (\g<basis>)",
            r"답이 맞을 확률 \g<a>, 네임스페이스의 오류 한도를 지킬 기준이 없음 (\g<basis>)",
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
        (r"none against (?P<a>.+)", r"only the stored question has \g<a>", r"저장된 질문에만 \g<a> 있음"),
        (r"(?P<a>.+) against none", r"only the asked question has \g<a>", r"물은 질문에만 \g<a> 있음"),
        (r"only one has (?P<a>.+)", r"only one of the two says \g<a>", r"한쪽에만 \g<a> 있음"),
        (r"only one denies (?P<a>.+)", r"only one of the two denies \g<a>", r"한쪽에만 \g<a> 부정"),
        (r"(?P<a>.+) and (?P<b>.+) are denied the other way round",
         r"one denies \g<a>, the other \g<b>", r"한쪽은 \g<a>, 다른 쪽은 \g<b> 부정"),
        (r"only one is negative", "only one of the two is negative", "한쪽만 부정하는 말"),
        (r"(?P<a>.+) and (?P<b>.+) have changed places", r"\g<a> and \g<b> have changed places",
         r"\g<a>, \g<b>의 자리가 바뀜"),
        (r"only one wants (?P<a>.+)", r"only one of the two wants \g<a>", r"한쪽만 \g<a> 원함"),
        (r"only one asks (?P<a>.+)", r"only one of the two asks \g<a>", r"한쪽만 \g<a> 물음"),
        (r"(?P<a>.+) against (?P<b>.+) as (?P<c>from|than)", r"one says \g<a>, the other \g<b> (as \"\g<c>\")",
         r"한쪽은 \g<a>, 다른 쪽은 \g<b> (\g<c>)"),
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
        (r"the namespace is set to exact hits only", "the namespace is set to exact hits only",
         "네임스페이스가 똑같은 질문만 씀"),
        (r"no threshold was calibrated for this embedder in this language and mode",
         "no threshold was calibrated for this embedder in this language and mode",
         "이 임베더, 언어, 방식에 맞춘 기준이 없음"),
        (r"the last turn is empty", "the question is empty", "질문이 비어 있음"),
        (r"the conversation does not end with a user turn", "the conversation does not end with a question",
         "대화가 질문으로 끝나지 않음"),
        (r"the nearest entry was deleted in this moment", "the nearest entry was just deleted",
         "가장 가까운 항목이 방금 지워짐"),
        (r"the namespace serves exact hits only: (?P<a>.+)", r"the namespace serves exact hits only: \g<a>",
         r"네임스페이스가 똑같은 질문만 씀: \g<a>"),
        (r"the embedder cannot read this script", "the embedder cannot read this script", "임베더가 읽지 못하는 글자"),
    )
)  # fmt: skip
"""Sentences of the cache's verdicts: the pattern, English and Korean."""
_WHOLE = (
    "follow-up",
    "the embedder cannot read Hangul",
    "the namespace serves exact hits only",
    "no exact match; the namespace serves exact hits only",
)
"""What stands before a colon in some of them; before the colon of any other line stands the name of its guard."""


_TOKENS: Mapping[str, str] = {
    "when": "언제", "where": "어디", "who": "누구", "why": "왜", "how": "어떻게", "amount": "얼마",
    "duration": "얼마 동안", "frequency": "얼마나 자주", "size": "크기", "speed": "빠르기",
    "ask": "질문", "do": "명령", "forbid": "금지",
    "may": "해도 되는지", "must": "해야 하는지", "should": "하는 것이 좋은지", "none": "없음",
    "from": "출발점", "to": "도착점", "than": "비교 기준", "subject": "주어", "object": "목적어",
    "year": "년", "month": "개월", "week": "주", "day": "일", "hour": "시간", "minute": "분", "second": "초",
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
    words = FEATURES[lang]
    # One guard is called as a measure of both texts is.
    return words.get(name.replace(" ", "_")) or words.get(_plain(name), (name, ""))


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
        said = korean if lang == "ko" else english
        for name, value in match.groupdict().items():
            said = said.replace(rf"\g<{name}>", _part(name, value, lang))
        return said
    return line


def _part(name: str, value: str, lang: str) -> str:
    """What a verdict fills in, in the language; words of the questions as they are."""
    if name == "rest":
        return _sentence(value, lang)
    if value in _BASES:
        return _BASES[value][LANGUAGES.index(lang)]
    if lang != "ko":
        return value
    return ", ".join(" ".join(_TOKENS.get(word, word) for word in part.split(" ")) for part in value.split(", "))
