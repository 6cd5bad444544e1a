"""The namespaces file: read strictly, the most specific rule holds, a changed file is taken without a restart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mesh.catalog import CatalogError, WatchedFile
from services.cache.namespaces import Mode, NamespacePolicy, Namespaces, Rules, parse_namespaces
from services.cache.settings import CacheSettings

DEFAULTS = NamespacePolicy(ttl_seconds=50.0)
DEPLOY = Path(__file__).parents[3] / "deploy"
FILE = """
tenants:
  acme:
    faq-shop: {mode: faq, ttl_seconds: 86400, sharing_user_count: 1}
    faq-*: {mode: faq}
    faq-old-*: {mode: off, judge_model: mini}
  "*":
    faq-shop: {ttl_seconds: 7.5}
    prices: {max_wrong_hits_per_thousand: 0.5, writes_per_minute: 10, user_writes_per_minute: 0.5}
    "*": {ttl_seconds: 60}
"""


def of(tenant: str, namespace: str, text: str = FILE) -> NamespacePolicy:
    return Namespaces(DEFAULTS, lambda: parse_namespaces(text, "n.yaml", DEFAULTS)).of(tenant, namespace)


@pytest.mark.parametrize(
    ("tenant", "namespace", "expected"),
    [
        ("acme", "faq-shop", NamespacePolicy(Mode.FAQ, ttl_seconds=86400, sharing_user_count=1)),
        ("acme", "faq-shop2", NamespacePolicy(Mode.FAQ, ttl_seconds=50)),
        ("acme", "faq-", NamespacePolicy(Mode.FAQ, ttl_seconds=50)),
        ("acme", "faq-old-x", NamespacePolicy(Mode.OFF, ttl_seconds=50, judge_model="mini")),
        ("acme", "prices", NamespacePolicy(Mode.STRICT, 0.5, 50, 2, 10, 0.5)),
        ("acme", "faq", NamespacePolicy(ttl_seconds=60)),
        ("other", "faq-shop", NamespacePolicy(ttl_seconds=7.5)),
        ("*", "faq-old-x", NamespacePolicy(ttl_seconds=60)),
    ],
)
def test_the_most_specific_rule_holds_alone(tenant: str, namespace: str, expected: NamespacePolicy) -> None:
    assert of(tenant, namespace) == expected


def test_without_a_rule_the_settings_hold() -> None:
    assert Namespaces(DEFAULTS).of("acme", "x") == DEFAULTS
    assert of("other", "x", "tenants: {acme: {x: {mode: faq}}}") == DEFAULTS
    for nothing in ("", "tenants:", "tenants: {}"):
        assert parse_namespaces(nothing, "n.yaml", DEFAULTS) == Rules()


def test_the_names_that_rules_know() -> None:
    namespaces = Namespaces(DEFAULTS, lambda: parse_namespaces(FILE, "n.yaml", DEFAULTS))
    assert namespaces.named("acme") == {"faq-shop", "prices"}
    assert namespaces.named("other") == {"faq-shop", "prices"}
    assert Namespaces(DEFAULTS).named("acme") == set()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tenant: {}", "n.yaml:1: tenant: unknown key"),
        ("tenants:\n  a:\n    x: {ttl: 3}", "n.yaml:3: tenants.a.x.ttl: unknown key"),
        ("tenants:\n  a:\n    x: {}\n    x: {}", "n.yaml:4: tenants.a.x: given twice"),
        ("tenants:\n  a:\n    x: {mode: fast}", "n.yaml:3: tenants.a.x.mode: 'fast' is none of strict, faq, off"),
        ("tenants:\n  a:\n    x*y: {}", 'n.yaml:3: tenants.a.x*y: "*" stands at the end only'),
        ("tenants:\n  a*: {}", "n.yaml:2: tenants.a*: must be the id of a tenant"),
        ("tenants:\n  '': {}", "n.yaml:2: tenants: must be the id of a tenant"),
        ("tenants:\n  a:\n    '': {}", "1 to 128 characters"),
        (f"tenants:\n  a:\n    {'n' * 129}: {{}}", "n.yaml:3: tenants.a."),
        ("tenants: [a]", "n.yaml:1: tenants: must be a mapping"),
        ("tenants:\n  a: x", "n.yaml:2: tenants.a: must be a mapping"),
        ("tenants: {a: {x: {ttl_seconds: 0}}}", "tenants.a.x.ttl_seconds: '0' is not a number above 0"),
        ("tenants: {a: {x: {ttl_seconds: .inf}}}", "'.inf' is not a number"),
        ("tenants: {a: {x: {ttl_seconds: '60'}}}", "'60' is not a number"),
        ("tenants: {a: {x: {max_wrong_hits_per_thousand: 1001}}}", "above 0 and at most 1000"),
        ("tenants: {a: {x: {sharing_user_count: 0}}}", "not a whole number of at least 1"),
        ("tenants: {a: {x: {sharing_user_count: 1.5}}}", "not a whole number of at least 1"),
        ("tenants: {", "n.yaml: not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_key(text: str, message: str) -> None:
    with pytest.raises(CatalogError) as caught:
        parse_namespaces(text, "n.yaml", DEFAULTS)
    assert message in str(caught.value)


def test_the_example_is_good_with_and_without_its_comments() -> None:
    text = (DEPLOY / "namespaces.yaml").read_text("utf-8")
    assert parse_namespaces(text, "n.yaml", DEFAULTS) == Rules()
    _, _, example = text.partition("tenants: {}\n")
    shown = "\n".join(line.removeprefix("# ") for line in example.splitlines())
    assert of("acme", "faq-shop", shown) == NamespacePolicy(Mode.FAQ, ttl_seconds=86400, sharing_user_count=1)
    assert of("other", "prices", shown).mode is Mode.OFF
    # What it shows as the values of a rule are the defaults.
    assert of("acme", "support", shown) == NamespacePolicy()
    settings = CacheSettings()
    assert NamespacePolicy(**settings.model_dump(include=set(NamespacePolicy.__slots__))) == NamespacePolicy()


async def test_a_changed_file_holds_for_the_next_request_and_a_wrong_one_never(tmp_path: Path) -> None:
    file = tmp_path / "namespaces.yaml"
    file.write_text("tenants: {acme: {x: {ttl_seconds: 1}}}")
    watched = WatchedFile(file, lambda text, name: parse_namespaces(text, name, DEFAULTS))
    namespaces = Namespaces(DEFAULTS, lambda: watched.current)
    assert namespaces.of("acme", "x").ttl_seconds == 1
    for text, ttl in (("tenants: {acme: {x: {ttl_seconds: 2}}}", 2), ("tenants: {acme: 3}", 2), ("", 50)):
        file.write_text(text)
        os.utime(file, (ttl * 1000 + len(text), ttl * 1000 + len(text)))
        await watched.refresh()
        assert namespaces.of("acme", "x").ttl_seconds == ttl
