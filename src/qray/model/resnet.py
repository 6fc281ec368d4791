"""ResNets at any width; ResNet-18 is the reference backbone."""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck


class WidthResNet(ResNet):
    """torchvision's ResNet at any base width; at width 64 its state_dict is torchvision's, less `fc`.

    He et al., Deep Residual Learning for Image Recognition, CVPR 2016, table 1: channels double at each of four stages.
    """

    def __init__(self, block: type[BasicBlock | Bottleneck], blocks: tuple[int, ...], width: int) -> None:
        nn.Module.__init__(self)
        # What ResNet._make_layer reads; ResNet.__init__ itself fixes the width at 64.
        self._norm_layer = nn.BatchNorm2d
        self.inplanes, self.dilation, self.groups, self.base_width = width, 1, 1, 64
        self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        for stage, count in enumerate(blocks):
            stride = 1 if stage == 0 else 2
            layer = self._make_layer(block, width * 2**stage, count, stride=stride)
            setattr(self, f"layer{stage + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Identity()
        self.channels = self.inplanes
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


resnet18 = partial(WidthResNet, BasicBlock, (2, 2, 2, 2))
resnet34 = partial(WidthResNet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(WidthResNet, Bottleneck, (3, 4, 6, 3))
