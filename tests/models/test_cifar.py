"""The 32-pixel networks against their papers' parameter counts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from dreamkd.models import registration  # noqa: F401  (which timm.create_model then knows)
from dreamkd.models.cifar import NETWORKS

# name: (millions of parameters as printed, in which table). Ten classes.
PAPERS = {
    "cifar_resnet8": ("0.08", "Mirzadeh et al. 2020, ResNet-8"),
    "cifar_resnet20": ("0.27", "He et al. 2016, table 6"),
    "cifar_resnet32": ("0.46", "He et al. 2016, table 6"),
    "cifar_resnet56": ("0.85", "He et al. 2016, table 6"),
    "cifar_resnet18": ("11.17", "public CIFAR ResNet-18"),
    "cifar_resnet34": ("21.28", "public CIFAR ResNet-34"),
    "cifar_wrn40_2": ("2.2", "Zagoruyko & Komodakis 2016, table 4"),
    "cifar_wrn40_1": ("0.6", "Zagoruyko & Komodakis 2016, table 4"),
    "cifar_wrn16_2": ("0.7", "Zagoruyko & Komodakis 2017, table 1"),
    "cifar_wrn16_1": ("0.2", "Zagoruyko & Komodakis 2017, table 1"),
    "cifar_vgg11_bn": ("9.23", "public CIFAR VGG-11"),
}


def count(name: str, **arguments: int) -> int:
    return sum(p.numel() for p in timm.create_model(name, **arguments).parameters())


@pytest.mark.parametrize("name", PAPERS)
def test_parameter_count_is_the_paper_s(name: str) -> None:
    printed, _ = PAPERS[name]
    decimals = len(printed.partition(".")[2])
    assert f"{count(name) / 1e6:.{decimals}f}" == printed


def test_resnet20_by_hand() -> None:
    # stem 3·16·9 = 432; stage 1 6·16·16·9 = 13,824; stage 2 16·32·9 + 5·32·32·9 = 50,688;
    # stage 3 32·64·9 + 5·64·64·9 = 202,752; batch norm 2·(7·16 + 6·32 + 6·64) = 1,376; linear 650.
    assert count("cifar_resnet20") == 432 + 13_824 + 50_688 + 202_752 + 1_376 + 650


@pytest.mark.parametrize("name", NETWORKS)
def test_any_class_and_channel_count(name: str) -> None:
    model = timm.create_model(name, num_classes=7, in_chans=1).eval()
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert model.num_classes == 7
    model.reset_classifier(3)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


def test_option_a_shortcut_subsamples_and_pads_with_zeros() -> None:
    block = timm.create_model("cifar_resnet8").layer2[0].eval()
    torch.nn.init.zeros_(block.bn2.weight)  # leaves the shortcut alone
    x = torch.rand(1, 16, 4, 4)
    with torch.no_grad():
        out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_timm_knows_the_networks_by_what_the_readme_imports() -> None:
    """In a process of its own, where nothing else has imported it."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (module,) = re.findall(r"`import\s+(dreamkd[\w.]*)`\s+makes\s+timm\s+know", text)
    code = f"import {module}, timm; timm.create_model('cifar_resnet8', num_classes=2)"
    subprocess.run([sys.executable, "-c", code], check=True)
