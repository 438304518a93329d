"""The 32-pixel networks of the literature, for any class and channel count.

Parameter names follow the public checkpoints of each family, so that those load as they are.

- `cifar_resnet8 … 56`: He et al. 2016, section 4.2; shortcuts A (subsample, pad with zeros).
- `cifar_resnet18/34`: He et al. 2016, ImageNet widths, 3×3 stem of stride 1, no max-pool.
- `cifar_wrn…`: Zagoruyko & Komodakis 2016, pre-activation, no dropout.
- `cifar_vgg11_bn`: Simonyan & Zisserman 2015 with batch norm and one linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _init_he(model: nn.Module) -> None:
    """He initialisation of every convolution (fan out); batch norm and linear keep torch's."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class CifarClassifier(nn.Module):
    """What timm asks of a classifier: `num_classes`, `forward_features`, `get_classifier`."""

    first_name, classifier_name = "conv1", "linear"  # of the first and the last layer

    def __init__(self, num_classes: int, num_features: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = num_features
        setattr(self, self.classifier_name, nn.Linear(num_features, num_classes))

    def get_classifier(self) -> nn.Linear:
        """The last linear layer."""
        layer = getattr(self, self.classifier_name)
        assert isinstance(layer, nn.Linear)
        return layer

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a fresh one for `num_classes` classes."""
        self.num_classes = num_classes
        setattr(self, self.classifier_name, nn.Linear(self.num_features, num_classes))

    def forward_features(self, inputs: Tensor) -> Tensor:
        """Feature maps before pooling: (B, C, H, W) -> (B, num_features, h, w)."""
        raise NotImplementedError  # abstract: every network below defines its own

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Global average pool and the last layer; `pre_logits` stops before the latter."""
        pooled = features.mean(dim=(2, 3))
        return pooled if pre_logits else self.get_classifier()(pooled)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits: (B, C, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(inputs))


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut of kind A (zeros) or B (1×1 convolution)."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.pad = (channels - in_channels) // 2
        self.shortcut = nn.Sequential()
        if shortcut == "B" and (stride != 1 or in_channels != channels):
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if len(self.shortcut):
            return F.relu(out + self.shortcut(x))
        if self.stride != 1 or self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class CifarResNet(CifarClassifier):
    """ResNet for 32-pixel images: a 3×3 stem, stages of basic blocks, one linear layer."""

    def __init__(
        self,
        blocks: tuple[int, ...],
        channels: tuple[int, ...],
        shortcut: str,
        num_classes: int = 10,
        in_chans: int = 3,
    ) -> None:
        super().__init__(num_classes, channels[-1])
        self.conv1 = _conv3x3(in_chans, channels[0])
        self.bn1 = nn.BatchNorm2d(channels[0])
        width = channels[0]
        self.stages = []
        for index, (depth, stage_width) in enumerate(zip(blocks, channels, strict=True), start=1):
            stage = nn.Sequential()
            for block in range(depth):
                stride = 2 if index > 1 and block == 0 else 1
                stage.append(_BasicBlock(width, stage_width, stride, shortcut))
                width = stage_width
            setattr(self, f"layer{index}", stage)
            self.stages.append(f"layer{index}")
        _init_he(self)

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels[-1], h, w), halved at every stage but the first."""
        x = F.relu(self.bn1(self.conv1(inputs)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return x


class _PreActivationBlock(nn.Module):
    """BN, ReLU, 3×3, BN, ReLU, 3×3; where the width changes the shortcut sees the activation."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        if in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = self.convShortcut(activated) if hasattr(self, "convShortcut") else x
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return shortcut + out


class _Stage(nn.Module):
    """Blocks of one width, under the name that public checkpoints give them."""

    def __init__(self, blocks: list[_PreActivationBlock]) -> None:
        super().__init__()
        self.layer = nn.Sequential(*blocks)


