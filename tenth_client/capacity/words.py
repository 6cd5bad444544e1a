"""The words of ``tenth plan capacity``, English and Korean."""

from __future__ import annotations

from collections.abc import Mapping

from tenth_client.cache_words import LANGUAGES

_TEXTS: Mapping[str, tuple[str, str]] = {
    "model": ("{model}: {parameters} parameters, {scheme}, on {gpu} ({memory:.1f} GiB, {bandwidth:,.0f} GB/s)",
              "{model}: 파라미터 {parameters}, {scheme}, {gpu} ({memory:.1f} GiB, {bandwidth:,.0f} GB/s)"),
    "weights": ("weights", "가중치"),
    "weights_said": ("{gb:.1f} GB ({gib:.1f} GiB){disk}", "{gb:.1f} GB ({gib:.1f} GiB){disk}"),
    "disk": (", as they lie in the folder", ", 폴더에 있는 크기"),
    "kv": ("keys and values of one token", "토큰 하나의 KV"),
    "kv_said": ("{bytes:,} bytes in {dtype}", "{bytes:,} 바이트 ({dtype})"),
    "sequence": ("of one sequence of {context:,} tokens", "{context:,} 토큰 시퀀스 하나의 KV"),
    "sequence_said": ("{gib:.2f} GiB", "{gib:.2f} GiB"),
    "gpus": ("GPUs", "GPU 수"),
    "free": ("left for KV, each", "KV에 남는 메모리(각)"),
    "tokens": ("KV tokens", "KV 토큰"),
    "sequences": ("sequences at once", "동시 시퀀스"),
    "verdict": ("verdict", "결론"),
    "yes": ("fits", "들어감"),
    "no_weights": ("the weights do not fit", "가중치가 들어가지 않음"),
    "no_sequence": ("no room for one sequence", "시퀀스 하나도 들어가지 않음"),
    "smallest": ("Smallest tensor-parallel degree that fits: {gpus}.",
                 "들어가는 최소 텐서 병렬 수: {gpus}."),
    "replicas": ("{count} GPUs hold {replicas} replica(s) of it: {sequences:,} sequences at once; {idle} left over.",
                 "GPU {count}장에 복제본 {replicas}개: 동시 시퀀스 {sequences:,}개, 남는 GPU {idle}장."),
    "none": ("It does not fit on {most} of them. Try fewer bits (--scheme awq), --kv-dtype fp8, a shorter --context, "
             "more of them (--count), or a GPU with more memory.",
             "{most}장에 들어가지 않습니다. 더 적은 비트(--scheme awq), --kv-dtype fp8, 더 짧은 --context, "
             "더 많은 GPU(--count), 메모리가 더 큰 GPU를 시도하십시오."),
    "longer": ("Note: the model was made for {longest:,} tokens of context.",
               "참고: 이 모델은 문맥 {longest:,} 토큰까지 만들어졌습니다."),
    "too_new": (
        "Note: vLLM has no kernels for {scheme} on {gpu}; take fp8.",
        "참고: {gpu}에는 {scheme}용 vLLM 커널이 없습니다. fp8을 쓰세요.",
    ),
    "capability": ("Note: vLLM runs {scheme} from compute capability {least:.1f} on; {gpu} has {has:.1f}.",
                   "참고: vLLM의 {scheme}은 compute capability {least:.1f}부터이며 {gpu}는 {has:.1f}입니다."),
    "t4": ("Note: {gpu} has no bfloat16; the 16-bit parts run as float16 (--dtype half).",
           "참고: {gpu}에는 bfloat16이 없어 16비트 부분은 float16으로 실행됩니다(--dtype half)."),
    "roofline": ("Output tokens per second, {gpus} GPU(s): at most {tps:,.0f}. An UPPER BOUND from the memory's "
                 "bandwidth with {sequences:,} full sequences, not a measurement: computing, prefill and traffic "
                 "between GPUs are not in it.",
                 "초당 출력 토큰, GPU {gpus}장: 최대 {tps:,.0f}. 시퀀스 {sequences:,}개일 때 메모리 대역폭에서 나온 "
                 "상한이며 측정값이 아닙니다(연산, 프리필, GPU 간 통신은 빠져 있음)."),
    "measured": ("Output tokens per second, {gpus} GPU(s): {tps:,.0f}, as given.",
                 "초당 출력 토큰, GPU {gpus}장: {tps:,.0f} (주어진 값)."),
    "cost": ("A million output tokens: {bound}${usd:,.4f}, at {share:.0%} utilization and ${hour:,.4f} a GPU "
             "hour{source}.",
             "출력 백만 토큰: {bound}${usd:,.4f} (사용률 {share:.0%}, GPU 시간당 ${hour:,.4f}{source})."),
    "at_least": ("at least ", "최소 "),
    "no_price": ("No cost: give --hour-price USD, or --hour-price book for the price book's gpu:{gpu}.",
                 "비용 없음: --hour-price USD, 또는 가격표의 gpu:{gpu}를 쓰려면 --hour-price book."),
    "assumes": ("Assumes {share:.0%} of each GPU's memory, {working:g} GiB of it for activations and CUDA. Vision "
                "towers and speculative decoding are not counted.",
                "가정: GPU 메모리의 {share:.0%} 사용, 그중 {working:g} GiB는 활성값과 CUDA. 비전 타워와 추측 디코딩은 "
                "계산하지 않음."),
}  # fmt: skip


def text(name: str, lang: str, **values: object) -> str:
    """A heading or line."""
    return _TEXTS[name][LANGUAGES.index(lang)].format(**values)
