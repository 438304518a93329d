"""Copies of networks, whatever they keep about themselves, for us to change as we need."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dreamkd.errors import ModelError, said

#: What attributes raise that were not made to be copied. Not RuntimeError: memory may run out.
_NOT_TO_BE_COPIED = (TypeError, AttributeError, ValueError, NotImplementedError, RecursionError)


def copied(model: nn.Module) -> nn.Module:
    """The same network in memory of its own.

    Parts that `torch.compile` wrapped are copied without the wrapping, which would keep our hooks
    from running; their names lose `_orig_mod`. Tensors that a pass left behind, such as a feature
    that is kept to be looked at, become plain values.

    Raises: ModelError: it holds what cannot be copied.
    """
    return _copied(model, {})


def give(model: nn.Module, values: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load values by name, as a state of this version of every layer, which MNASNet asks for.

    Args: strict: every name of the network's state has a value.
    """
    state = OrderedDict(values)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state, strict=strict)


def twin(model: nn.Module) -> nn.Module:
    """A second network over the same weights, in evaluation mode, otherwise as of `copied`.

    Modes, hooks, devices, what learns of one, and what it keeps in its buffers leave the other be;
    weights that change in place change in both.
    """
    shared: dict[int, Any] = {}
    for parameter in model.parameters():
        values = parameter.detach()
        if values.is_inference():  # which can be nobody's parameter
            values = values.clone()
        shared[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
    return _copied(model, shared).eval()


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Args: memo: what stands for a tensor, by its id; filled as it is copied."""
    try:
        with _Values():
            for part in reversed(list(model.modules())):  # those inside others first
                if type(part).__name__ == "OptimizedModule":
                    memo[id(part)] = copy.deepcopy(part._modules["_orig_mod"], memo)
            made: nn.Module = copy.deepcopy(model, memo)
    except _NOT_TO_BE_COPIED as error:
        kind = type(model).__name__
        raise ModelError(
            f"a network of type {kind} cannot be copied: {said(error)}; keep what cannot be copied "
            "outside it"
        ) from error
    for part in made.modules():
        compiled = getattr(vars(part).get("forward"), "_torchdynamo_orig_callable", None)
        if getattr(compiled, "__func__", compiled) == type(part).forward:
            del part.forward  # bound to the network that was copied
    return made


class _Values(TorchFunctionMode):
    """Copies of tensors that were computed are values, which torch would refuse to copy."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))
