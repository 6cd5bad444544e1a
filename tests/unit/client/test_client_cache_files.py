"""Files of ``tenth cache export`` and ``import``: what is read, what is refused by line and field, what is written."""

from __future__ import annotations

import gzip
import io
import json
import stat
import sys
from pathlib import Path

import pytest
from tenth.cache.v1 import cache_pb2
from tenth.type.v1 import chat_pb2

from formats.openai import FormatError
from tenth_client.cache_files import entry_from_json, entry_to_json, read_items, writing
from tenth_client.files import spooled


def entry(number: int = 1) -> cache_pb2.CacheEntry:
    made = cache_pb2.CacheEntry(
        entry_id=f"id{number}",
        exact_key="ab" * 32,
        scope="cd" * 32,
        namespace="default",
        user_id="사용자",
        question="환불은 언제 되나요?",
        turn="환불은 언제 되나요?",
        embedding=chat_pb2.Embedding(values=[0.1, -1e-30, 3.4e38], embedder="e5@1"),
        provenance=cache_pb2.Provenance(model="m", tier=2, price_book_version=2**40, hit_count=3, shared=True),
        document_ids=["d"],
        tags=["4:team=a"],
    )
    made.completion.message.parts.add(text="7일 안에 됩니다.\n감사합니다.")
    made.completion.usage.output_token_count = 9
    made.create_time.FromNanoseconds(1_700_000_000_123_456_789)
    return made


def write(path: Path, *lines: object) -> str:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return str(path)


