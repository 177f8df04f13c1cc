"""The learner for PyTorch: any module, trained by the fastest engine that is exact for it."""

from hansa.learners.torch.learner import Torch as Torch

__all__ = ["Torch"]
