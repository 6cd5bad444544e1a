"""Callers, keys, SANs, signed identities: tables of what is accepted and what is not."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.auth import (
    IDENTITY_KEY,
    Authenticator,
    Identity,
    Signer,
    act_for,
    current_identity,
    parse_callers,
    read_key,
    set_identity,
)
from mesh.errors import Code, TenthError
from mesh.keys import IdentityKeys

KEY = b"0123456789abcdef-identity-key"
CHAT = "/tenth.orchestrator.v1.OrchestratorService/GenerateCompletion"
EMBED = "/tenth.cache.v1.CacheService/Embed"
DIGEST = hashlib.sha256(b"secret-key").hexdigest()
CALLERS: dict[str, Any] = {
    "callers": [
        {
            "name": "support",
            "tenant_id": "acme",
            "key_sha256": DIGEST,
            "may_assert_user": True,
            "may_call": ["tenth.orchestrator.v1.OrchestratorService/*"],
        },
        {"name": "mtls", "tenant_id": "globex", "san": "app.globex.internal", "may_call": [CHAT[1:]]},
        {"name": "nothing", "tenant_id": "idle", "san": "idle.internal", "may_call": []},
    ],
    "services": {"orchestrator": ["tenth.cache.v1.CacheService/*"]},
    "tenants": [{"tenant_id": "acme"}],
}
IDENTITY = Identity(tenant_id="acme", caller="support", user_id="u", project_id="p", may_assert_user=True)


class Clock:
    """Time that tests set."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "callers.yaml"
    file.write_text(yaml.safe_dump(CALLERS))
    return file


def code_of(authenticator: Authenticator, method: str, metadata: dict[str, str], sans: tuple[str, ...] = ()) -> str:
    try:
        return authenticator.authenticate(method, metadata, sans).tenant_id
    except TenthError as error:
        return f"{error.code.name} {error.reason}"


UNAUTHENTICATED = "UNAUTHENTICATED UNAUTHENTICATED"
FORBIDDEN = "PERMISSION_DENIED CALLER_FORBIDDEN"


@pytest.mark.parametrize(
    ("method", "metadata", "sans", "expected"),
    [
        (CHAT, {"authorization": "Bearer secret-key"}, (), "acme"),
        (CHAT, {"authorization": "bearer  secret-key "}, (), "acme"),
        (CHAT, {"authorization": "secret-key"}, (), UNAUTHENTICATED),
        (CHAT, {"authorization": "Basic secret-key"}, (), UNAUTHENTICATED),
        (CHAT, {"authorization": "Bearer wrong"}, (), UNAUTHENTICATED),
        (CHAT, {"authorization": "Bearer "}, (), UNAUTHENTICATED),
        (CHAT, {"authorization": f"Bearer {DIGEST}"}, (), UNAUTHENTICATED),
        (CHAT, {"authorization": "Bearer 키"}, (), UNAUTHENTICATED),
        (CHAT, {}, (), UNAUTHENTICATED),
        (CHAT, {}, ("app.globex.internal",), "globex"),
        (CHAT, {}, ("other", "app.globex.internal"), "globex"),
        (CHAT, {}, ("evil.app.globex.internal",), UNAUTHENTICATED),
        (CHAT, {}, ("idle.internal",), FORBIDDEN),
        (EMBED, {"authorization": "Bearer secret-key"}, (), FORBIDDEN),
        # A wrong key is not forgiven because of a good certificate.
        (CHAT, {"authorization": "Bearer wrong"}, ("app.globex.internal",), UNAUTHENTICATED),
        ("/tenth.orchestrator.v1.OrchestratorServiceX/Generate", {"authorization": "Bearer secret-key"}, (), FORBIDDEN),
        ("", {"authorization": "Bearer secret-key"}, (), FORBIDDEN),
    ],
)
def test_callers(path: Path, method: str, metadata: dict[str, str], sans: tuple[str, ...], expected: str) -> None:
    assert code_of(Authenticator(path, KEY), method, metadata, sans) == expected


def test_without_a_callers_file_nobody_may_call() -> None:
    authenticator = Authenticator(None, KEY)
    assert code_of(authenticator, CHAT, {"authorization": "Bearer secret-key"}) == UNAUTHENTICATED
    signed = {IDENTITY_KEY: Signer(KEY, "orchestrator").token(IDENTITY)}
    assert code_of(authenticator, EMBED, signed) == FORBIDDEN


def test_the_caller_decides_the_identity(path: Path) -> None:
    identity = Authenticator(path, KEY).authenticate(CHAT, {"authorization": "Bearer secret-key"})
    assert identity == Identity(tenant_id="acme", caller="support", may_assert_user=True)


def test_a_signed_identity_arrives_whole_with_the_service_that_signed_it(path: Path, clock: Clock) -> None:
    token = Signer(KEY, "orchestrator", clock).token(IDENTITY)
    got = Authenticator(path, KEY, clock).authenticate(EMBED, {IDENTITY_KEY: token})
    assert (got.tenant_id, got.caller, got.user_id, got.project_id) == ("acme", "support", "u", "p")
    assert (got.may_assert_user, got.may_see_all_tenants, got.service) == (True, False, "orchestrator")


