"""Generates the Python code of ``protos/`` (messages, stubs, and their types) into a directory: ``gen/`` by default.

Run by ``make protos``, and by the test that proves ``gen/`` fresh.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(out: Path) -> None:
    """Write the generated code of every proto under ``out``. Raises CalledProcessError."""
    protos = sorted(path.relative_to(ROOT / "protos").as_posix() for path in ROOT.glob("protos/**/*.proto"))
    out.mkdir(parents=True, exist_ok=True)
    # protoc finds mypy-protobuf's two plugins beside the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-Iprotos",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *protos,
        ],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        check=True,
    )


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "gen")
