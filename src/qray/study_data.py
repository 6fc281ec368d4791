"""The part of a study that says where its clips are."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from qray.errors import UsageError
from qray.storage.place import place_of
from qray.study_verdict import Fraction, Name, Section, Seed


class Synthetic(Section):
    """Size of the synthetic apical-four-chamber set that `qray run` makes when no data folder is named."""

    train: int = Field(1000, gt=0, le=10_000_000)
    val: int = Field(150, gt=0, le=10_000_000)
    test: int = Field(300, gt=0, le=10_000_000)
    seed: Seed = 0


class Data(Section):
    """Where the clips are and which columns of the file list name them.

    `dir` is the data set's folder, or its URI (s3, gs, abfs, file); null means the synthetic set. A missing split
    column, or an empty cell in it, is filled by a seeded draw with `split_fractions` (TRAIN, VAL, TEST);
    `split_column: null` draws them all, for instance where the list numbers folds. `group_column` names what must not
    be torn apart, such as a patient: all rows of a group are on one side, drawn by the group, or where the list puts
    one of them; a group that the list puts on two sides is left out. A row whose group is empty is its own.
    `follow_links` allows links that leave the folder of the videos, as git-annex and download caches make them, to
    files and to folders.
    """

    dir: Name | None = None
    synthetic: Synthetic = Synthetic()
    file_list: Name = "FileList.csv"
    videos: Name = "Videos"
    file_column: Name = "FileName"
    target_column: Name = "EF"
    split_column: Name | None = "Split"
    group_column: Name | None = None
    split_fractions: tuple[Fraction, Fraction, Fraction] = (0.75, 0.125, 0.125)
    split_seed: Seed = 0
    follow_links: bool = False
    max_rejected: Fraction = 0.05

    @field_validator("dir")
    @classmethod
    def _is_a_place(cls, given: str | None) -> str | None:
        try:
            place_of(given or "", "the data set's")
        except UsageError as error:
            raise ValueError(str(error)) from None
        return given

    @model_validator(mode="after")
    def _fractions_sum_to_one(self) -> Data:
        if abs(sum(self.split_fractions) - 1) > 1e-6:
            raise ValueError(f"split_fractions must sum to 1, not {sum(self.split_fractions):g}")
        return self
