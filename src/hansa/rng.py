"""Public randomness as a value: counter-based, derived by name, the same in any order and on any machine.

A :class:`Key` is 128 bits. A party's keys descend from (seed, party, label, indices), so no draw depends on how many draws
came before it. Secret randomness (masks, keys, noise that protects somebody) never comes from here: it comes from the
operating system.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec
import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


class Key(msgspec.Struct, frozen=True, gc=False):
    """A point in the tree of public randomness.

    >>> Key.root(7).child("cohort", 3) == Key.root(7).child("cohort", 3)
    True
    >>> Key.root(7).child("cohort", 3) == Key.root(7).child("cohort", 4)
    False
    """

    digest: bytes

    @staticmethod
    def root(seed: int) -> Key:
        """The root for a plan's ``seed`` (any integer)."""
        return Key(blake2b(str(seed).encode(), digest_size=16, person=b"hansa.rng").digest())

    def child(self, label: str, *indices: int) -> Key:
        """The key of ``label`` and ``indices`` below this one."""
        text = f"{label}\0{indices}" if indices else label
        return Key(blake2b(text.encode(), digest_size=16, key=self.digest).digest())

    def generator(self) -> np.random.Generator:
        """A NumPy generator (Philox) that starts at this key."""
        return np.random.Generator(np.random.Philox(key=int.from_bytes(self.digest, "little")))

    def permutation(self, size: int, epoch: int = 0) -> npt.NDArray[np.int64]:
        """A permutation of ``range(size)``; row 0 of :func:`permutations` of this key alone.

        >>> sorted(Key.root(0).permutation(5).tolist())
        [0, 1, 2, 3, 4]
        """
        row: npt.NDArray[np.int64] = permutations([self], size, epoch)[0]
        return row


def permutations(keys: Sequence[Key], size: int, epoch: int = 0) -> npt.NDArray[np.int64]:
    """One permutation of ``range(size)`` for each key: int64 of shape (len(keys), size).

    Row ``i`` depends on ``keys[i]``, ``size`` and ``epoch`` only, so a batch of clients shuffles as each would alone. It sorts
    64-bit draws of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), started
    at the key's two halves.
    """
    halves = np.frombuffer(b"".join(key.digest for key in keys), dtype="<u8").reshape(-1, 2)
    start = halves[:, :1] ^ _mix(halves[:, 1:] + np.uint64(epoch * int(_GOLDEN) % 2**64))
    draws = _mix(start + np.arange(1, size + 1, dtype=np.uint64) * _GOLDEN)
    order: npt.NDArray[np.int64] = np.argsort(draws, axis=1, kind="stable")
    return order


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> _S30)) * _MIX_1
    x = (x ^ (x >> _S27)) * _MIX_2
    return x ^ (x >> _S31)
