"""How many images fit into memory at once, and what may lie beside them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from dreamkd.engine.available import free_memory
from dreamkd.errors import RunError
from dreamkd.files import size as size_of

#: Bytes of a step over the bytes that its forward pass saves: gradients and temporaries.
_OVERHEAD = 2.0

#: Share of the free memory that a step may take.
_SHARE = 0.8

#: Of a GPU's memory, images at hand may take one part in so many, and recorded steps another; of
#: what is free, each one part in four. Trials of what fits leave both.
_SPARE, _SPARE_OF_FREE = 16, 4


#: What torch and the libraries below it say when there is too little, of main memory and a GPU's.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine",  # of cuDNN: each has been refused its workspace
)


def saved_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Bytes that a forward pass of `inputs` keeps for the backward pass to them, weights left out.

    Args: inputs: (B, C, H, W); what is kept grows in proportion to B.
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        leaf = inputs.detach().requires_grad_()
        outputs = model(leaf.clone())  # held, so that no address is used twice
    del outputs
    return sum(kept.values())


def saved_per_image(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Bytes that a forward pass keeps for each image more, of (C, H, W).

    The difference leaves out what it keeps once, such as weights that autocast has cast.
    """
    one, two = (saved_bytes(model, torch.zeros(count, *input_size)) for count in (1, 2))
    return two - one


def images_that_fit(bytes_per_image: int, *, free: int) -> int:
    """Images whose step takes at most `_SHARE` of `free` bytes, at least one."""
    return max(1, int(_SHARE * free / (_OVERHEAD * max(1, bytes_per_image))))


def even_chunk(count: int, most: int) -> int:
    """Images a part where `count` are cut into equal parts of at most `most`; one graph serves all.

    Where no equal parts are at least half as large, `most`.
    """
    fewest = -(-count // most)
    whole = (count // parts for parts in range(fewest, 2 * fewest + 1) if count % parts == 0)
    return next(whole, most)


def chunks(count: int, size: int) -> list[slice]:
    """Nearly equal parts of at most `size` of a batch of `count`."""
    number = -(-count // size)
    bounds = [round(i * count / number) for i in range(number + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def require_memory(images: int, size: tuple[int, int, int], *, advice: str) -> None:
    """Check that so many uint8 images of (C, H, W) fit into the free main memory.

    Raises: RunError: they do not, which is better known before the work than after.
    """
    needed, free = images * math.prod(size), free_memory()
    if needed > free:
        raise RunError(
            f"{images:,} images take {size_of(needed)} of memory, and {size_of(free)} are free: "
            f"{advice}"
        )


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device could not give what was asked for; torch has a class for some of it only."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in _OUT_OF_MEMORY
    )


def spare_bytes(device: str) -> int:
    """Bytes that may lie on a device beside what is computed there; on the CPU without bound."""
    if device == "cpu":
        return 2**62
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(total // _SPARE, free // _SPARE_OF_FREE)


def largest_that_fits(attempt: Callable[[int], object], count: int) -> int:
    """Halve `count` until `attempt` of that many images does not run out of memory.

    Raises: RuntimeError: one image does.
    """
    while True:
        try:
            attempt(count)
            return count
        except RuntimeError as error:
            if count == 1 or not out_of_memory(error):
                raise
        # Outside of the handler, whose traceback would keep the tensors alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        count = -(-count // 2)
