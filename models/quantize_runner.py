"""Calibrated quantization by llm-compressor: ``python quantize_runner.py JOB``, run by the interpreter that has it.

A file by itself: that environment has nothing of this project (models/quantize_env.py). JOB is a JSON file:

    source, target     folders; target is made
    scheme             int8 | int4
    recipe             int8: smoothquant-gptq | gptq; int4: awq-gptq | awq | gptq
    group              int4: weights that share a scale, by input columns
    texts              JSON lines: a string, {"text": ...}, or {"messages": [...]} which gets the chat template;
                       "": the model writes its own
    most_texts         texts that are used at most, from the first; its own: how many it writes; 0: the default
    most_tokens        tokens of a text that are used at most; its own: tokens of each; 0: the default
    prompts            a JSON list of what a user might say first, which some of its own texts answer
    seed               of its own texts

Writes progress to standard output, one line each, and the versions that did it as JSON on the last.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FILE_TEXTS = (256, 512)
_OWN_TEXTS = {"cpu": (64, 256), "cuda": (256, 512)}
"""How many texts, and of how many tokens. On a CPU the time to write a token grows with those before it."""
_AT_ONCE = 32
"""Texts written together: a step of a small model reads its weights once for all of them."""
_WARM, _WARM_TOKENS = 1.5, 10
"""The temperature of a text's first token, which falls to 1 over so many tokens: different beginnings, then the model's
own distribution. The schedule is that of self-calibration (Williams et al. 2024, arXiv 2410.17170)."""
_MARK = "@user speaks@"
_SAY_EVERY = 64
_AWQ_GRID, _AWQ_TEXTS = 10, 16
"""Scalings that AWQ tries for each layer (llm-compressor's default is 20), and texts that it compares them on: each
trial runs the layer on all of them, nearly all of the time AWQ takes. The means of the activations are of all texts."""


def main(job_file: str) -> int:
    """Do one job. Returns the exit status: 3 when a calibration text cannot be used."""
    job: dict[str, Any] = json.loads(Path(job_file).read_text("utf-8"))
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    if not torch.cuda.is_available():
        # AWQ pins the memory that it would copy to a GPU; without one there is nobody to pin for, and torch refuses.
        torch.Tensor.pin_memory = lambda self, *_, **__: self  # type: ignore[method-assign]
    set_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["source"], local_files_only=True)
    own = not job["texts"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    texts, length = _OWN_TEXTS[device] if own else _FILE_TEXTS
    texts, length = job["most_texts"] or texts, job["most_tokens"] or length
    rows: list[dict[str, list[int]]] = []
    if not own:
        try:
            rows = calibration(Path(job["texts"]), tokenizer, texts, length)
        except ValueError as error:
            print(f"calibration: {error}", file=sys.stderr)
            return 3
    # Typed as Any: the library's decorators hide what `to` takes.
    model: Any = AutoModelForCausalLM.from_pretrained(job["source"], dtype="auto", local_files_only=True)
    started = time.monotonic()
    if own:
        prompts = json.loads(Path(job["prompts"]).read_text("utf-8"))
        draw = random.Random(job["seed"])  # noqa: S311  (no secret depends on it)
        rows = own_texts(model.to(device), starts(prompts, tokenizer, texts, draw), length)
        model.to("cpu")  # llm-compressor moves layer by layer itself.
    tokens = sum(len(row["input_ids"]) for row in rows)
    written = f", written by the model in {time.monotonic() - started:.0f} s" if own else ""
    print(f"calibration: {len(rows)} texts, {tokens} tokens{written}", flush=True)
    started = time.monotonic()
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=modifiers(job["scheme"], job["recipe"], job["group"]),
        max_seq_length=length,
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
    )
    print(f"{job['recipe']}: {time.monotonic() - started:.0f} s", flush=True)
    model.save_pretrained(job["target"], save_compressed=True)
    tokenizer.save_pretrained(job["target"])
    names = ("llmcompressor", "compressed-tensors", "transformers", "torch")
    versions = {name: importlib.metadata.version(name) for name in names}
    print(json.dumps({"versions": versions, "calibration_texts": len(rows), "calibration_tokens": tokens}), flush=True)
    return 0


def calibration(path: Path, tokenizer: Any, most_texts: int, most_tokens: int) -> list[dict[str, list[int]]]:
    """Token ids of the first texts of a file. Raises ValueError naming the line that is wrong."""
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            item = {"text": item} if isinstance(item, str) else item
            if "messages" in item:
                text = tokenizer.apply_chat_template(item["messages"], tokenize=False)
            else:
                text = item["text"]
            ids = tokenizer(text, truncation=True, max_length=most_tokens)["input_ids"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} is no text, {{'text'}} or {{'messages'}}: {error!r}") from None
        if ids:
            rows.append(row(ids))
        if len(rows) == most_texts:
            break
    if not rows:
        raise ValueError("there is no text in it")
    return rows


def row(ids: list[int]) -> dict[str, list[int]]:
    """A text as llm-compressor takes it."""
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def starts(prompts: Sequence[str], tokenizer: Any, count: int, draw: random.Random) -> list[list[int]]:
    """What the model's own texts begin with, as token ids, the shapes in turn.

    A begin-of-text token and one drawn from the vocabulary (as LLM-QAT does, arXiv 2305.17888: a model that always
    begins alike writes few kinds of text); the chat template up to where a user would speak (as Magpie, arXiv
    2406.08464); a prompt, with the answer to be written. Without a chat template: the first, and the prompts as text.
    """
    begin = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]

    def free(_: int) -> list[int]:
        return [*begin, draw.randrange(tokenizer.vocab_size)]

    def asked(at: int) -> list[int]:
        message = [{"role": "user", "content": prompts[at % len(prompts)]}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        # The template writes the begin-of-text token itself where the model has one.
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def user(_: int) -> list[int]:
        text = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False)
        return list(tokenizer(text[: text.index(_MARK)], add_special_tokens=False)["input_ids"])

    def plain(at: int) -> list[int]:
        return [*begin, *tokenizer(prompts[at % len(prompts)], add_special_tokens=False)["input_ids"]]

    shapes = (free, user, asked) if tokenizer.chat_template else (free, plain)
    return [shapes[at % len(shapes)](at // len(shapes)) for at in range(count)]


def own_texts(model: Any, begun: Sequence[list[int]], length: int) -> list[dict[str, list[int]]]:
    """Texts that the model writes on from their beginnings, each of ``length`` tokens.

    Where it ends a text (a turn of a chat) it writes on after it, as the next turn or the next text would follow, so
    that every row is full. Those that begin alike long are written together: shorter ones are padded to the longest.
    Sampled with torch's generator: seed it before.
    """
    import torch
    from transformers import LogitsProcessorList

    rows: dict[int, dict[str, list[int]]] = {}
    order = sorted(range(len(begun)), key=lambda at: len(begun[at]))
    for first in range(0, len(begun), _AT_ONCE):
        places = order[first : first + _AT_ONCE]
        part = [begun[at][: length - 1] for at in places]
        longest = max(len(ids) for ids in part)
        padded = [[ids[0]] * (longest - len(ids)) + ids for ids in part]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in part]
        said = f"calibration: the model writes texts {first + 1} to {first + len(part)} of {len(begun)}"
        print(said, flush=True)
        with torch.inference_mode():
            written = model.generate(
                input_ids=torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                max_new_tokens=length - min(len(ids) for ids in part),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                eos_token_id=None,
                pad_token_id=part[0][0],
                logits_processor=LogitsProcessorList([cooling(longest, said)]),
            )
        for at, ids, text in zip(places, part, written.tolist(), strict=True):
            rows[at] = row(text[longest - len(ids) :][:length])
    return [rows[at] for at in range(len(begun))]


def cooling(start: int, said: str) -> Any:
    """Divides the logits by the temperature that a token's place has; says now and then how far it is."""

    def scores(ids: Any, logits: Any) -> Any:
        at = ids.shape[1] - start
        if at and at % _SAY_EVERY == 0:
            print(f"{said}: {at} tokens each", flush=True)
        return logits / temperature(at)

    return scores


def temperature(at: int) -> float:
    """Of a text's token, counted from where the model goes on."""
    return 1 + (_WARM - 1) * max(0.0, 1 - at / _WARM_TOKENS)


def modifiers(scheme: str, recipe: str, group: int) -> list[Any]:
    """llm-compressor's steps. The output head stays as it is (of small models it is the embedding too)."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier, SmoothQuantModifier

    ignore = ["lm_head"]
    if scheme == "int8":
        # 0.8 moves most of an activation's outliers into the weights: SmoothQuant (arXiv 2211.10438), section 5.
        smooth = [SmoothQuantModifier(smoothing_strength=0.8)] if recipe == "smoothquant-gptq" else []
        return [*smooth, GPTQModifier(targets=["Linear"], scheme="W8A8", ignore=ignore)]
    # Zero points and scales of least squared error: without either, perplexity on SmolLM2-135M is clearly higher.
    weights = QuantizationArgs(
        num_bits=4,
        type="int",
        strategy="group",
        group_size=group,
        symmetric=False,
        dynamic=False,
        observer="memoryless_mse",
    )
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}

    class FewTextsAWQModifier(AWQModifier):  # type: ignore[misc]  # llm-compressor's classes have no types here
        def _run_samples(self, module: Any) -> list[Any]:
            batches = itertools.islice(iter(self._parent_args_cache[module]), _AWQ_TEXTS)
            found = [module(**batch) for batch in batches]
            return [output[0] if isinstance(output, tuple) else output for output in found]

    rounding = QuantizationModifier if recipe == "awq" else GPTQModifier
    smooth = [FewTextsAWQModifier(n_grid=_AWQ_GRID)] if recipe.startswith("awq") else []
    return [*smooth, rounding(config_groups=groups, ignore=ignore)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
