"""How differently parties' data are distributed: numbers, a table and a picture.

Source of the measures: Hsieh et al., "The Non-IID Data Quagmire of Decentralized Machine Learning", ICML 2020 (label
skew); Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Information Theory 37, 1991 (Jensen-Shannon).
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any, final

import numpy as np
import numpy.typing as npt

from hansa.data.federated import FederatedData

Floats = npt.NDArray[np.float64]
MOST_MEASURED = 10_000
MOST_DRAWN = 60
BINS = 10
_COLOURS = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#76b7b2",
    "#edc948",
    "#b07aa1",
    "#ff9da7",
    "#9c755f",
    "#bab0ac",
)


@final
@dataclass(frozen=True, slots=True, eq=False)
class SkewReport:
    """The parties' training data against their union. Labels are the classes, or ten equal-count bins of real targets.

    Args:
        parties: how many there are.
        measured: how many were measured: all up to 10,000, else evenly spaced ones.
        examples: training examples of those measured.
        sizes: their training examples, shape (measured,).
        labels: names of the labels; empty where targets are neither one class nor one number a row.
        global_share: each label's share in the union, shape (labels,).
        entropy: each party's label entropy in bits.
        effective: its effective number of labels, ``2 ** entropy``.
        variation: its total variation distance to the union, in [0, 1].
        divergence: its Jensen-Shannon divergence from the union in bits, in [0, 1].
        shift: root mean square over features of (party mean - global mean) / global deviation; NaN for token numbers.
        drawn: (name, label counts) of at most 60 parties, for the picture.
    """

    parties: int
    measured: int
    examples: int
    sizes: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    global_share: Floats
    entropy: Floats
    effective: Floats
    variation: Floats
    divergence: Floats
    shift: Floats
    drawn: tuple[tuple[str, tuple[int, ...]], ...]

    def text(self) -> str:
        """A table: least, median, mean and largest over the parties of each measure."""
        lines = [f"{self.parties} parties, {self.examples} training examples in {self.measured} measured"]
        lines.append(f"{'':<28}{'least':>10}{'median':>10}{'mean':>10}{'largest':>10}")
        rows = [("training examples", self.sizes.astype(float))]
        if self.labels:
            rows += [
                ("label entropy (bits)", self.entropy),
                ("effective labels", self.effective),
                ("total variation to all", self.variation),
                ("Jensen-Shannon to all (bits)", self.divergence),
            ]
        if not np.isnan(self.shift).all():
            rows.append(("feature shift (deviations)", self.shift))
        for title, values in rows:
            cells = (values.min(), np.median(values), values.mean(), values.max())
            lines.append(f"{title:<28}" + "".join(f"{cell:>10.4g}" for cell in cells))
        if self.labels:
            top = _entropy(self.global_share[None])[0]
            lines.append(f"label entropy of all: {top:.4g} bits over {len(self.labels)} labels")
        return "\n".join(lines)

    def svg(self) -> str:
        """A picture: one stacked bar of label counts for each of at most 60 parties."""
        wide, high, left, top = 14, 240, 50, 30
        most = max((sum(counts) for _, counts in self.drawn), default=0) or 1
        legend = left + wide * len(self.drawn) + 20
        width, height = legend + 150, max(top + high + 90, top + 14 * len(self.labels) + 20)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="10">',
            f'<text x="{left}" y="18" font-size="12">Labels of {len(self.drawn)} of {self.parties} parties</text>',
            f'<text x="{left - 4}" y="{top + 8}" text-anchor="end">{most}</text>',
            f'<text x="{left - 4}" y="{top + high}" text-anchor="end">0</text>',
        ]
        for i, (name, counts) in enumerate(self.drawn):
            x, y = left + wide * i, float(top + high)
            for label, count in enumerate(counts):
                if count:
                    tall = count / most * high
                    y -= tall
                    title = escape(f"{name}: {count} of {self.labels[label]}") if self.labels else escape(name)
                    parts.append(
                        f'<rect x="{x}" y="{y:.2f}" width="{wide - 2}" height="{tall:.2f}" fill="{_colour(label)}">'
                        f"<title>{title}</title></rect>"
                    )
            parts.append(
                f'<text transform="translate({x + wide - 5},{top + high + 6}) rotate(90)">{escape(name[:14])}</text>'
            )
        for label, name in enumerate(self.labels[:40]):
            y = top + 14 * label
            parts.append(f'<rect x="{legend}" y="{y}" width="10" height="10" fill="{_colour(label)}"/>')
            parts.append(f'<text x="{legend + 14}" y="{y + 9}">{escape(name[:20])}</text>')
        return "\n".join([*parts, "</svg>"])


def measure(data: FederatedData) -> SkewReport:
    """The report on ``data``; reads each measured party's training examples twice.

    >>> from hansa.data import IID, arrays
    >>> report = arrays([[0.0]] * 4, [0, 1, 0, 1]).partition(IID(), parties=1, test=0.0).skew()
    >>> report.entropy.tolist(), report.variation.tolist()
    ([1.0], [0.0])
    """
    total = len(data)
    measured = np.unique(np.linspace(0, total - 1, min(total, MOST_MEASURED)).astype(np.int64)).tolist()
    targets = [data.shard(party).train.y for party in measured]
    sizes = np.array([len(y) for y in targets], dtype=np.int64)
    counts, labels = _counts(targets, data.classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    union = counts.sum(axis=0) / max(int(counts.sum()), 1)
    entropy = _entropy(share)
    middle = _entropy((share + union) / 2)
    divergence = np.clip(middle - (entropy + _entropy(union[None])) / 2, 0.0, 1.0)
    picked = np.unique(np.linspace(0, len(measured) - 1, min(len(measured), MOST_DRAWN)).astype(np.int64)).tolist()
    drawn = tuple((data.names[measured[i]], tuple(int(n) for n in counts[i])) for i in picked)
    return SkewReport(
        parties=total,
        measured=len(measured),
        examples=int(sizes.sum()),
        sizes=sizes,
        labels=labels,
        global_share=union,
        entropy=entropy,
        effective=np.exp2(entropy),
        variation=np.abs(share - union).sum(axis=1) / 2,
        divergence=divergence,
        shift=_shift(data, measured, sizes),
        drawn=drawn if labels else tuple((name, ()) for name, _ in drawn),
    )


def _counts(targets: list[npt.NDArray[Any]], classes: tuple[str, ...]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """How many of each label each party has, and the labels' names."""
    if targets[0].ndim != 1:
        return np.zeros((len(targets), 0), np.int64), ()
    if targets[0].dtype.kind == "f":
        edges = np.unique(np.quantile(np.concatenate(targets), np.arange(1, BINS) / BINS))
        targets = [np.searchsorted(edges, y, side="right") for y in targets]
        bounds = [f"{edge:.4g}" for edge in edges]
        classes = tuple(f"{low} to {high}" for low, high in zip(["-inf", *bounds], [*bounds, "inf"], strict=True))
    number = max(len(classes), 1 + max(int(y.max(initial=0)) for y in targets))
    counts = np.stack([np.bincount(y, minlength=number) for y in targets])
    return counts, classes + tuple(str(i) for i in range(len(classes), number))


