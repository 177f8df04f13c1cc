"""The user's model as Hansa keeps it: one module whose parameters are views of one flat buffer.

Building a module for every party costs more than training a small one. A process keeps one for each learner and thread, and
trains all parties in it, one after another; loading a party's model is one copy.
"""

from __future__ import annotations

import copy
import importlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeAlias, TypeVar, final

import numpy as np
import torch
from torch import nn

from hansa.errors import ConfigError, nearest
from hansa.learners.torch.losses import Loss, prepare_target
from hansa.params import Layout, Params
from hansa.rng import Key
from hansa.tensor import Array

ModelSpec: TypeAlias = str | nn.Module | Callable[[], nn.Module]
T = TypeVar("T")

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_KEPT = 4


@final
class Resident:
    """A module over a flat buffer: trained parameters first, then frozen ones, then buffers.

    Args:
        module: the module; it is taken over and its parameters are moved into the flat buffer.
        device: where it lives.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        module = module.to(device)
        named = [*module.named_parameters()]
        saved = set(module.state_dict())
        trained = [(name, p) for name, p in named if p.requires_grad]
        frozen = [(name, p) for name, p in named if not p.requires_grad]
        dtypes = {p.dtype for _, p in named}
        if not trained:
            raise ConfigError(f"model {_name(module)} has no parameters to train")
        if len(dtypes) > 1 or trained[0][1].dtype not in _DTYPES:
            found = ", ".join(sorted(str(dtype) for dtype in dtypes))
            raise ConfigError(f"model {_name(module)} must be all float32 or all float64, not {found}")
        self.module, self.device, self.dtype = module, device, trained[0][1].dtype
        state = [(n, b) for n, b in module.named_buffers() if n in saved and b.dtype == self.dtype]
        tensors = trained + frozen + state
        self.layout = Layout(
            tuple(name for name, _ in tensors),
            tuple(tuple(t.shape) for _, t in tensors),
            _DTYPES[self.dtype],
            frozenset(name for name, _ in frozen + state),
        )
        self.flat = torch.cat([t.detach().reshape(-1) for _, t in tensors])
        for (_, t), shape, start in zip(tensors, self.layout.shapes, self.layout.offsets, strict=False):
            t.data = self.flat[start : start + t.numel()].view(shape)
        self.trained: list[torch.Tensor] = [p for _, p in trained]
        self.trained_size = sum(p.numel() for p in self.trained)
        self.state_start = self.trained_size + sum(p.numel() for _, p in frozen)
        held = {id(b) for _, b in state}
        self._constants = [(b, b.clone()) for _, b in module.named_buffers() if id(b) not in held]
        self.embeds = any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules())
        self._outputs: dict[tuple[int, ...], tuple[int, ...]] = {}

    def load(self, flat: torch.Tensor) -> None:
        """Take over the values of ``flat``, shape (layout.size,), and reset every buffer that is not among them."""
        self.flat.copy_(flat)
        for buffer, value in self._constants:
            buffer.copy_(value)

    def training(self, mode: bool) -> None:
        """Switch between training and evaluation."""
        if self.module.training != mode:
            self.module.train(mode)

    def features(self, x: Array) -> torch.Tensor:
        """``x`` on the device: whole numbers for a model with an embedding, the model's dtype for all others."""
        tensor = tensor_of(x)
        return tensor.to(self.device, torch.int64 if self.embeds else self.dtype)

    def targets(self, loss: Loss, x_shape: tuple[int, ...], y: Array) -> torch.Tensor:
        """``y`` as ``loss`` wants it, on the device.

        Args:
            loss: the loss.
            x_shape: the shape of one example's features.
            y: targets, shape (n, ...).

        Raises:
            ConfigError: the model does not take such features, or the loss not such targets.
        """
        return prepare_target(loss, tensor_of(y).to(self.device), self.output_shape(x_shape), self.dtype)

    def output_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the model's output for one example; a trial with zeros finds it.

        Raises:
            ConfigError: the model does not take features of this shape.
        """
        known = self._outputs.get(x_shape)
        if known is None:
            known = self._outputs[x_shape] = self._trial(x_shape)
        return known

    def _trial(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        seen: list[tuple[str, nn.Module, tuple[int, ...]]] = []

        def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                if inputs and isinstance(inputs[0], torch.Tensor):
                    seen.append((name, module, tuple(inputs[0].shape)))

            return hook

        leaves = [(name, part) for name, part in self.module.named_modules() if not [*part.children()]]
        hooks = [part.register_forward_pre_hook(watch(name)) for name, part in leaves]
        was_training = self.module.training
        self.training(False)
        x = self.features(np.zeros((2, *x_shape), np.float32))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                output = self.module(x)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            place = ""
            if seen:
                name, part, shape = seen[-1]
                place = f": its layer {name or 'itself'!r}, {part}, was given shape (n{_tail(shape)})"
            cause = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"model {_name(self.module)} does not take examples of shape (n{_tail((2, *x_shape))}){place} ({cause})"
            ) from error
        finally:
            self.training(was_training)
            for hook in hooks:
                hook.remove()
        if not isinstance(output, torch.Tensor):
            raise ConfigError(f"model {_name(self.module)} must return one tensor, not {type(output).__name__}")
        if not output.ndim or len(output) != 2:
            raise ConfigError(
                f"model {_name(self.module)} must return one row an example, but 2 examples of shape (n{_tail((2, *x_shape))})"
                f" gave shape {tuple(output.shape)}"
            )
        return tuple(output.shape[1:])


def build(model: ModelSpec, x_shape: tuple[int, ...], seed: Key | None) -> nn.Module:
    """A fresh module from ``model``, its random values drawn from ``seed``; the global generator is left as it was.

    An instance is copied with the values it has, so a pretrained model starts where its owner left it.

    Raises:
        ConfigError: ``model`` is nothing that makes a module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_integer(seed) if seed is not None else 0)
        if isinstance(model, nn.Module):
            made: Any = copy.deepcopy(model)
        else:
            factory = imported(model) if isinstance(model, str) else model
            try:
                made = factory() if not isinstance(factory, nn.Module) else copy.deepcopy(factory)
            except TypeError as error:
                raise ConfigError(f"Torch.model {model!r} must be callable with no arguments ({error})") from error
        if not isinstance(made, nn.Module):
            raise ConfigError(f"Torch.model {model!r} must make a torch.nn.Module, not {type(made).__name__}")
        if any(isinstance(p, nn.UninitializedParameter) for p in made.parameters()):
            with torch.no_grad():
                made(torch.zeros((2, *x_shape)))
        return made


