"""Notices that a spot machine is about to be taken away: a file that appears, or an address that says so.

Which ones is data (``deploy/preemption.yaml``); a notice leads to the same drain as SIGTERM. A place that does not
answer says nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

log = logging.getLogger("tenth.batch.preemption")
_TIMEOUT_SECONDS = 2.0
_MOST_BYTES = 65_536
_KEYS = {"name", "file", "url", "headers", "token", "when", "every_seconds"}


@dataclass(frozen=True, slots=True)
class Token:
    """How to get a token first: ask ``url`` by ``method``; the answer goes into the header ``header``."""

    url: str
    header: str
    method: str = "PUT"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Condition:
    """When an answer is a notice: its text is one of ``text`` (empty: any text), or, with ``json``, one of the values
    at that path is one of ``equals`` (empty: any value). A path has names with dots; ``*`` stands for every entry.
    """

    text: tuple[str, ...] = ()
    json: str = ""
    equals: tuple[str, ...] = ()

    def holds(self, body: str) -> bool:
        """True for a notice. What is no JSON where it should be is none."""
        if not self.json:
            return not self.text or body.strip() in self.text
        try:
            found = list(_at(json.loads(body), self.json.split(".")))
        except ValueError:
            return False
        return any(not self.equals or str(value) in self.equals for value in found)


@dataclass(frozen=True, slots=True)
class Notice:
    """One place to look at: a file whose existence is the notice, or an address."""

    name: str
    file: Path | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    token: Token | None = None
    when: Condition = Condition()
    every_seconds: float = 5.0


def parse(text: str) -> tuple[Notice, ...]:
    """The notices of a YAML file. Raises ValueError naming what is wrong."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None
    entries = raw.get("notices") if isinstance(raw, dict) else None
    if not isinstance(entries, list):
        raise ValueError("notices must be a list")
    return tuple(_notice(f"notices[{place}]", entry) for place, entry in enumerate(entries))


def _notice(where: str, entry: object) -> Notice:
    if not isinstance(entry, dict) or set(entry) - _KEYS:
        raise ValueError(f"{where}: must have only the keys {sorted(_KEYS)}")
    if bool(entry.get("file")) == bool(entry.get("url")):
        raise ValueError(f"{where}: exactly one of file and url is needed")
    try:
        when = dict(entry.get("when") or {})
        for name in ("text", "equals"):
            value = when.get(name, ())
            when[name] = (value,) if isinstance(value, str) else tuple(map(str, value))
        return Notice(
            name=str(entry["name"]),
            file=Path(entry["file"]) if entry.get("file") else None,
            url=str(entry.get("url") or ""),
            headers={str(key): str(value) for key, value in (entry.get("headers") or {}).items()},
            token=Token(**entry["token"]) if entry.get("token") else None,
            when=Condition(**when),
            every_seconds=float(entry.get("every_seconds", 5.0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


async def watch(notices: Sequence[Notice], told: Callable[[str], None]) -> None:
    """Look at every place until one gives its notice; ``told`` hears its name, once. Until cancelled."""
    if notices:
        async with asyncio.TaskGroup() as group:
            for notice in notices:
                group.create_task(_watch(notice, told))


async def _watch(notice: Notice, told: Callable[[str], None]) -> None:
    silent = False
    while True:
        try:
            if await asyncio.to_thread(given, notice):
                log.warning("notice %s: this machine is about to be taken away", notice.name)
                told(notice.name)
                return
            silent = False
        except OSError as error:
            if not silent:
                log.info("notice %s: no answer (%s)", notice.name, error)
            silent = True
        # Where nobody answers, this is another kind of machine: ask seldom.
        await asyncio.sleep(notice.every_seconds * (6 if silent else 1))


def given(notice: Notice) -> bool:
    """True when the notice is given now. Blocks for a few seconds at most. Raises OSError when nobody answers."""
    if notice.file is not None:
        return notice.file.exists()
    headers = dict(notice.headers)
    if notice.token is not None:
        headers[notice.token.header] = _ask(notice.token.url, notice.token.headers, notice.token.method).strip()
    try:
        body = _ask(notice.url, headers)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return False  # "Nothing is planned", as AWS says it.
        raise
    return notice.when.holds(body)


def _ask(url: str, headers: Mapping[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310  (addresses are settings)
    # No proxy: metadata services live on the machine's own link.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
        content: bytes = answer.read(_MOST_BYTES)
    return content.decode("utf-8", "replace")


def _at(value: Any, path: Sequence[str]) -> list[Any]:
    """The values at a path; none where it leads nowhere."""
    if not path:
        return [value]
    if path[0] == "*":
        entries = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
        return [found for entry in entries for found in _at(entry, path[1:])]
    if isinstance(value, dict) and path[0] in value:
        return _at(value[path[0]], path[1:])
    return []
