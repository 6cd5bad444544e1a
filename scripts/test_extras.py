"""Installs each extra of the built wheel into a clean environment and imports what it is for: ``make test-extras``.

Proves that an extra brings all that its service needs, and that a service needs no more than its extra: one
environment per extra, the pinned versions, nothing of the working tree. The client's own wheel is tested the same way.
Slow (minutes, for the model stack), so it stands outside ``make test``. Arguments: the extras to test; default all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORT = "import tenth_client.cli, pyarrow.parquet, vl_convert"
IMPORTS = {
    "": "import mesh.server, mesh.channel, mesh.healthcheck, tenth_client.cli",
    "orchestrator": "import services.orchestrator.__main__",
    "router": "import services.router.__main__",
    "cache": "import services.cache.__main__",
    "cache-transformers": "import services.cache.sentence_transformers, sentence_transformers",
    "compressor": "import services.compressor.__main__",
    "inference": "import services.inference.__main__",
    "ledger": "import services.ledger.__main__",
    "sandbox": "import sandbox.provider, sandbox.collector",
    "batch": "import services.batch.__main__, services.batch.worker, services.batch.objects_s3",
    "batch-embedded": "import tenth_client.batch_layer as layer; assert not layer.missing_batch_layer()",
    "models": "import models.build, onnxscript, sentence_transformers",
    "bench": "import bench.mesh",
    "report": REPORT,
}
CLIENT = "client"
CLIENT_REPORT = "client[report]"
CLIENTS = {CLIENT: "import tenth_client, tenth_client.cli", CLIENT_REPORT: REPORT}
HEAVY = ("torch", "vllm", "transformers", "sentence_transformers")
WITH_HEAVY = {"models", "inference", "cache-transformers"}


def main(arguments: Sequence[str]) -> int:
    """Test the named extras, or all. Returns the number that failed."""
    wanted = list(arguments) or [*IMPORTS, *CLIENTS]
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="tenth-extras-") as name:
        folder = Path(name)
        tenth = build(ROOT, folder / "tenth")
        client = build(ROOT / "tenth_client", folder / "client")
        for extra in wanted:
            started = time.monotonic()
            suffix = f"[{extra}]" if extra else ""
            wheel, suffix = (client, extra.removeprefix(CLIENT)) if extra in CLIENTS else (tenth, suffix)
            problem = check(f"{wheel}{suffix}", extra, folder / f"venv-{extra or 'base'}")
            seconds = time.monotonic() - started
            print(f"{extra or '(none)':<14} {seconds:6.1f} s  {problem or 'ok'}", flush=True)
            failed += [extra] if problem else []
    return len(failed)


def build(project: Path, out: Path) -> Path:
    """A project's wheel."""
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(project)])
    return next(out.glob("*.whl"))


def check(requirement: str, extra: str, venv: Path) -> str:
    """Install into a clean environment and import; returns what went wrong, or nothing."""
    run([sys.executable, "-m", "venv", str(venv)])
    python = str(venv / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        run([*pip, "--constraint", str(ROOT / "constraints.txt"), requirement])
        statement = CLIENTS[extra] if extra in CLIENTS else IMPORTS[extra]
        unwanted = "" if extra in WITH_HEAVY else f"\nassert not set(sys.modules) & set({HEAVY!r})"
        # From an empty directory and without the environment's paths: only the wheel can answer.
        run([python, "-I", "-W", "ignore", "-c", f"import sys\n{statement}{unwanted}"], cwd=venv)
        run([python, "-m", "pip", "--disable-pip-version-check", "check"])
        if extra in ("", *CLIENTS):
            run([str(venv / "bin" / "tenth"), "--help"], cwd=venv)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "no output").strip().splitlines()
        return "; ".join(line for line in lines if not line.startswith("WARNING"))[-600:]
    finally:
        subprocess.run(["rm", "-rf", str(venv)])
    return ""


def run(command: list[str], cwd: Path = ROOT) -> None:
    """Run a command; raises CalledProcessError with its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TENTH_"))}
    subprocess.run(command, check=True, cwd=cwd, env=environment, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
