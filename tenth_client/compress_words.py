"""The words of ``tenth compress``, English and Korean. What is not listed is shown as the compressor says it."""

from __future__ import annotations

from collections.abc import Mapping

from tenth_client.cache_words import LANGUAGES

_TEXTS: Mapping[str, tuple[str, str]] = {
    "strategy": ("strategy", "전략"),
    "before": ("before", "전"),
    "after": ("after", "후"),
    "removed": ("removed", "줄임"),
    "saves": ("saves", "절감"),
    "why": ("what and why", "무엇을, 왜"),
    "whole": ("together", "합계"),
    "not": ("not done", "하지 않음"),
    "tokens": ("{before:,} -> {after:,} tokens ({share} less)", "{before:,} -> {after:,} 토큰 ({share} 감소)"),
    "estimated": ("estimated: the model's own tokenizer is not here", "추정: 이 모델의 토크나이저가 없음"),
    "price": ("{model}: {input} per million input tokens, {cached} from the prompt cache",
              "{model}: 입력 백만 토큰에 {input}, 프롬프트 캐시에서 {cached}"),
    "unpriced": ("{model}: its price is not known here", "{model}: 가격을 알 수 없음"),
    "nothing": ("Nothing would be cut.", "줄일 것이 없습니다."),
    "chunk": ("chunk", "문서 조각"),
    "same": ("{count} unchanged", "그대로 {count}개"),
    "cut": ("cut", "삭제"),
    "each": ("each use saves {saving} at {price} per million input tokens",
             "쓸 때마다 {saving} 절감 (입력 백만 토큰에 {price})"),
    "scored": ("asking {model} cost about {cost}, once", "{model}에 묻는 비용 약 {cost}, 한 번"),
    "paid": ("paid back after {count:,} uses", "{count:,}번 쓰면 회수"),
    "partly": ("The target is not reached: the rest must stay.", "목표에 못 미침: 나머지는 남겨야 합니다."),
    "kept": ("Nothing may be cut.", "지울 수 있는 것이 없습니다."),
    "lines": ("... {count} unchanged lines", "... 그대로인 {count}줄"),
}  # fmt: skip
_ROLES: Mapping[str, str] = {"system": "시스템", "user": "사용자", "assistant": "모델", "tool": "도구"}
_STRATEGIES: Mapping[str, str] = {
    "summary": "요약",
    "cleanup": "정리",
    "dedupe": "중복 제거",
    "history": "대화 기록",
    "retrieval": "검색 문서",
    "extractive": "문장 선택",
    "tokenwise": "토큰 단위",
    "tools": "도구 목록",
    "output": "답의 길이",
    "order": "순서",
}


def text(name: str, lang: str, **values: object) -> str:
    """A heading or line."""
    return _TEXTS[name][LANGUAGES.index(lang)].format(**values)


def role(name: str, lang: str) -> str:
    """Who speaks."""
    return _ROLES.get(name, name) if lang == "ko" else name


def strategy(name: str, lang: str) -> str:
    """A strategy's name, which is also what switches it, with its meaning."""
    meaning = _STRATEGIES.get(name, "") if lang == "ko" else ""
    return f"{name} ({meaning})" if meaning else name
