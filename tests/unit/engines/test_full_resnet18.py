"""Full ResNet-18 at 112 pixels: the network whose sizes users compare. All but ONNX Runtime's are slow tests."""

from __future__ import annotations

import pytest
from support.networks import FULL, FULL_CLIP, realistic_model, request, smooth_clips
from support.shelf import build_in_own_process

from qray.engines import pt2e
from qray.engines.artifact import Artifact, BuildRequest, read_artifact
from qray.engines.registry import build_artifact
from qray.measure.isa import native_isa, range_is_reduced
from qray.model.regressor import VideoRegressor
from qray.study import Variant

#: Share of the FP32 eager artifact's bytes that a static INT8 artifact may have.
LARGEST_SHARE = 0.30
LONG = ("ptq-openvino", "ptq-inductor", "qat-inductor")
STATIC = ["ptq-onnxruntime", *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]


@pytest.fixture(scope="module")
def full_model() -> VideoRegressor:
    return realistic_model(FULL, FULL_CLIP, passes=1, batch=1)


@pytest.fixture(scope="module")
def fp32(full_model: VideoRegressor, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    variant = Variant(name="fp32", method="fp32", engine="eager")
    return build_artifact(request(variant, full_model, FULL_CLIP), "fp32", tmp_path_factory.mktemp("full") / "fp32")


def ptq_request(variant: Variant, model: VideoRegressor) -> BuildRequest:
    """Calibrated on one clip, and compared on none: neither changes a size or what runs in INT8."""
    return BuildRequest(variant, model, FULL_CLIP, [smooth_clips(1, FULL_CLIP)])


def qat_request(variant: Variant, model: VideoRegressor) -> BuildRequest:
    """From a QAT module that has seen one batch: training changes no size."""
    settings = pt2e.QatSettings(reduce_range=range_is_reduced(native_isa(), 8))
    module = pt2e.prepare_qat(model, smooth_clips(2, FULL_CLIP), settings)
    module(smooth_clips(2, FULL_CLIP, seed=3))
    return BuildRequest(variant, model, FULL_CLIP, (), module.state_dict(), settings.model_dump(mode="json"))


@pytest.fixture(scope="module")
def built(full_model: VideoRegressor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Artifacts by name, filled by `static`."""
    return {}


@pytest.fixture
def static(
    built: dict[str, Artifact], full_model: VideoRegressor, tmp_path_factory: pytest.TempPathFactory, name: str
) -> Artifact:
    """The static artifact called `name`, built once."""
    if name not in built:
        method, engine = name.split("-")
        variant = Variant.model_validate({"name": name, "method": method, "engine": engine})
        folder = tmp_path_factory.mktemp(name) / name
        if method == "qat":
            build_artifact(qat_request(variant, full_model), name, folder)
        elif engine == "openvino":
            build_in_own_process((ptq_request(variant, full_model), folder))
        else:
            build_artifact(ptq_request(variant, full_model), name, folder)
        built[name] = read_artifact(folder)
    return built[name]


@pytest.mark.parametrize("name", STATIC)
def test_a_static_artifact_has_at_most_30_percent_of_the_fp32_bytes(static: Artifact, fp32: Artifact) -> None:
    assert static.size_bytes <= LARGEST_SHARE * fp32.size_bytes


@pytest.mark.parametrize("name", STATIC)
def test_its_weights_take_a_quarter(static: Artifact, fp32: Artifact) -> None:
    assert static.built.weights_bytes / fp32.built.weights_bytes == pytest.approx(0.25, abs=0.005)


@pytest.mark.parametrize("name", STATIC)
def test_all_20_convolutions_and_8_residual_adds_run_in_int8(static: Artifact) -> None:
    notes = static.built.notes
    assert (notes["int8_layers"], notes["int8_residual_adds"]) == (20, 8)


@pytest.mark.parametrize("name", STATIC)
def test_more_than_99_percent_of_the_macs_run_in_int8(static: Artifact) -> None:
    assert static.built.int8_mac_share > 0.99
