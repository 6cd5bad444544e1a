"""The cache as a process with the real model: `python -m services.cache`, killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.testing import KEY, dial, write_callers
from services.cache.embedding import load_encoder

MODELS = Path(os.environ.get("TENTH_MODELS_DIR", ".models"))
MODEL, ENGLISH = MODELS / "multilingual-e5-small", MODELS / "all-MiniLM-L6-v2"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def process(tmp_path: Path, **extra: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    key = tmp_path / "key"
    key.write_bytes(KEY)
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "TENTH_LISTEN": address,
        "TENTH_DATA_DIR": str(tmp_path / "data"),
        "TENTH_CALLERS_FILE": str(write_callers(tmp_path / "callers.yaml")),
        "TENTH_IDENTITY_KEY_FILE": str(key),
        "TENTH_CACHE_MODELS_DIR": str(MODELS),
        **extra,
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cache", env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield child, address
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


def ask(text: str) -> chat_pb2.CompletionRequest:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])
    return chat_pb2.CompletionRequest(messages=[message])


def served_easily(tmp_path: Path) -> dict[str, str]:
    """Settings under which a question in nearly the same words is served, whatever the newest weights are."""
    file = tmp_path / "namespaces.yaml"
    file.write_text('tenants: {"*": {"*": {max_wrong_hits_per_thousand: 50}}}')
    return {"TENTH_CACHE_NAMESPACES_FILE": str(file)}


async def test_answers_survive_kill_minus_nine_and_paraphrases_hit_with_the_real_model(tmp_path: Path) -> None:
    rules = served_easily(tmp_path)
    question = "How do I reset my password?"
    completion = chat_pb2.Completion(
        message=chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text="Like so.")]),
        finish_reason=chat_pb2.FINISH_REASON_STOP,
        model="m",
        tier=chat_pb2.TIER_SIMPLE,
    )
    async with process(tmp_path, **rules) as (child, address), dial(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 60)
        stub: Any = cache_pb2_grpc.CacheServiceStub(channel)
        looked = await stub.LookupCompletion(cache_pb2.LookupCompletionRequest(request=ask(question)), timeout=30)
        assert looked.embedding.embedder == "multilingual-e5-small@2-int8"
        assert len(looked.embedding.values) == 384
        stored = await stub.StoreCompletion(
            cache_pb2.StoreCompletionRequest(
                lease_id=looked.lease.lease_id, request=ask(question), completion=completion
            ),
            timeout=30,
        )
        assert stored.entry_id
        child.send_signal(signal.SIGKILL)
        await child.wait()
    async with process(tmp_path, **rules) as (child, address), dial(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 60)
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        for text, kind in (
            (question, cache_pb2.HIT_KIND_EXACT),
            ("How can I reset my password?", cache_pb2.HIT_KIND_SEMANTIC),
        ):
            looked = await stub.LookupCompletion(cache_pb2.LookupCompletionRequest(request=ask(text)), timeout=30)
            assert looked.hit.kind == kind, looked
            assert looked.hit.completion == completion
        looked = await stub.LookupCompletion(
            cache_pb2.LookupCompletionRequest(request=ask("How do I not reset my password?")), timeout=30
        )
        assert looked.WhichOneof("outcome") == "lease"
        child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), 20) == 0


async def test_a_missing_model_folder_ends_the_start_naming_the_remedy(tmp_path: Path) -> None:
    async with process(tmp_path, TENTH_CACHE_MODELS_DIR=str(tmp_path / "none")) as (child, _):
        _, errors = await asyncio.wait_for(child.communicate(), 60)
        assert child.returncode not in (0, None)
        assert b"make models" in errors
        assert str(tmp_path / "none" / "multilingual-e5-small").encode() in errors


async def test_a_wrong_namespaces_file_ends_the_start_naming_variable_line_and_key(tmp_path: Path) -> None:
    file = tmp_path / "namespaces.yaml"
    file.write_text("tenants:\n  acme:\n    desk: {ttl: 3}")
    for path, said in ((file, f"{file}:3: tenants.acme.desk.ttl: unknown key"), (tmp_path / "none", "No such file")):
        async with process(tmp_path, TENTH_CACHE_NAMESPACES_FILE=str(path)) as (child, _):
            _, errors = await asyncio.wait_for(child.communicate(), 60)
            assert child.returncode not in (0, None)
            assert "setting TENTH_CACHE_NAMESPACES_FILE: " in errors.decode()
            assert said in errors.decode()


@pytest.mark.parametrize("folder", [MODEL, ENGLISH], ids=lambda folder: folder.name)
def test_vectors_are_those_of_sentence_transformers(folder: Path) -> None:
    from services.cache.onnx import OnnxEncoder
    from services.cache.sentence_transformers import SentenceTransformersEncoder

    texts = [
        "How do I reset my password?",
        "비밀번호를 어떻게 바꾸나요?",
        "x",
        "",
        "A text beyond the tokens that the model reads is cut. " * 60,
    ]
    reference = SentenceTransformersEncoder(folder)
    expected = reference.encode(texts)
    for precision, least in (("fp32", 0.99999), ("int8", 0.998)):
        encoder = load_encoder(MODELS, folder.name, precision)
        assert isinstance(encoder, OnnxEncoder), "make models exports the graphs"
        own = encoder.encode(texts)
        assert (own * expected).sum(axis=1).min() > least
        assert own.shape == (5, 384)
        assert encoder.precision == precision
        assert (encoder.dimension, encoder.max_tokens) == (reference.dimension, reference.max_tokens)
        assert encoder.reads_korean() is reference.reads_korean() is (folder == MODEL)
        for text in ("short", "word " * 249, "word " * 254, "word " * 505, "word " * 520):
            assert encoder.fits(text) is reference.fits(text), len(text)


def test_a_text_has_one_vector_whatever_it_is_embedded_with() -> None:
    encoder = load_encoder(MODELS, MODEL.name)
    alone = encoder.encode(["How do I reset my password?"])
    company = encoder.encode(["x", "How do I reset my password?", "A far longer text than the others. " * 10])
    assert np.array_equal(alone[0], company[1])


def test_korean_finds_korean_of_the_same_meaning() -> None:
    encoder = load_encoder(MODELS, MODEL.name)
    asked, same, other = encoder.encode(
        [
            "비밀번호를 잊어버렸어요. 어떻게 바꾸나요?",
            "암호가 기억나지 않는데 변경 방법을 알려 주세요.",
            "화면 밝기를 어떻게 바꾸나요?",
        ]
    )
    assert float(asked @ same) > float(asked @ other)


async def test_korean_has_no_semantic_stage_on_an_embedder_that_loses_hangul(tmp_path: Path) -> None:
    async with process(tmp_path, TENTH_CACHE_EMBEDDER=ENGLISH.name) as (child, address), dial(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 120)
        stub: Any = cache_pb2_grpc.CacheServiceStub(channel)
        request = cache_pb2.InspectLookupRequest(request=ask("비밀번호를 어떻게 바꾸나요?"))
        looked = await stub.InspectLookup(request, timeout=30)
        assert "cannot read this script" in str(looked)
        child.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(child.communicate(), 30)
        assert b"cannot read Hangul" in errors


def test_a_folder_without_the_int8_graph_is_served_in_fp32_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / ENGLISH.name
    folder.mkdir()
    for path in ENGLISH.iterdir():
        if path.name != "onnx":
            (folder / path.name).symlink_to(path.resolve())
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").symlink_to((ENGLISH / "onnx" / "model.onnx").resolve())
    assert load_encoder(tmp_path, ENGLISH.name, "int8").precision == "fp32"
