"""The environment that quantizes: ``python -m models.quantize_env [DIR]``. Made at the first use, 1.5 GB.

llm-compressor wants other versions of what the engine stands on than the engine does, so it lives in a virtual
environment of its own, with its own pinned versions beside this file. Done again when those change.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

CONSTRAINTS = Path(__file__).with_name("quantize-constraints.txt")
PACKAGES = ("torch", "llmcompressor")
NEEDED_BYTES = 2_000_000_000
_STAMP = ".tenth-quantize"
Run = Callable[[Sequence[str]], str]
"""Runs a command; returns what it said when it failed, else nothing."""


class EnvironmentFailed(Exception):  # noqa: N818  (EnvironmentError is Python's own)
    """The environment could not be made; the message says why and what to do."""


def default_directory() -> Path:
    """Where it is kept: TENTH_QUANTIZE_VENV, else .venv-quantize (`make clean` removes it)."""
    return Path(os.environ.get("TENTH_QUANTIZE_VENV", ".venv-quantize"))


def run(command: Sequence[str]) -> str:
    """Runs a command and returns its last line when it failed."""
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603  (pip and venv, pinned arguments)
    if not done.returncode:
        return ""
    said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return said[-1] if said else f"status {done.returncode}"


def interpreter(directory: Path, say: Callable[[str], None], run: Run = run) -> Path:
    """The environment's Python, made when it is absent or of other versions. Raises EnvironmentFailed."""
    python = directory / "bin" / "python"
    state = fingerprint()
    stamp = directory / _STAMP
    if python.exists() and stamp.is_file() and stamp.read_text("utf-8") == state:
        return python
    parent = directory.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < NEEDED_BYTES:
        raise EnvironmentFailed(
            f"llm-compressor's environment needs {NEEDED_BYTES / 1e9:.0f} GB in {parent} and {free / 1e9:.1f} GB are "
            "free: make room, or name another place with TENTH_QUANTIZE_VENV"
        )
    say(f"making {directory} for llm-compressor (1.5 GB, some minutes the first time)")
    shutil.rmtree(directory, ignore_errors=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    index = os.environ.get("TORCH_INDEX_URL", "")
    steps: list[list[str]] = [[sys.executable, "-m", "venv", str(directory)]]
    if index:
        steps.append([*pip, "--constraint", str(CONSTRAINTS), "--index-url", index, "torch"])
    steps.append([*pip, "--constraint", str(CONSTRAINTS), *PACKAGES])
    for step in steps:
        said = run(step)
        if said:
            shutil.rmtree(directory, ignore_errors=True)
            raise EnvironmentFailed(f"llm-compressor's environment could not be made: {said}")
    with tempfile.NamedTemporaryFile("w", dir=directory, delete=False, encoding="utf-8") as file:
        file.write(state)
    Path(file.name).replace(stamp)
    return python


def fingerprint() -> str:
    """A digest of what decides what is installed."""
    digest = hashlib.sha256(CONSTRAINTS.read_bytes())
    digest.update(repr((PACKAGES, sys.version_info[:2], os.environ.get("TORCH_INDEX_URL", ""))).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    try:
        print(interpreter(Path(sys.argv[1]) if len(sys.argv) > 1 else default_directory(), print))
    except EnvironmentFailed as error:
        sys.exit(f"quantize_env: {error}")
