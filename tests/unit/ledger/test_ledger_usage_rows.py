"""The usage file that an operator reconciles, and which record of an attempt stands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.receipt import Usage
from services.ledger.corrections import apply_truths, truths_of
from services.ledger.policy import Attempt, AttemptKind, spent_by_attempts
from services.ledger.reconcile_usage import parse_rows

HEADER = "request_id,attempt,input,cached,write_5m,write_1h,output,reasoning"


def record(kind: AttemptKind, usage: Usage, at: int, *, estimated: bool, purpose: str = "answer") -> Attempt:
    return Attempt(1, purpose, kind, "small", usage, estimated, quantized=False, event_ns=at)


def test_a_file_is_read() -> None:
    (row,) = parse_rows([HEADER + ",tenant_id", "r1, 2,100,40,,,7,3,acme"])
    assert (row.line, row.request_id, row.attempt, row.tenant_id, row.purpose) == (2, "r1", 2, "acme", "answer")
    assert row.counts == {"input": 100, "cached": 40, "write_5m": 0, "write_1h": 0, "output": 7, "reasoning": 3}
    assert parse_rows(["request_id,attempt,input,output,purpose", "r,1,2,3,classifier"])[0].purpose == "classifier"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "line 1: column request_id is missing"),
        (["request_id,attempt,input"], "line 1: column output is missing"),
        ([HEADER + ",user"], "line 1: unknown column 'user'"),
        ([HEADER, "r,1,-5,0,0,0,0,0"], "line 2: input is '-5', not a whole number"),
        ([HEADER, "r,1,1e3,0,0,0,0,0"], "line 2: input is '1e3', not a whole number"),
        ([HEADER, "r,,1,0,0,0,0,0"], "line 2: attempt is '', not a whole number"),
        ([HEADER, ",1,1,0,0,0,0,0"], "line 2: request_id is empty"),
        ([HEADER, "r,1,1"], "line 2: it has not as many cells"),
        ([HEADER, "r,1,1,0,0,0,0,0,9"], "line 2: it has not as many cells"),
        ([HEADER, "r,1,10,9,2,0,0,0"], "line 2: input must include cached and written"),
        ([HEADER, "r,1,10,0,0,0,2,3"], "line 2: output must include the reasoning"),
        ([HEADER, "r,1," + "9" * 30 + ",0,0,0,0,0"], "line 2: input is"),
    ],
)
def test_a_wrong_file_is_refused_by_line_and_column(lines: list[str], said: str) -> None:
    with pytest.raises(ValueError, match="^" + said):
        parse_rows(lines)


@pytest.mark.parametrize("late_first", [False, True])
def test_an_exact_end_stands_before_an_estimated_one_whenever_it_comes(late_first: bool) -> None:
    guess = record(AttemptKind.CANCELLED, Usage(800, 500), 5, estimated=True)
    truth = record(AttemptKind.FINISHED, Usage(790, 620, reasoning=100), 9, estimated=False)
    (spent,) = spent_by_attempts([truth, guess] if late_first else [guess, truth], assume_worst=False) or ()
    assert spent.kind == "cancelled_attempt", "how it ended is what was recorded then"
    assert (spent.attempt.usage, spent.estimated) == (truth.usage, False)


def test_of_two_exact_ends_the_first_stands() -> None:
    one = record(AttemptKind.FAILED, Usage(1, 1), 1, estimated=False)
    two = record(AttemptKind.FINISHED, Usage(2, 2), 2, estimated=False)
    (spent,) = spent_by_attempts([one, two], assume_worst=True) or ()
    assert spent.attempt.usage == Usage(1, 1)


def test_a_worst_case_is_no_truth() -> None:
    assert not truths_of([record(AttemptKind.STARTED, Usage(1, 9), 1, estimated=False)])


def test_the_classifiers_usage_is_not_the_answers() -> None:
    facts = receipt_pb2.ReceiptFacts(
        model="small", attempt=1, usage=usage_pb2.Usage(input_token_count=5, estimated=True)
    )
    truths = truths_of([record(AttemptKind.FINISHED, Usage(9, 9), 1, estimated=False, purpose="classifier")])
    assert not apply_truths(facts, truths)
    facts.overheads.add(kind="classifier", model="small", attempt=1, usage=usage_pb2.Usage(estimated=True))
    assert apply_truths(facts, truths)
    assert (facts.usage.estimated, facts.overheads[0].usage.input_token_count) == (True, 9)


def test_an_answer_is_not_corrected_to_nothing() -> None:
    guess = usage_pb2.Usage(input_token_count=5, estimated=True)
    facts = receipt_pb2.ReceiptFacts(model="small", attempt=1, usage=guess)
    facts.overheads.add(kind="failed_attempt", model="small", attempt=2, usage=guess)
    nothing = record(AttemptKind.FAILED, Usage(), 1, estimated=False)
    assert apply_truths(facts, truths_of([nothing, replace(nothing, attempt=2)]))
    assert facts.usage == guess
    assert facts.overheads[0].usage == usage_pb2.Usage(), "a failed attempt may have cost nothing"


def test_an_error_of_the_estimate_is_no_saving_of_compression() -> None:
    facts = receipt_pb2.ReceiptFacts(
        model="small",
        attempt=1,
        usage=usage_pb2.Usage(input_token_count=800, output_token_count=5, estimated=True),
        original_input_token_count=1000,
    )
    assert apply_truths(facts, truths_of([record(AttemptKind.FINISHED, Usage(880, 5), 1, estimated=False)]))
    assert facts.original_input_token_count == 1100
