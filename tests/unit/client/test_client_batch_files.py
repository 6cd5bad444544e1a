"""Files of ``tenth batch``: pieces, the frame around plain bodies, ids, windows, OpenAI's output lines."""

from __future__ import annotations

import gzip
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenth.batch.v1 import batch_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2, usage_pb2

from formats.openai import FormatError, read_jsonl
from formats.openai_answers import batch_line
from tenth_client import batch_files
from tenth_client.batch_files import content_id, pieces, result_line, tags_of, uuid_of, window_seconds


def body(text: str) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}


def frame(text: str, custom_id: str) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body(text)}


def written(path: Path, lines: list[dict[str, Any] | str]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", "utf-8")
    return path


def test_the_batch_format_is_sent_as_it_stands(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", ["", frame("하나", "a"), "not json", frame("둘", "b")])
    assert b"".join(pieces(path)) == path.read_bytes()


def test_a_large_file_comes_in_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_files, "PIECE_BYTES", 100)
    for name, lines in (("frames", [frame("x" * 90, str(n)) for n in range(40)]), ("plain", [body("x" * 90)] * 40)):
        path = written(tmp_path / name, [*lines])
        found = list(pieces(path))
        assert len(found) > 20
        assert max(map(len, found)) < 400, "a piece and at most one line"
        assert len(read_jsonl(b"".join(found))) == 40


def test_plain_bodies_get_a_frame_and_keep_their_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", ["", body("하나"), "", body('"둘"'), "  {broken"])
    sent = b"".join(pieces(path))
    lines = sent.split(b"\n")
    assert [json.loads(lines[number])["custom_id"] for number in (1, 3)] == ["line-2", "line-4"]
    read = read_jsonl(b"\n".join(lines[:4]))
    assert [(line.number, line.custom_id, line.request.messages[0].parts[0].text) for line in read] == [
        (2, "line-2", "하나"),
        (4, "line-4", '"둘"'),
    ]
    with pytest.raises(FormatError, match="line 5"):
        read_jsonl(sent)


def test_a_first_line_longer_than_a_piece_is_told_by_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_files, "PIECE_BYTES", 200)
    long = "y" * 500
    plain = written(tmp_path / "plain", [{"messages": [{"role": "user", "content": long}]}])
    assert b'"custom_id":"line-1"' in b"".join(pieces(plain))
    framed = written(tmp_path / "framed", [frame(long, "a")])
    assert b"line-1" not in b"".join(pieces(framed))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=20))
def test_every_plain_body_arrives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = written(tmp_path_factory.mktemp("bodies") / "in.jsonl", [body(text or "-") for text in texts])
    read = read_jsonl(b"".join(pieces(path)))
    assert [line.request.messages[0].parts[0].text for line in read] == [text or "-" for text in texts]


def test_gzip_is_unpacked_and_a_damaged_one_named(tmp_path: Path) -> None:
    plain = written(tmp_path / "in.jsonl", [frame("a", "1"), frame("b", "2")])
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert b"".join(pieces(packed)) == plain.read_bytes()
    packed.write_bytes(gzip.compress(plain.read_bytes())[:-12])
    with pytest.raises(FormatError, match=r"in\.jsonl\.gz: not a whole gzip file"):
        list(pieces(packed))


def test_an_empty_file_is_no_piece(tmp_path: Path) -> None:
    assert list(pieces(written(tmp_path / "in.jsonl", []))) == [b"\n"]
    (tmp_path / "nothing").touch()
    assert list(pieces(tmp_path / "nothing")) == []


def test_the_same_content_has_the_same_id(tmp_path: Path) -> None:
    one, two = written(tmp_path / "one", [frame("a", "1")]), written(tmp_path / "two", [frame("a", "1")])
    assert content_id(one) == content_id(two)
    assert str(uuid.UUID(content_id(one))) == content_id(one)
    assert content_id(one) != content_id(written(tmp_path / "three", [frame("a", "2")]))


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("90m", 5400), ("24h", 86_400), ("1.5h", 5400), ("7d", 604_800)]
)
def test_windows(text: str, seconds: float) -> None:
    assert window_seconds(text, "--deadline") == seconds


@pytest.mark.parametrize("text", ["", "24", "59s", "8d", "-1h", "soon", "1h30m", "nan"])
def test_windows_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="--deadline"):
        window_seconds(text, "--deadline")


