"""Routing rules: what an operator demands for some tenants, users, tags, tasks or languages. Pure.

Rules stand in a YAML file (deploy/routing.yaml) in order. A rule holds when all that its ``when`` names holds; for each
key of ``then`` the first rule that holds and gives the key decides it, so that a rule further down adds to those above
it and never takes from them.

Bounds tighten: of two floors the higher holds, of two ceilings the lower, and bounds that leave nothing are a typed
error. All else is a default, which the request's own word overrides: its model, its quality target, its strategy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mesh.catalog import Entry, open_catalog, text_version
from mesh.errors import Code, TenthError, invalid_argument
from services.router.catalog import TIER_NAMES, Catalog, Model, Tier
from services.router.decision import Asked, Demand, Strategy
from services.router.errors import Reason
from services.router.tasks import TASKS, task_of

LANGUAGES = ("ko", "en", "other")
STRATEGIES = {
    "features": Strategy.FEATURES,
    "llm": Strategy.LLM,
    "trained": Strategy.TRAINED,
    "cascade": Strategy.CASCADE,
}
_RULE_KEYS = frozenset({"name", "when", "then"})
_WHEN_KEYS = frozenset({"tenant", "project", "user", "tag", "task", "language"})
_THEN_KEYS = frozenset(
    {"model", "directive", "tier_floor", "tier_ceiling", "quality_target", "strategy", "exploration"}
)
_DIRECTIVE = re.compile(
    r"\s*model=([a-z0-9]+(?:[._:/@+-]+[a-z0-9]+)*)(?=[,;.!?]*(?:\s|$)|[\uac00-\ud7a3])", re.IGNORECASE | re.ASCII
)
_DIRECTIVE_CHARS = 1000
_MESSAGES = "request.messages"


@dataclass(frozen=True, slots=True)
class When:
    """What must hold. An empty part holds for every request; of several values one is enough."""

    tenant: tuple[str, ...] = ()
    project: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    tag: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Values by key; each key must have one of its values."""
    task: tuple[str, ...] = ()
    language: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Then:
    """What is to be done; None leaves it to later rules, the request and the settings."""

    model: str | None = None
    """This model answers, without fallbacks."""
    directive: bool | None = None
    """Whether ``model=NAME`` at the beginning of the question names the model."""
    tier_floor: Tier | None = None
    tier_ceiling: Tier | None = None
    quality_target: float | None = None
    strategy: Strategy | None = None
    exploration: bool | None = None
    """False: no decision is taken to learn from it. True: the deployment's setting holds, whatever later rules say."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule."""

    name: str
    when: When
    then: Then
    line: int = 0
    """Where its model, or it, stands in the file."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules in order, and a digest of the file's text."""

    rules: tuple[Rule, ...] = ()
    version: str = ""


@dataclass(frozen=True, slots=True)
class Effect:
    """What the rules come to for one request."""

    names: tuple[str, ...] = ()
    """The rules that decided anything, in the file's order."""
    model: Model | None = None
    by_directive: bool = False
    """The user named the model in the message."""
    floor: Tier | None = None
    floor_rule: str = ""
    ceiling: Tier | None = None
    ceiling_rule: str = ""
    quality_target: float | None = None
    strategy: Strategy | None = None
    exploration: bool = True
    """False: no decision is taken to learn from it."""

    @property
    def rule(self) -> str:
        """The rules that decided anything, for a person; empty when none did."""
        return ", ".join(self.names)


def parse_rules(text: str, name: str) -> Rules:
    """The rules of a file; ``name`` is the file's, for messages. Raises CatalogError naming file, line and key."""
    root = open_catalog(text, name, ("rules",))
    rules: list[Rule] = []
    for entry in root.sequence("rules", _RULE_KEYS):
        rule = _rule(entry)
        if rule.name in (each.name for each in rules):
            raise entry.wrong("name", f"two rules are named {rule.name!r}")
        rules.append(rule)
    return Rules(tuple(rules), text_version(text))


def unknown_models(rules: Rules, catalog: Catalog) -> list[tuple[str, str, int]]:
    """Rules whose model the catalogue lacks: rule, model, line. Their requests fail with RULE_MODEL_UNKNOWN."""
    return [
        (rule.name, rule.then.model, rule.line)
        for rule in rules.rules
        if rule.then.model is not None and catalog.model(rule.then.model) is None
    ]