def pairs(path: str, **options: object) -> list[cache_pb2.Pair]:
    return [item.message.pair for item in read_items(path, **options)]  # type: ignore[arg-type]  # Options by name.


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
def test_an_export_is_read_back_as_it_was(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    bare = cache_pb2.CacheEntry(exact_key="ef" * 32, namespace="n")
    with writing(str(path)) as writer:
        writer.write(entry())
        writer.write(bare)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "it holds answers and users"
    items = list(read_items(str(path)))
    assert [item.line for item in items] == [1, 2]
    assert [item.message.entry for item in items] == [entry(), bare]
    raw = gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()
    assert "환불은 언제 되나요?" in raw.decode(), "a person can read it"


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("before")

    def broken() -> None:
        with writing(str(path)) as writer:
            writer.write(entry())
            raise ConnectionError

    with pytest.raises(ConnectionError):
        broken()
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["all.jsonl"]
    for wrong in (tmp_path, tmp_path / "none" / "x.jsonl"):
        with pytest.raises(OSError, match="director"), writing(str(wrong)):
            pass


def test_questions_with_answers_of_ones_own(tmp_path: Path) -> None:
    path = write(
        tmp_path / "faq.jsonl",
        {"question": "환불되나요?", "answer": "네."},
        {
            "question": "Open on Sundays?",
            "answer": "No.",
            "namespace": "shop",
            "system": "Be brief.",
            "model": "mini",
            "tier": "simple",
            "output_tokens": 4,
            "tags": {"source": "faq"},
        },
        {"request": {"messages": [{"role": "user", "content": "hi"}], "temperature": 0}, "answer": "Hello."},
    )
    first, second, third = pairs(path, namespace="help")
    assert first.request.namespace == "help"
    assert [(message.role, message.parts[0].text) for message in first.request.messages] == [
        (chat_pb2.ROLE_USER, "환불되나요?")
    ]
    assert first.completion.finish_reason == chat_pb2.FINISH_REASON_STOP
    assert (first.completion.model, first.completion.tier) == ("", chat_pb2.TIER_COMPLEX)
    assert second.request.namespace == "shop"
    assert [message.role for message in second.request.messages] == [chat_pb2.ROLE_SYSTEM, chat_pb2.ROLE_USER]
    assert dict(second.request.tags) == {"source": "faq"}
    assert (second.completion.model, second.completion.tier) == ("mini", chat_pb2.TIER_SIMPLE)
    assert second.completion.usage.output_token_count == 4
    assert third.request.sampling.temperature == 0
    assert third.request.sampling.HasField("temperature")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_csv_of_spreadsheets(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "faq.csv"
    text = 'Question,answer,tags\r\n"환불,\r\n되나요?",네.,source=faq; team=도움\r\n\r\n,,\r\n배송은?,내일.,\r\n'
    path.write_bytes(text.encode(encoding))
    used = "cp949" if encoding == "cp949" else "utf-8"
    items = list(read_items(str(path), encoding=used))
    assert [item.line for item in items] == [2, 6], "a row is named by its first line"
    assert items[0].message.pair.request.messages[0].parts[0].text == "환불,\r\n되나요?"
    assert dict(items[0].message.pair.request.tags) == {"source": "faq", "team": "도움"}
    assert not items[1].message.pair.request.tags


def test_renewed_entries_have_no_times(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"entry": entry_to_json(entry())})
    (item,) = read_items(path, renew=True)
    assert not item.message.entry.HasField("create_time")
    assert not item.message.entry.provenance.HasField("expire_time")
    assert item.message.entry.embedding == entry().embedding


GOOD = {"question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"answer": "a"}, "question"),
        ({"question": "q"}, "answer"),
        ({"question": " ", "answer": "a"}, "question"),
        ({**GOOD, "answer": 3}, "answer"),
        ({**GOOD, "request": {}}, "question"),
        ({**GOOD, "anwser": "b"}, "anwser"),
        ({**GOOD, "tier": "huge"}, "tier"),
        ({**GOOD, "tags": {"a": 1}}, "tags"),
        ({**GOOD, "tags": "a"}, "tags"),
        ({**GOOD, "output_tokens": -1}, "output_tokens"),
        ({**GOOD, "output_tokens": True}, "output_tokens"),
        ({"request": {"messages": []}, "answer": "a"}, "request.messages"),
        ({"request": {"messages": [{"role": "x"}]}, "answer": "a"}, "request.messages[0].role"),
        ({"request": {"messages": [{"role": "user", "content": "q"}]}, "answer": "a", "system": "s"}, "system"),
        ({"entry": 3}, "entry"),
        ({"entry": {"exact_key": 3}}, "entry"),
        ({"entry": {}, "question": "q"}, "entry"),
        ({"entry": {"embedding": {"float32": "AAAA"}}}, "entry.embedding"),
        ({"entry": {"embedding": {"embedder": "e", "float32": "AAA"}}}, "entry.embedding.float32"),
        ({"entry": {"embedding": {"embedder": "e", "float32": "AAAAAAAA"}}}, "entry.embedding.float32"),
    ],
)
def test_what_is_wrong_is_named_by_line_and_field(tmp_path: Path, line: object, field: str) -> None:
    path = write(tmp_path / "x.jsonl", GOOD, line)
    with pytest.raises(FormatError) as caught:
        list(read_items(path))
    assert (caught.value.line, caught.value.field) == (2, field)


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("x.jsonl", b'{"question": "q", "answer": "a"}\n\n{"question"', 3, "not JSON"),
        ("x.jsonl", b'{"question": "\xb9\xe6", "answer": "a"}\n', 1, "not UTF-8"),
        ("x.jsonl", b'{"question": "\\ud800", "answer": "a"}\n', 1, "surrogate"),
        ("x.csv", "question,answer\n방,a\n".encode("cp949"), 1, "cp949"),
        ("x.csv", b"question,answr\nq,a\n", 1, "'answr' is unknown"),
        ("x.csv", b"question\nq\n", 1, "question and answer are needed"),
        ("x.csv", b"question,answer\nq,a\nq,a,b\n", 3, "3 cells under 2 columns"),
        ("x.csv", b'question,answer\n"q,a\n', 2, "not CSV"),
        ("x.csv", b"", 1, "question and answer are needed"),
        ("x.jsonl.gz", gzip.compress(b'{"question": "q", "answer": "a"}\n' * 50)[:-20], 0, "not whole"),
    ],
)
def test_files_that_are_damaged(tmp_path: Path, name: str, content: bytes, line: int, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        list(read_items(str(path)))
    assert caught.value.line == line


def test_standard_input_can_be_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Standard:
        buffer = io.BytesIO(gzip.compress(json.dumps(GOOD).encode()))

    monkeypatch.setattr(sys, "stdin", Standard())
    with spooled("-") as path:
        assert len(pairs(path)) == len(pairs(path)) == 1
    assert not Path(path).exists()
    with pytest.raises(FileNotFoundError, match="no file"), spooled("nowhere.jsonl"):
        pass


def test_a_vector_keeps_every_bit() -> None:
    assert entry_from_json(json.loads(json.dumps(entry_to_json(entry())))) == entry()
