"""What the article claims of each layer, beside what was measured here, and a word on why they differ.

Only the claims and the words are written here; the figures are the results', by benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.cells import Figures
from bench.sheets import Sheet, percent

Results = Mapping[str, Mapping[str, Any]]
"""Results of benchmarks by name; those that were not run are absent."""
ABLATED = "support_heavy"
NOT = "not measured"
_PASSAGES = ("nq_gold_passages", "beerqa_1000", "korquad1_dev_ko", "mtrag_un_multiturn", "mtrag_human_eval3")
_STREAMS = ("banking77", "clinc150", "parakqc_ko", "chatbot_ko")
_COSTED = ("omnisbench", "routerbench_3tasks")
_SCHEMES = ("int8", "int4")


@dataclass(frozen=True, slots=True)
class Claim:
    """One layer's."""

    layer: str
    article: str
    article_korean: str
    why: str
    why_korean: str


CLAIMS = (
    Claim(
        "routing", "40-70% of cost", "비용 40~70%",
        "It hangs on the traffic, not on the router: where the weak model answers as well, nearly everything goes "
        "there, and on hard questions at a quality that is kept for sure hardly anything does. The article states "
        "no quality.",
        "라우터보다 트래픽에 달려 있습니다. 약한 모델도 잘 답하는 질문은 거의 모두 그리로 가고, 어려운 질문에서 "
        "품질을 확실히 지키려면 거의 보내지 못합니다. 글은 품질을 말하지 않습니다.",
    ),
    Claim(
        "compression", "20-40% of tokens", "토큰 20~40%",
        "Passages that the question does not need go; prompts without such passages have little to remove. Output "
        "tokens, which cost more, are untouched, so the bill falls by less than the tokens do.",
        "질문에 필요 없는 문단은 덜어 내지만, 그런 문단이 없는 프롬프트에는 덜어 낼 것이 거의 없습니다. 더 비싼 "
        "출력 토큰은 그대로이므로 비용은 토큰만큼 줄지 않습니다.",
    ),
    Claim(
        "cache", "30-80% of requests", "요청 30~80%",
        "As many as repeat, and of those only the ones that can be served under a bound on wrong answers. A cold "
        "cache has nothing to serve yet, and a hit saves no more than that request would have cost.",
        "반복되는 질문만, 그중에서도 틀린 답의 한도 안에서 내줄 수 있는 것만 맞습니다. 처음에는 캐시가 비어 있고, "
        "적중 하나는 그 요청의 값만큼만 아낍니다.",
    ),
    Claim(
        "batch", "2-5 times the throughput", "처리량 2~5배",
        "Against one request at a time; a server that already batches continuously has taken most of it. Providers "
        "sell it as half the price, of what can wait and was not already made cheap by another layer.",
        "한 번에 하나씩 처리할 때와 견준 값입니다. 연속 배칭을 하는 서버는 이미 대부분을 얻었습니다. 제공자는 이를 "
        "반값으로 파는데, 기다릴 수 있고 다른 계층이 아직 싸게 만들지 않은 요청에만 해당합니다.",
    ),
    Claim(
        "quantization", "50-75% of VRAM", "VRAM 50~75%",
        "Of weights that were quantized; embeddings and the KV cache stay as they are, which weighs most in a "
        "small model. Measured on a CPU, in files on disk. It saves money only on hardware of one's own, and the "
        "mixes use none.",
        "양자화한 가중치만의 이야기입니다. 임베딩과 KV 캐시는 그대로라서 작은 모델에서는 그 몫이 큽니다. CPU에서 "
        "디스크 파일 크기로 쟀습니다. 자기 하드웨어가 있어야 돈이 절약되는데, 이 혼합들에는 없습니다.",
    ),
)  # fmt: skip


def claims_table(results: Results) -> str:
    """The claims in Markdown."""
    return claims(results).markdown()


def claims(results: Results) -> Sheet:
    """The claims in English."""
    rows = [
        (claim.layer, claim.article, in_the_mix(claim.layer, results), alone(claim.layer, results), claim.why)
        for claim in CLAIMS
    ]
    titles = ("layer", "the article", "here, this layer alone on the whole mix", "here, on its own benchmark", "why")
    return Sheet("claims", titles, 5, rows)


def in_the_mix(layer: str, results: Results) -> str:
    """What the layer alone saved of the bill of the ablated mix."""
    figures = Figures(results["endtoend"]) if "endtoend" in results else None
    name = f"{ABLATED}/only_{layer}/cost_ratio"
    cost = figures.value(name) if figures else None
    if figures is None or cost is None:
        return NOT
    low, high = figures.metrics[name]["ci95"] or (cost, cost)
    ends = percent(1 - high), percent(1 - low)
    spread = f" [{ends[0]}, {ends[1]}]" if ends[0] != ends[1] else ""
    kept = figures.value(f"{ABLATED}/only_{layer}/quality_ratio")
    quality = "" if kept is None else f", {percent(kept)} of the quality where it is known"
    return f"{percent(1 - cost)} of the bill{spread}{quality}"


def alone(layer: str, results: Results) -> str:
    """What the layer's own benchmark measured."""
    bench = {"routing": "router", "compression": "compressor", "quantization": "inference"}.get(layer, layer)
    finders = {
        "routing": _routing,
        "compression": _compression,
        "cache": _cache,
        "batch": _batch,
        "quantization": _quantization,
    }
    found = [*finders[layer](Figures(results[bench]))] if bench in results else []
    if layer == "batch" and "inference" in results:
        found += _batching(Figures(results["inference"]))
    return "; ".join(found) or NOT


def _routing(figures: Figures) -> Iterator[str]:
    for name in _COSTED:
        of = f"{name}/ours_in_domain/"
        cost, kept = figures.value(f"{of}cost_ratio"), figures.value(f"{of}score_ratio")
        if cost is not None and kept is not None:
            yield f"{name}: {percent(1 - cost)} of cost at {percent(kept)} of the quality"


def _compression(figures: Figures) -> Iterator[str]:
    for name in _PASSAGES:
        saved, kept = (figures.value(f"{name}/ours_safe/{measure}") for measure in ("tokens_saved", "answer_kept"))
        if saved is not None and kept is not None:
            yield f"{name}: {percent(saved)} of tokens, answer kept in {percent(kept)}"


def _cache(figures: Figures) -> Iterator[str]:
    for name in _STREAMS:
        for mode in ("strict", "faq"):
            hits, wrong = (figures.value(f"{name}/ours_{mode}/{measure}") for measure in ("hit_rate", "wrong_per_1000"))
            if hits is not None and wrong is not None:
                yield f"{name} ({mode}): {percent(hits)} of requests, {wrong:.1f} wrong in 1,000"


def _batch(figures: Figures) -> Iterator[str]:
    for measure, what in (("one_at_a_time", "one at a time"), ("online_c8", "8 online at once")):
        value = figures.value(f"local_lane/ours/speedup_vs_{measure}")
        if value is not None:
            yield f"{value:.2f} times the throughput of {what}"


def _batching(figures: Figures) -> Iterator[str]:
    value = figures.value("batching/vllm/speedup_c32")
    if value is not None:
        yield f"the engine alone, 32 at once: {value:.2f} times one"


def _quantization(figures: Figures) -> Iterator[str]:
    for scheme in _SCHEMES:
        size, lost = (figures.value(f"{scheme}/vllm/{measure}") for measure in ("weights_ratio", "perplexity_ratio"))
        if size is not None:
            cost = "" if lost is None else f", perplexity {lost:.3f} times"
            yield f"{scheme}: {percent(1 - size)} of the weights{cost}"
