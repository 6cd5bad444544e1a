"""Reports and replays as messages."""

from __future__ import annotations

from typing import cast

from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2

from services.router.replay import Replayed
from services.router.report import Report


def replayed_message(replayed: Replayed) -> router_pb2.ReplayedOutcome:
    """A replayed outcome as its message."""
    return router_pb2.ReplayedOutcome(
        request_id=replayed.request_id,
        model=replayed.model,
        tier=cast(chat_pb2.Tier.ValueType, int(replayed.tier or 0)),
        success_probability=replayed.success_probability,
        cost_nano_usd=replayed.cost_nano_usd,
        recorded_success_probability=replayed.recorded_success_probability,
        recorded_cost_nano_usd=replayed.recorded_cost_nano_usd,
        reason=replayed.reason,
    )


def report_message(report: Report) -> router_pb2.GetReportResponse:
    """A report as its message."""
    return router_pb2.GetReportResponse(
        models=[
            router_pb2.ModelReport(
                model=item.model,
                decision_count=item.decision_count,
                scored_count=item.scored_count,
                mean_score=item.mean_score,
                mean_predicted=item.mean_predicted,
                gap_low=item.gap_low,
                gap_high=item.gap_high,
                failed_count=item.failed_count,
                escalated_count=item.escalated_count,
                cost_nano_usd=item.cost_nano_usd,
                expected_cost_nano_usd=item.expected_cost_nano_usd,
                output_token_count=item.output_token_count,
                expected_output_token_count=item.expected_output_token_count,
            )
            for item in report.models
        ],
        strategy_counts=report.strategy_counts,
        explored_count=report.explored_count,
        audited_count=report.audited_count,
        exploration_cost_nano_usd=report.exploration_cost_nano_usd,
        out_of_distribution_count=report.out_of_distribution_count,
        shadow_differs_count=report.shadow_differs_count,
        shadow_count=report.shadow_count,
        warnings=report.warnings,
        feature_drift=report.feature_drift,
        decision_count=report.decision_count,
        heads_version=report.heads_version,
    )