def _entropy(share: Floats) -> Floats:
    """The entropy of each row, in bits."""
    logs = np.log2(share, out=np.zeros_like(share), where=share > 0)
    return np.asarray(np.maximum(-(share * logs).sum(axis=1), 0.0))


def _shift(data: FederatedData, measured: list[int], sizes: npt.NDArray[np.int64]) -> Floats:
    means, squares = [], []
    for party in measured:
        x = data.shard(party).train.x
        if x.dtype.kind != "f":
            return np.full(len(measured), np.nan)
        flat = x.reshape(len(x), -1)
        means.append(flat.mean(axis=0, dtype=np.float64))
        squares.append(np.einsum("ij,ij->j", flat, flat, dtype=np.float64))
    weights = sizes / sizes.sum()
    each = np.stack(means)
    centre = weights @ each
    variance = np.sum(squares, axis=0) / sizes.sum() - centre**2
    varies = variance > 1e-9 * np.maximum(centre**2, 1e-12)
    if not varies.any():
        return np.zeros(len(measured))
    scaled = (each[:, varies] - centre[varies]) / np.sqrt(variance[varies])
    return np.asarray(np.sqrt(np.mean(scaled**2, axis=1)))


def _colour(label: int) -> str:
    return _COLOURS[label] if label < len(_COLOURS) else f"hsl({label * 137 % 360},55%,55%)"
