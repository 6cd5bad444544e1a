"""``tenth model``: quantize a model folder and measure it. The work is the project's `models` package, a process of its
own: this client knows neither torch nor the engine."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

_ACTIONS = {
    "quantize": "models.quantize",
    "evaluate": "models.evaluate",
}
_HELP = {
    "quantize": "a smaller model folder from an unquantized one; --help lists schemes and recipes",
    "evaluate": "what a quantized model lost: perplexity, agreement, a small task, size and speed",
}


def add_commands(group: Any) -> None:
    """The actions; their arguments are the package's own, so they are handed on as they are."""
    for name, text in _HELP.items():
        # The package prints its own help.
        sub = group.add_parser(name, help=text, description=text, add_help=False, prefix_chars="\0")
        sub.add_argument("words", nargs=argparse.REMAINDER)
        sub.set_defaults(run=run, action=name)


async def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the package's command on this terminal; returns its status."""
    return await hand_on(arguments.action, arguments.words)


async def hand_on(action: str, words: Sequence[str]) -> int:
    """Start the command and wait for it. Raises LookupError where the package is absent."""
    if importlib.util.find_spec("models") is None:
        raise LookupError(
            "model folders are made by Tenth's whole package (pip install 'tenth[models]'), not its client"
        )
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", _ACTIONS[action], *words)
    try:
        return await child.wait()
    except asyncio.CancelledError:
        # Ctrl-C reached the child too: it cleans up, and then it is gone.
        await child.wait()
        raise
