"""OpenAI's Files and Batches for the sandbox, kept in memory. Source: OpenAI's API reference and its batch guide."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sandbox.batch_runs import BatchControl, BatchItem, BatchRun, Outcome, Responder
from sandbox.messages import HEADERS

ENDPOINT = "/v1/chat/completions"
MOST_ITEMS = 50_000
MOST_BYTES = 200 * 1024 * 1024
_FAILURE = {"error": {"message": "sandbox failure 500", "type": "server_error", "code": "server_error", "param": None}}
_SAID = {
    "expired": {"code": "batch_expired", "message": "This request could not be executed before the completion window."},
    "cancelled": {"code": "batch_cancelled", "message": "This request was not executed: the batch was cancelled."},
}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file and what is said of it."""

    content: bytes
    about: dict[str, Any]


@dataclass(slots=True)
class StoredBatch:
    """A batch as it was asked for, and its run; None: its input was refused."""

    id: str
    asked: dict[str, Any]
    created_at: float
    run: BatchRun | None
    errors: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


class OpenAiBatchEndpoints:
    """``/v1/files`` and ``/v1/batches``."""

    def __init__(self, control: BatchControl, responder: Responder) -> None:
        """``responder`` answers the items as the chat endpoint would."""
        self._control = control
        self._responder = responder
        self.files: dict[str, StoredFile] = {}
        self.batches: dict[str, StoredBatch] = {}

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            Route("/v1/files", self.upload, methods=["POST"]),
            Route("/v1/files", self.list_files, methods=["GET"]),
            Route("/v1/files/{id}", self.file, methods=["GET"]),
            Route("/v1/files/{id}", self.delete, methods=["DELETE"]),
            Route("/v1/files/{id}/content", self.content, methods=["GET"]),
            Route("/v1/batches", self.create, methods=["POST"]),
            Route("/v1/batches", self.list_batches, methods=["GET"]),
            Route("/v1/batches/{id}", self.batch, methods=["GET"]),
            Route("/v1/batches/{id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def upload(self, request: Request) -> Response:
        """Keep a file."""
        async with request.form() as form:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile) or purpose != "batch":
                return error(400, "a file and the purpose batch are needed")
            content = await file.read()
            name = file.filename or "file"
        if len(content) > MOST_BYTES:
            return error(413, f"a batch's input file has at most {MOST_BYTES} bytes")
        about = self._keep(content, name, "batch")
        if self._control.take("drop_uploads"):
            return dropped()
        return JSONResponse(about, headers=HEADERS)

    async def list_files(self, request: Request) -> Response:
        """Newest first; of one purpose where it is named."""
        purpose = request.query_params.get("purpose")
        found = [each.about for each in self.files.values() if purpose in (None, each.about["purpose"])]
        return _page(list(reversed(found)), request)

    async def file(self, request: Request) -> Response:
        """What a file is."""
        stored = self.files.get(request.path_params["id"])
        return _missing("file") if stored is None else JSONResponse(stored.about, headers=HEADERS)

    async def content(self, request: Request) -> Response:
        """What is in it."""
        stored = self.files.get(request.path_params["id"])
        if stored is None:
            return _missing("file")
        return Response(stored.content, media_type="application/octet-stream", headers=HEADERS)

    async def delete(self, request: Request) -> Response:
        """Forget it."""
        name = request.path_params["id"]
        if self.files.pop(name, None) is None:
            return _missing("file")
        return JSONResponse({"id": name, "object": "file", "deleted": True}, headers=HEADERS)

    async def create(self, request: Request) -> Response:
        """A batch over an uploaded file; what is wrong with the file is said by the batch."""
        try:
            asked = json.loads(await request.body())
            stored = self.files.get(asked["input_file_id"])
            metadata = asked.get("metadata") or {}
            good = asked["completion_window"] == "24h" and asked["endpoint"] == ENDPOINT and len(metadata) <= 16
        except (ValueError, KeyError, TypeError, AttributeError):
            return error(400, "the request is no batch")
        if not good:
            return error(400, f"the window is 24h, the endpoint {ENDPOINT}, and there are at most 16 metadata")
        if stored is None:
            return error(400, f"Invalid file: {asked['input_file_id']} does not exist")
        if self._control.take("refuse_creates"):
            return error(429, "too many batches are waiting", {"retry-after": "0"})
        items, errors = read_items(stored.content)
        if self._control.take("full_creates"):
            errors = [_wrong("token_limit_exceeded", "Enqueued token limit reached for this model.", None)]
        elif self._control.plan.fail_validation:
            errors = [
                _wrong("model_not_found", "The provided model is not supported by the Batch API.", 1, "body.model")
            ]
        run = None if errors else BatchRun(items, self._control, self._responder, _FAILURE)
        name = f"batch_sandbox_{uuid.uuid4().hex}"
        batch = StoredBatch(name, asked, self._control.clock.now(), run, errors)
        self.batches[name] = batch
        if self._control.take("drop_creates"):
            return dropped()
        return JSONResponse(self._shown(batch), headers=HEADERS)

    async def list_batches(self, request: Request) -> Response:
        """Newest first."""
        return _page([self._shown(batch) for batch in reversed(list(self.batches.values()))], request)

    async def batch(self, request: Request) -> Response:
        """How far a batch is."""
        batch = self.batches.get(request.path_params["id"])
        return _missing("batch") if batch is None else JSONResponse(self._shown(batch), headers=HEADERS)

    async def cancel(self, request: Request) -> Response:
        """Stop it; one that is over cannot be."""
        batch = self.batches.get(request.path_params["id"])
        if batch is None:
            return _missing("batch")
        if batch.run is None or batch.run.state == "ended":
            return error(409, "the batch is over: it cannot be cancelled")
        batch.run.cancel()
        return JSONResponse(self._shown(batch), headers=HEADERS)

    def _shown(self, batch: StoredBatch) -> dict[str, Any]:
        run = batch.run
        status = "failed" if run is None else _status(run)
        if run is not None and run.state == "ended" and not batch.files:
            self._write_results(batch, run)
        times = run.times if run is not None else {"failed": batch.created_at}
        ended = {"cancelled": "cancelled_at", "expired": "expired_at", "completed": "completed_at"}.get(status, "")
        good = 0 if run is None else run.count("answered", good=True)
        rest = 0 if run is None else len(run.outcomes) - good
        shown: dict[str, Any] = {
            "id": batch.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "input_file_id": batch.asked["input_file_id"],
            "completion_window": "24h",
            "status": status,
            "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
            "output_file_id": batch.files.get("output"),
            "error_file_id": batch.files.get("error"),
            "created_at": int(batch.created_at),
            "expires_at": int(batch.created_at + 86_400) if run is None else int(run.expires_at),
            "request_counts": {"total": 0 if run is None else run.total, "completed": good, "failed": rest},
            "metadata": batch.asked.get("metadata"),
        }
        for state in ("in_progress", "finalizing", "failed", "cancelling"):
            shown[f"{state}_at"] = int(times[state]) if state in times else None
        for name in ("completed_at", "expired_at", "cancelled_at"):
            shown[name] = int(times["ended"]) if name == ended else None
        return shown

    def _write_results(self, batch: StoredBatch, run: BatchRun) -> None:
        good = run.lines(_line, lambda each: each.kind == "answered" and each.status < 400)
        bad = run.lines(_line, lambda each: each.kind != "answered" or each.status >= 400)
        for kind, content in (("output", good), ("error", bad)):
            if content:
                about = self._keep(content, f"{batch.id}_{kind}.jsonl", "batch_output")
                batch.files[kind] = about["id"]

    def _keep(self, content: bytes, name: str, purpose: str) -> dict[str, Any]:
        about: dict[str, Any] = {
            "id": f"file-sandbox-{uuid.uuid4().hex}",
            "object": "file",
            "bytes": len(content),
            "created_at": int(self._control.clock.now()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        self.files[about["id"]] = StoredFile(content, about)
        return about


def read_items(content: bytes) -> tuple[list[BatchItem], list[dict[str, Any]]]:
    """The requests of an input file, and what is wrong with them."""
    items: list[BatchItem] = []
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    models: set[str] = set()
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            body = json.loads(line)
            name, url, request = body["custom_id"], body["url"], body["body"]
            models.add(request["model"])
        except (ValueError, KeyError, TypeError):
            errors.append(_wrong("invalid_json_line", "This line is not parseable as valid JSON.", number))
            continue
        if name in seen:
            errors.append(_wrong("duplicate_custom_id", f"The custom_id {name} is not unique.", number, "custom_id"))
        if url != ENDPOINT or body.get("method") != "POST":
            errors.append(_wrong("mismatched_url", "The URL is not the batch's endpoint.", number, "url"))
        if len(models) > 1:
            errors.append(_wrong("mismatched_model", "A file's requests have one model.", number, "body.model"))
        seen.add(name)
        items.append(BatchItem(name, request))
    if not items and not errors:
        errors.append(_wrong("empty_file", "The input file is empty.", None))
    if len(items) > MOST_ITEMS:
        errors.append(_wrong("too_many_requests", f"A file has at most {MOST_ITEMS} requests.", None))
    return items, errors


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error in OpenAI's form."""
    kind = {429: "rate_limit_exceeded", 404: "not_found"}.get(status, "invalid_request_error")
    body = {"error": {"message": message, "type": kind, "code": kind, "param": None}}
    return JSONResponse(body, status, headers={**HEADERS, **(headers or {})})


def dropped() -> Response:
    """An answer that breaks off after its first byte: the caller does not learn what was done."""

    async def half() -> AsyncIterator[bytes]:
        yield b"{"

    return StreamingResponse(half(), media_type="application/json", headers={**HEADERS, "content-length": "512"})


def _status(run: BatchRun) -> str:
    if run.state == "ended":
        return "cancelled" if run.cancelled else "expired" if run.expired else "completed"
    return "cancelling" if run.cancelled else run.state


def _line(outcome: Outcome) -> dict[str, Any]:
    response = None
    if outcome.kind == "answered":
        name = f"req_sandbox_{outcome.custom_id}"
        response = {"status_code": outcome.status, "request_id": name, "body": outcome.body}
    return {
        "id": f"batch_req_{outcome.custom_id}",
        "custom_id": outcome.custom_id,
        "response": response,
        "error": _SAID.get(outcome.kind),
    }


def _page(found: list[dict[str, Any]], request: Request) -> Response:
    """The page after a cursor, as OpenAI's lists are read."""
    limit, after = int(request.query_params.get("limit", 20)), request.query_params.get("after")
    ids = [each["id"] for each in found]
    start = ids.index(after) + 1 if after in ids else 0
    page = found[start : start + limit]
    body = {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + limit < len(found),
    }
    return JSONResponse(body, headers=HEADERS)


def _wrong(code: str, message: str, line: int | None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}


def _missing(what: str) -> Response:
    return error(404, f"no such {what}")
