"""Rows of the table to come: each variant is judged, and said, as soon as it is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qray.judge.index import unit_files


@dataclass
class Rows:
    """Says a line for each variant that OUT has predictions of, the mean predictor among them, once."""

    out: Path
    say: Callable[[str], None]
    _evaluated: int = 0
    _said: set[str] = field(default_factory=set)

    def say_new(self) -> None:
        """Say those that have come since the last call; the first says what earlier runs left."""
        # Every end of a unit asks, and few are evaluations.
        if (evaluated := len(unit_files(self.out, "evaluate"))) == self._evaluated:
            return
        self._evaluated = evaluated
        from qray.judge.judge import judge_outcomes
        from qray.judge.outcome import outcomes_of
        from qray.judge.run import read_run
        from qray.words.figures import cell
        from qray.words.phrases import state_words

        run = read_run(self.out)
        fp32, *others, mean = (outcome for outcome in outcomes_of(run) if outcome.stage != "trial")
        width = max(len(outcome.variant) for outcome in (fp32, *others, mean))
        for outcome in (mean, fp32, *others):
            if outcome.predictions_path is None or outcome.variant in self._said:
                continue
            self._said.add(outcome.variant)
            # As in the table; there the study's other variants have a part in no figure that is said here.
            among = {one.variant: one for one in (fp32, outcome, mean)}
            variants, baseline, _ = judge_outcomes(list(among.values()), run.study, run.ended_at)
            row = (baseline if outcome is mean else variants[-1]).row
            figures = f"MAE {cell(row, 'mae')} on {row.n_clips} {row.split} clips"
            if row.verdict is not None:
                figures += f", Δ to fp32 {cell(row, 'delta_mae')}: {cell(row, 'verdict')}"
            if row.size_bytes is not None:
                figures += f", {cell(row, 'size_bytes')} MB"
            said = figures if row.status == "ok" else state_words(row.status, row.reason)
            self.say(f"{row.variant:<{width}}  {said}")
