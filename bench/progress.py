"""A bar on a terminal, nothing elsewhere, for work that comes in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")


def blocks(items: Sequence[T], size: int, what: str) -> Iterator[Sequence[T]]:
    """The items in blocks of at most ``size``; the bar moves when a block is done."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=len(items))
        for start in range(0, len(items), size):
            block = items[start : start + size]
            yield block
            progress.advance(task, len(block))