def test_services_too_are_denied_by_default(path: Path) -> None:
    authenticator = Authenticator(path, KEY)
    assert code_of(authenticator, CHAT, {IDENTITY_KEY: Signer(KEY, "orchestrator").token(IDENTITY)}) == FORBIDDEN
    assert code_of(authenticator, EMBED, {IDENTITY_KEY: Signer(KEY, "router").token(IDENTITY)}) == FORBIDDEN


def forged(change: dict[str, Any]) -> str:
    payload, _, signature = Signer(KEY, "orchestrator").token(IDENTITY).partition(".")
    body = json.loads(base64.urlsafe_b64decode(payload))
    body.update(change)
    return base64.urlsafe_b64encode(json.dumps(body).encode()).decode() + "." + signature


@pytest.mark.parametrize(
    "token",
    [
        Signer(b"another key of some length", "orchestrator").token(IDENTITY),
        Signer(b"", "orchestrator").token(IDENTITY),
        forged({"t": "globex"}),
        forged({"x": True}),
        forged({"e": 99_999_999_999}),
        "",
        ".",
        "not a token",
        "é.é",
        Signer(KEY, "orchestrator").token(IDENTITY)[:-1],
        Signer(KEY, "orchestrator").token(IDENTITY).partition(".")[0],
    ],
)
def test_forged_identities_are_refused(path: Path, token: str) -> None:
    # A valid API key beside it does not help: what was claimed is false.
    metadata = {IDENTITY_KEY: token, "authorization": "Bearer secret-key"}
    assert code_of(Authenticator(path, KEY), EMBED, metadata) == UNAUTHENTICATED


def test_without_a_key_no_identity_is_accepted(path: Path) -> None:
    token = Signer(b"", "orchestrator").token(IDENTITY)
    assert code_of(Authenticator(path, b""), EMBED, {IDENTITY_KEY: token}) == UNAUTHENTICATED


@pytest.mark.parametrize(
    ("verifier_ahead_seconds", "accepted"),
    [(-3600, True), (-300, True), (0, True), (449, True), (899, True), (901, False), (86_400, False)],
)
def test_expiry_and_clock_skew(path: Path, clock: Clock, verifier_ahead_seconds: float, accepted: bool) -> None:
    token = Signer(KEY, "orchestrator", clock).token(IDENTITY)
    there = Clock()
    there.now = clock.now + verifier_ahead_seconds
    got = code_of(Authenticator(path, KEY, there), EMBED, {IDENTITY_KEY: token})
    assert got == ("acme" if accepted else UNAUTHENTICATED)


def test_a_verified_token_expires_too(path: Path, clock: Clock) -> None:
    authenticator = Authenticator(path, KEY, clock)
    token = Signer(KEY, "orchestrator", clock).token(IDENTITY)
    assert code_of(authenticator, EMBED, {IDENTITY_KEY: token}) == "acme"
    clock.now += 901
    assert code_of(authenticator, EMBED, {IDENTITY_KEY: token}) == UNAUTHENTICATED


def test_tokens_are_reused_for_half_of_their_life(clock: Clock) -> None:
    signer = Signer(KEY, "orchestrator", clock)
    first = signer.token(IDENTITY)
    clock.now += 449
    assert signer.token(IDENTITY) == first
    clock.now += 2
    assert signer.token(IDENTITY) != first


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000))


def test_the_callers_file_is_read_again(path: Path, clock: Clock) -> None:
    authenticator = Authenticator(path, KEY, clock)
    key = {"authorization": "Bearer secret-key"}
    assert code_of(authenticator, CHAT, key) == "acme"
    changed = {**CALLERS, "callers": [{**CALLERS["callers"][0], "may_call": [EMBED[1:]]}]}
    rewrite(path, yaml.safe_dump(changed))
    clock.now += 3
    assert code_of(authenticator, CHAT, key) == FORBIDDEN
    assert code_of(authenticator, EMBED, key) == "acme"


@pytest.mark.parametrize(
    "half",
    [
        "",
        "callers:\n  - name: support\n    tenant_id: ac",
        "callers: [",
        "callers: nonsense",
        "- a\n- b",
        "\x00",
        "callers:\n  - {name: a, tenant_id: b, san: c, may_call: everything}",
        "other: {}",
    ],
)
def test_a_half_written_file_keeps_the_old(path: Path, clock: Clock, half: str) -> None:
    authenticator = Authenticator(path, KEY, clock)
    whole = path.read_text()
    rewrite(path, half)
    clock.now += 3
    assert code_of(authenticator, CHAT, {"authorization": "Bearer secret-key"}) == "acme"
    rewrite(path, whole.replace("acme", "renamed"))
    clock.now += 3
    assert code_of(authenticator, CHAT, {"authorization": "Bearer secret-key"}) == "renamed"


