"""The contracts: linted, formatted, commented, and the committed code is what they generate."""

from __future__ import annotations

import filecmp
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "scripts/protos.py", str(tmp_path)], cwd=ROOT, check=True, timeout=120)
    fresh = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py*")}
    committed = {
        path.relative_to(ROOT / "gen").as_posix()
        for path in (ROOT / "gen").rglob("*.py*")
        if "__pycache__" not in path.parts
    }
    assert committed == fresh
    _, different, unreadable = filecmp.cmpfiles(tmp_path, ROOT / "gen", sorted(fresh), shallow=False)
    assert not different + unreadable, "run `make protos`"


@pytest.mark.parametrize("command", [["lint"], ["format", "--diff", "--exit-code"]], ids=["lint", "format"])
def test_buf_is_content(command: list[str]) -> None:
    """STANDARD and COMMENTS: every service, RPC, message, field and enum value has its comment."""
    buf = Path(sys.executable).parent / "buf"
    done = subprocess.run([buf, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_directory_package_and_service_names_agree() -> None:
    for path in sorted(ROOT.glob("protos/**/*.proto")):
        package = ".".join(path.relative_to(ROOT / "protos").parent.parts)
        assert f"package {package};" in path.read_text(), path
