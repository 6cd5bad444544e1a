"""Both object stores: a directory, and an S3 server that is asked over a socket."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import Code, TenthError
from services.batch.objects import ObjectNotFound, ObjectStore, open_store


@pytest.fixture(params=["directory", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    if request.param == "directory":
        made = open_store(f"file://{tmp_path}/deep/objects")
    else:
        url = request.getfixturevalue("s3_url")
        bucket = request.getfixturevalue("s3_bucket")
        made = open_store(f"s3://{bucket}/some/prefix", s3_endpoint_url=url, s3_region="us-east-1")
    yield made
    await made.close()


async def names(store: ObjectStore, prefix: str, after: str = "") -> list[str]:
    return [name async for name in store.list(prefix, after)]


async def test_an_object_is_put_replaced_read_and_deleted(store: ObjectStore) -> None:
    await store.ping()
    assert not await store.exists("a/b.pb")
    with pytest.raises(ObjectNotFound):
        await store.get("a/b.pb")
    await store.put("a/b.pb", b"one")
    await store.put("a/b.pb", b"")
    assert await store.get("a/b.pb") == b""
    await store.put("a/b.pb", b"two" * 1_000_000)
    assert await store.get("a/b.pb") == b"two" * 1_000_000
    assert await store.exists("a/b.pb")
    assert not await store.exists("a")
    with pytest.raises(ObjectNotFound):
        await store.get("a")
    with pytest.raises(ObjectNotFound):
        await store.get("a/b.pb/c")
    await store.delete("a/b.pb")
    await store.delete("a/b.pb")
    await store.delete("x/y")
    assert not await store.exists("a/b.pb")
    assert await names(store, "") == []


async def test_names_are_listed_in_the_order_of_their_bytes(store: ObjectStore) -> None:
    every = ["a-b", "a/b", "a/c.pb", "a/c/d", "a/c/e/f", "a0", "aB", "ab", "b/a"]
    for name in reversed(every):
        await store.put(name, b"")
    assert await names(store, "") == sorted(every) == every
    assert await names(store, "a/") == ["a/b", "a/c.pb", "a/c/d", "a/c/e/f"]
    assert await names(store, "a/c") == ["a/c.pb", "a/c/d", "a/c/e/f"]
    assert await names(store, "a/c/") == ["a/c/d", "a/c/e/f"]
    assert await names(store, "", "a/c.pb") == ["a/c/d", "a/c/e/f", "a0", "aB", "ab", "b/a"]
    assert await names(store, "a/", "a/c/d") == ["a/c/e/f"]
    assert await names(store, "a/", "b") == []
    assert await names(store, "nothing/") == []


async def test_a_long_list_comes_in_pages(store: ObjectStore) -> None:
    every = [f"p/{number:05d}" for number in range(1050)]
    for start in range(0, len(every), 50):
        await asyncio.gather(*(store.put(name, b"") for name in every[start : start + 50]))
    assert await names(store, "p/") == every
    assert await names(store, "p/", every[1000]) == every[1001:]


async def test_objects_are_deleted_while_they_are_listed(store: ObjectStore) -> None:
    for number in range(20):
        await store.put(f"d/{number % 3}/{number:02d}", b"")
    async for name in store.list("d/"):
        await store.delete(name)
    assert await names(store, "") == []


async def test_a_name_that_leaves_the_root_is_refused(store: ObjectStore) -> None:
    for name in ("../x", "a/../../x", "/etc/passwd", ".hidden"):
        for call in (store.put(name, b""), store.get(name), store.delete(name), store.exists(name)):
            with pytest.raises(TenthError):
                await call


async def test_writers_of_one_object_leave_one_of_theirs(store: ObjectStore) -> None:
    contents = [bytes([number]) * 200_000 for number in range(8)]
    await asyncio.gather(*(store.put("same", content) for content in contents))
    assert await store.get("same") in contents


async def test_writers_and_deleters_of_one_folder_do_not_hinder_each_other(store: ObjectStore) -> None:
    async def work(number: int) -> None:
        for _ in range(10):
            await store.put(f"deep/er/{number}", b"x")
            await store.delete(f"deep/er/{number}")

    await asyncio.gather(*(work(number) for number in range(6)))
    assert await names(store, "") == []


async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    await store.put("a", b"before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TenthError) as error:
        await store.put("a", b"after")
    assert (error.value.code, error.value.reason) == (Code.RESOURCE_EXHAUSTED, "STORE_FULL")
    monkeypatch.undo()
    assert await store.get("a") == b"before"
    assert [name for _, _, files in os.walk(tmp_path) for name in files] == ["a"]


async def test_what_a_killed_writer_left_is_removed_a_day_later(tmp_path: Path) -> None:
    folder = tmp_path / ".writing"
    folder.mkdir()
    for name, age in (("old", 90_000), ("new", 10)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    store = open_store(str(tmp_path))
    await store.put("a", b"")
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert await names(store, "") == ["a"]


async def test_a_directory_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "file" / "objects"))
    for call in (store.ping(), store.put("a", b"")):
        with pytest.raises(TenthError) as error:
            await call
        assert error.value.reason == "STORE_UNAVAILABLE"


@pytest.mark.usefixtures("s3_credentials")
async def test_an_s3_that_is_away_or_has_no_such_bucket_is_unavailable(s3_url: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"s3_region": "us-east-1"}
    for url, bucket in (("http://127.0.0.1:1", "b"), (s3_url, "no-such-bucket")):
        store = open_store(f"s3://{bucket}", s3_endpoint_url=url, **options)
        with pytest.raises(TenthError) as error:
            await store.ping()
        assert (error.value.code, error.value.reason) == (Code.UNAVAILABLE, "STORE_UNAVAILABLE")
        with pytest.raises(TenthError):
            await store.put("a", b"")
        await store.close()