def directive_of(question: str) -> str:
    """The model that the first word of a question names as ``model=NAME``; empty when it does not.

    The name ends at a blank, at punctuation or at Hangul, so that a Korean particle may follow it directly:
    ``model=gpt-4o로 번역해 줘``. ``model=f(x)`` is code, no directive.
    """
    match = _DIRECTIVE.match(question, 0, _DIRECTIVE_CHARS)
    return match.group(1) if match else ""


def apply(rules: Rules, asked: Asked, catalog: Catalog) -> Effect:
    """What the rules come to for a request.

    A directive goes before a rule's model. Both only count where the request's policy names no model itself. The
    directive stays in the message: the router does not edit prompts. Raises UNKNOWN_MODEL (INVALID_ARGUMENT, naming
    request.messages) for a directive and RULE_MODEL_UNKNOWN (FAILED_PRECONDITION) for a rule, when the catalogue lacks
    the model.
    """
    if not rules.rules:
        return Effect()
    task = task_of(asked.found, asked.prompt.question)
    holding = [rule for rule in rules.rules if _holds(rule.when, asked, task)]
    if not holding:
        return Effect()
    model_rule = _first(holding, "model")
    directive_rule = _first(holding, "directive")
    floor_rule, ceiling_rule = _first(holding, "tier_floor"), _first(holding, "tier_ceiling")
    target_rule, strategy_rule = _first(holding, "quality_target"), _first(holding, "strategy")
    exploration_rule = _first(holding, "exploration")

    model, by_directive = None, False
    if asked.demand.model:
        model_rule = directive_rule = None
    elif directive_rule is not None and directive_rule.then.directive and directive_of(asked.prompt.question):
        model, by_directive, model_rule = _by_directive(asked, catalog), True, None
    else:
        directive_rule = None
        if model_rule is not None:
            model = _by_rule(model_rule, catalog)
    # What the request itself says is no rule's doing.
    if asked.demand.quality_target is not None:
        target_rule = None
    if asked.strategy is not None:
        strategy_rule = None
    used = (model_rule, directive_rule, floor_rule, ceiling_rule, target_rule, strategy_rule, exploration_rule)
    return Effect(
        names=tuple(rule.name for rule in holding if any(rule is each for each in used)),
        model=model,
        by_directive=by_directive,
        floor=floor_rule.then.tier_floor if floor_rule else None,
        floor_rule=floor_rule.name if floor_rule else "",
        ceiling=ceiling_rule.then.tier_ceiling if ceiling_rule else None,
        ceiling_rule=ceiling_rule.name if ceiling_rule else "",
        quality_target=target_rule.then.quality_target if target_rule else None,
        strategy=strategy_rule.then.strategy if strategy_rule else None,
        exploration=exploration_rule is None or exploration_rule.then.exploration is not False,
    )


def merged(demand: Demand, effect: Effect) -> Demand:
    """The demand with what the rules say. Never wider than the request and its budget allow.

    Raises CONTRADICTORY_BOUNDS (FAILED_PRECONDITION) when a rule's bound leaves nothing of the request's or the
    budget's, when two rules' bounds do, and when the rule's or the directive's model is outside the bounds.
    """
    floor, ceiling = demand.floor, demand.ceiling
    if effect.floor is not None:
        floor = effect.floor if floor is None else max(floor, effect.floor)
    if effect.ceiling is not None:
        ceiling = effect.ceiling if ceiling is None else min(ceiling, effect.ceiling)
    _check_bounds(demand, effect)
    model = demand.model
    if effect.model is not None and not model:
        _check_model(effect, effect.model, floor, _lower(ceiling, demand.budget_ceiling))
        model = effect.model.name
    return replace(
        demand,
        floor=floor,
        ceiling=ceiling,
        quality_target=effect.quality_target if demand.quality_target is None else demand.quality_target,
        model=model,
    )


def _check_bounds(demand: Demand, effect: Effect) -> None:
    """Raises where a rule takes part; the policy says so where the request contradicts itself or its budget."""
    # Whose it is, and the field that says it: a rule's have none. Of equal bounds the first counts.
    floors = ((demand.floor, "the request", "request.policy.tier_floor"), (effect.floor, effect.floor_rule, ""))
    ceilings = (
        (demand.ceiling, "the request", "request.policy.tier_ceiling"),
        (demand.budget_ceiling, "the budget", "tier_ceiling"),
        (effect.ceiling, effect.ceiling_rule, ""),
    )
    floor, below, floor_field = max(floors, key=lambda each: each[0] or Tier.SIMPLE)
    ceiling, above, ceiling_field = min(ceilings, key=lambda each: each[0] or Tier.COMPLEX)
    if floor is None or ceiling is None or floor <= ceiling or (floor_field and ceiling_field):
        return
    rules = [f"rule {who!r}" if not field else who for who, field in ((below, floor_field), (above, ceiling_field))]
    raise TenthError(
        Code.FAILED_PRECONDITION,
        Reason.CONTRADICTORY_BOUNDS,
        f"{rules[0]} allows no tier below {floor.name.lower()}, {rules[1]} none above {ceiling.name.lower()}",
        floor_field or ceiling_field,
        metadata={"rule": ", ".join(who for who, field in ((below, floor_field), (above, ceiling_field)) if not field)},
    )