def test_a_file_that_is_gone_keeps_the_old(path: Path, clock: Clock) -> None:
    authenticator = Authenticator(path, KEY, clock)
    path.unlink()
    clock.now += 3
    assert code_of(authenticator, CHAT, {"authorization": "Bearer secret-key"}) == "acme"


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ({"tenant_id": "a", "san": "x", "may_call": []}, "name"),
        ({"name": "a", "tenant_id": "a", "san": "x"}, "may_call"),
        ({"name": "a", "tenant_id": "a", "san": "x", "may_call": "*"}, "may_call"),
        ({"name": "a", "tenant_id": "a", "may_call": ["*"]}, "key_sha256"),
        ({"name": "a", "tenant_id": "a", "key_sha256": "secret", "may_call": ["*"]}, "key_sha256"),
        ({"name": "a", "tenant_id": 7, "san": "x", "may_call": ["*"]}, "tenant_id"),
        ({"name": "a", "tenant_id": "", "san": "x", "may_call": ["*"]}, "tenant_id"),
        ({"name": "a", "tenant_id": "a", "san": "x", "may_call": ["*"], "may_assert_user": "no"}, "may_assert_user"),
        ({"name": "a", "tenant_id": "a", "san": "x", "may_call": ["*"], "colour": 1}, "colour"),
        ("a", "mapping"),
    ],
)
def test_a_wrong_entry_is_named(entry: object, names: str) -> None:
    with pytest.raises(ValueError, match=rf"callers\[0\].*{names}"):
        parse_callers(yaml.safe_dump({"callers": [entry]}))


def test_the_same_key_twice_is_refused() -> None:
    entry = {"name": "a", "tenant_id": "a", "key_sha256": DIGEST, "may_call": []}
    with pytest.raises(ValueError, match=r"callers\[1\].*twice"):
        parse_callers(yaml.safe_dump({"callers": [entry, {**entry, "name": "b"}]}))


def test_a_digest_may_be_written_in_capitals() -> None:
    entry = {"name": "a", "tenant_id": "a", "key_sha256": DIGEST.upper(), "may_call": []}
    assert parse_callers(yaml.safe_dump({"callers": [entry]})).callers[0].key_sha256 == DIGEST


def test_the_shipped_callers_file_is_valid() -> None:
    text = (Path(__file__).parents[3] / "deploy" / "callers.yaml").read_text()
    assert "orchestrator" in parse_callers(text).services


@pytest.mark.parametrize(("user", "project"), [("u", ""), ("", "p"), ("u", "p")])
def test_only_marked_callers_name_users(user: str, project: str) -> None:
    set_identity(Identity(tenant_id="a", caller="c"))
    with pytest.raises(TenthError) as caught:
        act_for(user, project)
    assert (caught.value.code, caught.value.reason) == (Code.PERMISSION_DENIED, "USER_ASSERTION_FORBIDDEN")
    assert act_for("", "").user_id == ""
    set_identity(Identity(tenant_id="a", caller="c", may_assert_user=True))
    assert (act_for(user, project).user_id, act_for(user, project).project_id) == (user, project)
    set_identity(None)
    with pytest.raises(TenthError):
        current_identity()


def test_the_identity_key_has_a_least_length(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"short\n")
    with pytest.raises(ValueError, match="16 bytes"):
        read_key(file)
    file.write_bytes(b"long enough for a key\n")
    assert read_key(file).accepted == (b"long enough for a key",)
    assert read_key(None).accepted == ()


def test_the_identity_key_is_rotated_without_a_restart(tmp_path: Path, clock: Clock) -> None:
    old, new = b"the old key, long enough", b"the new key, long enough"
    file = tmp_path / "key"

    def write(*secrets: bytes) -> None:
        fresh = tmp_path / "key.new"
        fresh.write_bytes(b"\n".join(secrets) + b"\n")
        fresh.replace(file)
        clock.now += 3

    write(old)
    callers = tmp_path / "callers.yaml"
    callers.write_text(yaml.safe_dump(CALLERS))
    signer = Signer(IdentityKeys(file, now=clock), "orchestrator", clock)
    checker = Authenticator(callers, IdentityKeys(file, now=clock), clock)

    def accepted(token: str) -> bool:
        try:
            return checker.authenticate(EMBED, {IDENTITY_KEY: token}).tenant_id == "acme"
        except TenthError as error:
            assert error.reason == "UNAUTHENTICATED"  # noqa: PT017  (the reason is half of what is asked)
            return False

    first = signer.token(IDENTITY)
    write(old, new)
    assert (
        signer.token(IDENTITY).rpartition(".")[2]
        == Signer(old, "orchestrator", clock).token(IDENTITY).rpartition(".")[2]
    )
    write(new, old)
    second = signer.token(IDENTITY)
    assert second != first
    assert accepted(first)
    assert accepted(second)
    write(new)
    assert not accepted(first), "what was verified before is forgotten as well"
    assert accepted(second)
    write(b"short")
    assert accepted(signer.token(IDENTITY)), "a bad file leaves the secrets as they were"
