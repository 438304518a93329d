"""A network and its card: what every command takes for a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dreamkd import checkpoint
from dreamkd.copying import copied, twin
from dreamkd.errors import ConfigError, ModelError
from dreamkd.models.card import Card
from dreamkd.models.given import checked, require_each, text

#: What the architecture of a network of the caller's own begins with, which no library builds.
OWN = "own:"


@dataclass(frozen=True)
class Classifier:
    """A network with its card: loaded, in evaluation mode and float32; the caller's own, any."""

    module: nn.Module
    card: Card

    @classmethod
    def of(
        cls,
        module: nn.Module,
        *,
        name: str,
        num_classes: int,
        input_size: Sequence[int],
        mean: float | Sequence[float],
        std: float | Sequence[float],
        class_names: Sequence[str] | None = None,
        interpolation: str = "bicubic",
        crop_pct: float = 1.0,
        crop_mode: str = "center",
    ) -> Self:
        """Any trained network of one's own, which takes its place wherever a name would.

        Args:
            module: gives logits (B, num_classes), not probabilities, for normalised images
                (B, C, H, W). It stays as it is: commands work on a `borrowed` one.
            name: for people; files of it say `own:NAME`.
            input_size: (C, H, W).
            mean: per channel, of images in [0, 1]; a number for a single one.
            std: per channel.
            class_names: in the order of the logits, or none.
            interpolation: of the resize of pictures, one of `config.INTERPOLATIONS`.
            crop_pct: side of the centre crop over the resized short side, in (0, 1].
            crop_mode: of pictures of another shape, one of `config.CROP_MODES`.

        Raises:
            ConfigError: a field is not of its kind, or not one for each channel or class.
            ModelError: a field is out of its range; or it is no network, or one without weights, or
                TorchScript.
        """
        name = text("name", name)
        _require_weights(module, name)
        values = {"num_classes": num_classes, "input_size": input_size, "mean": mean, "std": std}
        for field, value in values.items():
            if value is None:
                raise ConfigError(f"{field}: None is given; a network of one's own needs it")
        stated = checked(
            **values,
            class_names=None if class_names is None or not len(class_names) else class_names,
            interpolation=interpolation,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
        )
        if len(stated["input_size"]) == 3:
            channels = stated["input_size"][0]
            require_each(stated, num_classes=stated["num_classes"], channels=channels)
        card = Card(
            architecture=f"{OWN}{name}",
            weights="own",
            source=name,
            **stated,
            parameters=parameters(module),
            pretrained=True,
        )
        return cls(module, card)

    def copy(self) -> Self:
        """The same network in memory of its own."""
        return replace(self, module=copied(self.module))

    def borrowed(self) -> Self:
        """The same network as a command takes it: in evaluation mode and float32, on the CPU.

        It has the weights of this one where that is so already. What is done to it, its mode, its
        hooks, what learns of it, where it is, leaves this one be.

        Raises: ModelError: it holds what cannot be copied, or would compute with this one.
        """
        module = twin(self.module).cpu().float()
        _require_apart(module, self.module, self.card)
        return replace(self, module=module)

    def sha256(self) -> str:
        """Hash of the weights, whatever file they came from.

        `num_batches_tracked` is left out: it is a counter of training, and many files lack it.
        """
        state = self.module.state_dict()
        return checkpoint.sha256({k: v for k, v in state.items() if not is_counter(k)})


def _require_weights(module: object, name: str) -> None:
    """Raises: ModelError: it is no network, or one without weights or without layers to see."""
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(f"{name}: TorchScript shows no layers; give the network itself")
    if not isinstance(module, nn.Module):
        what = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise ModelError(f"{name}: {what} is no network; give a torch.nn.Module")
    if any(map(is_lazy, module.parameters())):
        raise ModelError(f"{name}: some of its weights wait for their shape; run it once before")
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        raise ModelError(f"{name}: it is on the meta device, without weights; give a trained one")


def _require_apart(made: nn.Module, original: nn.Module, card: Card) -> None:
    """Refuse a twin whose `forward` is a function of the original's, which no copy can change.

    Raises: ModelError: it is.
    """
    if not any("forward" in vars(part) for part in made.modules()):
        return

    def refuse(part: nn.Module, _: object) -> None:
        raise ModelError(
            f"{card.architecture}: the forward of an instance computes with that instance "
            f"({type(part).__name__}), also in copies; define it in the class"
        )

    handles = [part.register_forward_pre_hook(refuse) for part in original.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            made(torch.zeros(2, *card.input_size))
    except ModelError:
        raise
    except Exception:  # that it does not run is said later, and better
        return
    finally:
        for handle in handles:
            handle.remove()


def parameters(module: nn.Module) -> int:
    """How many weights a network learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def is_counter(name: str) -> bool:
    """Whether no output depends on a state dict entry: batch norm's count of batches, thop's."""
    return name.rpartition(".")[2] in ("num_batches_tracked", "total_ops", "total_params")
