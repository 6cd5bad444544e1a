"""Anthropic's Message Batches: one request up, one file of results down. Source: Anthropic's API reference.

A batch there has no name and no metadata, and the API has no idempotency key. Whether a batch that runs is the one
that an earlier, broken call made cannot be told; once it has ended its results' custom ids tell. So a submission that
may have been made before is made again only when every batch of as many requests since then is known to be another's.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mesh.errors import Code, TenthError
from services.inference import sse
from services.inference.anthropic import AnthropicBackend, AnthropicClient
from services.inference.backend import Answer
from services.inference.batch_items import (
    CANCELLED,
    EXPIRED,
    BatchItem,
    BatchStatus,
    ItemFailure,
    ItemResult,
    KnownBatches,
    Submission,
    failure_of_status,
    not_ended,
    not_found,
    seconds_of,
    tag_of,
)
from services.inference.batch_results import ResultLines
from services.inference.batch_upload import Frame, Limits, Upload
from services.inference.errors import Reason
from services.inference.policy import CountTokens, Generation, Meter
from services.inference.usage import as_count

_PATH = "/messages/batches"
_LIMITS = Limits(100_000, 256_000_000)
_SLACK_SECONDS = 300
"""The provider's clock may be that much behind ours."""
_ASK_AGAIN_SECONDS = 60.0
_ERRORS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 408,
    "overloaded_error": 529,
}
"""The HTTP status of each type of error; any other is the API's own fault, 500."""


