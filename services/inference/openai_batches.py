"""OpenAI's Files and Batches: one file up, one batch, two files down. Source: OpenAI's batch guide and API reference.

The ids of ours that find things again: a file is named after its submission, a batch has it in its metadata.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mesh.errors import TenthError
from services.inference import sse
from services.inference.backend import Answer
from services.inference.batch_items import (
    CANCELLED,
    EXPIRED,
    BatchItem,
    BatchStatus,
    ItemFailure,
    ItemResult,
    Submission,
    failure_of_status,
    not_ended,
    not_found,
    seconds_of,
)
from services.inference.batch_results import ResultLines
from services.inference.batch_upload import Frame, Limits, Upload
from services.inference.errors import Reason
from services.inference.openai import OpenAiBackend, OpenAiClient
from services.inference.policy import CountTokens, Generation, Meter
from services.inference.usage import as_count

log = logging.getLogger("tenth.inference.batches")

_ENDPOINT = "/v1/chat/completions"
_LIMITS = Limits(50_000, 200_000_000)
_KEY = "submission_id"
_SLACK_SECONDS = 300
"""The provider's clock may be that much behind ours."""
_FILE_SECONDS = 3 * 86_400
"""An input file that nobody deletes is gone after that; its batch has ended long before."""
_STATES = {"completed": "ended", "expired": "ended", "cancelled": "ended", "failed": "failed"}
_FULL = "token_limit_exceeded"
"""The code of a batch that failed because as many tokens wait as the account may have waiting."""
_CODES = {
    "batch_expired": EXPIRED,
    "batch_cancelled": CANCELLED,
    "request_timeout": ItemFailure(Reason.PROVIDER_TIMEOUT, "the provider gave up on this request", True),
}


