"""How good an answer was beside the baseline's, where that is recorded or can be seen. Pure.

- a cached answer: right when it is the answer to the asked question's own topic; one that was served to a question
  outside the curated set is wrong;
- reasoning: the recorded correctness of the model that answered, beside that of the strong model;
- passages: 1 while what the answer needs is still in what was sent (the answer's string in the gold passage, or the
  sentence that supports the reference), beside 1; it says nothing of what the answering model makes of them;
- anything else (a model's new answer to a support question, an open chat, a label): not recorded, None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.endtoend_play import Outcome
from bench.endtoend_rows import STRONG, Ask
from services.compressor.datasets import Case, holds


@dataclass(frozen=True, slots=True)
class Quality:
    """Ours and the baseline's, each 0..1."""

    ours: float
    baseline: float


def quality_of(ask: Ask, outcome: Outcome, prompts: Mapping[str, str]) -> Quality | None:
    """The quality of one answer; None where nothing is recorded. ``prompts`` are the kept ones, by digest.

    A failed request is worth nothing where its quality would be known.
    """
    if ask.correct:
        right = outcome.code == ask.code and not outcome.error
        return Quality(ask.correct.get(outcome.model, 0.0) if right else 0.0, ask.correct[STRONG[ask.catalog]])
    if ask.case is not None:
        sent = prompts.get(outcome.prompt, "")
        right = outcome.code == ask.code and not outcome.error
        return Quality(float(right and kept(ask.case, sent)), 1.0)
    if outcome.hit:
        return Quality(float(outcome.code == ask.code and (ask.servable or outcome.hit != "semantic")), 1.0)
    return None


def kept(case: Case, sent: str) -> bool:
    """True when every gold passage still has in ``sent`` what the answer needs of it."""
    if case.evidence:
        wanted = [sentence for each in case.evidence for sentence in each]
        return all(" ".join(sentence.split()) in " ".join(sent.split()) for sentence in wanted)
    context = sent.rpartition("Context:\n")[2].rpartition("\n\n")[0]
    return all(holds(context, case.answers) for at in case.gold if holds(case.chunks[at], case.answers))
