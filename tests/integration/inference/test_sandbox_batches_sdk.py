"""The sandbox's batch interfaces through the providers' SDKs as users call them: typed models, paging, streams."""

from __future__ import annotations

import asyncio
import json

import anthropic
import httpx2
import openai
import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from anthropic.types.messages.batch_create_params import Request

from sandbox.provider import Provider
from sandbox.writers import InstantWriter
from tests.integration.inference.batch_mesh import serving_sandbox


def jsonl(count: int) -> bytes:
    body = {"model": "gpt-x", "messages": [{"role": "user", "content": "Hi"}]}
    lines = [
        {"custom_id": f"i{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


async def test_openais_files_and_batches() -> None:
    sandbox = Provider(InstantWriter(0, 5), 48)
    async with serving_sandbox(sandbox) as url, openai.AsyncOpenAI(base_url=url, api_key="k") as client:
        file = await client.files.create(file=("in.jsonl", jsonl(3)), purpose="batch")
        assert (file.bytes, file.purpose, file.filename) == (len(jsonl(3)), "batch", "in.jsonl")
        assert (await client.files.retrieve(file.id)).id == file.id
        assert (await client.files.content(file.id)).content == jsonl(3)
        batches = [
            await client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"number": str(number)},
            )
            for number in range(5)
        ]
        assert batches[0].status == "validating"
        listed = [batch.id async for batch in client.batches.list(limit=2)]
        assert listed == [batch.id for batch in reversed(batches)]
        async with asyncio.timeout(10):
            while True:
                batch = await client.batches.retrieve(batches[3].id)
                if batch.status == "completed":
                    break
        assert batch.metadata == {"number": "3"}
        assert batch.request_counts is not None
        assert (batch.request_counts.total, batch.request_counts.completed) == (3, 3)
        assert batch.output_file_id is not None
        assert batch.error_file_id is None
        output = (await client.files.content(batch.output_file_id)).content.splitlines()
        answers = {line["custom_id"]: line["response"] for line in map(json.loads, output)}
        online = await client.chat.completions.create(model="gpt-x", messages=[{"role": "user", "content": "Hi"}])
        assert answers.keys() == {"i0", "i1", "i2"}
        assert answers["i1"]["status_code"] == 200
        said = answers["i1"]["body"]["choices"][0]["message"]["content"]
        assert said == online.choices[0].message.content, "the same responder answers"
        assert [each.id async for each in client.files.list(purpose="batch")] == [file.id]
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)
        with pytest.raises(openai.ConflictError):
            await client.batches.cancel(batch.id)


async def test_anthropics_message_batches() -> None:
    sandbox = Provider(InstantWriter(0, 5), 48)
    async with (
        serving_sandbox(sandbox) as url,
        anthropic.AsyncAnthropic(base_url=url.removesuffix("/v1"), api_key="k") as client,
    ):
        params = MessageCreateParamsNonStreaming(
            model="claude-x", max_tokens=9, messages=[{"role": "user", "content": "Hi"}]
        )
        requests = [Request(custom_id=f"i{number}", params=params) for number in range(3)]
        batches = [await client.messages.batches.create(requests=requests) for _ in range(5)]
        assert batches[0].processing_status == "in_progress"
        assert batches[0].request_counts.processing == 3
        listed = [batch.id async for batch in client.messages.batches.list(limit=2)]
        assert listed == [batch.id for batch in reversed(batches)]
        async with asyncio.timeout(10):
            while True:
                batch = await client.messages.batches.retrieve(batches[0].id)
                if batch.processing_status == "ended":
                    break
        assert (batch.request_counts.succeeded, batch.request_counts.processing) == (3, 0)
        assert batch.results_url is not None
        results = [result async for result in await client.messages.batches.results(batch.id)]
        assert {result.custom_id for result in results} == {"i0", "i1", "i2"}
        assert results[0].result.type == "succeeded"
        assert results[0].result.message.content[0].type == "text"
        assert (await client.messages.batches.cancel(batch.id)).processing_status == "ended"
        assert (await client.messages.batches.delete(batch.id)).id == batch.id
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.batches.retrieve(batch.id)
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.batches.create(requests=[*requests, requests[0]])


async def test_the_plan_and_the_books_over_http() -> None:
    sandbox = Provider(InstantWriter(0, 5), 48)
    async with serving_sandbox(sandbox) as url, httpx2.AsyncClient(base_url=url.removesuffix("/v1")) as client:
        assert (await client.post("/sandbox/batches", json={"no_such": 1})).status_code == 400
        assert (await client.post("/sandbox/batches", json={"refuse_creates": 1})).status_code == 200
        params = {"model": "c", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
        body = {"requests": [{"custom_id": "a", "params": params}]}
        assert (await client.post("/v1/messages/batches", json=body)).status_code == 429
        made = await client.post("/v1/messages/batches", json=body)
        assert made.status_code == 200
        assert made.headers["x-tenth-sandbox"]
        await sandbox.message_batches.batches[made.json()["id"]].task
        assert (await client.get("/sandbox/batches")).json() == {"runs": {"a": 1}}
