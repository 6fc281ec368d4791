"""The backbones: one entry each. Light, since a study is checked without torch."""

from __future__ import annotations

#: A class for each: made with the width (channels of the first stage), it maps float32 (N, 3, H, W), normalised frames,
#: to float32 (N, `channels`), whose number it has as an attribute; `load_imagenet()` gives it pretrained weights.
BACKBONES = {
    "resnet18": "qray.model.resnet:WidthResNet",
}
