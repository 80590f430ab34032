"""Headers whose every value is of any kind: the readers say what is wrong, whatever it is."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.errors import PlimsollError
from plimsoll.facts.gguf import read_gguf
from plimsoll.facts.safetensors import read_index, read_safetensors
from plimsoll.weights.convert.safetensors_file import read_header

numbers = st.integers(-(1 << 70), 1 << 70) | st.sampled_from([0, 1, 8, 1 << 40, 1 << 62, 1 << 63]) | st.floats()
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.sampled_from(["BF16", "F32", "U8", "", "Q9"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
entry = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["BF16", "F32", "U8"]) | anything,
        "shape": st.lists(numbers, max_size=3) | anything,
        "data_offsets": st.tuples(numbers, numbers) | anything,
    },
)
table = st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]) | st.text(max_size=3), entry | anything, max_size=3)


def as_file(value: object) -> bytes:
    raw = json.dumps(value).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(16)


@settings(max_examples=80, deadline=None)
@given(table | anything)
def test_any_table_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    data = as_file(value)
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(data)
    readers: list[Callable[[], object]] = [
        lambda: read_header(path),
        lambda: read_safetensors(lambda offset, length: data[offset : offset + length], len(data)),
        lambda: read_index(json.dumps(value).encode()),
    ]
    for reader in readers:
        try:
            reader()
        except PlimsollError as error:
            assert "\n" not in error.message


@pytest.mark.parametrize("dtype", [[], {}, 5, None])
def test_a_dtype_that_is_no_text(dtype: object) -> None:
    data = as_file({"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, 1]}})
    with pytest.raises(PlimsollError):
        read_safetensors(lambda offset, length: data[offset : offset + length], len(data))


ONE = b"\1" + bytes(7)
CLAIMS = {
    "tensors": b"GGUF\3\0\0\0" + (1 << 60).to_bytes(8, "little") + bytes(8),
    "keys": b"GGUF\3\0\0\0" + bytes(8) + (1 << 60).to_bytes(8, "little"),
    "a key": b"GGUF\3\0\0\0" + bytes(8) + (1).to_bytes(8, "little") + (1 << 50).to_bytes(8, "little"),
    "an array": b"GGUF\3\0\0\0" + bytes(8) + ONE + ONE + b"k\x09\0\0\0\x08\0\0\0" + b"\xff" * 8,
}  # fmt: skip


@pytest.mark.parametrize("data", CLAIMS.values(), ids=CLAIMS)
def test_what_a_gguf_claims_takes_no_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PlimsollError):
            read_gguf(lambda offset, length: (data + bytes(1 << 20))[offset : offset + length], 1 << 50)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_a_safetensors_header_that_claims_terabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for claim in (1 << 40, (1 << 63) + 1, 99_000_000):
        path.write_bytes(claim.to_bytes(8, "little") + b"{}")
        tracemalloc.start()
        try:
            with pytest.raises(PlimsollError):
                read_header(path)
            with pytest.raises(PlimsollError):
                read_safetensors(lambda offset, length: b"" if offset else claim.to_bytes(8, "little"), 1 << 50)  # noqa: B023
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
