"""The smallest program that runs an artifact, by engine: what stands beside it in a kit, to begin from."""

from __future__ import annotations

#: After the first line; `{model}` is the name of the model's file, `{precision}` what OpenVINO is told to compute in.
_PROGRAMS = {
    "onnxruntime": """
import onnxruntime

session = onnxruntime.InferenceSession(str(HERE / "{model}"), providers=["CPUExecutionProvider"])
(given,) = session.get_inputs()


def predict(clips):
    return session.run(None, {{given.name: clips}})[0]
""",
    "openvino": """
# Else OpenVINO reports its import to Intel, by Google Analytics.
sys.modules["openvino_telemetry"] = None
import openvino

# Unless told, OpenVINO computes in what the CPU is fastest in.
compiled = openvino.Core().compile_model(str(HERE / "{model}"), "CPU", {{"INFERENCE_PRECISION_HINT": "{precision}"}})


def predict(clips):
    return compiled(clips)[0]
""",
    "executorch": """
import torch
from executorch.runtime import Runtime

method = Runtime.get().load_program(HERE / "{model}").load_method("forward")


def predict(clips):
    # The program is for one clip.
    return numpy.concatenate([method.execute([torch.from_numpy(clip[None])])[0].numpy() for clip in clips])
""",
    "qnnpack": """
import torch

torch.backends.quantized.engine = "qnnpack"
program = torch.jit.load(HERE / "{model}")


def predict(clips):
    return program(torch.from_numpy(clips)).numpy()
""",
}


def smallest_program(name: str, engine: str, method: str, model: str) -> str | None:
    """Of a variant's artifact; None where it takes more than an engine."""
    if engine not in _PROGRAMS:
        return None
    program = _PROGRAMS[engine].format(model=model, precision="bf16" if method == "bf16" else "f32")
    imports, _, rest = program.strip("\n").partition("\n\n")
    return (
        f'"""{name}: python run.py CLIPS.npy; uint8 (N, T, H, W, 3) RGB clips -> float32 (N,)."""\n\n'
        f"import pathlib\nimport sys\n\nimport numpy\n{imports}\n\n"
        f"HERE = pathlib.Path(__file__).resolve().parent\n{rest}\n\n\n"
        "for prediction in predict(numpy.load(sys.argv[1])):\n    print(prediction)\n"
    )
