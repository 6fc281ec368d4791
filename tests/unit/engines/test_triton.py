"""Engine triton: what a GPU will compute, computed here by the operator's reference. tests/gpu has what takes a GPU."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.networks import CONVOLUTIONS, RESIDUAL_ADDS, Forms, request
from support.shelf import KEPT, Shelf

from qray.engines import triton
from qray.engines.artifact import Artifact
from qray.engines.parity import kernel_share
from qray.engines.registry import build_artifact, load_artifact, missing_requirement
from qray.errors import QrayError
from qray.kits import bench
from qray.study import Model, Variant


def variant(method: str = "ptq", **settings: object) -> Variant:
    return Variant.model_validate(
        {"name": f"{method}-triton", "method": method, "engine": "triton", "device": "cuda", **settings}
    )


def predictions(artifact: Artifact, clips: np.ndarray) -> np.ndarray:
    """On the CPU, for which no one would build it."""
    return triton.load(artifact.folder, artifact.built, 1, "cpu")(clips)


@pytest.fixture(scope="module")
def ptq(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build_artifact(request(variant(), shelf.model), "ptq", tmp_path_factory.mktemp("triton") / "ptq")


def test_all_of_a_resnet_runs_in_int8_from_the_first_convolution_to_the_last(ptq: Artifact) -> None:
    assert (ptq.built.notes["int8_layers"], ptq.built.notes["int8_residual_adds"]) == (CONVOLUTIONS, RESIDUAL_ADDS)
    assert ptq.built.int8_mac_share > 0.999


def test_it_predicts_what_the_cpu_does_clip_by_clip(shelf: Shelf, ptq: Artifact) -> None:
    """Of the same scales and codes: what differs is where a sum is rounded, which moves single codes by one."""
    inductor = shelf["ptq-inductor"]
    assert inductor.built.notes["parity"]["simulated"] == ptq.built.notes["parity"]["simulated"]
    apart = predictions(ptq, shelf.clips) - load_artifact(inductor, allow_code=True)(shelf.clips)
    cost = inductor.built.notes["quantization_rms"]
    assert np.sqrt(np.square(apart).mean()) < 0.5 * cost
    share = kernel_share(ptq.built.notes)
    assert share is not None
    assert share < 0.5


def test_a_clip_gets_the_same_prediction_in_any_batch(shelf: Shelf, ptq: Artifact) -> None:
    together = predictions(ptq, shelf.clips)
    assert (together.dtype, together.shape) == (np.dtype(np.float32), (8,))
    alone = np.concatenate([predictions(ptq, clip[None]) for clip in shelf.clips])
    np.testing.assert_allclose(alone, together, rtol=1e-5)


def test_weights_are_stored_once_and_in_8_bits(shelf: Shelf, ptq: Artifact) -> None:
    weights = sum(p.numel() for p in shelf.model.parameters() if p.dim() == 4)
    program = torch.export.load(str(ptq.folder / ptq.built.model_file))
    stored = [*program.state_dict.values(), *program.constants.values()]
    assert sum(t.numel() for t in stored if t.dtype == torch.int8) == weights
    assert sum(t.numel() for t in stored if t.is_floating_point()) < 0.1 * weights


def test_trained_scales_are_those_of_qat(shelf: Shelf, tmp_path: Path) -> None:
    given = replace(request(variant("qat"), shelf.model), qat_state=shelf.qat.state, qat_settings=shelf.qat.settings)
    built = build_artifact(given, "qat", tmp_path / "qat").built
    assert built.notes["int8_layers"] == CONVOLUTIONS
    assert built.notes["parity"]["simulated"] == shelf["qat-inductor"].built.notes["parity"]["simulated"]


def test_a_layer_that_is_kept_is_not_quantized(shelf: Shelf, tmp_path: Path) -> None:
    given = request(variant(keep_fp32=[KEPT], observer="minmax"), shelf.model)
    built = build_artifact(given, "kept", tmp_path / "kept").built
    assert built.notes["int8_layers"] == CONVOLUTIONS - 1
    assert built.int8_mac_share < 0.99


def test_convolutions_over_time_are_refused_by_name(tmp_path: Path) -> None:
    from support.networks import TARGET_MEAN, TARGET_STD

    from qray.model.regressor import VideoRegressor

    torch.manual_seed(0)
    model = VideoRegressor(Model(backbone="r3d_18"), TARGET_MEAN, TARGET_STD)
    model.backbone, model.head = Forms(), torch.nn.Linear(32, 1)
    with pytest.raises(QrayError, match=r"the engine runs \d+ of \d+ convolutions in FP32: backbone\.depthwise\.0"):
        build_artifact(request(variant(), model.eval()), "ptq", tmp_path / "ptq")


def test_loading_it_takes_neither_torchao_nor_ray(ptq: Artifact, shelf: Shelf, tmp_path: Path) -> None:
    np.save(tmp_path / "clips.npy", shelf.clips)
    script = (
        "import sys, numpy; from pathlib import Path\n"
        "from qray.engines import triton; from qray.engines.artifact import read_artifact\n"
        "artifact = read_artifact(Path(sys.argv[1]))\n"
        "predict = triton.load(artifact.folder, artifact.built, 1, 'cpu')\n"
        "print(*predict(numpy.load(sys.argv[2])))\n"
        "print(*sorted({'torchao', 'torchvision', 'ray'} & set(sys.modules)), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script, str(ptq.folder), str(tmp_path / "clips.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "\n")
    np.testing.assert_allclose([float(word) for word in done.stdout.split()], predictions(ptq, shelf.clips), rtol=1e-5)


def test_what_goes_with_a_kit_loads_it_too(ptq: Artifact, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a CPU, since there is no GPU here; tests/ray/test_kit.py carries a whole kit."""
    monkeypatch.setattr(bench, "HERE", ptq.folder.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    variant = {"folder": ptq.folder.name, "model_file": ptq.built.model_file, "engine": "triton", "needs": "torch",
               "device": "cpu", "tf32": False, "cuda_graph": False}  # fmt: skip
    np.testing.assert_array_equal(bench.load(variant, 1)(shelf.clips), predictions(ptq, shelf.clips))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(bench.Refused, match="torch finds no NVIDIA GPU here"):
        bench.load(variant | {"device": "cuda"}, 1)


def test_a_machine_without_a_gpu_says_so(ptq: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(QrayError, match="torch finds no GPU to run it on"):
        load_artifact(ptq)
    with pytest.raises(QrayError, match="ptq of engine triton runs on cuda, not on cpu"):
        load_artifact(ptq, device="cpu")


def test_an_old_gpu_is_refused_by_its_capability(ptq: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(QrayError, match=r"needs a GPU of compute capability 8\.0, and this one has 7\.5"):
        load_artifact(ptq)


def test_a_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert missing_requirement(variant()) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler" in (missing_requirement(variant()) or "")


def test_it_is_offered_on_a_gpu_alone() -> None:
    with pytest.raises(ValueError, match=r"method ptq runs on .*, not on triton"):
        Variant(name="ptq", method="ptq", engine="triton")
