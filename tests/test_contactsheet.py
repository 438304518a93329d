"""The page of images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamkd import contactsheet


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.uint64).astype(np.uint8).reshape(shape)


def page(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 224, 224), (3, 100, 224)])
def test_images_of_up_to_224_px_stay_as_they_are(shape: tuple[int, ...]) -> None:
    image = numbered(*shape)
    assert contactsheet.tile(image) is image


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((3, 225, 225), (3, 113, 113)),
        ((1, 1024, 512), (1, 205, 103)),
        ((3, 448, 100), (3, 224, 50)),
        ((3, 3, 4096), (3, 1, 216)),
    ],
)
def test_larger_ones_become_the_means_of_squares(
    shape: tuple[int, ...], shown: tuple[int, ...]
) -> None:
    image = np.full(shape, 7, dtype=np.uint8)
    image[-1] = 9  # each channel by itself
    tile = contactsheet.tile(image)
    assert (tile.shape, tile.dtype) == (shown, np.uint8)
    assert [np.unique(plane).tolist() for plane in tile] == [[7]] * (shape[0] - 1) + [[9]]


def test_a_square_of_pixels_is_its_mean() -> None:
    image = np.zeros((1, 448, 448), dtype=np.uint8)
    image[0, :2, :2] = [[10, 20], [30, 40]]
    image[0, 446:, 446:] = 200
    tile = contactsheet.tile(image)
    assert (tile[0, 0, 0], tile[0, 0, 1], tile[0, -1, -1]) == (25, 0, 200)


def test_small_images_are_enlarged_and_stand_in_rows_with_a_white_border(tmp_path: Path) -> None:
    images = numbered(3, 3, 32, 32)
    contactsheet.write(tmp_path / "page.png", images, columns=2)
    found = page(tmp_path / "page.png")
    assert found.shape == (130, 130, 3)
    for image, (top, left) in zip(images, [(0, 0), (0, 66), (66, 0)], strict=True):
        shown = found[top : top + 64, left : left + 64]
        assert (shown[::2, ::2] == image.transpose(1, 2, 0)).all()
        assert (shown[1::2, 1::2] == image.transpose(1, 2, 0)).all()
    assert (found[64:66] == 255).all()
    assert (found[66:, 66:] == 255).all()


def test_a_page_of_large_images_is_that_of_their_tiles(tmp_path: Path) -> None:
    images = numbered(3, 1, 500, 300)
    tiles = np.stack([contactsheet.tile(image) for image in images])
    for name, shown in (("images", images), ("tiles", tiles)):
        contactsheet.write(tmp_path / name, shown, columns=2)
    assert (tmp_path / "images").read_bytes() == (tmp_path / "tiles").read_bytes()
    assert page(tmp_path / "images").shape == (2 * 167 + 2, 2 * 100 + 2)
