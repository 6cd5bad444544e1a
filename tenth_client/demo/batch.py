"""The demo's batch: requests that can wait, as a file that goes through ``tenth batch``."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from tenth_client import batch_commands
from tenth_client.rpc import Rpc

ENVIRONMENT = {"TENTH_BATCH_POLL_FIRST_SECONDS": "2"}
"""Of the worker: who plays a provider has a batch done in seconds, not in hours."""
_QUESTIONS = (
    "Summarize in one sentence why our warehouse changed its carrier in spring.",
    "Write a friendly subject line for the newsletter about rain jackets.",
    "Translate into Korean: your invoice is attached to this message.",
    "Which unit tests would you write for a function that parses dates?",
    "Name three risks of running a database without backups.",
    "Rewrite politely: you did not pay, so we will not ship.",
    "Is the review positive or negative? The zip broke after two days.",
    "Give a SQL query that counts the orders of each customer.",
    "Explain to a new colleague what a purchase order is.",
    "회의록을 한 문장으로 요약해 줘: 다음 달에 창고를 이전하기로 했다.",
    "고객 문의를 분류해 줘: 비밀번호를 잊어버렸어요.",
    "신제품 등산화를 소개하는 짧은 광고 문구를 써 줘.",
)
_REPEATED = 4
"""So many are asked twice: the second gets the first one's answer."""


def lines(max_tokens: int) -> Iterator[dict[str, Any]]:
    """The batch in OpenAI's format."""
    for number, question in enumerate((*_QUESTIONS, *_QUESTIONS[:_REPEATED]), start=1):
        body = {"model": "gpt-4o", "max_tokens": max_tokens, "messages": [{"role": "user", "content": question}]}
        yield {"custom_id": f"task-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


async def play_batch(rpc: Rpc, data_dir: Path, max_tokens: int, deadline: str, console: Console) -> bool:
    """Submit the file and watch it end; True when every item was answered."""
    path = data_dir / "batch.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines(max_tokens)), "utf-8")
    console.print(f"\n$ tenth batch submit {path} --deadline {deadline} --watch", markup=False, soft_wrap=True)
    submitted = Namespace(
        file=str(path), deadline=deadline, lane=[], project="", user="", tag=[], request_id="", new=False, watch=True,
        json=False, lang="en",
    )  # fmt: skip
    answered = await batch_commands.submit(rpc, submitted, console) == 0
    console.print("\n$ tenth batch list", markup=False)
    await batch_commands.listing(rpc, Namespace(count=1, json=False, lang="en"), console)
    return answered


def real_providers(catalog: dict[str, Any], played: tuple[str, ...]) -> bool:
    """True when one of the catalogue's providers is not played: its batches may take a day."""
    providers = catalog.get("providers", {})
    return any(entry.get("key_env") and name not in played for name, entry in providers.items())
