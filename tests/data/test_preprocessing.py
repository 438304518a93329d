"""Preprocessing: equal to timm's and torchvision's to the bit."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from dreamkd.config import CROP_MODES, INTERPOLATIONS, EvalConfig, merge
from dreamkd.data import Preprocessing, open_images, preprocess
from dreamkd.errors import ConfigError, DataError

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
    interpolation=st.sampled_from(INTERPOLATIONS),
    crop_mode=st.sampled_from(CROP_MODES),
)
def test_preprocessing_equals_timm(width, height, crop, crop_pct, interpolation, crop_mode):
    image = picture(width, height)
    theirs = create_transform(
        (3, *crop), is_training=False, crop_pct=crop_pct, interpolation=interpolation,
        crop_mode=crop_mode, normalize=False,
    )  # fmt: skip
    how = Preprocessing(
        input_size=(3, *crop), crop_pct=crop_pct, interpolation=interpolation, crop_mode=crop_mode
    )
    assert torch.equal(preprocess(image, how), theirs(image))


@pytest.mark.parametrize("word", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
def test_what_is_implemented_a_card_may_say_and_a_command_ask_for(word, digits):
    given = {"model": "net", "data": "images", "interpolation": word}
    assert merge(EvalConfig, given).interpolation == word
    card = replace(digits.card, interpolation=word)
    assert preprocess(picture(9, 7), Preprocessing.of(card)).shape == (1, 16, 16)


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
        ({"crop_mode": "fill"}, "crop_mode 'fill' is none of center, squash"),
        ({"crop_pct": 0.0}, r"crop_pct is in \(0, 1\], not 0.0"),
        ({"crop_pct": 87.5}, r"crop_pct is in \(0, 1\], not 87.5"),
        ({"input_size": (2, 8, 8)}, "1 or 3 channels"),
    ],
)
def test_illegal_preprocessing_is_refused(field, says):
    with pytest.raises(ConfigError, match=says):
        Preprocessing(**{"input_size": (3, 8, 8), **field})


DEEP = [[0, 128, 129, 385], [386, 1000, 32768, 65535], [255, 256, 257, 258], [1, 2, 65406, 65407]]
ROUNDED = [[0, 0, 1, 1], [2, 4, 128, 255], [1, 1, 1, 1], [0, 0, 254, 255]]


def stored(image: Image.Image, form: str) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, form)
    image = Image.open(buffer)
    image.load()
    return image


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("how", [GREY, RGB])
def test_grey_of_16_bits_is_rounded_to_8(form, how):
    image = stored(Image.fromarray(np.array(DEEP, np.uint16)), form)
    expected = torch.tensor(ROUNDED, dtype=torch.uint8).expand(how.input_size)
    assert torch.equal(preprocess(image, how), expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_grey_of_16_bits_is_rounded_in_every_order_of_bytes(mode):
    order = {"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (4, 4), np.array(DEEP, order).tobytes())
    assert preprocess(image, GREY).tolist() == [ROUNDED]


def test_a_dark_picture_of_16_bits_stays_dark():
    dark = np.full((4, 4), 255, np.uint16)
    for form in ("PNG", "PPM", "TIFF"):
        assert preprocess(stored(Image.fromarray(dark), form), GREY).unique().tolist() == [1]


def test_integers_of_32_bits_are_as_many_as_they_need():
    for value, expected in ((255, 255), (65535, 255), (25700, 100)):
        image = stored(Image.fromarray(np.full((4, 4), value, np.int32)), "TIFF")
        assert image.mode == "I"
        assert preprocess(image, GREY).unique().tolist() == [expected]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full((4, 4), 0.5, np.float32), "x.tiff: grey values are floating point, of no known"),
        (
            np.full((4, 4), 65536, np.int32),
            r"x.tiff: grey values are 65536 to 65536; legal is 0 to",
        ),
        (np.full((4, 4), -1, np.int32), r"x.tiff: grey values are -1 to -1; legal is 0 to 65535"),
    ],
)
def test_grey_of_no_known_range_is_refused(tmp_path, values, says):
    (tmp_path / "a").mkdir()
    Image.fromarray(values).save(tmp_path / "a" / "x.tiff")
    images = open_images(str(tmp_path), preprocessing=GREY)
    with pytest.raises(DataError, match=says):
        images[0]
