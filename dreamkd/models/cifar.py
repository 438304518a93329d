"""The 32-pixel networks of the literature, registered with timm: their names work everywhere.

Any class and channel count: `timm.create_model("cifar_resnet20", num_classes=100, in_chans=1)`.
Parameter names follow the public checkpoints of each family, so that those load as they are.

- `cifar_resnet8 … 56`: He et al. 2016, section 4.2; shortcuts A (subsample, pad with zeros).
- `cifar_resnet18/34`: He et al. 2016, ImageNet widths, 3×3 stem of stride 1, no max-pool.
- `cifar_wrn…`: Zagoruyko & Komodakis 2016, pre-activation, no dropout.
- `cifar_vgg11_bn`: Simonyan & Zisserman 2015 with batch norm and one linear layer.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _init_he(model: nn.Module) -> None:
    """He initialisation of every convolution (fan out); batch norm and linear keep torch's."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class _Classifier(nn.Module):
    """What timm asks of a classifier: `num_classes`, `forward_features`, `get_classifier`."""

    classifier_name = "linear"

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


class CifarResNet(_Classifier):
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


class CifarWideResNet(_Classifier):
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


class CifarVGG(_Classifier):
    """VGG with batch norm for 32-pixel images; a linear layer instead of the three of ImageNet.

    Five poolings: inputs of at least 32 pixels.
    """

    classifier_name = "classifier"

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


def _cfg(classifier: str, first_conv: str) -> dict[str, Any]:
    # CIFAR-10's own statistics, as every public repository of the field normalises.
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": None,
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "first_conv": first_conv,
        "classifier": classifier,
    }


_RESNETS: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "cifar_resnet8": ((1, 1, 1), (16, 32, 64), "A"),
    "cifar_resnet14": ((2, 2, 2), (16, 32, 64), "A"),
    "cifar_resnet20": ((3, 3, 3), (16, 32, 64), "A"),
    "cifar_resnet32": ((5, 5, 5), (16, 32, 64), "A"),
    "cifar_resnet56": ((9, 9, 9), (16, 32, 64), "A"),
    "cifar_resnet18": ((2, 2, 2, 2), (64, 128, 256, 512), "B"),
    "cifar_resnet34": ((3, 4, 6, 3), (64, 128, 256, 512), "B"),
}
_WIDE_RESNETS: dict[str, tuple[int, int]] = {
    "cifar_wrn40_2": (40, 2),
    "cifar_wrn40_1": (40, 1),
    "cifar_wrn16_2": (16, 2),
    "cifar_wrn16_1": (16, 1),
}
_VGGS: dict[str, tuple[int | str, ...]] = {
    "cifar_vgg11_bn": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
}

# timm's registry looks this name up in the module that registers a model.
default_cfgs = generate_default_cfgs(
    {
        **{name: _cfg("linear", "conv1") for name in _RESNETS},
        **{name: _cfg("fc", "conv1") for name in _WIDE_RESNETS},
        **{name: _cfg("classifier", "features.0") for name in _VGGS},
    }
)


def _resnet(name: str, pretrained: bool, **kwargs: Any) -> CifarResNet:
    blocks, channels, shortcut = _RESNETS[name]
    arguments = {"blocks": blocks, "channels": channels, "shortcut": shortcut, **kwargs}
    model = build_model_with_cfg(CifarResNet, name, pretrained, **arguments)
    assert isinstance(model, CifarResNet)
    return model


def _wide_resnet(name: str, pretrained: bool, **kwargs: Any) -> CifarWideResNet:
    depth, widen = _WIDE_RESNETS[name]
    arguments = {"depth": depth, "widen": widen, **kwargs}
    model = build_model_with_cfg(CifarWideResNet, name, pretrained, **arguments)
    assert isinstance(model, CifarWideResNet)
    return model


@register_model
def cifar_resnet8(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-8: 75 k parameters."""
    return _resnet("cifar_resnet8", pretrained, **kwargs)


@register_model
def cifar_resnet14(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-14: 0.18 M parameters."""
    return _resnet("cifar_resnet14", pretrained, **kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20: 0.27 M parameters."""
    return _resnet("cifar_resnet20", pretrained, **kwargs)


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-32: 0.46 M parameters."""
    return _resnet("cifar_resnet32", pretrained, **kwargs)


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-56: 0.85 M parameters."""
    return _resnet("cifar_resnet56", pretrained, **kwargs)


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-18 with a 3×3 stem: 11.17 M parameters."""
    return _resnet("cifar_resnet18", pretrained, **kwargs)


@register_model
def cifar_resnet34(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-34 with a 3×3 stem: 21.28 M parameters."""
    return _resnet("cifar_resnet34", pretrained, **kwargs)


@register_model
def cifar_wrn40_2(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-40-2: 2.2 M parameters."""
    return _wide_resnet("cifar_wrn40_2", pretrained, **kwargs)


@register_model
def cifar_wrn40_1(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-40-1: 0.6 M parameters."""
    return _wide_resnet("cifar_wrn40_1", pretrained, **kwargs)


@register_model
def cifar_wrn16_2(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-16-2: 0.7 M parameters."""
    return _wide_resnet("cifar_wrn16_2", pretrained, **kwargs)


@register_model
def cifar_wrn16_1(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-16-1: 0.2 M parameters."""
    return _wide_resnet("cifar_wrn16_1", pretrained, **kwargs)


@register_model
def cifar_vgg11_bn(pretrained: bool = False, **kwargs: Any) -> CifarVGG:
    """VGG-11 with batch norm: 9.23 M parameters."""
    layers = _VGGS["cifar_vgg11_bn"]
    model = build_model_with_cfg(
        CifarVGG, "cifar_vgg11_bn", pretrained, **{"layers": layers, **kwargs}
    )
    assert isinstance(model, CifarVGG)
    return model
