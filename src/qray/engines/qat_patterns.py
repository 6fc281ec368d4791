"""What torchao must look for when it fuses and folds batch-norm in QAT: of its 120 patterns, those that can be there.

It exports each pattern anew, for 1D, 2D and transposed convolutions and in twelve forms of quantization, which takes
longer than to compile what was quantized (34 of 57 s for one artifact of ResNet-18).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torchao.quantization.pt2e import qat_utils

from qray.errors import QrayError

#: Of a convolution whose weights have a scale per channel, which has no bias, and whose batch-norm is in evaluation:
#: (per channel, bias, quantized bias, training), as `qat_utils._fold_conv_bn_qat_helper` has them.
FORMS = [(True, False, False, False)]

Helper = Callable[..., torch.fx.GraphModule]


def _where_there_is_one(helper: Helper) -> Helper:
    """A helper of torchao that leaves alone a graph without the kind of convolution that it is asked for."""

    def only(module: torch.fx.GraphModule, convolution: Callable[..., Any], *rest: Any, **named: Any) -> Any:
        name = f"aten.{convolution.__name__}."
        there = any(str(node.target).startswith(name) for node in module.graph.nodes)
        return helper(module, convolution, *rest, **named) if there else module

    return only


@contextmanager
def few_patterns() -> Iterator[None]:
    """Within, `prepare_qat_pt2e` and `convert_pt2e` try no pattern that our graphs cannot match."""
    with ExitStack() as patches:
        for name in ("_fuse_conv_bn_qat_helper", "_fold_conv_bn_qat_helper"):
            helper = _where_there_is_one(getattr(qat_utils, name))
            patches.enter_context(patch.object(qat_utils, name, helper))
        forms = SimpleNamespace(product=lambda *options: FORMS)
        patches.enter_context(patch.object(qat_utils, "itertools", forms))
        yield


def check_folded(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The module itself.

    Raises:
        QrayError: a batch-norm is left in it, so that a convolution had another form than those that were tried.
    """
    left = [node.name for node in module.graph.nodes if "batch_norm" in str(node.target)]
    if left:
        raise QrayError(f"QAT left {len(left)} batch-norms that are not folded into convolutions: {', '.join(left)}")
    return module
