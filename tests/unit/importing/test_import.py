"""`qray import` as its users call it: their files, their predictions, and what is said where something differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support.imports import (
    FRAMES,
    SIZE,
    TheirNetwork,
    names_of,
    their_clips,
    their_input,
    train_statistics,
    write_predictions,
)
from support.runs import Finished, main_here
from torch import nn

from qray.engines.layers import layers_of
from qray.errors import QrayError
from qray.model.imported import imported_checkpoint
from qray.model.regressor import model_from_state
from qray.study import ClipSpec, Imported
from qray.study_files import load_study

from .conftest import Theirs

Import = Callable[..., Finished]


@pytest.fixture(scope="module")
def exported(theirs: Theirs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network on clips as a program."""
    path = tmp_path_factory.mktemp("exported") / "their.pt2"
    example = torch.zeros(2, 3, FRAMES, SIZE, SIZE)
    batch = {0: torch.export.Dim.DYNAMIC}
    torch.export.save(torch.export.export(theirs.network, (example,), dynamic_shapes=(batch,)), path)
    return path


def _import(source: Path | None, data: Path, out: Path, *more: object) -> Finished:
    first = [] if source is None else [source]
    return main_here("import", *first, "--data", data, "--out", out, "--frames", FRAMES, "--no-engines", *more)


def _network(folder: Path) -> Any:
    study = load_study("imported", [f'model="{folder}"'])
    assert isinstance(study.model, Imported)
    return model_from_state(study.model, imported_checkpoint(study.model))


def test_a_program_is_imported_with_its_own_predictions(
    theirs: Theirs, exported: Path, echo_set: Path, tmp_path: Path
) -> None:
    done = _import(exported, echo_set, tmp_path / "m", "--expect", theirs.predictions)
    assert done.code == 0, done.stderr
    assert "6 of 6 clips agree" in done.stderr
    told = yaml.safe_load((tmp_path / "m" / "model.yaml").read_text())
    assert told["model"]["source"] == "pt2"
    # What from_train measured is what their own code measured.
    np.testing.assert_allclose(told["model"]["input"]["mean"], theirs.mean, rtol=0.01)
    np.testing.assert_allclose(told["model"]["input"]["std"], theirs.std, rtol=0.01)
    assert told["checked"]["expected"]["clips"] == 6
    # What a run will load is the same function of a clip.
    clips = their_clips(echo_set, "test0")
    mean, std = told["model"]["input"]["mean"], told["model"]["input"]["std"]
    with torch.no_grad():
        ours = _network(tmp_path / "m")(torch.from_numpy(clips))
        wanted = theirs.network(their_input(clips, mean, std)).flatten()
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-3)
    # A study names its layers as those who made it do.
    names = {layer.short for layer in layers_of(_network(tmp_path / "m"), ClipSpec(frames=FRAMES, image_size=SIZE))}
    assert {"stem.0", "left.0", "squeeze.1"} <= names


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (("--range", "0-1", "--mean", "0", "--std", "1"), "--range 0-255 --mean from_train"),
        (("--colour", "bgr"), "--colour rgb"),
        (("--stride", "1"), "--stride 2"),
        (("--scale", "0.01"), "--scale"),
    ],
    ids=["range", "colour", "stride", "scale"],
)
def test_wrong_preprocessing_is_caught_and_named(
    theirs: Theirs, exported: Path, echo_set: Path, tmp_path: Path, wrong: tuple[str, ...], right: str
) -> None:
    done = _import(exported, echo_set, tmp_path / "m", "--expect", theirs.predictions, *wrong)
    assert done.code == 1
    assert "your preprocessing differs" in done.stderr
    assert right in done.stderr.rpartition("; with ")[2]
    # The largest difference is shown clip by clip, and nothing is written.
    assert "yours" in done.stderr
    assert not (tmp_path / "m").exists()


