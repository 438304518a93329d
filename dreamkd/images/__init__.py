"""What is optimised when images are synthesised: three parameterisations behind one interface.

    images.begin(batch_size, generator)         # a new batch
    x = images.inputs()                         # normalised, differentiable in parameters()
    ...; optimizer.step(); images.project()
    images.end(lr=...)                          # what is carried to the next batch is updated

`pixels` and `pyramid` carry nothing from batch to batch, `generator` its meta-learned start.
"""

from __future__ import annotations

from dreamkd.images.generator import Generated
from dreamkd.images.parameterisation import Images, Range
from dreamkd.images.pixels import Pixels
from dreamkd.images.pyramid import Pyramid

__all__ = ["IMAGES", "Generated", "Images", "Pixels", "Pyramid", "Range"]

#: `--images` -> class.
IMAGES: dict[str, type[Images]] = {
    "pixels": Pixels,
    "pyramid": Pyramid,
    "generator": Generated,
}
