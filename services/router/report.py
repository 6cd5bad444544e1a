"""How routing does: quality seen against quality predicted, costs, drift, exploration. Pure.

The interval of a model's gap is Wilson's (1927) for its mean feedback, less the mean that was predicted. It is exact
for feedback of 0 or 1 and too wide, never too narrow, for shades between. Callers choose what they give feedback on,
so a gap tells of the feedback's requests, not of all; audits and explorations are drawn without choosing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.router.decision import UNKNOWN_COST, Exploration
from services.router.drift import DRIFT, drift
from services.router.outcomes import Outcome, ScoreSource, evidence, extra_cost_nano_usd

_Z95 = 1.959964
_Z_WARNING = 3.290527
"""99.9%: a report is looked at often and has many models, and a warning must mean something."""
_LEAST_SCORED = 50
_LEAST_GAP = 0.05
_LEAST_ANSWERS = 100
_COST_FACTOR = 1.5
_TOKEN_FACTOR = 2.0
_FAILED_SHARE = 0.1
_UNLIKE_SHARE = 0.2
_LEAST_DECISIONS = 200


@dataclass(frozen=True, slots=True)
class ModelReport:
    """How one model does; see tenth.router.v1.ModelReport."""

    model: str
    decision_count: int
    scored_count: int
    mean_score: float
    mean_predicted: float
    gap_low: float
    gap_high: float
    failed_count: int
    escalated_count: int
    cost_nano_usd: int
    expected_cost_nano_usd: int
    output_token_count: int
    expected_output_token_count: int


@dataclass(frozen=True, slots=True)
class Report:
    """The report; see tenth.router.v1.GetReportResponse."""

    models: tuple[ModelReport, ...]
    strategy_counts: Mapping[str, int]
    explored_count: int
    audited_count: int
    exploration_cost_nano_usd: int
    out_of_distribution_count: int
    shadow_differs_count: int
    shadow_count: int
    warnings: tuple[str, ...]
    feature_drift: Mapping[str, float]
    decision_count: int
    heads_version: str


@dataclass(slots=True)
class _Sums:
    """What is added up of one model."""

    decisions: int = 0
    score: float = 0.0
    predicted: float = 0.0
    scored: int = 0
    failed: int = 0
    escalated: int = 0
    answers: int = 0
    """Those whose expected cost and tokens are known."""
    cost: int = 0
    expected_cost: int = 0
    tokens: int = 0
    expected_tokens: int = 0


def build(
    outcomes: Iterable[Outcome],
    trained: Mapping[str, Sequence[float]],
    *,
    heads_version: str = "",
    dropped_count: int = 0,
) -> Report:
    """The report of some outcomes.

    ``trained`` are the training's deciles by feature, 11 each; none: no drift is looked for. ``dropped_count`` are
    parts of outcomes that the log could not take.
    """
    sums: dict[str, _Sums] = {}
    strategies: Counter[str] = Counter()
    explorations: Counter[Exploration] = Counter()
    rows: list[Mapping[str, float]] = []
    extra = unlike = differs = shadows = decisions = 0
    for outcome in outcomes:
        _add(sums, outcome)
        if not outcome.model:
            continue
        decisions += 1
        rows.append(outcome.features)
        explorations[outcome.exploration] += 1
        extra += extra_cost_nano_usd(outcome)
        unlike += outcome.out_of_distribution
        if outcome.strategy is not None:
            strategies[outcome.strategy.name.lower()] += 1
        if outcome.shadow is not None:
            shadows += 1
            differs += outcome.shadow.model != (outcome.preferred_model or outcome.model)
    drifted = drift(rows, trained)
    return Report(
        models=tuple(_model(name, sums[name]) for name in sorted(sums)),
        strategy_counts=dict(strategies),
        explored_count=explorations[Exploration.EXPLORE],
        audited_count=explorations[Exploration.AUDIT],
        exploration_cost_nano_usd=extra,
        out_of_distribution_count=unlike,
        shadow_differs_count=differs,
        shadow_count=shadows,
        warnings=tuple(_warnings(sums, drifted, decisions, unlike, dropped_count)),
        feature_drift=drifted,
        decision_count=decisions,
        heads_version=heads_version,
    )


def wilson(mean: float, count: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson's interval of a mean of values 0..1; all of 0..1 where there are none."""
    if not count:
        return 0.0, 1.0
    scale = 1.0 + z * z / count
    middle = (mean + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(max(0.0, mean * (1.0 - mean)) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _add(sums: dict[str, _Sums], outcome: Outcome) -> None:
    if outcome.model:
        sums.setdefault(outcome.model, _Sums()).decisions += 1
    for said in evidence(outcome):
        candidate = outcome.candidate(said.model)
        if said.source is ScoreSource.ESCALATION or candidate is None:
            continue  # A refusal is counted below; it is a check's guess, no feedback.
        of = sums.setdefault(said.model, _Sums())
        of.scored += 1
        of.score += said.score
        of.predicted += candidate.success_probability
    done = outcome.completion
    if done is None:
        return
    for name in done.failed_models:
        sums.setdefault(name, _Sums()).failed += 1
    if done.escalated_from:
        sums.setdefault(done.escalated_from, _Sums()).escalated += 1
    expected = outcome.candidate(done.model)
    if expected is None or expected.expected_cost_nano_usd == UNKNOWN_COST:
        return
    of = sums.setdefault(done.model, _Sums())
    first = outcome.candidate(done.escalated_from)
    of.answers += 1
    of.cost += done.cost_nano_usd
    of.expected_cost += expected.expected_cost_nano_usd + (max(0, first.expected_cost_nano_usd) if first else 0)
    of.tokens += done.output_tokens
    of.expected_tokens += expected.expected_output_tokens


def _model(name: str, of: _Sums) -> ModelReport:
    score = of.score / of.scored if of.scored else 0.0
    predicted = of.predicted / of.scored if of.scored else 0.0
    low, high = wilson(score, of.scored)
    return ModelReport(
        model=name,
        decision_count=of.decisions,
        scored_count=of.scored,
        mean_score=score,
        mean_predicted=predicted,
        gap_low=low - predicted,
        gap_high=high - predicted,
        failed_count=of.failed,
        escalated_count=of.escalated,
        cost_nano_usd=of.cost,
        expected_cost_nano_usd=of.expected_cost,
        output_token_count=of.tokens,
        expected_output_token_count=of.expected_tokens,
    )


def _warnings(
    sums: Mapping[str, _Sums], drifted: Mapping[str, float], decisions: int, unlike: int, dropped: int
) -> Iterator[str]:
    for name, value in sorted(drifted.items(), key=lambda pair: -pair[1]):
        if value > DRIFT:
            yield f"questions have changed: {name} is not spread as in training (index {value:.2f}, above {DRIFT})"
    if decisions >= _LEAST_DECISIONS and unlike > _UNLIKE_SHARE * decisions:
        yield f"{unlike} of {decisions} questions are unlike all that the heads were trained on"
    for name in sorted(sums):
        yield from _model_warnings(name, sums[name])
    if dropped:
        yield f"{dropped} parts of outcomes were not recorded: the log's queue was full or its disk failed"


def _model_warnings(name: str, of: _Sums) -> Iterator[str]:
    if of.scored >= _LEAST_SCORED:
        score, predicted = of.score / of.scored, of.predicted / of.scored
        low, high = wilson(score, of.scored, _Z_WARNING)
        if abs(score - predicted) >= _LEAST_GAP and not low <= predicted <= high:
            side = "worse" if score < predicted else "better"
            yield (
                f"{name} answers {side} than predicted: {score:.2f} seen, {predicted:.2f} predicted, "
                f"{of.scored} answers with feedback"
            )
    if of.answers >= _LEAST_ANSWERS and of.expected_cost > 0:
        ratio = of.cost / of.expected_cost
        if ratio > _COST_FACTOR:
            yield f"{name} costs {ratio:.1f} times what was expected, over {of.answers} answers"
        elif ratio < 1 / _COST_FACTOR:
            yield f"{name} costs {ratio:.2f} of what was expected, over {of.answers} answers"
    if of.answers >= _LEAST_ANSWERS and of.expected_tokens > 0:
        ratio = of.tokens / of.expected_tokens
        if not 1 / _TOKEN_FACTOR <= ratio <= _TOKEN_FACTOR:
            yield f"{name} writes {ratio:.2f} times the output tokens that were expected, over {of.answers} answers"
    attempts = of.answers + of.failed
    if attempts >= _LEAST_ANSWERS and of.failed > _FAILED_SHARE * attempts:
        yield f"{name} failed in {of.failed} of {attempts} attempts"
