"""Every reason is documented, and the page says what the source says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_errors_page_is_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/errors_page.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
