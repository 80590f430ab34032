"""Arithmetic on the bytes of tensors: bfloat16 to float16 with a count of what is lost, FP8 blocks to bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plimsoll.errors import WeightError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FLOAT16_MAX = 65504.0
_FLOAT16_LEAST = 2.0**-24
"""The smallest float16 above zero; less than half of it rounds to zero."""
_FLOAT16_NORMAL = 2.0**-14
"""Below it a float16 keeps fewer digits than a bfloat16."""


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
    values = _from_bfloat16(xp.frombuffer(data, dtype="<u2"))
    size = xp.abs(values)
    finite = xp.isfinite(size)
    too_large = finite & (size >= FLOAT16_MAX + 16)  # halfway to the next one: from here on it rounds to infinity
    losses.overflow += int(xp.count_nonzero(too_large))
    losses.underflow += int(xp.count_nonzero((size > 0) & (size <= _FLOAT16_LEAST / 2)))
    losses.subnormal += int(xp.count_nonzero((size > _FLOAT16_LEAST / 2) & (size < _FLOAT16_NORMAL)))
    losses.largest = max(losses.largest, float(size.max(where=finite, initial=0.0)))
    if clamp and losses.overflow:
        values = xp.where(too_large, xp.copysign(xp.float32(FLOAT16_MAX), values), values)
    with xp.errstate(over="ignore"):
        result: bytes = values.astype("<f2").tobytes()
    return result


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
