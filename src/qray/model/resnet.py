"""ResNet-18, the reference backbone."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path

import torch
from torch import nn
from torchvision.models import ResNet, ResNet18_Weights
from torchvision.models.resnet import BasicBlock

from qray.errors import QrayError

RESNET18_BLOCKS = (2, 2, 2, 2)


class WidthResNet(ResNet):
    """torchvision's ResNet-18 at any base width; at width 64 its state_dict is torchvision's, less `fc`.

    He et al., Deep Residual Learning for Image Recognition, CVPR 2016, table 1 (18 layers): channels double at each of
    four stages of two blocks.
    """

    def __init__(self, width: int) -> None:
        nn.Module.__init__(self)
        # What ResNet._make_layer reads; ResNet.__init__ itself fixes the width at 64.
        self._norm_layer = nn.BatchNorm2d
        self.inplanes, self.dilation, self.groups, self.base_width = width, 1, 1, 64
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        for stage, blocks in enumerate(RESNET18_BLOCKS):
            stride = 1 if stage == 0 else 2
            layer = self._make_layer(BasicBlock, width * 2**stage, blocks, stride=stride)
            setattr(self, f"layer{stage + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Identity()
        self.channels = width * 8
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def load_imagenet(self) -> None:
        """Take torchvision's weights, which are of width 64.

        Raises:
            QrayError: they are not cached and cannot be downloaded.
        """
        weights = ResNet18_Weights.IMAGENET1K_V1
        try:
            state = weights.get_state_dict(progress=False, check_hash=True)
        except (OSError, HTTPException, RuntimeError) as error:
            # RuntimeError: the download's hash is wrong.
            cache = Path(torch.hub.get_dir()) / "checkpoints"
            raise QrayError(
                f"model.weights is imagenet, but {weights.url} could not be had ({error}): connect this machine, put "
                f"the file into {cache} (TORCH_HOME moves it), or set model.weights to none"
            ) from error
        self.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")})
