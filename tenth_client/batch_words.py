"""The words of ``tenth batch``, English and Korean.

What is not listed here is shown as the batch service says it: a newer one may have names of its own.
"""

from __future__ import annotations

from tenth.batch.v1 import batch_pb2

from tenth_client.cache_words import LANGUAGES

_STATES = {
    batch_pb2.BATCH_STATE_VALIDATING: ("being checked", "확인 중"),
    batch_pb2.BATCH_STATE_RUNNING: ("running", "실행 중"),
    batch_pb2.BATCH_STATE_DONE: ("done", "완료"),
    batch_pb2.BATCH_STATE_CANCELLED: ("cancelled", "취소됨"),
    batch_pb2.BATCH_STATE_FAILED: ("failed", "실패"),
    batch_pb2.BATCH_STATE_CANCELLING: ("being cancelled", "취소하는 중"),
}
_LANES = {
    "local": ("own model", "자체 모델"),
    # By the interface: another maker's models may be served behind OpenAI's.
    "openai": ("provider's batches (openai)", "제공자 배치 (openai)"),
    "anthropic": ("provider's batches (anthropic)", "제공자 배치 (anthropic)"),
    "online": ("online", "온라인"),
}
_LAYERS = {
    "cache": ("cache", "캐시"),
    "routing": ("routing", "라우팅"),
    "compression": ("compression", "압축"),
    "prompt_cache": ("prompt cache", "프롬프트 캐시"),
    "batch": ("batch", "배치"),
    "quantization": ("quantization", "양자화"),
}
_TEXTS = {
    "batch": ("batch", "배치"),
    "state": ("state", "상태"),
    "run": ("{state}, run {run}", "{state}, {run}번째 실행"),
    "items": ("items", "요청"),
    "answered": ("answered", "답함"),
    "answered_how": ("{done}, of which {cache} by the cache, {shared} shared", "{done}, 캐시 {cache}, 공유 {shared}"),
    "failed": ("failed", "실패"),
    "lanes": ("lanes", "처리 경로"),
    "cost": ("cost so far", "지금까지의 비용"),
    "overhead": ("{cost}, of which {overhead} beside the answers", "{cost}, 답 외에 든 비용 {overhead}"),
    "forecast": ("forecast in all", "예상 총비용"),
    "baseline": ("baseline", "기준 비용"),
    "saving": ("saved", "절감"),
    "saved": ("{saving} ({percent} of the baseline)", "{saving} (기준 대비 {percent})"),
    "by_layer": ("by layer", "계층별"),
    "created": ("created", "생성"),
    "deadline": ("deadline", "기한"),
    "ended": ("ended", "종료"),
    "expires": ("deleted after", "삭제 예정"),
    "tags": ("tags", "태그"),
    "why": ("why", "이유"),
    "left": ("{time} left", "{time} 남음"),
    "late": ("late by {time}", "{time} 지남"),
    "pace": ("about {time} more at this pace", "이 속도로 약 {time} 더"),
    "took": ("took {time}", "{time} 걸림"),
    "progress": ("{ended} of {items}", "{items} 가운데 {ended}"),
    "counts": (
        "answered {done} (cache {cache}, shared {shared}), failed {failed}",
        "답함 {done} (캐시 {cache}, 공유 {shared}), 실패 {failed}",
    ),
    "cost_column": ("cost", "비용"),
    "forecast_column": ("forecast", "예상"),
    "cost_of": ("cost {cost}", "비용 {cost}"),
    "forecast_of": ("forecast {forecast}", "예상 {forecast}"),
    "saved_of": ("saved {saving} ({percent})", "절감 {saving} ({percent})"),
    "line": ("line", "줄"),
    "custom_id": ("custom_id", "custom_id"),
    "field": ("field", "필드"),
    "reason": ("reason", "이유 코드"),
    "message": ("message", "설명"),
    "nothing_spent": (
        "{file}: {count} errors; no batch was made, nothing was spent",
        "{file}: 오류 {count}개; 배치를 만들지 않았고 비용도 들지 않음",
    ),
    "one_error": (
        "{file}: 1 error; no batch was made, nothing was spent",
        "{file}: 오류 1개; 배치를 만들지 않았고 비용도 들지 않음",
    ),
    "before": (
        "this content was submitted before: this is its batch; --new makes another",
        "이미 제출한 내용: 그때의 배치임; 새로 만들려면 --new",
    ),
    "repeat": (
        "request id {id}: submitting the same content again gives this batch; --new makes another",
        "요청 ID {id}: 같은 내용을 다시 제출하면 이 배치가 나옴; 새로 만들려면 --new",
    ),
    "next": (
        "next: tenth batch watch {id}, tenth batch results {id}",
        "다음: tenth batch watch {id}, tenth batch results {id}",
    ),
    "goes_on": (
        "the batch goes on without this terminal: tenth batch watch {id}",
        "이 터미널 없이도 배치는 계속됨: tenth batch watch {id}",
    ),
    "none": ("no batch yet", "배치가 아직 없음"),
    "written": (
        "{count} results written to {file}, {failed} of them errors",
        "결과 {count}개를 {file}에 씀, 그중 오류 {failed}개",
    ),
    "retry": (
        "{failed} items failed; tenth batch retry {id} runs them again",
        "{failed}개 실패; tenth batch retry {id}로 다시 실행",
    ),
}  # fmt: skip
"""Headings and lines; ``{...}`` is filled in."""
_UNITS = (("d", "일", 86_400), ("h", "시간", 3600), ("min", "분", 60), ("s", "초", 1))


def text(name: str, lang: str, **values: object) -> str:
    """A heading or line."""
    return _TEXTS[name][LANGUAGES.index(lang)].format(**values)


def state(number: int, lang: str) -> str:
    """A state in words; its number when it is not known."""
    found = _STATES.get(number)  # type: ignore[call-overload]  # A newer service may send one of its own.
    return str(found[LANGUAGES.index(lang)]) if found else str(number)


def lane(name: str, lang: str) -> str:
    """A lane in words; its name when it is not known."""
    found = _LANES.get(name)
    return found[LANGUAGES.index(lang)] if found else name


def layer(name: str, lang: str) -> str:
    """A layer of savings in words; its name when it is not known."""
    found = _LAYERS.get(name)
    return found[LANGUAGES.index(lang)] if found else name


def length(seconds: float, lang: str) -> str:
    """A length of time in its two largest units, such as ``3 h 12 min``."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for english, korean, size in _UNITS:
        count, left = divmod(left, size)
        if count or (size == 1 and not parts):
            parts.append(f"{count}{korean}" if lang == "ko" else f"{count} {english}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts)
