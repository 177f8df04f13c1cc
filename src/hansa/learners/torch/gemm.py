"""Matrix products through the fastest kernel at hand.

The float32 product of PyTorch's own build takes a slower path than oneDNN on several x86 processors; oneDNN's is reached
through the operator that PyTorch's compiler uses. It computes the same sums in the same precision.
"""

from __future__ import annotations

from typing import Any

import torch


def _find_onednn() -> Any:
    available: Any = torch.backends.mkldnn.is_available
    if not available():
        return None
    try:
        return torch.ops.mkldnn._linear_pointwise.default
    except (AttributeError, RuntimeError):
        return None


_ONEDNN = _find_onednn()
_WORTHWHILE = 2**24


def times_transposed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T`` for x of shape (m, k) and weight of shape (n, k)."""
    large = x.shape[0] * x.shape[1] * weight.shape[0] >= _WORTHWHILE
    if large and _ONEDNN is not None and x.device.type == "cpu" and x.dtype == torch.float32:
        product: torch.Tensor = _ONEDNN(x, weight, None, "none", [], "")
        return product
    return x @ weight.T
