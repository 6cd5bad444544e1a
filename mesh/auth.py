"""Who calls, for which tenant, and what they may call.

Callers prove themselves with an API key (``authorization: Bearer KEY``, SHA-256 at rest) or with an mTLS
certificate's SAN. Between services the identity travels in ``x-tenth-identity``: JSON, base64url, signed with
HMAC-SHA256. What may be called is data (``deploy/callers.yaml``), denied by default. Files are read again when
they change.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from mesh.errors import Code, Reason, TenthError
from mesh.keys import IdentityKeys

log = logging.getLogger("tenth.auth")

IDENTITY_KEY = "x-tenth-identity"
AUTHORIZATION_KEY = "authorization"
_RELOAD_SECONDS = 2.0
_TOKEN_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Identity:
    """On whose behalf a call is made. ``service`` is the calling service, empty for an outside caller."""

    tenant_id: str
    caller: str
    user_id: str = ""
    project_id: str = ""
    service: str = ""
    may_assert_user: bool = False
    may_see_all_tenants: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """One entry of the callers file."""

    name: str
    tenant_id: str
    may_call: tuple[str, ...]
    key_sha256: str = ""
    san: str = ""
    may_assert_user: bool = False
    may_see_all_tenants: bool = False


@dataclass(frozen=True, slots=True)
class CallersFile:
    """The callers, and what each service may call."""

    callers: tuple[Caller, ...]
    services: Mapping[str, tuple[str, ...]]


_current: ContextVar[Identity | None] = ContextVar("tenth_identity", default=None)


def current_identity() -> Identity:
    """The identity of the request being served. Raises UNAUTHENTICATED outside of one."""
    identity = _current.get()
    if identity is None:
        raise TenthError(Code.UNAUTHENTICATED, Reason.UNAUTHENTICATED, "no identity in this context")
    return identity


def identity_or_none() -> Identity | None:
    """The identity of the request being served, if any."""
    return _current.get()


def set_identity(identity: Identity | None) -> None:
    """Set the identity of the current context; the server does it for each call, background tasks for their own."""
    _current.set(identity)


def act_for(user_id: str, project_id: str) -> Identity:
    """The current identity with the user and project that the request names, if its caller may name them."""
    identity = current_identity()
    if (user_id or project_id) and not identity.may_assert_user:
        field = "request.user_id" if user_id else "request.project_id"
        raise TenthError(
            Code.PERMISSION_DENIED,
            Reason.USER_ASSERTION_FORBIDDEN,
            f"caller {identity.caller} may not name users or projects",
            field,
        )
    return replace(identity, user_id=user_id or identity.user_id, project_id=project_id or identity.project_id)


def parse_callers(text: str) -> CallersFile:
    """Read the callers file. Raises ValueError naming what is wrong."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError("must be a mapping with the keys callers, services, tenants")
    unknown = set(raw) - {"callers", "services", "tenants"}  # Tenants are the ledger's seed.
    if unknown:
        raise ValueError(f"unknown keys {sorted(map(str, unknown))}")
    entries, grants = raw.get("callers") or [], raw.get("services") or {}
    if not isinstance(entries, list) or not isinstance(grants, dict):
        raise ValueError("callers must be a list and services a mapping")
    callers: list[Caller] = []
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        caller = _caller(f"callers[{index}]", entry)
        for credential in (caller.name, caller.key_sha256, caller.san):
            if credential and credential in seen:
                raise ValueError(f"callers[{index}]: {credential} stands twice")
            seen.add(credential)
        callers.append(caller)
    services = {str(name): _patterns(f"services.{name}", methods) for name, methods in grants.items()}
    return CallersFile(tuple(callers), services)


