"""Networks of the user's: of a library's architecture, or of a graph; and their weights by the names that checkpoints
have for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from qray.engines.programs import read_program
from qray.errors import QrayError, Unavailable, UsageError
from qray.model.epoch import Checkpoint
from qray.model.folder import NETWORK, WEIGHTS, sha256_of
from qray.model.graph_network import parted, plain_graph
from qray.model.training import dump_checkpoint
from qray.study_model import Imported


def imported_parts(source: str, program: bytes | None) -> tuple[nn.Module, nn.Module]:
    """Backbone and head of a network, without its weights. source: as `study_model.Imported` has it.

    Raises:
        QrayError: there is no such architecture, or the graph cannot be parted. Unavailable: its library is missing.
    """
    library, _, name = source.partition("/")
    if name:
        network, head = whole_network(source)
        owner, _, leaf = head.rpartition(".")
        last: Any = network.get_submodule(head)
        setattr(network.get_submodule(owner), leaf, nn.Identity())
        return network, last
    if program is None:
        raise QrayError(f"a network imported from {library} needs its network.pt2; import it again")
    return parted(plain_graph(read_program(program, "network.pt2")), "network.pt2")


def whole_network(source: str) -> tuple[Any, str]:
    """The network of an architecture with one output, random weights, and the path of its head."""
    library, name = _architecture(source)
    return (_torchvision if library == "torchvision" else _timm)(name)


def layout_of_architecture(source: str) -> str:
    """BCTHW for networks on whole clips, which torchvision has, else frames.

    Raises:
        UsageError: there is no such architecture.
    """
    library, name = _architecture(source)
    is_video = library == "torchvision" and ".video." in f"{_builder(name).__module__}."
    return "BCTHW" if is_video else "frames"


def _architecture(source: str) -> tuple[str, str]:
    library, _, name = source.partition("/")
    if library not in ("torchvision", "timm") or not name:
        raise UsageError(f"--arch {source}: expected torchvision/NAME or timm/NAME")
    return library, name


def _builder(name: str) -> Any:
    from torchvision import models

    if name not in (known := models.list_models()):
        like = ", ".join(other for other in known if other[:3] == name[:3]) or "others"
        raise UsageError(f"--arch torchvision/{name}: torchvision has no such architecture; it has {like}")
    return models.get_model_builder(name)


#: What torchvision calls the part that classifies.
HEADS = ("fc", "classifier", "head", "heads")


def _torchvision(name: str) -> tuple[Any, str]:
    # GoogLeNet and Inception give more than one output in training unless they are told not to.
    more = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network = _builder(name)(weights=None, num_classes=1, **more)
    heads = [head for head in HEADS if hasattr(network, head)]
    if len(heads) != 1:
        raise QrayError(f"torchvision/{name} is no network that classifies images or videos, whose head qray knows")
    return network, heads[0]


def _timm(name: str) -> tuple[Any, str]:
    try:
        import timm
    except ImportError:
        raise Unavailable("timm is not installed: pip install 'qray[timm]'") from None
    if not timm.is_model(name):
        raise UsageError(f"--arch timm/{name}: timm has no such architecture; timm.list_models() lists those it has")
    network = timm.create_model(name, pretrained=False, num_classes=1)
    head = network.default_cfg.get("classifier")
    if not isinstance(head, str):
        raise QrayError(f"timm/{name} has no single classifier that qray could take for its head")
    return network, head


def imported_checkpoint(model: Imported) -> Checkpoint:
    """The weights that were imported, as a training leaves a checkpoint.

    Raises:
        QrayError: the folder does not hold what its model.yaml says.
    """
    folder = Path(model.folder)
    wanted = {WEIGHTS: model.weights_sha256, NETWORK: model.network_sha256}
    for name, sha256 in wanted.items():
        path = folder / name
        if sha256 is not None and (not path.is_file() or sha256_of(path) != sha256):
            raise QrayError(f"{path}: not the file that was imported (its sha256 differs); import the model again")
    try:
        state: dict[str, Any] = {"model": load_file(folder / WEIGHTS)}
    except SafetensorError as error:
        raise QrayError(f"{folder / WEIGHTS}: {error}; import the model again") from None
    if model.network_sha256 is not None:
        program = bytearray((folder / NETWORK).read_bytes())
        state["program"] = torch.frombuffer(program, dtype=torch.uint8)
    return dump_checkpoint(state)
