"""All randomness of kdscale: keys, not generators.

A draw is a pure function of what it is for (seed, phase, epoch, sample, layer ...), so nothing random has a state that a
save would have to hold, and no draw depends on which rank or worker makes it. Arithmetic is on 64-bit unsigned integers
that wrap around. Every function takes Python ints or numpy ``uint64`` arrays alike; the twins for torch, whose only
64-bit integer is signed, carry the prefix ``torch_`` and give the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
_M1, _M2, _ROUND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD1342543DE82EF95

U64 = np.ndarray[Any, np.dtype[np.uint64]]
IntOrArray = TypeVar("IntOrArray", int, U64)


def mix(x: Any) -> Any:
    """The finaliser of SplitMix64, a bijection of 64-bit words. ``x``: int or uint64 array; returns the same kind."""
    if isinstance(x, np.ndarray):
        with np.errstate(over="ignore"):
            x = (x ^ (x >> np.uint64(30))) * np.uint64(_M1)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(_M2)
            return x ^ (x >> np.uint64(31))
    x &= MASK
    x = ((x ^ (x >> 30)) * _M1) & MASK
    x = ((x ^ (x >> 27)) * _M2) & MASK
    return x ^ (x >> 31)


def fold(h: Any, value: Any) -> Any:
    """One more word into a key: ``key(a, b) == fold(key(a), b)``. Either argument may be a uint64 array."""
    if isinstance(h, np.ndarray) or isinstance(value, np.ndarray):
        with np.errstate(over="ignore"):
            a = h if isinstance(h, np.ndarray) else np.uint64(h & MASK)
            b = value.astype(np.uint64) if isinstance(value, np.ndarray) else np.uint64(value & MASK)
            return mix(np.atleast_1d((a ^ b) + np.uint64(GOLDEN)))
    return mix((h ^ (value & MASK)) + GOLDEN)


def key(*values: Any) -> Any:
    """A 64-bit key of a tuple of words. ``key() == GOLDEN``; with an array among the words the key is an array."""
    h: Any = GOLDEN
    for value in values:
        h = fold(h, value)
    return h


def uniform(k: Any, draw: int) -> Any:
    """Draw number ``draw`` of key ``k`` in [0, 1): the top 53 bits of ``mix(k + draw * GOLDEN)``."""
    if isinstance(k, np.ndarray):
        with np.errstate(over="ignore"):
            word = mix(k + np.uint64((draw * GOLDEN) & MASK))
        return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return float(mix(k + draw * GOLDEN) >> 11) * 2.0**-53


def perm(x: Any, n: Any, k: Any) -> Any:
    """Place of ``x`` under the permutation of 0..n-1 that ``k`` names: a cycle-walking Feistel net of four rounds.

    ``x``, ``n``, ``k`` may be ints, or arrays of one shape (then each entry has a permutation of its own).
    """
    if not any(isinstance(v, np.ndarray) for v in (x, n, k)):
        return _perm_int(int(x), int(n), int(k))
    x, n, k = np.broadcast_arrays(*(np.asarray(v, dtype=np.uint64) for v in (x, n, k)))
    return _perm_array(x.copy(), n, k)


def _perm_int(x: int, n: int, k: int) -> int:
    if n <= 1:
        return x
    bits = max(2, (n - 1).bit_length())
    rb = bits // 2
    lb = bits - rb
    while True:
        left, right, la, ra = x >> rb, x & ((1 << rb) - 1), lb, rb
        for r in range(4):
            left, right = right, (left ^ mix(right + k + r * _ROUND)) & ((1 << la) - 1)
            la, ra = ra, la
        x = (left << ra) | right
        if x < n:
            return x


def _perm_array(x: U64, n: U64, k: U64) -> U64:
    one = np.uint64(1)
    bits = np.maximum(2, _bit_length(np.maximum(n, one) - one)).astype(np.uint64)
    rb = bits // np.uint64(2)
    lb = bits - rb
    todo = np.flatnonzero(n > one)
    with np.errstate(over="ignore"):
        while todo.size:
            v, kk, a, b = x[todo], k[todo], lb[todo], rb[todo]
            left, right = v >> b, v & ((one << b) - one)
            for r in range(4):
                word = mix(right + kk + np.uint64((r * _ROUND) & MASK))
                left, right = right, (left ^ word) & ((one << a) - one)
                a, b = b, a
            v = (left << b) | right
            x[todo] = v
            todo = todo[v >= n[todo]]
    return x


def _bit_length(v: U64) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Bit lengths of words below 2**53 (a data set has fewer samples): exact through the exponent of a float."""
    return np.frexp(v.astype(np.float64))[1].astype(np.int64)


def signed(word: int) -> int:
    """The same 64 bits as a signed integer, the only 64-bit form that torch has arithmetic for."""
    return word - (1 << 64) if word >> 63 else word


def _shift_right(x: torch.Tensor, s: int) -> torch.Tensor:
    return (x >> s) & ((1 << (64 - s)) - 1)


def torch_mix(x: torch.Tensor) -> torch.Tensor:
    """Twin of :func:`mix` on int64 tensors of any shape."""
    x = (x ^ _shift_right(x, 30)) * signed(_M1)
    x = (x ^ _shift_right(x, 27)) * signed(_M2)
    return x ^ _shift_right(x, 31)


def torch_fold(h: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Twin of :func:`fold` on int64 tensors that broadcast."""
    return torch_mix((h ^ value) + signed(GOLDEN))


def torch_uniform(k: torch.Tensor, draw: int = 0) -> torch.Tensor:
    """Twin of :func:`uniform`: float64 tensor in [0, 1) of the shape of ``k``."""
    word = torch_mix(k + signed((draw * GOLDEN) & MASK))
    return _shift_right(word, 11).double() * 2.0**-53