class OpenAiBatches:
    """ProviderBatches of a model by OpenAI's interface."""

    limits = _LIMITS

    def __init__(
        self, client: OpenAiClient, backend: OpenAiBackend, count_tokens: CountTokens, directory: Path | None = None
    ) -> None:
        """``backend`` makes the bodies and reads the answers; uploads are put together in ``directory``."""
        self._client = client
        self._backend = backend
        self._count_tokens = count_tokens
        self._directory = directory
        self.provider_model = backend.provider_model

    def upload(self) -> Upload:
        """An empty JSONL file."""
        return Upload(self.limits, Frame(), self._directory)

    def add(self, upload: Upload, generation: Generation, item: BatchItem) -> None:
        """A line."""
        name = item.custom_id
        line = {"custom_id": name, "method": "POST", "url": _ENDPOINT, "body": self._backend.body(generation)}
        upload.add(
            name, json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
        )

    async def submit(self, submission: Submission, upload: Upload) -> tuple[BatchStatus, bool]:
        """Look for what an earlier call has left, upload the file, make the batch."""
        file_id = ""
        if not submission.first:
            found = await self._find_batch(submission)
            if found is not None:
                return _status(found), True
            file_id = await self._find_file(submission, upload)
        file_id = file_id or await self._send_file(submission, upload)
        body = {
            "input_file_id": file_id,
            "endpoint": _ENDPOINT,
            "completion_window": "24h",
            "metadata": {_KEY: submission.id},
        }
        try:
            batch = await self._client.fetch("post", "/batches", content=lambda: {"body": body}, careful=True)
        except TenthError as error:
            http_status = int(error.metadata.get("http_status", 0))
            if 400 <= http_status < 500 and http_status != 429:
                # Refused for good. After other failures the next call uses the file.
                await self._delete_file(file_id)
            raise
        status = _status(batch)
        # While it is being validated the provider has not counted yet.
        running = status.state == "running" and not status.items
        return (replace(status, items=upload.count) if running else status), False

    async def find(self, submission: Submission, most_items: int) -> BatchStatus | None:
        """By its metadata, however many items it has."""
        found = await self._find_batch(submission)
        return None if found is None else _status(found)

    async def status(self, batch_id: str) -> BatchStatus:
        """How far it is."""
        return _status(await self._batch(batch_id))

    async def results(self, batch_id: str) -> AsyncGenerator[ItemResult]:
        """The output file, then the error file, which has what expired as well."""
        batch = await self._batch(batch_id)
        state = _status(batch)
        if state.state == "running":
            raise not_ended(batch_id)
        lines = ResultLines(batch_id)
        answered = 0
        for key in ("output_file_id", "error_file_id"):
            file_id = batch.get(key)
            if isinstance(file_id, str) and file_id:
                path = f"/files/{quote(file_id, safe='')}/content"
                try:
                    async with self._client.call("get", path, self._client.bearer()) as (response, until):
                        async for item, line in lines.read(response, until):
                            yield ItemResult(item, self._outcome(item, line))
                except TenthError as error:
                    raise not_found(error, batch_id) from error
            if key == "output_file_id":
                answered = lines.count
        lines.check(answered, state.done)

    async def cancel(self, batch_id: str) -> BatchStatus:
        """Ask for it; a batch that is over refuses and stays as it is."""
        try:
            return _status(await self._client.fetch("post", f"/batches/{quote(batch_id, safe='')}/cancel"))
        except TenthError as error:
            if error.metadata.get("http_status") in ("400", "409"):
                return await self.status(batch_id)
            raise not_found(error, batch_id) from error

    def _outcome(self, item: BatchItem, line: Mapping[str, Any]) -> Answer | ItemFailure:
        response, error = line.get("response"), line.get("error")
        code = str(error.get("code") or "") if isinstance(error, dict) else ""
        if code in _CODES:
            return _CODES[code]
        if not isinstance(response, dict):
            said = str(error.get("message") or code) if isinstance(error, dict) else "the line has no response"
            return ItemFailure(Reason.PROVIDER_FAILED, said[:300], True)
        status, body = response.get("status_code"), response.get("body")
        if not isinstance(status, int) or not isinstance(body, dict):
            return ItemFailure(Reason.PROVIDER_GARBAGE, "the line's response is none", True)
        if status != 200:
            inner = body.get("error")
            told = inner if isinstance(inner, dict) else {}
            return failure_of_status(status, str(told.get("message") or ""), str(told.get("code") or ""))
        meter = Meter(item.estimated_input, self._count_tokens, reached=True)
        try:
            return self._backend.read(body, meter)
        except TenthError as failure:
            return ItemFailure(failure.reason, failure.message, True, meter.usage())

    async def _find_batch(self, submission: Submission) -> dict[str, Any] | None:
        async for batch in self._since("/batches", submission, {"limit": "100"}):
            metadata = batch.get("metadata")
            # One that failed has run nothing: it is made again.
            mine = isinstance(metadata, dict) and metadata.get(_KEY) == submission.id
            if mine and batch.get("status") != "failed":
                return batch
        return None

    async def _find_file(self, submission: Submission, upload: Upload) -> str:
        """The file that an earlier call has uploaded; one that is not the same is deleted."""
        query = {"purpose": "batch", "order": "desc", "limit": "100"}
        found = ""
        async for file in self._since("/files", submission, query):
            if file.get("filename") == _file_name(submission):
                if not found and as_count(file.get("bytes")) == upload.size:
                    found = str(file["id"])
                else:
                    await self._delete_file(str(file["id"]))
        return found

    async def _since(
        self, path: str, submission: Submission, query: Mapping[str, str]
    ) -> AsyncIterator[dict[str, Any]]:
        """A list's objects, newest first, back to when the submission was begun."""
        after: dict[str, str] = {}
        while True:
            page = await self._client.fetch("get", path, {**query, **after})
            data = page.get("data")
            objects = [each for each in data if isinstance(each, dict)] if isinstance(data, list) else []
            for each in objects:
                created = seconds_of(each.get("created_at"))
                if created is not None and created < submission.begun - _SLACK_SECONDS:
                    return
                yield each
            if not page.get("has_more") or not objects:
                return
            after = {"after": str(objects[-1].get("id"))}

    async def _send_file(self, submission: Submission, upload: Upload) -> str:
        form = {"purpose": "batch", "expires_after": {"anchor": "created_at", "seconds": _FILE_SECONDS}}

        def content() -> dict[str, Any]:
            file = (_file_name(submission), upload.rewound(), "application/jsonl")
            return {"body": form, "files": [("file", file)]}

        made = await self._client.fetch(
            "post", "/files", headers={"content-type": "multipart/form-data"}, content=content
        )
        return str(made.get("id") or "")

    async def _delete_file(self, file_id: str) -> None:
        try:
            await self._client.fetch("delete", f"/files/{quote(file_id, safe='')}")
        except TenthError as error:
            log.warning("the file %s stays at the provider until it expires: %s", file_id, error)

    async def _batch(self, batch_id: str) -> dict[str, Any]:
        try:
            return await self._client.fetch("get", f"/batches/{quote(batch_id, safe='')}")
        except TenthError as error:
            raise not_found(error, batch_id) from error


def _file_name(submission: Submission) -> str:
    return f"tenth-{submission.id}.jsonl"


def _status(batch: Mapping[str, Any]) -> BatchStatus:
    counts = batch.get("request_counts")
    counted = counts if isinstance(counts, dict) else {}
    name = batch.get("id")
    if not isinstance(name, str) or not name:
        raise sse.garbage("the batch has no id")
    return BatchStatus(
        name,
        _STATES.get(str(batch.get("status")), "running"),
        as_count(counted.get("total")),
        as_count(counted.get("completed")),
        as_count(counted.get("failed")),
        seconds_of(batch.get("expires_at")),
        *_errors(batch),
    )


def _errors(batch: Mapping[str, Any]) -> tuple[str, bool]:
    """What was wrong with the input, the first of it, and whether only more waits there than may."""
    errors = batch.get("errors")
    listed = errors.get("data") if isinstance(errors, dict) else None
    data = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    said = []
    for each in data[:3]:
        where = f"line {each['line']}: " if each.get("line") else ""
        said.append(f"{where}{each.get('message') or each.get('code')}"[:300])
    more = len(data) - len(said)
    full = bool(data) and all(each.get("code") == _FULL for each in data)
    return "; ".join(said) + (f"; and {more} more" if more else ""), full