def _caller(where: str, entry: object) -> Caller:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: must be a mapping")
    try:
        caller = Caller(**{**entry, "may_call": _patterns(f"{where}.may_call", entry["may_call"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{where}: {error}") from None
    for name in ("name", "tenant_id", "key_sha256", "san"):
        if not isinstance(getattr(caller, name), str):
            raise ValueError(f"{where}.{name}: must be a string")
    for name in ("may_assert_user", "may_see_all_tenants"):
        if not isinstance(getattr(caller, name), bool):
            raise ValueError(f"{where}.{name}: must be true or false")
    if not caller.name or not caller.tenant_id:
        raise ValueError(f"{where}: name and tenant_id must not be empty")
    if not caller.key_sha256 and not caller.san:
        raise ValueError(f"{where}: one of key_sha256 and san is needed")
    digest = caller.key_sha256.lower()
    if digest and re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise ValueError(f"{where}.key_sha256: must be 64 hex digits")
    return replace(caller, key_sha256=digest)


def _patterns(where: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{where}: must be a list of method patterns")
    return tuple(value)


class Signer:
    """Signs identities for onward calls. Tokens are kept and reused for half of their life."""

    def __init__(self, key: bytes | IdentityKeys, service: str, now: Callable[[], float] = time.time) -> None:
        self._keys = _keys(key)
        self._version = self._keys.version
        self._service = service
        self._now = now
        self._tokens: dict[Identity, tuple[float, str]] = {}

    def token(self, identity: Identity) -> str:
        """The metadata value that carries this identity, in the name of this service."""
        now = self._now()
        if self._keys.refresh() != self._version:
            self._version = self._keys.version
            self._tokens.clear()
        kept = self._tokens.get(identity)
        if kept is not None and kept[0] > now:
            return kept[1]
        body = {
            "t": identity.tenant_id,
            "c": identity.caller,
            "u": identity.user_id,
            "p": identity.project_id,
            "a": identity.may_assert_user,
            "x": identity.may_see_all_tenants,
            "s": self._service,
            "e": int(now) + _TOKEN_SECONDS,
        }
        payload = base64.urlsafe_b64encode(json.dumps(body, separators=(",", ":")).encode()).decode()
        token = f"{payload}.{_signature(self._keys.signing, payload)}"
        if len(self._tokens) >= 10_000:
            self._tokens.clear()
        self._tokens[identity] = (now + _TOKEN_SECONDS / 2, token)
        return token


class Authenticator:
    """Turns a call's credentials into an Identity and checks the method against the callers file."""

    def __init__(
        self,
        callers_file: Path | None,
        identity_key: bytes | IdentityKeys,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path = callers_file
        self._keys = _keys(identity_key)
        self._version = self._keys.version
        self._now = now
        self._checked_at = 0.0
        self._stamp = (0, 0, 0)
        self._complained = False
        self._by_key: dict[str, Caller] = {}
        self._by_san: dict[str, Caller] = {}
        self._services: Mapping[str, tuple[str, ...]] = {}
        self._verified: dict[str, tuple[float, Identity]] = {}
        self._allowed: dict[tuple[str, str, str], bool] = {}
        if callers_file is not None:
            self._load(_stamp(callers_file))

    def authenticate(self, method: str, metadata: Mapping[str, str | bytes], sans: tuple[str, ...] = ()) -> Identity:
        """The identity of a call to ``/package.Service/Method``.

        Raises UNAUTHENTICATED without valid credentials and PERMISSION_DENIED when the method is not granted.
        """
        self._reload()
        token = metadata.get(IDENTITY_KEY)
        if isinstance(token, str):
            identity = self._verify(token)
            granted = self._services.get(identity.service, ())
            self._check("service", identity.service, granted, method)
            return identity
        caller = self._caller(metadata, sans)
        self._check("caller", caller.name, caller.may_call, method)
        return Identity(
            tenant_id=caller.tenant_id,
            caller=caller.name,
            may_assert_user=caller.may_assert_user,
            may_see_all_tenants=caller.may_see_all_tenants,
        )

    def _caller(self, metadata: Mapping[str, str | bytes], sans: tuple[str, ...]) -> Caller:
        header = metadata.get(AUTHORIZATION_KEY)
        if isinstance(header, str) and header[:7].lower() == "bearer ":
            digest = hashlib.sha256(header[7:].strip().encode()).hexdigest()
            caller = self._by_key.get(digest)
            if caller is not None:
                return caller
            raise TenthError(Code.UNAUTHENTICATED, Reason.UNAUTHENTICATED, "the API key is not known", "authorization")
        for san in sans:
            if san in self._by_san:
                return self._by_san[san]
        raise TenthError(Code.UNAUTHENTICATED, Reason.UNAUTHENTICATED, "no credentials given", "authorization")

    def _verify(self, token: str) -> Identity:
        if self._keys.refresh() != self._version:
            self._version = self._keys.version
            self._verified.clear()
        kept = self._verified.get(token)
        if kept is not None and kept[0] > self._now():
            return kept[1]
        payload, _, signature = token.partition(".")
        if not any(
            hmac.compare_digest(_signature(key, payload).encode(), signature.encode()) for key in self._keys.accepted
        ):
            raise TenthError(Code.UNAUTHENTICATED, Reason.UNAUTHENTICATED, "the identity is not signed by this mesh")
        try:
            body = json.loads(base64.urlsafe_b64decode(payload))
            expires = float(body["e"])
            identity = Identity(
                tenant_id=body["t"],
                caller=body["c"],
                user_id=body["u"],
                project_id=body["p"],
                service=body["s"],
                may_assert_user=body["a"],
                may_see_all_tenants=body["x"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise TenthError(Code.UNAUTHENTICATED, Reason.UNAUTHENTICATED, "the identity is malformed") from error
        if expires < self._now():
            raise TenthError(Code.UNAUTHENTICATED, Reason.UNAUTHENTICATED, "the identity has expired")
        if len(self._verified) >= 10_000:
            self._verified.clear()
        self._verified[token] = (expires, identity)
        return identity

    def _check(self, kind: str, name: str, granted: tuple[str, ...], method: str) -> None:
        key = (kind, name, method)  # A caller may be called as a service is; it gets nothing of its grants.
        allowed = self._allowed.get(key)
        if allowed is None:
            allowed = any(fnmatchcase(method.lstrip("/"), pattern) for pattern in granted)
            self._allowed[key] = allowed
        if not allowed:
            raise TenthError(Code.PERMISSION_DENIED, Reason.CALLER_FORBIDDEN, f"{name} may not call {method}")

    def _reload(self) -> None:
        now = self._now()
        if self._path is None or 0 <= now - self._checked_at < _RELOAD_SECONDS:
            return
        self._checked_at = now
        try:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._load(stamp)
                log.info("%s was read again", self._path)
            self._complained = False
        except (OSError, ValueError) as error:
            # A half-written file must not lock everybody out: what was read last stays in force.
            if not self._complained:
                log.warning("%s is kept as it was: %s", self._path, error)
            self._complained = True

    def _load(self, stamp: tuple[int, int, int]) -> None:
        assert self._path is not None
        parsed = parse_callers(self._path.read_text("utf-8"))
        self._by_key = {caller.key_sha256: caller for caller in parsed.callers if caller.key_sha256}
        self._by_san = {caller.san: caller for caller in parsed.callers if caller.san}
        self._services = parsed.services
        self._allowed.clear()
        self._stamp = stamp


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def read_key(path: Path | None) -> IdentityKeys:
    """The identity secrets of a file (see ``mesh/keys.py``); without one no identity is accepted."""
    return IdentityKeys(path)


def _keys(key: bytes | IdentityKeys) -> IdentityKeys:
    return key if isinstance(key, IdentityKeys) else IdentityKeys(fixed=key)


def _signature(key: bytes, payload: str) -> str:
    digest = hmac.new(key, payload.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode()
