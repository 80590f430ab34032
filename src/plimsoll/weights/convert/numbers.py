"""Arithmetic on the bytes of tensors: bfloat16 to float16 with a count of what is lost, FP8 blocks to bfloat16."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plimsoll.errors import WeightError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Magnitudes of bfloat16 as their 15 bits, which are in the order of the numbers.
_ROUNDS_TO_ZERO = 0x3300  # 2^-25, half of the smallest float16: up to here float16 is zero
_NORMAL = 0x3880  # 2^-14: below it a float16 keeps fewer digits than a bfloat16
_TOO_LARGE = 0x4780  # 65536, the first bfloat16 from 65520 on, where rounding to float16 gives infinity
_INFINITE = 0x7F80
_LARGEST = 0x7BFF  # 65504 as a float16


def numpy() -> Any:
    """The numpy module; WeightError with the way to get it if it is not installed."""
    try:
        import numpy as module
    except ImportError:
        raise WeightError(
            "rewriting dtypes needs numpy, which is not installed", hint="pip install 'plimsoll-llm[convert]'"
        ) from None
    return module


@dataclass(slots=True)
class Losses:
    """What float16 cannot hold of values that are not zero: too large, rounded to zero, kept with fewer digits."""

    overflow: int = 0
    underflow: int = 0
    subnormal: int = 0
    largest: float = 0.0


def bfloat16_to_float16(data: bytes, losses: Losses, *, clamp: bool = False) -> bytes:
    """The same numbers as float16, rounded to nearest even; `clamp` makes what is too large the largest finite one."""
    xp = numpy()
    codes = xp.frombuffer(data, dtype="<u2")
    size = codes & 0x7FFF
    losses.overflow += int(xp.count_nonzero((size >= _TOO_LARGE) & (size < _INFINITE)))
    losses.underflow += int(xp.count_nonzero((size > 0) & (size <= _ROUNDS_TO_ZERO)))
    losses.subnormal += int(xp.count_nonzero((size > _ROUNDS_TO_ZERO) & (size < _NORMAL)))
    largest = size.max(initial=0)
    if largest >= _INFINITE:
        largest = size.max(where=size < _INFINITE, initial=0)
    losses.largest = max(losses.largest, float(_from_bfloat16(largest[None])[0]))
    result: bytes = _float16_table(clamp=clamp)[codes].tobytes()
    return result


@functools.cache
def _float16_table(*, clamp: bool) -> NDArray[np.uint16]:
    """The float16 of each of the 65,536 bfloat16: looking it up is three times as fast as computing it."""
    xp = numpy()
    codes = xp.arange(1 << 16, dtype=xp.uint16)
    with xp.errstate(over="ignore", invalid="ignore"):
        table: NDArray[np.uint16] = _from_bfloat16(codes).astype("<f2").view("<u2")
    if clamp:
        size = codes & 0x7FFF
        table = xp.where((size >= _TOO_LARGE) & (size < _INFINITE), (codes & 0x8000) | _LARGEST, table).astype("<u2")
    return table


def fp8_blocks_to_bfloat16(data: bytes, columns: int, scales: NDArray[np.float32], block: tuple[int, int]) -> bytes:
    """Rows of float8_e4m3fn times the scale of their block, as bfloat16.

    `data` holds whole rows of `columns`; `scales` has one row per `block[0]` of them, one column per `block[1]`.
    """
    xp = numpy()
    values = _fp8_table()[xp.frombuffer(data, dtype=xp.uint8)].reshape(-1, columns)
    factors = xp.repeat(scales, block[0], axis=0)[: values.shape[0]]
    for start in range(0, columns, block[1]):
        values[:, start : start + block[1]] *= factors[:, start // block[1], None]
    result: bytes = _to_bfloat16(values).tobytes()
    return result


def float32_array(data: bytes, shape: tuple[int, ...], dtype: str) -> NDArray[np.float32]:
    """A small tensor (scales) as numbers; F32 or BF16."""
    xp = numpy()
    flat = xp.frombuffer(data, dtype="<f4") if dtype == "F32" else _from_bfloat16(xp.frombuffer(data, dtype="<u2"))
    array: NDArray[np.float32] = flat.reshape(shape)
    return array


def _from_bfloat16(raw: NDArray[np.uint16]) -> NDArray[np.float32]:
    xp = numpy()
    wide: NDArray[np.float32] = (raw.astype(xp.uint32) << 16).view(xp.float32)
    return wide


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to nearest even; NaN stays NaN."""
    xp = numpy()
    bits = xp.ascontiguousarray(values, dtype=xp.float32).view(xp.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded[xp.isnan(values)] = 0x7FC0
    narrow: NDArray[np.uint16] = rounded.astype("<u2")
    return narrow


def _fp8_table() -> NDArray[np.float32]:
    """All 256 values of float8_e4m3fn: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7f and 0xff are NaN."""
    xp = numpy()
    code = xp.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = xp.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    size[(code & 127) == 127] = xp.nan
    table: NDArray[np.float32] = xp.where(code & 128, -size, size).astype(xp.float32)
    return table
