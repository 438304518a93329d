"""Preprocessing: equal to timm's and torchvision's to the bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from dreamkd.data import Preprocessing, preprocess
from dreamkd.errors import ConfigError

GREY = Preprocessing(input_size=(1, 4, 4))
RGB = Preprocessing(input_size=(3, 4, 4))


def picture(width: int, height: int) -> Image.Image:
    shape = (height, width, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40))
    | st.integers(1, 40).map(lambda s: (s, s)),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 0.965, 1.0]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_preprocessing_equals_timm(width, height, crop, crop_pct, interpolation):
    image = picture(width, height)
    theirs = create_transform(
        (3, *crop), is_training=False, crop_pct=crop_pct, interpolation=interpolation,
        normalize=False,
    )  # fmt: skip
    how = Preprocessing(input_size=(3, *crop), crop_pct=crop_pct, interpolation=interpolation)
    assert torch.equal(preprocess(image, how), theirs(image))


@pytest.mark.parametrize("size", [(300, 280), (280, 300), (256, 256), (90, 500)])
def test_preprocessing_equals_torchvision(size):
    image = picture(*size)
    bilinear = v2.InterpolationMode.BILINEAR
    theirs = v2.Compose([v2.Resize(232, bilinear), v2.CenterCrop(224), v2.PILToTensor()])
    how = Preprocessing(input_size=(3, 224, 224), crop_pct=224 / 232, interpolation="bilinear")
    assert torch.equal(preprocess(image, how), theirs(image))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "P", "1"])
@pytest.mark.parametrize("how", [GREY, RGB])
def test_every_mode_becomes_the_channels_of_the_network(mode, how):
    image = picture(4, 4).convert(mode)
    mode = "L" if how is GREY else "RGB"
    channels = how.input_size[0]
    theirs = torch.from_numpy(np.array(image.convert(mode))).view(4, 4, channels).permute(2, 0, 1)
    assert torch.equal(preprocess(image, how), theirs)


def test_a_transparent_palette_gives_its_colours_without_a_warning():
    image = picture(4, 4).quantize(8)
    colours = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    image.info["transparency"] = bytes(range(8))
    assert torch.equal(preprocess(image, RGB), colours)


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"interpolation": "bicubik"}, r"did you mean 'bicubic'\?"),
        ({"crop_pct": 0.0}, r"crop_pct is in \(0, 1\], not 0.0"),
        ({"crop_pct": 87.5}, r"crop_pct is in \(0, 1\], not 87.5"),
        ({"input_size": (2, 8, 8)}, "1 or 3 channels"),
    ],
)
def test_illegal_preprocessing_is_refused(field, says):
    with pytest.raises(ConfigError, match=says):
        Preprocessing(**{"input_size": (3, 8, 8), **field})
