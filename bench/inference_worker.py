"""One vLLM engine in a process of its own: ``python -m bench.inference_worker``, started by ``inference_engine``.

A line of JSON on its standard input asks, a line on its standard output answers; the end of the input ends it. vLLM's
own output goes to standard error. What it measures, it measures around ``LLMEngine.step`` alone.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil

from bench.inference_windows import windows

Answer = dict[str, Any]


class Worker:
    """The engine, and what can be asked of it."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        """``asked`` is the fields of ``inference_engine.EngineOptions``."""
        created = psutil.Process().create_time()
        import torch
        from transformers import AutoTokenizer
        from vllm import EngineArgs, SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.llm_engine import LLMEngine

        self._params = SamplingParams
        self._delta = RequestOutputKind.DELTA
        self._input = tokens_input
        cuda = bool(torch.cuda.is_available())
        # As services/inference sets its engine up; on a GPU dtype and KV cache are vLLM's own choice.
        arguments: dict[str, Any] = {"gpu_memory_utilization": asked["gpu_memory_share"]} if cuda else {}
        if not cuda:
            arguments = {"kv_cache_memory_bytes": asked["kv_cache_bytes"], "dtype": cpu_dtype()}
        self._engine: Any = LLMEngine.from_engine_args(
            EngineArgs(
                model=asked["folder"],
                max_model_len=asked["context_window"],
                max_num_seqs=asked["max_running"],
                enable_prefix_caching=True,
                scheduling_policy="priority",
                enforce_eager=not asked["compile"],
                disable_log_stats=True,
                seed=0,
                **arguments,
            )
        )
        self._tokenizer = AutoTokenizer.from_pretrained(asked["folder"], local_files_only=True)
        self._defaults = dict(self._engine.model_config.get_diff_sampling_param())
        self._count = 0
        self._run([self._chat("Hello")], 2)
        self.ready: Answer = {
            "start_seconds": time.time() - created,
            "dtype": str(self._engine.model_config.dtype).removeprefix("torch."),
            "layers": self._engine.apply_model(layers)[0],
            "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        }

    def speed(self, concurrency: int, output_tokens: int, waves: int) -> Answer:
        """``waves`` times ``concurrency`` sequences at once, each of exactly ``output_tokens``."""
        prompts = [self._chat(f"Write a long story about a town of {number} houses.") for number in range(concurrency)]
        self._run(prompts, 4, ignore_eos=True)  # Kernels are chosen when a batch of this size comes first.
        started, cpu, tokens = time.perf_counter(), time.process_time(), 0
        for _ in range(waves):
            tokens += sum(each["tokens"] for each in self._run(prompts, output_tokens, ignore_eos=True))
        return {
            "tokens": tokens,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
        }

    def answers(self, texts: Sequence[str], output_tokens: int) -> Answer:
        """All these questions at once, as the service would ask: greedy, until the model ends or the limit."""
        prompts = [self._chat(text) for text in texts]
        cpu = time.process_time()
        each = self._run(prompts, output_tokens)
        return {"answers": each, "cpu_seconds": time.process_time() - cpu}

    def prefix(self, prefix_tokens: int, prompts: int, seed: int) -> Answer:
        """Seconds to the first token of two prompts that share their start, for several starts that nobody saw."""
        source = random.Random(seed)  # noqa: S311  (any tokens will do)

        def some(count: int) -> list[int]:
            return [source.randrange(1000, 30_000) for _ in range(count)]

        self._run([some(prefix_tokens)], 1)
        pairs = []
        for _ in range(prompts):
            shared = some(prefix_tokens)
            first, second = (self._run([[*shared, *some(20)]], 1)[0] for _ in range(2))
            pairs.append([first["first_seconds"], second["first_seconds"], second["cached"]])
        return {"pairs": pairs}

    def score(self, text: str, tokens: int, window: int, stride: int) -> Answer:
        """(nats, tokens) by window over the first ``tokens`` of a text."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)[:tokens]
        scores = []
        for part in windows(len(ids), window, stride):
            read = ids[part.start : part.end]
            given = self._run([read], 1, prompt_logprobs=0)[0]["prompt_logprobs"]
            counted = range(part.scored - part.start, len(read))
            scores.append([-sum(given[at][read[at]].logprob for at in counted), len(counted)])
        return {"scores": scores}

    def resident(self) -> Answer:
        """Bytes in memory now."""
        return {"bytes": psutil.Process().memory_info().rss}

    def _chat(self, text: str) -> list[int]:
        message = [{"role": "user", "content": text}]
        said = self._tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        ids: list[int] = self._tokenizer.encode(said, add_special_tokens=False)
        return ids

    def _run(self, prompts: Sequence[list[int]], output_tokens: int, **sampling: Any) -> list[Answer]:
        """Give the engine all prompts and step it until they are done; what came of each."""
        params = self._params(
            **{**self._defaults, "temperature": 0.0, **sampling}, max_tokens=output_tokens, output_kind=self._delta
        )
        made: dict[str, Answer] = {}
        started = time.perf_counter()
        for ids in prompts:
            self._count += 1
            name = str(self._count)
            made[name] = {"first_seconds": 0.0, "tokens": 0, "chunks": 0, "cached": 0}
            self._engine.add_request(name, self._input(ids), params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                part, each = output.outputs[0], made[output.request_id]
                each["first_seconds"] = each["first_seconds"] or time.perf_counter() - started
                each["tokens"] += len(part.token_ids)
                each["chunks"] += bool(part.text)
                each["cached"] = output.num_cached_tokens or each["cached"]
                if output.prompt_logprobs:
                    each["prompt_logprobs"] = output.prompt_logprobs
        return list(made.values())


def layers(model: Any) -> dict[str, int]:
    """How the linear layers of a loaded model multiply, by the name of vLLM's method (and scheme), with their count."""
    counted: dict[str, int] = {}
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if method is not None and "Linear" in type(module).__name__:
            name = type(getattr(module, "scheme", None) or method).__name__
            counted[name] = counted.get(name, 0) + 1
    return counted


def cpu_dtype() -> str:
    """bfloat16 where the CPU multiplies it, else float32, as the service chooses."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return "float32" if capability in ("DEFAULT", "NO AVX", "AVX2") else "bfloat16"


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # Whatever else prints goes to the log.

    def say(answer: Answer) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    worker = Worker(json.loads(sys.stdin.readline()))
    say(worker.ready)
    known: Mapping[str, Callable[..., Answer]] = {
        "speed": worker.speed,
        "answers": worker.answers,
        "prefix": worker.prefix,
        "score": worker.score,
        "resident": worker.resident,
    }
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        say(known[asked.pop("op")](**asked))


if __name__ == "__main__":
    main()
