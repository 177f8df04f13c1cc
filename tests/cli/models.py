"""Models that plans of the tests name."""

from torch import nn


class TooWide(nn.Linear):
    """Takes five features; the data have four."""

    def __init__(self) -> None:
        super().__init__(5, 3)