def test_a_pipeline_that_reads_blue_first_is_found_with_its_own_statistics(
    theirs: Theirs, exported: Path, echo_set: Path, tmp_path: Path
) -> None:
    """As OpenCV reads: channels reversed, and so their measured mean and standard deviation."""
    lines = []
    for name in names_of(echo_set, "TEST"):
        clips = their_clips(echo_set, name)[..., ::-1]
        with torch.no_grad():
            found = theirs.network(their_input(clips, theirs.mean[::-1], theirs.std[::-1])).mean()
        lines.append(f"{name},{float(found):.4f}")
    own = tmp_path / "bgr.csv"
    own.write_text("\n".join(lines), encoding="utf-8")
    refused = _import(exported, echo_set, tmp_path / "m", "--expect", own)
    assert refused.code == 1
    assert "--colour bgr" in refused.stderr.rpartition("; with ")[2]
    done = _import(exported, echo_set, tmp_path / "m", "--expect", own, "--colour", "bgr")
    assert done.code == 0, done.stderr
    assert "6 of 6 clips agree" in done.stderr


def test_predictions_of_another_network_are_explained_by_nothing(
    exported: Path, echo_set: Path, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    mean, std = train_statistics(echo_set)
    other = write_predictions(tmp_path / "other.csv", TheirNetwork().eval(), echo_set, mean, std)
    done = _import(exported, echo_set, tmp_path / "m", "--expect", other)
    assert done.code == 1
    assert "your preprocessing differs" in done.stderr or "explains it" in done.stderr


def test_a_checkpoint_of_a_data_parallel_training_is_imported(echo_set: Path, tmp_path: Path) -> None:
    from torchvision.models.video import mc3_18

    torch.manual_seed(0)
    network = mc3_18(num_classes=1)
    with torch.no_grad():
        # Its batch-norms see clips once; trained weights are no matter here.
        mean, std = train_statistics(echo_set)
        network.train()(their_input(their_clips(echo_set, "train0"), mean, std))
    path = tmp_path / "mc3.pt"
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    torch.save({"epoch": 3, "state_dict": nn.DataParallel(network).state_dict(), "best_loss": np.float64(3.2),
                "loss": np.float32(2.2), "opt_dict": optimizer.state_dict()}, path)  # fmt: skip
    own = write_predictions(tmp_path / "own.csv", network, echo_set, mean, std)
    done = _import(path, echo_set, tmp_path / "m", "--arch", "torchvision/mc3_18", "--expect", own)
    assert done.code == 0, done.stderr
    assert "122 of 122 matched, prefix 'module.' left out" in done.stderr
    assert "clips agree" in done.stderr
    # Moved, it is the same model, and a changed file is not.
    moved = (tmp_path / "m").rename(tmp_path / "moved")
    _network(moved)
    weights = bytearray((moved / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "weights.safetensors").write_bytes(weights)
    with pytest.raises(QrayError, match="sha256 differs"):
        _network(moved)


def test_a_network_on_frames_is_imported_from_onnx(their_frames: nn.Module, echo_set: Path, tmp_path: Path) -> None:
    path = tmp_path / "frames.onnx"
    torch.onnx.export(their_frames, (torch.zeros(1, 3, SIZE, SIZE),), str(path), dynamo=True, verbose=False,
                      external_data=False)  # fmt: skip
    done = _import(path, echo_set, tmp_path / "m")
    assert done.code == 0, done.stderr
    assert "takes frames" in done.stderr
    assert "nothing has compared this with your own predictions" in done.stderr
    told = yaml.safe_load((tmp_path / "m" / "model.yaml").read_text())["model"]["input"]
    clips = their_clips(echo_set, "test0")
    frames = their_input(clips, told["mean"], told["std"]).transpose(1, 2)
    with torch.no_grad():
        wanted = their_frames(frames.flatten(0, 1)).view(3, FRAMES).mean(1)
        torch.testing.assert_close(_network(tmp_path / "m")(torch.from_numpy(clips)), wanted, rtol=1e-4, atol=1e-3)


def test_code_runs_where_it_is_allowed_alone(echo_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_code.py").write_text(
        "from pathlib import Path\nfrom support.imports import TheirNetwork\nPath('ran').touch()\n\n\n"
        "def build():\n    return TheirNetwork()\n"
    )
    monkeypatch.chdir(tmp_path)
    refused = _import(None, echo_set, tmp_path / "m", "--code", "their_code:build")
    assert refused.code == 2
    assert "--allow-code" in refused.stderr
    assert not (tmp_path / "ran").exists()
    done = _import(None, echo_set, tmp_path / "m", "--code", "their_code:build", "--allow-code", "--size", SIZE)
    assert done.code == 0, done.stderr
    told = yaml.safe_load((tmp_path / "m" / "model.yaml").read_text())
    assert len(told["code_sha256"]) == 64
    network = _network(tmp_path / "m")
    # It can be trained on: batch-norms and dropout follow train and eval.
    clips = torch.from_numpy(their_clips(echo_set, "test0"))
    with torch.no_grad():
        assert torch.equal(network(clips), network(clips))
        before = {key: value.clone() for key, value in network.state_dict().items()}
        network.train()(clips)
        assert any(not torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("model.pt",), "no such file"),
        ((__file__,), "name its architecture"),
        ((__file__, "--arch", "torchvision/r9d"), "torchvision has no such architecture"),
        ((__file__, "--arch", "resnet18"), "expected torchvision/NAME or timm/NAME"),
        ((), "name a file to import"),
    ],
)
def test_bad_usage_is_named(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = main_here("import", *arguments, "--mean", "0", "--out", tmp_path / "m")
    assert done.code == 2
    assert said in done.stderr


def test_a_study_takes_clips_from_its_model(theirs: Theirs, exported: Path, echo_set: Path, tmp_path: Path) -> None:
    assert _import(exported, echo_set, tmp_path / "m", "--windows", 2).code == 0
    study = load_study("imported", [f'model="{tmp_path / "m"}"'])
    assert (study.clip.frames, study.clip.image_size, study.clip.eval_windows) == (FRAMES, SIZE, 2)
    assert study.training is None
    with pytest.raises(QrayError, match=r"clip\.stride is 4, but .* was imported with 2"):
        load_study("imported", [f'model="{tmp_path / "m"}"', "clip.stride=4"])
    with pytest.raises(QrayError, match="a graph for inference"):
        load_study("imported", [f'model="{tmp_path / "m"}"', "training.epochs=1"])
    with pytest.raises(QrayError, match=r"holds no model\.yaml"):
        load_study("imported", [f'model="{tmp_path}"'])
    with pytest.raises(QrayError, match="training: null leaves"):
        load_study("imported")


def test_a_timm_checkpoint_is_imported(echo_set: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=1).eval()
    torch.save({"state_dict": network.state_dict(), "arch": "test_resnet"}, tmp_path / "timm.pth")
    done = _import(tmp_path / "timm.pth", echo_set, tmp_path / "m", "--arch", "timm/test_resnet")
    assert done.code == 0, done.stderr
    told = yaml.safe_load((tmp_path / "m" / "model.yaml").read_text())["model"]["input"]
    clips = their_clips(echo_set, "test0")
    frames = their_input(clips, told["mean"], told["std"]).transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        wanted = network(frames).view(3, FRAMES).mean(1)
        torch.testing.assert_close(_network(tmp_path / "m")(torch.from_numpy(clips)), wanted, rtol=1e-4, atol=1e-4)


def test_code_of_a_network_on_frames_says_so_by_its_layout(
    echo_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_frames.py").write_text("from support.imports import TheirFrameNetwork as build\n")
    monkeypatch.chdir(tmp_path)
    code = ("--code", "their_frames:build", "--allow-code", "--size", SIZE)
    done = _import(None, echo_set, tmp_path / "m", *code, "--layout", "frames")
    assert done.code == 0, done.stderr
    assert _network(tmp_path / "m").layout == "frames"
    refused = _import(None, echo_set, tmp_path / "other", *code, "--layout", "CTHW")
    assert (refused.code, "--layout" in refused.stderr) == (2, True)
