"""What a study holds against the evidence, declared before the run; and what all its sections have in common."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from qray.yaml_text import short

#: By how many margins a prediction must move to count as moved, where the study does not say.
MOVED_MARGINS = 5.0

#: More than anything is run with; larger ones overflow in what counts with 32 bits, or plan for hours.
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
#: Of a file, folder or column.
Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
Fraction = Annotated[float, Field(ge=0, le=1)]


def known(catalog: Collection[str], *more: str) -> AfterValidator:
    """Refuses a name that is not in a catalog when it is looked up, which may have grown since."""

    def check(value: str) -> str:
        if value not in catalog and value not in more:
            raise ValueError(f"{short(repr(value))} is none of {', '.join(catalog)}")
        return value

    return AfterValidator(check)


class Section(BaseModel):
    """Common settings of every part of a study: nothing unknown, nothing changed after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Guardrails(Section):
    """What a variant must hold beside its mean, or it is not to be shipped; no limit is in target units of its own.

    In units of the margin: class_margin is the loss of MAE, and the shift, that is put up with within a class that the
    thresholds make of the labels; local_move how far clips of one class, or of one end of FP32's predictions, may move
    on average where they move much farther than the others. moved_share: share of clips that may move by more than
    `moved`; tail_quantile of all moves must be under tail_moved times `moved`. tied: clips that may share the lowest or
    the highest prediction where FP32 tells them apart; distinct_share: distinct predictions, as a share of FP32's.
    Classes of fewer than min_class_clips join their neighbours.
    """

    class_margin: float = Field(1.0, gt=0)
    local_move: float = Field(1.25, gt=0)
    min_class_clips: int = Field(10, ge=5)
    moved_share: Fraction = 0.05
    tail_quantile: float = Field(0.98, gt=0.5, lt=1)
    tail_moved: float = Field(1.5, gt=0)
    tied: PositiveInt = 1
    distinct_share: Fraction = 0.8


class Accuracy(Section):
    """What mixed precision is to hold on VAL: as many layers stay in FP32 as that takes, chosen by the search of
    `units.mix`.

    within: what the upper end of the interval of its loss of MAE to FP32 must stay under, in target units, or the
    study's margin; the guardrails are the study's either way. evaluations: mixes that are tried at most, each of them
    built and evaluated on VAL.
    """

    within: Literal["margin"] | Annotated[float, Field(gt=0)] = "margin"
    evaluations: PositiveInt = 12


class Verdict(Section):
    """What is held against the evidence, declared before the run, and the bootstrap behind the intervals.

    In target units: margin is the loss of MAE to FP32 that is put up with; thresholds are those at which a decision
    turns on the prediction (the defaults are for EF; [] for none); moved is how far from FP32's a prediction must be to
    count as moved, by default five times the margin.
    """

    margin: float = Field(1.0, gt=0)
    thresholds: tuple[float, ...] = (35.0, 40.0, 45.0, 50.0)
    moved: float = Field(MOVED_MARGINS, gt=0)
    guardrails: Guardrails = Guardrails()
    bootstrap: int = Field(10_000, ge=100, le=1_000_000)
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _moved_follows_the_margin(cls, given: Any) -> Any:
        margin = given.get("margin") if isinstance(given, dict) and "moved" not in given else None
        return given | {"moved": MOVED_MARGINS * margin} if isinstance(margin, int | float) and margin > 0 else given