def imported(name: str) -> Any:
    """The object that ``"package.module:Name"`` names.

    Raises:
        ConfigError: the name has another form, or nothing is found under it.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"Torch.model {name!r} must have the form 'package.module:Name'")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"Torch.model {name!r}: {module_name} cannot be imported ({error})") from error
    names = vars(module)
    if attribute not in names:
        classes = [key for key, value in names.items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise ConfigError(f"Torch.model {name!r}: {module_name} has no {attribute!r}; {nearest(attribute, classes)}")
    return names[attribute]


def initial(model: ModelSpec, x_shape: tuple[int, ...], rng: Key) -> Params:
    """Fresh parameters of ``model``, from ``rng`` alone."""
    resident = Resident(build(model, x_shape, rng), torch.device("cpu"))
    resident.output_shape(x_shape)
    return Params(resident.flat.numpy().copy(), resident.layout)


@final
class Recent:
    """The few values used last, each made once a process and thread.

    What is kept never changes a result; it saves making the value again.
    """

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of ``key``, from ``make`` the first time."""
        whole = (os.getpid(), threading.get_ident(), key)
        if whole not in self._values:
            self._values[whole] = make()
            while len(self._values) > self._kept:
                self._values.popitem(last=False)
        self._values.move_to_end(whole)
        value: T = self._values[whole]
        return value


def tensor_of(array: Array) -> torch.Tensor:
    """``array`` as a tensor that shares its memory where it may."""
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise ConfigError(f"examples must be numbers, not {array.dtype}") from error


def seed_torch(key: Key, device: torch.device) -> None:
    """Start torch's generators for ``device`` at ``key``; the caller has forked them."""
    torch.default_generator.manual_seed(_integer(key))
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(_integer(key))


def _integer(key: Key) -> int:
    return int.from_bytes(key.digest[:7], "little")


def _name(module: nn.Module) -> str:
    return type(module).__name__


def _tail(shape: tuple[int, ...]) -> str:
    return "".join(f", {length}" for length in shape[1:])
