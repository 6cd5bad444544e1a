"""Objects as files of a local directory, which replicas and workers of one machine share."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

from services.batch.errors import store_full, store_unavailable
from services.batch.objects import ObjectNotFound, check_name

_TEMPORARY = ".writing"
_LEFT_BEHIND_SECONDS = 86_400
_PAGE = 1000
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
T = TypeVar("T")


class DirectoryStore:
    """An ObjectStore in a directory. Files are written in a folder beside, synced, then renamed into their place."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._swept = False

    async def put(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all; it replaces one of the same name. Durable when this returns."""
        await self._do(name, lambda path: self._put(path, content))

    async def get(self, name: str) -> bytes:
        """An object's content. Raises ObjectNotFound."""
        return await self._do(name, Path.read_bytes, absent=_ABSENT)

    async def delete(self, name: str) -> None:
        """Remove an object; no error when there is none. Folders that it leaves empty go with it."""
        await self._do(name, self._delete)

    async def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""
        return await self._do(name, Path.is_file)

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[str]:
        """Names that begin with ``prefix`` and stand after ``after``, in the order of their UTF-8 bytes."""
        found = self._walk(self._root, "", prefix, after)
        while True:
            try:
                page = await asyncio.to_thread(_page, found)
            except OSError as error:
                raise _typed(error, prefix) from error
            for name in page:
                yield name
            if len(page) < _PAGE:
                return

    async def ping(self) -> None:
        """Raise while the directory cannot be made or written to."""
        await self._do("ping", lambda path: self._probe(path.parent))

    async def close(self) -> None:
        """Nothing is held open."""

    async def _do(self, name: str, work: Callable[[Path], T], absent: tuple[type[OSError], ...] = ()) -> T:
        path = self._root / check_name(name)
        try:
            return await asyncio.to_thread(work, path)
        except absent:
            raise ObjectNotFound(name) from None
        except OSError as error:
            raise _typed(error, name) from error

    def _put(self, path: Path, content: bytes) -> None:
        folder = self._root / _TEMPORARY
        self._make(folder)
        self._sweep(folder)
        temporary = folder / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            for tries_left in (2, 1, 0):
                try:
                    self._make(path.parent)
                    temporary.replace(path)
                    break
                except FileNotFoundError:
                    if not tries_left:  # Somebody deletes in this folder, again and again, as it becomes empty.
                        raise OSError(errno.EBUSY, "the folder keeps vanishing") from None
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync(path.parent)

    def _sweep(self, folder: Path) -> None:
        """Once for each process: what was being written when another was killed goes, a day later."""
        if self._swept:
            return
        self._swept = True
        old = time.time() - _LEFT_BEHIND_SECONDS
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.stat().st_mtime < old:
                        os.unlink(entry.path)

    def _make(self, folder: Path) -> None:
        """Make a folder so that it is there after a crash: its parents hold its name on the disk."""
        if folder.is_dir():
            return
        if folder != folder.parent:
            self._make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)

    def _delete(self, path: Path) -> None:
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        _sync(path.parent)
        folder = path.parent
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:
                return  # Not empty, or gone already.
            folder = folder.parent

    def _probe(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "the directory cannot be written to")

    def _walk(self, folder: Path, above: str, prefix: str, after: str) -> Iterator[str]:
        """Names under a folder, in order. A folder is ordered with its "/", for "a-b" stands before "a/b"."""
        try:
            with os.scandir(folder) as entries:
                found = [(entry.name + "/" if entry.is_dir() else entry.name) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry_name in sorted(found):
            if entry_name.startswith("."):
                continue
            name = above + entry_name
            if entry_name.endswith("/"):
                below = name.startswith(prefix) or prefix.startswith(name)
                if below and (name > after or after.startswith(name)):
                    yield from self._walk(folder / entry_name, name, prefix, after)
            elif name.startswith(prefix) and name > after:
                yield name


def _page(found: Iterator[str]) -> list[str]:
    page = []
    for name in found:
        page.append(name)
        if len(page) == _PAGE:
            break
    return page


def _sync(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return  # Emptied and removed meanwhile.
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _typed(error: OSError, name: str) -> Exception:
    what = f"{name}: {error.strerror or type(error).__name__}"
    return store_full(what) if error.errno in _FULL else store_unavailable(what)
