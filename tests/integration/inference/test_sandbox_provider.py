"""The sandbox as its own process: its wire format, its books, its failures."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "sandbox.provider", "--listen", address, "--instant", "--words", "5"]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                call(f"http://{address}/v1/models")
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://{address}"
    finally:
        child.terminate()
        child.wait(10)


def call(url: str, body: object = None, **headers: str) -> tuple[int, dict[str, str], str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, dict(response.headers), response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read().decode()


def chat(url: str, model: str = "gpt", **changes: Any) -> tuple[int, dict[str, str], str]:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **changes}
    return call(f"{url}/v1/chat/completions", body, x_request_id="r1/1")


def test_an_answer_says_what_it_is_and_repeats_itself(url: str) -> None:
    status, headers, text = chat(url)
    answer = json.loads(text)
    assert status == 200
    assert "not a real provider" in headers["x-tenth-sandbox"]
    assert answer["system_fingerprint"] == "tenth-sandbox"
    assert len(answer["choices"][0]["message"]["content"].split()) == 5
    assert answer["usage"]["prompt_tokens"] == 7
    assert json.loads(chat(url)[2])["choices"] == answer["choices"]
    assert json.loads(chat(url, max_tokens=2)[2])["choices"][0]["finish_reason"] == "length"


def test_a_stream_ends_with_its_usage_and_the_books_agree(url: str) -> None:
    _, headers, text = chat(url, "gpt-stream", stream=True, stream_options={"include_usage": True})
    assert headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    usage = json.loads(lines[-2])["usage"]
    assert json.loads(lines[-3])["choices"][0]["finish_reason"] == "stop"
    books = json.loads(call(f"{url}/sandbox/stats")[2])
    assert books["models"]["gpt-stream"] == {
        "requests": 1,
        "cut_off": 0,
        "failures": 0,
        "input_tokens": usage["prompt_tokens"],
        "cached_input_tokens": 0,
        "output_tokens": usage["completion_tokens"],
    }
    assert "r1/1" in books["request_ids"]


@pytest.mark.parametrize(
    ("mode", "status"), [("429", 429), ("500", 500), ("503", 503), ("garbage", 200), ("half_stream", 200)]
)
def test_it_fails_on_demand_and_then_no_more(url: str, mode: str, status: int) -> None:
    model = f"m-{mode}"
    assert call(f"{url}/sandbox/fail", {"mode": mode, "count": 1, "model": model})[0] == 200
    assert chat(url, "another")[0] == 200
    got, headers, text = chat(url, model, stream=True)
    assert got == status
    assert "[DONE]" not in text
    assert ("retry-after" in headers) is (mode == "429")
    assert "[DONE]" in chat(url, model, stream=True)[2]


@pytest.mark.parametrize("body", [[], {"model": "m"}, {"model": "m", "messages": []}, {"messages": [{}]}])
def test_what_is_no_request_is_refused(url: str, body: object) -> None:
    status, _, text = call(f"{url}/v1/chat/completions", body)
    assert (status, json.loads(text)["error"]["type"]) == (400, "invalid_request_error")


def test_an_unknown_failure_is_refused(url: str) -> None:
    assert call(f"{url}/sandbox/fail", {"mode": "explode"})[0] == 400


def test_it_says_what_it_is_told_to_once_each(url: str) -> None:
    plain = json.loads(chat(url, "judge")[2])["choices"][0]["message"]["content"]
    assert call(f"{url}/sandbox/say", {"model": "judge", "texts": ["B", "A"]})[0] == 200
    said = [json.loads(chat(url, name)[2]) for name in ("judge", "another", "judge", "judge")]
    texts = [answer["choices"][0]["message"]["content"] for answer in said]
    assert texts == ["B", plain, "A", plain]
    assert said[0]["usage"]["completion_tokens"] == 1
    assert call(f"{url}/sandbox/say", {"texts": ["A"]})[0] == 400