class CifarWideResNet(CifarClassifier):
    """Wide ResNet of Zagoruyko & Komodakis 2016: depth 6n + 4, widths 16k, 32k, 64k."""

    classifier_name = "fc"

    def __init__(self, depth: int, widen: int, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__(num_classes, 64 * widen)
        self.conv1 = _conv3x3(in_chans, 16)
        width = 16
        for index in (1, 2, 3):
            channels = 16 * widen * 2 ** (index - 1)
            blocks = []
            for block in range((depth - 4) // 6):
                stride = 2 if index > 1 and block == 0 else 1
                blocks.append(_PreActivationBlock(width, channels, stride))
                width = channels
            setattr(self, f"block{index}", _Stage(blocks))
        self.bn1 = nn.BatchNorm2d(width)
        _init_he(self)

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 64 * widen, H / 4, W / 4)."""
        x = self.conv1(inputs)
        for name in ("block1", "block2", "block3"):
            x = self.get_submodule(name).layer(x)  # type: ignore[operator]
        return F.relu(self.bn1(x))


class CifarVGG(CifarClassifier):
    """VGG with batch norm for 32-pixel images; a linear layer instead of the three of ImageNet.

    Five poolings: inputs of at least 32 pixels.
    """

    first_name, classifier_name = "features.0", "classifier"

    def __init__(
        self, layers: tuple[int | str, ...], num_classes: int = 10, in_chans: int = 3
    ) -> None:
        super().__init__(num_classes, 512)
        self.features = nn.Sequential()
        width = in_chans
        for layer in layers:
            if isinstance(layer, str):
                self.features.append(nn.MaxPool2d(2))
                continue
            self.features.append(nn.Conv2d(width, layer, 3, padding=1))
            self.features.append(nn.BatchNorm2d(layer))
            self.features.append(nn.ReLU(inplace=True))
            width = layer
        _init_he(self)

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 512, H / 32, W / 32)."""
        features = self.features(inputs)
        assert isinstance(features, torch.Tensor)
        return features


@dataclass(frozen=True)
class Network:
    """One of the table: its class, and what of it the name says."""

    kind: type[CifarClassifier]
    arguments: Mapping[str, Any]

    def __call__(self, *, num_classes: int = 10, in_chans: int = 3) -> CifarClassifier:
        """The network with fresh weights."""
        arguments = {**self.arguments, "num_classes": num_classes, "in_chans": in_chans}
        return self.kind(**arguments)


def _narrow(*blocks: int) -> Network:
    return Network(CifarResNet, {"blocks": blocks, "channels": (16, 32, 64), "shortcut": "A"})


def _broad(*blocks: int) -> Network:
    return Network(
        CifarResNet, {"blocks": blocks, "channels": (64, 128, 256, 512), "shortcut": "B"}
    )


def _wide(depth: int, widen: int) -> Network:
    return Network(CifarWideResNet, {"depth": depth, "widen": widen})


_VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")

#: By name; beside it the parameters for ten classes.
NETWORKS = {
    "cifar_resnet8": _narrow(1, 1, 1),  # 75 k
    "cifar_resnet14": _narrow(2, 2, 2),  # 0.18 M
    "cifar_resnet20": _narrow(3, 3, 3),  # 0.27 M
    "cifar_resnet32": _narrow(5, 5, 5),  # 0.46 M
    "cifar_resnet56": _narrow(9, 9, 9),  # 0.85 M
    "cifar_resnet18": _broad(2, 2, 2, 2),  # 11.17 M
    "cifar_resnet34": _broad(3, 4, 6, 3),  # 21.28 M
    "cifar_wrn40_2": _wide(40, 2),  # 2.2 M
    "cifar_wrn40_1": _wide(40, 1),  # 0.6 M
    "cifar_wrn16_2": _wide(16, 2),  # 0.7 M
    "cifar_wrn16_1": _wide(16, 1),  # 0.2 M
    "cifar_vgg11_bn": Network(CifarVGG, {"layers": _VGG11}),  # 9.23 M
}
