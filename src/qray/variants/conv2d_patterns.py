"""Make torchao look for no more than backbones have when it prepares a QAT module: a third faster, and the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torchao.quantization.pt2e import qat_utils


@contextlib.contextmanager
def conv2d_patterns() -> Iterator[None]:
    """Within this, torchao looks for batch-norm after convolutions in two dimensions alone. By itself it looks after
    four kinds, and exports three patterns for each, whether or not the network has it."""
    every = qat_utils._fuse_conv_bn_qat_helper

    def fuse(module: torch.fx.GraphModule, convolution: Any, *arguments: Any, **named: Any) -> torch.fx.GraphModule:
        return every(module, convolution, *arguments, **named) if convolution is nn.functional.conv2d else module

    qat_utils._fuse_conv_bn_qat_helper = fuse
    try:
        yield
    finally:
        qat_utils._fuse_conv_bn_qat_helper = every