def _check_model(effect: Effect, model: Model, floor: Tier | None, ceiling: Tier | None) -> None:
    if (floor is None or model.tier >= floor) and (ceiling is None or model.tier <= ceiling):
        return
    bound = f"below the floor {floor.name.lower()}" if floor is not None and model.tier < floor else ""
    bound = bound or f"above the ceiling {ceiling.name.lower() if ceiling else ''}"
    who = "named in the message" if effect.by_directive else "named by a rule"
    raise TenthError(
        Code.FAILED_PRECONDITION,
        Reason.CONTRADICTORY_BOUNDS,
        f"{model.name}, {who}, is {bound}",
        _MESSAGES if effect.by_directive else "",
        metadata={"rule": effect.rule},
    )


def _by_directive(asked: Asked, catalog: Catalog) -> Model:
    name = directive_of(asked.prompt.question)
    model = catalog.model(name)
    if model is None:
        raise invalid_argument(
            f"the message begins with model={name}, and the catalogue has no such model",
            field=_MESSAGES,
            reason=Reason.UNKNOWN_MODEL,
        )
    return model


def _by_rule(rule: Rule, catalog: Catalog) -> Model:
    model = catalog.model(rule.then.model or "")
    if model is None:
        raise TenthError(
            Code.FAILED_PRECONDITION,
            Reason.RULE_MODEL_UNKNOWN,
            f"rule {rule.name!r} names the model {rule.then.model}, which the catalogue does not have",
            metadata={"rule": rule.name},
        )
    return model


def _lower(one: Tier | None, other: Tier | None) -> Tier | None:
    return min((tier for tier in (one, other) if tier is not None), default=None)


def _first(holding: list[Rule], key: str) -> Rule | None:
    return next((rule for rule in holding if getattr(rule.then, key) is not None), None)


def _holds(when: When, asked: Asked, task: str) -> bool:
    one_of = (
        (when.tenant, asked.tenant_id),
        (when.project, asked.project_id),
        (when.user, asked.user_id),
        (when.task, task),
        (when.language, asked.found.language),
    )
    return all(not wanted or value in wanted for wanted, value in one_of) and all(
        asked.tags.get(key) in values for key, values in when.tag.items()
    )


def _rule(entry: Entry) -> Rule:
    when, then = entry.mapping("when", _WHEN_KEYS), entry.mapping("then", _THEN_KEYS, required=True)
    tags = when.mapping("tag", None)
    rule = Rule(
        name=entry.text("name"),
        when=When(
            tenant=when.texts("tenant"),
            project=when.texts("project"),
            user=when.texts("user"),
            tag={key: tags.texts(key) for key in tags},
            task=when.texts("task", TASKS),
            language=when.texts("language", LANGUAGES),
        ),
        then=Then(
            model=then.text("model") if "model" in then else None,
            directive=then.boolean("directive", False) if "directive" in then else None,
            tier_floor=_tier(then, "tier_floor"),
            tier_ceiling=_tier(then, "tier_ceiling"),
            quality_target=then.number("quality_target", above=0, most=1) if "quality_target" in then else None,
            strategy=STRATEGIES[then.choice("strategy", tuple(STRATEGIES))] if "strategy" in then else None,
            exploration=then.boolean("exploration", True) if "exploration" in then else None,
        ),
        line=then.line("model") if "model" in then else entry.line(""),
    )
    if rule.then == Then():
        raise entry.wrong("then", "at least one key is needed")
    floor, ceiling = rule.then.tier_floor, rule.then.tier_ceiling
    if floor is not None and ceiling is not None and floor > ceiling:
        raise then.wrong("tier_floor", "is above tier_ceiling")
    return rule


def _tier(entry: Entry, key: str) -> Tier | None:
    return TIER_NAMES[entry.choice(key, tuple(TIER_NAMES))] if key in entry else None
