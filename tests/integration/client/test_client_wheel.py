"""The client's own wheel: holds the stubs and every module, and runs without the mesh, its services or torch."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from pathlib import Path

import pytest

wheel_builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")

SOURCE = Path(__file__).resolve().parents[3] / "tenth_client"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (built,) = wheel_builder.WheelBuilder(str(SOURCE)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_it_holds_what_it_needs_and_nothing_else(unpacked: Path) -> None:
    tops = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"formats", "tenth", "tenth_client"}
    modules = {path.relative_to(SOURCE) for path in SOURCE.rglob("*.py")}
    assert modules == {
        path.relative_to(unpacked / "tenth_client") for path in (unpacked / "tenth_client").rglob("*.py")
    }
    for name in ("demo/workload.yaml", "demo/faq.yaml", "demo/namespaces.yaml", "py.typed"):
        assert (unpacked / "tenth_client" / name).exists()


def test_it_runs_alone(unpacked: Path) -> None:
    """The packages it declares are there, the repository is not; nothing of the mesh or of torch is imported."""
    script = textwrap.dedent(
        f"""
        import sys
        FORBIDDEN = {{"mesh", "services", "sandbox", "torch", "vllm", "pydantic", "opentelemetry"}}
        class Forbidden:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in FORBIDDEN:
                    raise ModuleNotFoundError(f"the client imported {{name}}")
        sys.meta_path.insert(0, Forbidden())
        sys.path[:0] = [{str(unpacked)!r}, {sysconfig.get_paths()["purelib"]!r}]
        import tenth_client.demo.__main__
        assert tenth_client.__file__.startswith({str(unpacked)!r}), tenth_client.__file__
        from tenth_client import cli
        cli.main(["--help"])
        """
    )
    # -I and -S: neither the working directory nor the .pth of an editable install may help.
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "replay" in ran.stdout
