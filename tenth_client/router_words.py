"""The words of ``tenth router report`` and ``replay`` in English and Korean."""

from __future__ import annotations

import re

from tenth_client.cache_words import LANGUAGES

_TEXTS = {
    "model": ("model", "모델"),
    "decisions": ("decisions", "결정"),
    "feedback": ("feedback", "피드백"),
    "seen": ("seen", "관측"),
    "predicted": ("predicted", "예측"),
    "gap": ("gap, 95%", "차이, 95%"),
    "failed": ("failed", "실패"),
    "escalated": ("escalated", "상위로"),
    "cost": ("cost", "비용"),
    "expected": ("expected", "예상"),
    "tokens": ("output tokens", "출력 토큰"),
    "all_decisions": ("{count:,} decisions: {by}", "결정 {count:,}건: {by}"),
    "no_decisions": ("no decision is recorded", "기록된 결정이 없습니다"),
    "learning": (
        "to learn: {explored:,} explored, {audited:,} audited, {cost} expected beyond the best decision",
        "학습용: 탐색 {explored:,}건, 감사 {audited:,}건, 최선의 결정보다 예상 {cost} 더 듦",
    ),
    "shadow": (
        "shadow: {differs:,} of {count:,} would have gone elsewhere",
        "섀도: {count:,}건 중 {differs:,}건은 다른 모델을 골랐을 것",
    ),
    "unlike": ("unlike the training: {count:,} questions", "학습과 다른 질문: {count:,}건"),
    "heads": ("heads {version}", "헤드 {version}"),
    "no_heads": ("no trained heads are loaded", "학습된 헤드가 없습니다"),
    "drift": ("drift of features (above 0.2 is drift)", "특징의 변화 (0.2 초과면 변화)"),
    "no_drift": (
        "drift of features: not measured (too few decisions, or no heads)",
        "특징의 변화: 측정하지 않음 (결정이 너무 적거나 헤드가 없음)",
    ),
    "warnings": ("to look at", "살펴볼 것"),
    "no_warnings": ("nothing to warn of", "경고할 것이 없습니다"),
    "before": ("recorded", "기록"),
    "after": ("under the policy", "새 정책"),
    "quality": ("quality, estimated", "품질 추정"),
    "replayed": (
        "{count:,} decisions again, {changed:,} of them change ({share})",
        "{count:,}건을 다시 결정, 그중 {changed:,}건이 바뀜 ({share})",
    ),
    "undecided": (
        "left out, since the log has no decision of them (feedback alone): {count:,}",
        "결정 없이 피드백만 있는 {count:,}건은 뺐습니다",
    ),
    "refused": (
        "would find no model, neither sum counts them: {count:,}",
        "{count:,}건은 맞는 모델이 없습니다; 두 합계에서 뺐습니다",
    ),
    "unpriced": (
        "a model without a price here, neither cost counts them: {count:,}",
        "{count:,}건은 가격을 모르는 모델이 있어 두 비용에서 뺐습니다",
    ),
    "moves": ("what changes", "바뀌는 것"),
    "largest": ("the largest changes", "가장 큰 변화"),
    "from": ("from", "이전"),
    "to": ("to", "이후"),
    "requests": ("requests", "요청"),
    "change": ("change", "변화"),
    "request": ("request", "요청 ID"),
    "reason": ("why", "이유"),
    "none": ("none", "없음"),
    "unknown": ("unknown", "모름"),
}
_WARNINGS = (
    (
        r"questions have changed: (\S+) is not spread as in training \(index ([\d.]+), above ([\d.]+)\)",
        r"질문이 달라졌습니다: \1의 분포가 학습 때와 다릅니다 (지수 \2, 기준 \3)",
    ),
    (
        r"(\d+) of (\d+) questions are unlike all that the heads were trained on",
        r"질문 \2건 중 \1건이 헤드의 학습 자료와 다릅니다",
    ),
    (
        r"(\S+) answers (worse|better) than predicted: ([\d.]+) seen, ([\d.]+) predicted, (\d+) answers with feedback",
        r"\1의 답이 예측보다 {\2}: 관측 \3, 예측 \4, 피드백 \5건",
    ),
    (
        r"(\S+) costs ([\d.]+) (?:times|of) what was expected, over (\d+) answers",
        r"\1의 비용이 예상의 \2배입니다 (답 \3건)",
    ),
    (
        r"(\S+) writes ([\d.]+) times the output tokens that were expected, over (\d+) answers",
        r"\1의 출력 토큰이 예상의 \2배입니다 (답 \3건)",
    ),
    (r"(\S+) failed in (\d+) of (\d+) attempts", r"\1: 시도 \3번 중 \2번 실패했습니다"),
    (
        r"(\d+) parts of outcomes were not recorded: .*",
        r"결과 \1건이 기록되지 않았습니다: 대기열이 찼거나 디스크 오류입니다",
    ),
)
_SIDES = {"{worse}": "나쁩니다", "{better}": "좋습니다"}


def text(name: str, lang: str, **values: object) -> str:
    """A text in a language."""
    return _TEXTS[name][LANGUAGES.index(lang)].format(**values)


def warning(line: str, lang: str) -> str:
    """A warning of the router in a language; itself where it is not known."""
    if lang == "en":
        return line
    for pattern, korean in _WARNINGS:
        match = re.fullmatch(pattern, line)
        if match:
            said = match.expand(korean)
            for side, word in _SIDES.items():
                said = said.replace(side, word)
            return said
    return line
