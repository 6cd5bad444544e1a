"""Who may import whom, and that importing does nothing else."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SERVICES = sorted(path.parent.name for path in ROOT.glob("services/*/__init__.py"))

PURE_FILES = (
    *("policy", "gate", "guards", "traits", "strategies", "features", "keys", "cues", "flights", "prices"),
    *("rules", "tasks", "health", "speed", "planning", "ordering", "grouping"),
)
"""Modules that decide, and therefore know no wire, no database and no framework."""
IMPURE = ("grpc", "google.protobuf", "sqlalchemy", "qdrant_client", "qdrant_edge", "openai", "vllm", "torch", "tenth")

NAMESPACES = {
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "grpc_tools": "grpcio-tools",
    "opentelemetry.exporter.otlp.proto.common": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.exporter.otlp.proto.grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.proto": "opentelemetry-proto",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry": "opentelemetry-api",
}
"""Import packages that several distributions share: the longest prefix decides."""
OUTSIDE_THE_RESOLVER = {"vllm"}
"""Installed by scripts/install.py, or by the extra `inference-gpu`; imported only when a local engine is asked for."""
OURS = {"mesh", "services", "tenth", "formats", "tenth_client", "sandbox", "bench", "models"}


def sources(*tops: str) -> list[Path]:
    """The Python files under some folders, generated code and migrations left out."""
    found = [path for top in tops for path in sorted((ROOT / top).rglob("*.py"))]
    return [path for path in found if "migrations" not in path.parts]


def imports(path: Path) -> Iterator[str]:
    """The dotted names of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_import_contracts_hold() -> None:
    tool = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "path", [p for p in sources("services") if p.stem in PURE_FILES], ids=lambda p: str(p.relative_to(ROOT))
)
def test_deciding_modules_know_no_wire_and_no_database(path: Path) -> None:
    found = [name for name in imports(path) if name.startswith(tuple(f"{one}." for one in IMPURE)) or name in IMPURE]
    assert not [name for name in found if not name.startswith("tenth_")]
    assert not [name for name in imports(path) if "_pb2" in name]


def test_the_client_needs_little() -> None:
    """The wheel that backend services install: what it imports is what it declares."""
    project = tomllib.loads((ROOT / "tenth_client" / "pyproject.toml").read_text())["project"]
    declared = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    used = {name for path in sources("tenth_client") for name in third_party(path)}
    assert used <= declared, f"tenth_client imports {sorted(used - declared)} without declaring them"
    assert not declared & {"torch", "vllm", "transformers", "sentence-transformers", "sqlalchemy", "qdrant-client"}


@cache
def installed() -> Mapping[str, list[str]]:
    """The distributions behind each importable name; asking takes seconds."""
    return importlib.metadata.packages_distributions()


def third_party(path: Path) -> Iterator[str]:
    """The distributions that a file's imports come from, ours and the standard library left out."""
    owners = installed()
    for name in imports(path):
        top = name.partition(".")[0]
        if top in OURS or top in sys.stdlib_module_names or top in OUTSIDE_THE_RESOLVER:
            continue
        prefixes = [prefix for prefix in NAMESPACES if name == prefix or name.startswith(f"{prefix}.")]
        if prefixes:
            yield NAMESPACES[max(prefixes, key=len)]
        elif top not in {"google"}:  # `from google.rpc import X` also yields google.rpc.X above.
            yield canonicalize_name(owners.get(top, [top])[0])


def declared(extra: str, *, variants: bool = True) -> set[str]:
    """The distributions of the base dependencies and one extra, with its variants (`cache-transformers`)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = [name for name in extras if extra and (name == extra or (variants and name.startswith(f"{extra}-")))]
    lines = [*project["dependencies"], *(line for name in names for line in extras[name])]
    return {canonicalize_name(Requirement(line).name) for line in lines}


@pytest.mark.parametrize("service", SERVICES)
def test_an_extra_covers_what_its_service_imports(service: str) -> None:
    used = {name for path in sources(f"services/{service}") for name in third_party(path)}
    missing = used - declared(service)
    assert not missing, f"services/{service} imports {sorted(missing)}: add them to the extra `{service}`"


@pytest.mark.parametrize("folder", ["mesh", "sandbox", "models", "bench"])
def test_the_shared_packages_are_covered_too(folder: str) -> None:
    # The runner is executed by an environment of its own, with its own pins (models/quantize-constraints.txt).
    apart = ("testing.py", "quantize_runner.py")
    used = {name for path in sources(folder) for name in third_party(path) if path.name not in apart}
    missing = used - declared("" if folder == "mesh" else folder)
    assert not missing, f"{folder} imports {sorted(missing)} that no dependency names"


def test_no_extra_carries_the_model_stack_for_nothing() -> None:
    for service in ("orchestrator", "router", "cache", "compressor", "ledger", "batch", "sandbox"):
        assert not declared(service, variants=False) & {"torch", "vllm", "sentence-transformers", "transformers"}, (
            service
        )


IMPORT_EVERYTHING = """
import importlib, sys, threading
seen = []
watched = {"socket.bind", "socket.connect", "socket.getaddrinfo", "sqlite3.connect"}
def note(event, args):
    # urllib3 binds port 0 of ::1 for a moment to learn whether the machine has IPv6.
    if event in watched and not (event == "socket.bind" and args[1][:2] == ("::1", 0)):
        seen.append((event, repr(args)))
sys.addaudithook(note)
for name in sys.argv[1:]:
    importlib.import_module(name)
others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
assert not others, f"threads started at import: {others}"
assert not seen, f"started at import: {seen}"
"""


@pytest.mark.parametrize("top", ["mesh", *(f"services/{name}" for name in SERVICES), "tenth_client", "sandbox"])
def test_importing_starts_nothing(top: str, tmp_path: Path) -> None:
    """Nothing is connected, started or left behind by an import, ``__main__`` included."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources(top)]
    names = [name.removesuffix(".__init__") for name in names]
    assert names
    # `python -I` leaves the working directory out of sys.path: only what is installed can be imported.
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", IMPORT_EVERYTHING, *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir()), "an import wrote files"
