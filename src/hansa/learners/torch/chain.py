"""Which models are a plain chain of dense layers and elementwise activations, found by tracing their forward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import fx, nn

Activation: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Dense:
    """A dense layer's place in the flat buffer.

    Args:
        inputs, outputs: its width on both sides.
        weight: where its weight, shape (outputs, inputs), starts.
        bias: where its bias starts; None without one.
        after: the activations behind it, in order.
    """

    inputs: int
    outputs: int
    weight: int
    bias: int | None
    after: tuple[Activation, ...]


@dataclass(frozen=True)
class Chain:
    """Dense layers in order.

    Args:
        layers: the layers.
        flattens: whether the model flattens an example before the first one.
    """

    layers: tuple[Dense, ...]
    flattens: bool


def _log_softmax(z: torch.Tensor) -> torch.Tensor:
    return F.log_softmax(z, -1)


_ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.Softplus,
    nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Mish, nn.LogSigmoid, nn.Tanhshrink,
)  # fmt: skip
_FUNCTIONS: dict[Any, Activation] = {
    torch.relu: torch.relu,
    F.relu: torch.relu,
    torch.tanh: torch.tanh,
    F.tanh: torch.tanh,
    torch.sigmoid: torch.sigmoid,
    F.sigmoid: torch.sigmoid,
    F.gelu: F.gelu,
    F.silu: F.silu,
    F.elu: F.elu,
    F.leaky_relu: F.leaky_relu,
    F.softplus: F.softplus,
}
_METHODS: dict[str, Activation] = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


def find_chain(module: nn.Module, offsets: dict[str, int]) -> Chain | str:
    """The chain that ``module`` is, or why it is none.

    Args:
        module: the model.
        offsets: where each trained parameter starts in the flat buffer, by name.
    """
    if [*module.buffers()] or any(not p.requires_grad for p in module.parameters()):
        return "it has buffers or frozen parameters"
    try:
        root = nn.Sequential(copy.deepcopy(module))  # so that a bare layer is a part too, and not traced into
        graph = fx.symbolic_trace(root).graph
    except Exception as error:  # the forward is the user's code: whatever it raises means that it cannot be traced
        return f"its forward cannot be traced ({type(error).__name__})"
    parts = dict(root.named_modules())
    layers: list[Dense] = []
    pending: list[Activation] = []
    flattens = False
    previous: fx.Node | None = None
    used: set[str] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            if previous is not None:
                return "its forward takes more than one input"
            previous = node
            continue
        if _is_size(node):
            continue
        if not node.args or node.args[0] is not previous:
            return "its forward is not a plain chain"
        previous = node
        if node.op == "output":
            break
        part = parts.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(part, nn.Identity) or (isinstance(part, nn.Dropout) and part.p == 0):
            continue
        if _is_flatten(node, part):
            flattens = flattens or not layers
            continue
        if type(part) is nn.Linear:
            name = str(node.target)
            if name in used:
                return f"its layer {name[2:]!r} is used twice"
            used.add(name)
            weight, bias = (offsets.get(f"{name}.{kind}".removeprefix("0.")) for kind in ("weight", "bias"))
            if weight is None or (part.bias is not None and bias is None):
                return f"its layer {name[2:]!r} shares its weights"
            layers.append(Dense(part.in_features, part.out_features, weight, bias, ()))
            pending = []
            continue
        activation = _activation(node, part)
        if activation is None:
            return f"{part if part is not None else node.target} is neither a dense layer nor an elementwise activation"
        if not layers:
            return "an activation comes before its first dense layer"
        pending.append(activation)
        last = layers[-1]
        layers[-1] = Dense(last.inputs, last.outputs, last.weight, last.bias, tuple(pending))
    if not layers or len(offsets) != sum(1 if layer.bias is None else 2 for layer in layers):
        return "it has parameters outside its dense layers"
    return Chain(tuple(layers), flattens)


def _is_size(node: fx.Node) -> bool:
    return bool(node.op == "call_method" and node.target == "size" and node.args[1:] == (0,))


def _is_flatten(node: fx.Node, part: nn.Module | None) -> bool:
    if isinstance(part, nn.Flatten):
        return part.start_dim == 1 and part.end_dim == -1
    rest = (*node.args[1:], *node.kwargs.values())
    if node.target == "flatten" or node.target is torch.flatten:
        return rest == (1,)
    if node.op == "call_method" and node.target in ("view", "reshape"):
        return len(rest) == 2 and isinstance(rest[0], fx.Node) and _is_size(rest[0]) and rest[1:] == (-1,)
    return False


def _activation(node: fx.Node, part: nn.Module | None) -> Activation | None:
    if part is not None:
        if isinstance(part, nn.LogSoftmax) and part.dim in (1, -1):
            return _log_softmax
        if type(part) is nn.ReLU:
            return torch.relu
        if type(part) in _ELEMENTWISE:
            fresh = copy.deepcopy(part)
            for name, value in vars(fresh).items():
                if name == "inplace" and value:
                    vars(fresh)["inplace"] = False
            return fresh
        return None
    target = node.target
    if target in (F.log_softmax, torch.log_softmax, "log_softmax"):
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return _log_softmax if axis in (1, -1) else None
    known = _METHODS.get(str(target)) if node.op == "call_method" else _FUNCTIONS.get(target)
    if known is None or len(node.args) > 1 or any(value for key, value in node.kwargs.items() if key != "inplace"):
        return None
    return known
