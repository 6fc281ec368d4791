"""ONNX Runtime on an NVIDIA GPU, by its CUDA provider or by that of TensorRT, in floats: neither runs INT8 that can be
proved (the first has no such convolution, the second does not say what it runs; engine tensorrt does). No GPU has seen
it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from qray.engines import onnxruntime
from qray.engines.artifact import BuildRequest, Built, Predict
from qray.errors import QrayError
from qray.reasons import reason_of

MODEL_FILE = onnxruntime.MODEL_FILE
#: The provider of each engine.
PROVIDERS = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}


def build(request: BuildRequest, folder: Path) -> Built:
    """Write `model.onnx`, whose types are those of the method. No GPU is needed."""
    from qray.engines.layers import total_macs
    from qray.engines.onnx_export import export_onnx
    from qray.engines.torch_export import to_half

    variant, target = request.variant, folder / MODEL_FILE
    layers = export_onnx(replace(request, model=to_half(request.model, variant.method)), target)
    notes = {"provider": PROVIDERS[variant.engine], "tf32": variant.method == "tf32"}
    return Built(MODEL_FILE, onnxruntime.initializer_bytes(target), 0.0, total_macs(layers), (), notes)


def load(folder: Path, built: Built, threads: int, device: str) -> Predict:
    """Run the model on the GPU, all of it.

    Raises:
        QrayError: the provider cannot be had here, or would leave something to the CPU.
    """
    path, provider = folder / built.model_file, str(built.notes.get("provider"))
    if provider not in PROVIDERS.values():
        raise QrayError(f"{path}: {provider!r} is no provider that qray uses ({', '.join(PROVIDERS.values())})")
    return onnxruntime.runner(session_on(path, provider, threads, tf32=bool(built.notes.get("tf32"))))


def session_on(path: Path, provider: str, threads: int, *, tf32: bool) -> Any:
    """A session of which every operator runs by a provider: ONNX Runtime otherwise leaves to the CPU, without a word,
    what a provider lacks, and everything where the provider itself cannot be had.

    Raises:
        QrayError: that would happen; says why.
    """
    import onnxruntime as ort

    if provider not in ort.get_available_providers():
        raise QrayError(f"{path}: the ONNX Runtime that is installed here has no {provider}; pip install "
                        "onnxruntime-gpu in the place of onnxruntime")  # fmt: skip
    # The libraries of CUDA that PyTorch brought; those of TensorRT come with its own package.
    ort.preload_dlls()
    if provider == PROVIDERS["onnxruntime-tensorrt"]:
        try:
            import tensorrt  # noqa: F401
        except ImportError as error:
            raise QrayError(f"{path}: TensorRT's libraries cannot be loaded: {error}") from error
    # By default it rounds what convolutions multiply. Of TensorRT's provider nothing but TF32 can be had.
    options = {"use_tf32": str(int(tf32))} if provider == PROVIDERS["onnxruntime-cuda"] else {}
    settings = onnxruntime.session_options(threads)
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(str(path), settings, providers=[(provider, options)])
    except Exception as error:
        raise QrayError(f"{path}: {provider} does not run all of it: {reason_of(str(error))}") from error
    if session.get_providers()[0] != provider:
        instead = session.get_providers()[0]
        raise QrayError(f"{path}: ONNX Runtime would run it by {instead}, since {provider} cannot be had here; its own "
                        "messages say why")  # fmt: skip
    return session
