"""What each engine can do with an imported network, found by building it once for each, every engine in a process of
its own."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from qray.engines.catalog import ENGINES
from qray.engines.registry import build_artifact, missing_requirement
from qray.errors import QrayError
from qray.model.epoch import Checkpoint
from qray.reasons import reason_of
from qray.scratch import scratch_folder
from qray.study import Variant
from qray.study_model import ClipSpec, Imported

#: Only what can be done at all is asked; how well is what a run is for.
METHODS = ("fp32", "ptq")
#: Compiling a large network takes minutes.
LIMIT_S = 1800.0


def try_engines(
    model: Imported, clip: ClipSpec, checkpoint: Checkpoint, say: Callable[[str], None]
) -> dict[str, dict[str, str]]:
    """ "yes", or why not in a sentence, by engine and method. `say` hears of each as it is found."""
    found: dict[str, dict[str, str]] = {}
    for name, engine in ENGINES.items():
        device = engine.devices[0]
        for method in (method for method in METHODS if method in engine.on(device)):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                try:
                    answer = pool.submit(_try, name, method, device, model, clip, checkpoint).result(LIMIT_S)
                except Exception as error:
                    answer = f"no: its process ended ({type(error).__name__})"
            found.setdefault(name, {})[method] = answer
            say(f"{name} {method}: {answer}")
    return found


def _try(engine: str, method: str, device: str, model: Imported, clip: ClipSpec, checkpoint: Checkpoint) -> str:
    # Libraries warn as they are imported; what matters is told by what they raise.
    logging.disable(logging.WARNING)
    import torch

    from qray.engines.artifact import BuildRequest
    from qray.model.regressor import model_from_state

    observer = {"observer": "minmax"} if method == "ptq" else {}
    given = {"name": method, "method": method, "engine": engine, "device": device}
    variant = Variant.model_validate(given | observer)
    if reason := missing_requirement(variant):
        return f"no: {reason}"
    torch.manual_seed(0)
    network = model_from_state(model, checkpoint)
    request = BuildRequest(variant, network, clip)
    calibration = [request.example()[:1]] if method == "ptq" else []
    request = BuildRequest(variant, network, clip, calibration)
    with scratch_folder("import") as folder, contextlib.redirect_stdout(io.StringIO()):
        try:
            built = build_artifact(request, "import", folder / "artifact").built
        except QrayError as error:
            return f"no: {error}"
        except Exception as error:
            return f"no: {type(error).__name__}: {reason_of(str(error))}"
    share = f", {built.int8_mac_share:.1%} of the multiply-accumulates in INT8" if method == "ptq" else ""
    return f"yes{share}"
