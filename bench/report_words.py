"""The page's words in English and Korean. A text without a Korean one stands as it is in both."""

from __future__ import annotations

from collections.abc import Mapping

TITLE = "A tenth of the price, end to end"
INTRO = (
    "Whole workloads through the whole mesh, as processes, beside the strong model alone, which was really asked. The "
    "models are played as they were recorded; tokens are counted and priced as theirs."
)
QUALITY = (
    "Nothing is claimed of requests whose quality is not known. Of answers from passages, quality says that what they "
    "need was still in the prompt, whichever model wrote them: a system that sends them all to a small model loses "
    "nothing by this measure. Compare costs with that in mind."
)
REDUCED = "This is a reduced run: too few requests to quote. The figures of docs/benchmarks.md are of full runs."
REPRINT = (
    "`make bench` runs the reduced form and writes this page; `make bench ARGS=--full` runs the full one, whose "
    "figures docs/benchmarks.md and the READMEs take. `python -m bench.report` writes the page again from "
    "bench/results."
)
SECTIONS: Mapping[str, tuple[str, str]] = {
    "claim": ("The claim", "주장"),
    "mixes": ("Three mixes", "세 가지 혼합"),
    "layers": ("Layer by layer", "계층별"),
    "workloads": ("Where the money was", "돈이 있던 곳"),
    "ablation": ("Each layer alone and taken out", "계층 하나만 켤 때와 하나만 뺄 때"),
    "frontier": ("What quality costs", "품질의 값"),
    "warming": ("While the cache warms", "캐시가 데워지는 동안"),
    "latency": ("Time added", "더해지는 시간"),
    "hops": ("What a miss waits for", "캐시에 없을 때 기다리는 것"),
    "claims": ("What the article says, and what was measured", "글의 주장과 여기서 잰 값"),
    "checks": ("What must be zero, and the CPU", "0이어야 하는 것과 CPU"),
    "assumptions": ("What all of this assumes", "이 모든 것의 가정"),
    "reprint": ("How to print it again", "다시 만들기"),
}
"""Headings by section, in English and Korean."""
KOREAN: Mapping[str, str] = {
    TITLE: "처음부터 끝까지, 10분의 1 비용",
    INTRO: "작업 부하 전체를 프로세스로 뜬 메시 전체에 흘려보내고, 실제로 물어본 강한 모델 하나와 견줍니다. 모델은 "
    "기록된 대로 연기하며, 토큰은 그 모델의 것으로 세고 값을 매깁니다.",
    QUALITY: "품질을 모르는 요청에 대해서는 아무것도 주장하지 않습니다. 문단에서 찾는 답의 품질은 어느 모델이 썼든 "
    "필요한 내용이 프롬프트에 남아 있었다는 뜻입니다. 모두 작은 모델로 보내는 시스템도 이 척도로는 잃는 "
    "것이 없으니, 비용은 그 점을 감안해 비교하세요.",
    REDUCED: "줄인 실행이라 인용하기에는 요청이 적습니다. docs/benchmarks.md의 수치는 전체 실행에서 나옵니다.",
    REPRINT: "`make bench`는 줄인 실행을 하고 이 페이지를 씁니다. `make bench ARGS=--full`은 전체 실행을 하며, 그 "
    "수치가 docs/benchmarks.md와 README에 들어갑니다. `python -m bench.report`는 bench/results에서 "
    "페이지를 다시 씁니다.",
    "mix": "혼합",
    "system": "시스템",
    "requests": "요청",
    "cost of the baseline's": "비용(기준 대비)",
    "with the provider's own prompt cache in the baseline": "기준에 프롬프트 캐시를 쓸 때",
    "beside the baseline as really asked": "실제로 물어본 기준 대비",
    "USD per 1,000 requests": "요청 1,000건당 USD",
    "quality kept": "유지된 품질",
    "known of requests": "품질을 아는 비율",
    "saved of the baseline: mix": "기준에서 아낀 몫: 혼합",
    "paid": "지불",
    "overhead": "부대 비용",
    "cache": "캐시",
    "routing": "라우팅",
    "compression": "압축",
    "prompt cache": "프롬프트 캐시",
    "batch": "배치",
    "quantization": "양자화",
    "workload": "작업 부하",
    "share of the baseline's bill": "기준 청구서에서 차지하는 몫",
    "cost": "비용",
    "quality": "품질",
    "from the cache": "캐시에서",
    "LiteLLM's cost": "LiteLLM 비용",
    "LiteLLM's quality": "LiteLLM 품질",
    "cost, this alone": "이것만 켤 때 비용",
    "cost, this taken out": "이것만 뺄 때 비용",
    "all of them; none of them": "모두 켬; 모두 끔",
    "asked to keep": "요구한 품질",
    "cost, reasoning alone": "추론 문항만: 비용",
    "quality, reasoning alone": "추론 문항만: 품질",
    "added ms: mix": "더해진 ms: 혼합",
    "model asked directly, beyond its modelled time, p50": "모델에 직접 물을 때 모델 시간을 넘는 몫, p50",
    "a miss waits, p50 ms: mix": "캐시에 없을 때 기다리는 p50 ms: 혼합",
    "router": "라우터",
    "compressor": "압축기",
    "ledger": "원장",
    "inference, without the model": "추론, 모델 시간 제외",
    "answered by": "답한 방법",
    "exact hit": "완전 일치 적중",
    "semantic hit": "의미 적중",
    "miss": "빗나감",
    "of": "건수",
    "failed": "실패",
    "receipts that do not add up": "맞지 않는 영수증",
    "CPU ms per request": "요청당 CPU ms",
    "strong model alone": "강한 모델만",
    "layer": "계층",
    "the article": "글의 주장",
    "here, this layer alone on the whole mix": "여기: 이 계층만 켠 혼합 전체",
    "here, on its own benchmark": "여기: 계층 자체의 벤치마크",
    "why": "다른 까닭",
    "not measured": "재지 않음",
    "all, but routed only where outcomes are recorded": "모두 켬, 다만 결과가 기록된 곳에서만 라우팅",
    "support_heavy: layer": "support_heavy: 계층",
    "USD per million tokens: catalogue": "백만 토큰당 USD: 카탈로그",
    "model": "모델",
    "source": "출처",
    "input": "입력",
    "output": "출력",
    "cached input": "캐시된 입력",
    "cache write": "캐시 쓰기",
    "batch input": "배치 입력",
    "batch output": "배치 출력",
    "shares: mix": "비율: 혼합",
    "quality asked": "요구한 품질",
    "different questions": "서로 다른 질문",
    "modelled: model": "모델링: 모델",
    "first token, s": "첫 토큰, 초",
    "tokens per second": "초당 토큰",
    "of the strong model's bill": "강한 모델 청구서 대비",
    "at most a tenth": "10분의 1 이하",
    "more than a tenth": "10분의 1 초과",
    "a tenth is in the interval": "10분의 1이 구간 안에 있음",
    "not known": "품질은 모름",
    "from the baseline's bill to ours": "기준 청구서에서 우리 청구서까지",
    "dashed: all layers": "점선: 모든 계층",
    "the router's target from low to high; diamonds: as the mix was run": "라우터의 목표 품질을 높여 가며; "
    "마름모: 혼합을 실제로 돌린 지점",
    "share of a window of requests, from a cold cache": "빈 캐시에서 시작해 요청 구간마다의 몫",
    "Not measured": "재지 않은 것",
}
