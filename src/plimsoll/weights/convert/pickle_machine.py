"""Reads the pickles that torch.save writes, without being able to run anything.

It is no unpickler with a list of allowed imports: it imports nothing and calls nothing. A global is kept as its name;
of all calls only torch's rebuild functions and OrderedDict mean something, and what they mean is written here. Any
other opcode, call or state is refused. No opcode allocates what the file merely claims (in the standard unpickler
LONG_BINPUT and BYTEARRAY8 do), and the numbers of values, objects and copies are limited.
Opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from plimsoll.errors import WeightError

MAX_PICKLE_BYTES = 64 << 20
"""The pickle alone, without the tensors' bytes; 100,000 tensors take about 15 MiB."""
_MAX_VALUES = 1 << 20
_MARK = object()


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle asks for: `torch._utils _rebuild_tensor_v2`."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of numbers that lies elsewhere in the file."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class Strided:
    """A tensor as a view of a storage: offset, shape and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str | None = None
    """torch's name of it, where the tensor says it itself; else the storage's kind does."""


class Table(dict[Any, Any]):
    """A dict or OrderedDict; attributes that a pickle sets on it are dropped."""


_TABLES = (Global("collections", "OrderedDict"), Global("builtins", "dict"), Global("__builtin__", "dict"))
_TENSOR, _TYPED_TENSOR = (Global("torch._utils", f"_rebuild_tensor_{version}") for version in ("v2", "v3"))
_SUBCLASS = Global("torch._tensor", "_rebuild_from_type_v2")
_PARAMETERS = (
    Global("torch._utils", "_rebuild_parameter"),
    Global("torch._utils", "_rebuild_parameter_with_state"),
)
_SIZE = Global("torch", "Size")
_NOTHING = (Global("builtins", "set"), Global("__builtin__", "set"), Global("torch", "device"))


class PickleMachine:
    """Runs one pickle that starts at `position` of `data`; afterwards `position` is behind its end."""

    def __init__(self, data: bytes, *, name: str, position: int = 0) -> None:
        self.data = data
        self.name = name
        self.position = position
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.made = 0
        """Objects and copied elements, for the limit."""

    def run(self) -> Any:
        """The object that the pickle describes; WeightError if it asks for anything but tensors and plain values."""
        try:
            while True:
                opcode = self._take(1)[0]
                if opcode == 0x2E:  # STOP
                    return self.stack.pop()
                action = _ACTIONS.get(opcode)
                if action is None:
                    raise self.refuse(f"the opcode {opcode:#04x}")
                action(self)
        except (IndexError, KeyError, TypeError, ValueError, struct.error, UnicodeDecodeError, RecursionError) as error:
            raise WeightError(
                f"{self.name} is not a checkpoint: its pickle is broken at byte {self.position}",
                hint="fetch it again",
                source=f"{type(error).__name__}: {error}",
            ) from None

    def refuse(self, what: str) -> WeightError:
        """The error for something that no checkpoint needs."""
        return WeightError(
            f"{self.name} is refused: its pickle asks for {what}, which tensors do not need",
            hint="do not load it with other tools: that could run code; look for the model as safetensors",
            source=self.name,
        )

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise ValueError("cut short")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def _number(self, code: str) -> int:
        value: int = struct.unpack(code, self._take(struct.calcsize(code)))[0]
        return value

    def _line(self) -> str:
        end = self.data.index(b"\n", self.position)
        line = self.data[self.position : end].decode()
        self.position = end + 1
        return line

    def _pop_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(function, arguments))

    def _call(self, function: Any, arguments: Any) -> Any:
        self._count(1)
        if function in _TABLES:
            pairs = arguments[0] if arguments else ()
            self._count(len(pairs))
            return Table(pairs)
        if function == _TENSOR:
            return self._strided(*arguments[:4], dtype=None)
        if function == _TYPED_TENSOR:
            dtype = arguments[6]
            return self._strided(*arguments[:4], dtype=dtype.name if isinstance(dtype, Global) else None)
        if function == _SUBCLASS:
            inner, _, inner_arguments = arguments[:3]
            return self._call(inner, inner_arguments)
        if function in _PARAMETERS:
            if not isinstance(arguments[0], Strided):
                raise ValueError("a parameter without a tensor")
            return arguments[0]
        if function == _SIZE:
            self._count(len(arguments[0]))
            return tuple(arguments[0])
        if function in _NOTHING:
            return None
        wanted = f"{function.module}.{function.name}" if isinstance(function, Global) else "a call of a value"
        raise self.refuse(wanted[:120])

    def _count(self, more: int) -> None:
        self.made += more
        if self.made > _MAX_VALUES:
            raise self.refuse(f"more than {_MAX_VALUES} objects")

    def _strided(self, storage: Any, offset: Any, shape: Any, stride: Any, *, dtype: str | None) -> Strided:
        if not isinstance(storage, Storage):
            raise TypeError("a tensor without a storage")
        numbers = (offset, *shape, *stride)
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers) or len(shape) != len(stride):
            raise ValueError("a tensor with impossible numbers")
        if len(shape) > 32:
            raise ValueError("a tensor with too many dimensions")
        return Strided(storage, offset, tuple(shape), tuple(stride), dtype)

    def _persistent(self) -> None:
        kind, storage, key, _, count = self.stack.pop()[:5]
        if kind != "storage" or not isinstance(storage, Global) or not isinstance(key, str) or type(count) is not int:
            raise ValueError("an unknown persistent id")
        if storage.module not in ("torch", "torch.storage") or not 0 <= count < 1 << 62:
            raise self.refuse(f"{storage.module}.{storage.name}"[:120])
        self._count(1)
        self.storages[key] = Storage(storage.name, key, count)
        self.stack.append(self.storages[key])

    def _global(self) -> None:
        module = self._line()
        self.stack.append(Global(module, self._line()))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a global that is no name")
        self.stack.append(Global(module, name))

    def _build(self) -> None:
        self.stack.pop()  # attributes such as OrderedDict's `_metadata`
        if not isinstance(self.stack[-1], Table | Strided):
            raise self.refuse("the state of an object")

    def _set_items(self, items: list[Any]) -> None:
        table = self.stack[-1]
        if not isinstance(table, dict):
            raise TypeError("items for what is no table")
        table.update(zip(items[::2], items[1::2], strict=True))

    def _append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError("an element for what is no list")
        self.stack[-1].extend(items)

    def _add(self) -> None:
        self._pop_mark()  # of a set, which holds nothing that is wanted

    def _put(self, slot: int) -> None:
        if len(self.memo) > 8 * _MAX_VALUES:
            raise self.refuse("too many remembered values")
        self.memo[slot] = self.stack[-1]

    def _push(self, value: Any) -> None:
        if len(self.stack) > _MAX_VALUES:
            raise self.refuse("too many values at once")
        self.stack.append(value)

    def _new(self, value: Any) -> None:
        self._count(1)
        self._push(value)

    def _tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise IndexError("too few values")
        self.stack[-count:] = [items]


_Action = Callable[[PickleMachine], None]


def _long(machine: PickleMachine) -> None:
    machine._push(int.from_bytes(machine._take(machine._take(1)[0]), "little", signed=True))


def _text(code: str) -> _Action:
    return lambda machine: machine._push(machine._take(machine._number(code)).decode("utf-8", "surrogatepass"))


def _bytes(code: str) -> _Action:
    return lambda machine: machine._push(machine._take(machine._number(code)))


def _int(code: str) -> _Action:
    return lambda machine: machine._push(machine._number(code))


def _value(value: Any) -> _Action:
    return lambda machine: machine._push(value)


def _protocol(machine: PickleMachine) -> None:
    machine._take(1)


def _drop(machine: PickleMachine) -> None:
    machine.stack.pop()


def _frame(machine: PickleMachine) -> None:
    machine._number("<Q")  # how much follows: of use to a reader of streams only


_ACTIONS: dict[int, _Action] = {
    0x80: _protocol,
    0x95: _frame,
    ord("("): lambda machine: machine._push(_MARK),
    ord("}"): lambda machine: machine._new(Table()),
    ord("]"): lambda machine: machine._new([]),
    ord(")"): lambda machine: machine._push(()),
    0x8F: lambda machine: machine._push(None),  # EMPTY_SET
    0x90: PickleMachine._add,
    ord("q"): lambda machine: machine._put(machine._number("<B")),
    ord("r"): lambda machine: machine._put(machine._number("<I")),
    0x94: lambda machine: machine._put(len(machine.memo)),
    ord("h"): lambda machine: machine._push(machine.memo[machine._number("<B")]),
    ord("j"): lambda machine: machine._push(machine.memo[machine._number("<I")]),
    ord("X"): _text("<I"),
    0x8C: _text("<B"),
    ord("U"): _text("<B"),
    ord("C"): _bytes("<B"),
    ord("B"): _bytes("<I"),
    ord("K"): _int("<B"),
    ord("M"): _int("<H"),
    ord("J"): _int("<i"),
    ord("G"): lambda machine: machine._push(struct.unpack(">d", machine._take(8))[0]),
    0x8A: _long,
    0x88: _value(True),  # noqa: FBT003 - what the opcode means
    0x89: _value(False),  # noqa: FBT003
    ord("N"): _value(None),
    ord("c"): PickleMachine._global,
    0x93: PickleMachine._stack_global,
    ord("Q"): PickleMachine._persistent,
    ord("R"): PickleMachine._reduce,
    0x81: PickleMachine._reduce,  # NEWOBJ: the same shape, and the same few names
    ord("b"): PickleMachine._build,
    ord("t"): lambda machine: machine._push(tuple(machine._pop_mark())),
    0x85: lambda machine: machine._tuple(1),
    0x86: lambda machine: machine._tuple(2),
    0x87: lambda machine: machine._tuple(3),
    ord("s"): lambda machine: machine._set_items([machine.stack.pop(-2), machine.stack.pop()]),
    ord("u"): lambda machine: machine._set_items(machine._pop_mark()),
    ord("a"): lambda machine: machine._append([machine.stack.pop()]),
    ord("e"): lambda machine: machine._append(machine._pop_mark()),
    ord("0"): _drop,
}
