"""Options and arguments that commands share, and how OUT and artifacts at a URI are brought to where they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

StudyOption = Annotated[str | None, typer.Option("--study", help="A named study or a .yaml file; default: quickstart.")]
DataOption = Annotated[str | None, typer.Option("--data", help="Data set folder or URI; default: the study's own.")]
ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Folder of an imported model; the study is then `imported` by default.")
]


def _out_here(wanted: str) -> Callable[[str], Path]:
    """From OUT as a user names it to a folder that holds what a command reads of it, until the command ends."""

    def path(text: str) -> Path:
        from qray.storage.place import place_of

        place = place_of(text, "OUT")
        if isinstance(place, Path):
            return place
        from qray.graph import store
        from qray.storage.out import brought

        return brought(place, store.COPIED, getattr(store, wanted))

    return path


def folder_here(text: str) -> Path:
    """A folder with everything that lies at a URI, until the command ends; or the folder that is named."""
    from qray.storage.out import brought
    from qray.storage.place import place_of

    place = place_of(text, "ARTIFACT")
    if isinstance(place, Path):
        return place
    return brought(place, None, lambda name: True)


proof_here = _out_here("is_proof")
#: What is read of OUT: the table alone, also what it is made of, what is written into it besides, or all results, the
#: artifacts' own files among them.
ShownOut = Annotated[Path, typer.Argument(help="Output folder of a run, or its URI.", parser=_out_here("is_figures"))]
OutArgument = Annotated[Path, typer.Argument(help="Output folder of a run, or its URI.", parser=proof_here)]
WrittenOut = Annotated[Path, typer.Argument(help="Output folder of a run, or its URI.", parser=_out_here("is_needed"))]
TrackedOut = Annotated[Path, typer.Argument(help="Output folder of a run, or its URI.", parser=_out_here("is_result"))]
OutOption = Annotated[str | None, typer.Option("--out", help="Output folder or URI; default: runs/<study>.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set training.epochs=3.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Forget what OUT holds and begin anew.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
CpusOption = Annotated[int | None, typer.Option("--num-cpus", min=1, help="Logical CPUs of a local Ray.")]