class AnthropicBatches:
    """ProviderBatches of a model by Anthropic's interface."""

    limits = _LIMITS

    def __init__(
        self,
        client: AnthropicClient,
        backend: AnthropicBackend,
        count_tokens: CountTokens,
        known: KnownBatches,
        directory: Path | None = None,
    ) -> None:
        """``backend`` makes the bodies and reads the answers; uploads are put together in ``directory``."""
        self._client = client
        self._backend = backend
        self._count_tokens = count_tokens
        self._known = known
        self._directory = directory
        self.provider_model = backend.provider_model

    def upload(self) -> Upload:
        """An empty JSON body."""
        return Upload(self.limits, Frame(b'{"requests":[', b",", b"]}"), self._directory)

    def add(self, upload: Upload, generation: Generation, item: BatchItem) -> None:
        """A request of the body."""
        name = item.custom_id
        request = {"custom_id": name, "params": self._backend.body(generation)}
        raw = json.dumps(request, ensure_ascii=False, separators=(",", ":"))
        upload.add(name, raw.encode("utf-8", "backslashreplace"))

    async def submit(self, submission: Submission, upload: Upload) -> tuple[BatchStatus, bool]:
        """Look for the batch that an earlier call has made, else make it. Raises PROVIDER_BATCH_UNCERTAIN."""
        tag = tag_of(submission.id)
        if not submission.first:
            found = await self._find(submission, upload.count, upload.count)
            if found is not None:
                return found, True

        def content() -> dict[str, Any]:
            return {"content": upload.pieces()}

        headers = {"content-type": "application/json", "content-length": str(upload.size)}
        made = _status(await self._client.fetch("post", _PATH, headers=headers, content=content, careful=True))
        self._known.add(made.id, tag)
        return made, False

    async def find(self, submission: Submission, most_items: int) -> BatchStatus | None:
        """Look for the batch that an earlier call has made. Raises PROVIDER_BATCH_UNCERTAIN."""
        return await self._find(submission, 1, most_items)

    async def status(self, batch_id: str) -> BatchStatus:
        """How far it is; the API counts nothing before the end."""
        try:
            return _status(await self._client.fetch("get", _path(batch_id)))
        except TenthError as error:
            raise not_found(error, batch_id) from error

    async def results(self, batch_id: str) -> AsyncGenerator[ItemResult]:
        """One file, every request of the batch in it."""
        state = await self.status(batch_id)
        if state.state == "running":
            raise not_ended(batch_id)
        lines = ResultLines(batch_id)
        try:
            async with self._client.call("get", _path(batch_id, "/results"), self._client.bearer()) as (
                response,
                until,
            ):
                async for item, line in lines.read(response, until):
                    yield ItemResult(item, self._outcome(item, line))
        except TenthError as error:
            raise not_found(error, batch_id) from error
        lines.check(lines.count, state.items)

    async def cancel(self, batch_id: str) -> BatchStatus:
        """Ask for it; a batch that is over stays as it is."""
        try:
            return _status(await self._client.fetch("post", _path(batch_id, "/cancel")))
        except TenthError as error:
            if error.metadata.get("http_status") in ("400", "409"):
                return await self.status(batch_id)
            raise not_found(error, batch_id) from error

    def _outcome(self, item: BatchItem, line: Mapping[str, Any]) -> Answer | ItemFailure:
        told = line.get("result")
        result = told if isinstance(told, dict) else {}
        kind = result.get("type")
        if kind == "expired":
            return EXPIRED
        if kind == "canceled":
            return CANCELLED
        if kind == "errored":
            outer = result.get("error")
            inner = outer.get("error", outer) if isinstance(outer, dict) else None
            error = inner if isinstance(inner, dict) else {}
            name = str(error.get("type") or "")
            return failure_of_status(_ERRORS.get(name, 500), str(error.get("message") or ""), name)
        message = result.get("message")
        if kind != "succeeded" or not isinstance(message, dict):
            return ItemFailure(Reason.PROVIDER_GARBAGE, "the line's result is none", True)
        meter = Meter(item.estimated_input, self._count_tokens, reached=True)
        try:
            return self._backend.read(message, meter)
        except TenthError as failure:
            return ItemFailure(failure.reason, failure.message, True, meter.usage())

    async def _find(self, submission: Submission, least: int, most: int) -> BatchStatus | None:
        """The batch of an earlier call, of ``least`` to ``most`` requests; None: there is certainly none that the
        provider lists."""
        tag, doubtful = tag_of(submission.id), ""
        async for batch in self._since(submission):
            status = _status(batch)
            if not least <= status.items <= most:
                continue
            whose = self._known.tag(status.id)
            if whose is None and status.state != "running":
                whose = await self._whose(status.id)
                self._known.add(status.id, whose)
            if whose == tag:
                return status
            if whose is None:
                doubtful = status.id
        if doubtful:
            raise TenthError(
                Code.UNAVAILABLE,
                Reason.PROVIDER_BATCH_UNCERTAIN,
                f"the batch {doubtful} was made since this submission was begun, may be of as many requests, and runs: "
                "whose it is can be told when it has ended",
                metadata={"provider_batch_id": doubtful},
                retry_after_seconds=_ASK_AGAIN_SECONDS,
            )
        return None

    async def _whose(self, batch_id: str) -> str:
        """The tag in the first of our custom ids in an ended batch's results; empty: it is of nobody here."""
        lines = ResultLines(batch_id)
        try:
            async with self._client.call("get", _path(batch_id, "/results"), self._client.bearer()) as (
                response,
                until,
            ):
                async for item, _ in lines.read(response, until):
                    return item.tag
        except TenthError as error:
            if error.reason != Reason.PROVIDER_MODEL_NOT_FOUND:
                raise
        return ""

    async def _since(self, submission: Submission) -> AsyncIterator[dict[str, Any]]:
        """The batches, newest first, back to when the submission was begun."""
        after: dict[str, str] = {}
        while True:
            page = await self._client.fetch("get", _PATH, {"limit": "100", **after})
            data = page.get("data")
            batches = [each for each in data if isinstance(each, dict)] if isinstance(data, list) else []
            for each in batches:
                created = seconds_of(each.get("created_at"))
                if created is not None and created < submission.begun - _SLACK_SECONDS:
                    return
                yield each
            if not page.get("has_more") or not batches:
                return
            after = {"after_id": str(batches[-1].get("id"))}


def _path(batch_id: str, below: str = "") -> str:
    return f"{_PATH}/{quote(batch_id, safe='')}{below}"


def _status(batch: Mapping[str, Any]) -> BatchStatus:
    told = batch.get("request_counts")
    counts = told if isinstance(told, dict) else {}
    name = batch.get("id")
    if not isinstance(name, str) or not name:
        raise sse.garbage("the batch has no id")
    done = as_count(counts.get("succeeded"))
    failed = sum(as_count(counts.get(kind)) for kind in ("errored", "canceled", "expired"))
    return BatchStatus(
        name,
        "ended" if batch.get("processing_status") == "ended" else "running",
        as_count(counts.get("processing")) + done + failed,
        done,
        failed,
        seconds_of(batch.get("expires_at")),
    )
