"""The rules of each namespace: how sure a hit must be, how long answers live, who may share them. Pure.

Rules stand in a YAML file by tenant and namespace (deploy/namespaces.yaml); what a rule leaves out, and every namespace
without a rule, follows the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum

from mesh.catalog import Entry, open_catalog

MAX_NAMESPACE_CHARACTERS = 128
ANY = "*"
"""As a tenant: every tenant. At the end of a namespace: every namespace that begins so."""


class Mode(StrEnum):
    """How answers are found by meaning."""

    STRICT = "strict"
    """The same question in other words."""
    FAQ = "faq"
    """A curated set of answers: questions with the same intent share one."""
    OFF = "off"
    """Exact hits only."""


@dataclass(frozen=True, slots=True)
class NamespacePolicy:
    """What holds in one namespace of a tenant."""

    mode: Mode = Mode.STRICT
    max_wrong_hits_per_thousand: float = 5.0
    """Most wrong semantic hits per thousand lookups that the threshold is chosen for, above 0 to 1,000."""
    ttl_seconds: float = 3600.0
    sharing_user_count: int = 2
    """Independent users that must have got the same answer before others do; 1: shared at once. Requests without a
    user are the tenant's own and are shared at once."""
    writes_per_minute: float = 6000.0
    """Answers stored per minute, all users of the namespace together."""
    user_writes_per_minute: float = 60.0
    """Answers stored per minute for one user."""
    judge_model: str = ""
    """Catalogue id of the model that judges near misses, in the background; empty: none."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a file says, by tenant or ``*``: policies by name, and by beginning, the longest first."""

    named: Mapping[tuple[str, str], NamespacePolicy] = field(default_factory=dict)
    beginnings: Mapping[str, tuple[tuple[str, NamespacePolicy], ...]] = field(default_factory=dict)


class Namespaces:
    """The policy of every namespace, by the rules in force now."""

    def __init__(self, defaults: NamespacePolicy, rules: Callable[[], Rules] = Rules) -> None:
        """``rules`` is asked each time, so that a changed file holds for the next request."""
        self._defaults = defaults
        self._rules = rules

    def of(self, tenant_id: str, namespace: str) -> NamespacePolicy:
        """The most specific rule's policy; without a rule the settings'.

        The tenant's own before every tenant's, a name before a beginning, the longer beginning before the shorter.
        """
        rules = self._rules()
        # A tenant may not be called "*", or it would be every tenant.
        for tenant in (tenant_id, ANY) if tenant_id != ANY else (ANY,):
            found = rules.named.get((tenant, namespace))
            if found is not None:
                return found
            for beginning, policy in rules.beginnings.get(tenant, ()):
                if namespace.startswith(beginning):
                    return policy
        return self._defaults

    def named(self, tenant_id: str) -> set[str]:
        """The namespaces that the rules name for a tenant."""
        return {namespace for tenant, namespace in self._rules().named if tenant in (tenant_id, ANY)}


def parse_namespaces(text: str, name: str, defaults: NamespacePolicy) -> Rules:
    """The rules of a file; ``name`` is the file's, for messages. Raises CatalogError naming file, line and key."""
    named: dict[tuple[str, str], NamespacePolicy] = {}
    beginnings: dict[str, list[tuple[str, NamespacePolicy]]] = {}
    root = open_catalog(text, name, ("tenants",))
    tenants = root.mapping("tenants", None)
    for tenant in tenants:
        if not tenant or (ANY in tenant and tenant != ANY):
            raise tenants.wrong(tenant, f'must be the id of a tenant, or "{ANY}" for all')
        namespaces = tenants.mapping(tenant, None)
        for pattern in namespaces:
            if not pattern or len(pattern) > MAX_NAMESPACE_CHARACTERS:
                raise namespaces.wrong(pattern, f"a namespace has 1 to {MAX_NAMESPACE_CHARACTERS} characters")
            if ANY in pattern[:-1]:
                raise namespaces.wrong(pattern, f'"{ANY}" stands at the end only')
            policy = _policy(namespaces.mapping(pattern, _KEYS), defaults)
            if pattern.endswith(ANY):
                beginnings.setdefault(tenant, []).append((pattern[:-1], policy))
            else:
                named[tenant, pattern] = policy
    longest_first = {tenant: tuple(sorted(some, key=lambda one: -len(one[0]))) for tenant, some in beginnings.items()}
    return Rules(named, longest_first)


_KEYS = frozenset(each.name for each in fields(NamespacePolicy))


def _policy(rule: Entry, defaults: NamespacePolicy) -> NamespacePolicy:
    return NamespacePolicy(
        mode=Mode(rule.choice("mode", tuple(Mode), defaults.mode)),
        max_wrong_hits_per_thousand=rule.number(
            "max_wrong_hits_per_thousand", defaults.max_wrong_hits_per_thousand, above=0, most=1000
        ),
        ttl_seconds=rule.number("ttl_seconds", defaults.ttl_seconds, above=0, most=315_360_000),
        sharing_user_count=rule.integer("sharing_user_count", defaults.sharing_user_count),
        writes_per_minute=rule.number("writes_per_minute", defaults.writes_per_minute, above=0),
        user_writes_per_minute=rule.number("user_writes_per_minute", defaults.user_writes_per_minute, above=0),
        judge_model=rule.text("judge_model", defaults.judge_model),
    )