def test_labels_and_ids() -> None:
    assert tags_of(["team=search", "note=a=b", "empty="], "--tag") == {"team": "search", "note": "a=b", "empty": ""}
    for wrong in ("team", "=x"):
        with pytest.raises(ValueError, match="--tag"):
            tags_of([wrong], "--tag")
    assert uuid_of("{12345678-1234-5678-1234-567812345678}", "--request-id") == "12345678-1234-5678-1234-567812345678"
    with pytest.raises(ValueError, match="--request-id"):
        uuid_of("mine", "--request-id")


def answered() -> batch_pb2.StreamBatchResultsResponse:
    receipt = receipt_pb2.Receipt(
        facts=receipt_pb2.ReceiptFacts(
            request_id="12345678-1234-5678-1234-567812345678", baseline_model="opus", batch=True
        ),
        baseline_nano_usd=1000,
        savings=[receipt_pb2.LayerSaving(layer=receipt_pb2.LAYER_BATCH, saving_nano_usd=500)],
        overhead_nano_usd=1,
        actual_nano_usd=501,
    )
    receipt.facts.end_time.FromSeconds(1_800_000_000)
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text="안녕")])
    completion = chat_pb2.Completion(
        message=message,
        finish_reason=chat_pb2.FINISH_REASON_LENGTH,
        model="mini",
        usage=usage_pb2.Usage(
            input_token_count=20, cached_input_token_count=8, output_token_count=7, reasoning_output_token_count=3
        ),
        logprobs=[chat_pb2.TokenLogprob(token="안", logprob=-0.5)],
    )
    return batch_pb2.StreamBatchResultsResponse(custom_id="q1", completion=completion, receipt=receipt)


def test_an_answer_as_openai_writes_it() -> None:
    line = json.loads(result_line(answered(), "openai"))
    assert line == {
        "id": "batch_req_12345678123456781234567812345678",
        "custom_id": "q1",
        "response": {
            "status_code": 200,
            "request_id": "12345678-1234-5678-1234-567812345678",
            "body": {
                "id": "chatcmpl-12345678-1234-5678-1234-567812345678",
                "object": "chat.completion",
                "created": 1_800_000_000,
                "model": "mini",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "안녕", "refusal": None},
                        "logprobs": {
                            "content": [
                                {"token": "안", "logprob": -0.5, "bytes": [236, 149, 136], "top_logprobs": []},
                            ],
                            "refusal": None,
                        },
                        "finish_reason": "length",
                    }
                ],
                "usage": {
                    "prompt_tokens": 20,
                    "completion_tokens": 7,
                    "total_tokens": 27,
                    "prompt_tokens_details": {"cached_tokens": 8},
                    "completion_tokens_details": {"reasoning_tokens": 3},
                },
            },
        },
        "error": None,
        "tenth": {
            "request_id": "12345678-1234-5678-1234-567812345678",
            "baseline_model": "opus",
            "cache_hit": False,
            "batch": True,
            "baseline_nano_usd": 1000,
            "savings_nano_usd": {"batch": 500},
            "overhead_nano_usd": 1,
            "actual_nano_usd": 501,
        },
    }


def test_openais_own_types_read_it() -> None:
    openai = pytest.importorskip("openai.types.chat")
    read = openai.ChatCompletion.model_validate(batch_line(answered())["response"]["body"], strict=True)
    assert read.choices[0].message.content == "안녕"
    assert read.usage.completion_tokens_details.reasoning_tokens == 3


def test_calls_of_tools_without_a_word() -> None:
    result = answered()
    result.completion.message.ClearField("parts")
    result.completion.message.tool_calls.add(id="c1", name="look", arguments_json='{"q":1}')
    result.completion.finish_reason = chat_pb2.FINISH_REASON_TOOL_CALLS
    choice = batch_line(result)["response"]["body"]["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"q":1}'}}
    assert choice["message"]["tool_calls"] == [call]


def test_an_error_has_no_response() -> None:
    result = batch_pb2.StreamBatchResultsResponse(
        custom_id="q2", error_reason="BUDGET_EXCEEDED", error_message="no money"
    )
    assert batch_line(result) == {
        "id": "batch_req_q2",
        "custom_id": "q2",
        "response": None,
        "error": {"code": "BUDGET_EXCEEDED", "message": "no money"},
    }
    assert json.loads(result_line(result, "full")) == {
        "custom_id": "q2",
        "error_reason": "BUDGET_EXCEEDED",
        "error_message": "no money",
    }
