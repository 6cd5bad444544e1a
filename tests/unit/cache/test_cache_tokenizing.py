"""The small Unigram tokenizer against the library's, on one vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from services.cache.folder import KOREAN_PROBE, loses_korean, max_tokens, prompt
from services.cache.tokenizing import LibraryTokenizer, TextTokenizer, load_tokenizer
from services.cache.unigram import UnigramTokenizer

PIECES = [
    ("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.1), ("a", -4.2), ("b", -4.7),
    ("ab", -5.3), ("\u2581ab", -6.1), ("\u2581a", -4.9), ("aba", -7.7), ("가", -5.1), ("나다", -6.6), ("나", -6.3),
    ("다", -6.4), ("\u2581가나", -8.8), ("?", -3.7), ("x", -6.0), ("xx", -8.3), ("<mask>", 0.0),
]  # fmt: skip


def write(path: Path) -> Path:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    made = Tokenizer(models.Unigram(PIECES, 3, byte_fallback=False))
    steps = [normalizers.Replace("~", "?"), normalizers.Nmt(), normalizers.NFKC()]
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    made.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[UnigramTokenizer, LibraryTokenizer]:
    path = write(tmp_path_factory.mktemp("unigram") / "tokenizer.json")
    own = load_tokenizer(path.parent)
    assert isinstance(own, UnigramTokenizer)
    return own, LibraryTokenizer(path)


@given(some.text(some.sampled_from("aabbxx가나다??~  \n\t\u3000\uff41é😀\u200b"), max_size=40), some.integers(3, 12))
def test_the_same_tokens_as_the_library(both: tuple[UnigramTokenizer, LibraryTokenizer], text: str, limit: int) -> None:
    own, library = both
    assert own.encode(text, 500) == library.encode(text, 500)
    assert own.encode(text, limit) == library.encode(text, limit)
    assert (own.count(text, limit) <= limit) is (library.count(text, limit) <= limit)


def test_a_special_token_written_out_is_text(both: tuple[UnigramTokenizer, LibraryTokenizer]) -> None:
    ids = both[0].encode("a</s>b", 20)
    assert ids.count(2) == 1
    assert ids[-1] == 2


def test_a_tokenizer_with_other_steps_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "tokenizer.json")
    content = json.loads(path.read_text("utf-8"))
    content["pre_tokenizer"]["prepend_scheme"] = "never"
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match="other steps"):
        UnigramTokenizer(path)


def test_lost_hangul_is_seen(both: tuple[TextTokenizer, TextTokenizer]) -> None:
    assert loses_korean(both[0].pieces(KOREAN_PROBE)), "this vocabulary has three syllables"
    assert loses_korean(["\u1100", "\u1161"])
    assert not loses_korean(["\u2581결제", "취소는"])


def test_prompt_and_length_are_the_folders_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 512}')
    assert prompt(tmp_path) == ""
    assert max_tokens(tmp_path) == 512
    own = tmp_path / "config_sentence_transformers.json"
    own.write_text('{"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "query"}')
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    assert prompt(tmp_path) == "query: "
    assert max_tokens(tmp_path) == 256
    own.write_text('{"prompts": {"query": "query: "}, "default_prompt_name": null}')
    assert prompt(tmp_path) == ""
