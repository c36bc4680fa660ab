"""A pickle machine that only builds plain data (see `pickles`): every instruction of protocols 0 to 5."""

from __future__ import annotations

import ast
import struct
from types import SimpleNamespace

from .pickle_makers import MAKERS, NAMES, SCALARS, Dtype, Global, Refused, fill_array, plain_key

__all__ = ["SCALARS", "Machine", "Refused", "Tensor"]

MAX_DIGITS = 1000  # of a number: more is no count, id or coordinate, and long ones take quadratic time
_STEPS = {}


class Tensor:
    """Stands where the file has a torch tensor."""


class Machine:
    """Runs the pickles in `data` one after another.

    `stand_ins` are class names that become SimpleNamespace objects with the attributes of their state. With
    `torch`, tensors and their storages become `Tensor` marks, and `tensors` tells that there were some.
    """

    def __init__(self, data: bytes, stand_ins=(), torch: bool = False):
        self.data, self.stand_ins, self.torch = data, frozenset(stand_ins), torch
        self.position, self.tensors = 0, False

    def run(self):
        """The value of the next pickle. Raises Refused, or nearly any built-in error where the data is damaged."""
        self.stack, self.marks, self.memo = [], [], {}
        data, steps = self.data, _STEPS
        while True:
            code = data[self.position]
            self.position += 1
            if code == 0x2E:  # "."
                return self.stack.pop()
            step = steps.get(code)
            if step is None:
                raise Refused(f"uses the pickle instruction 0x{code:02x}, which is not for plain data")
            step(self)

    def take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise ValueError(f"ends early: {count} bytes are announced at {self.position}")
        start, self.position = self.position, end
        return self.data[start:end]

    def line(self) -> bytes:
        end = self.data.index(b"\n", self.position)
        start, self.position = self.position, end + 1
        return self.data[start:end]

    def push(self, value) -> None:
        self.stack.append(value)

    def popped(self) -> list:
        """The values above the last mark."""
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def top(self, kind):
        value = self.stack[-1]
        if type(value) is not kind:
            raise Refused(f"adds items to a {type(value).__name__}")
        return value

    def name(self, module: str, name: str) -> None:
        found = Global((module, name))
        storage = self.torch and ((module == "torch" and name.endswith("Storage")) or (module == "torch._utils" and name.startswith("_rebuild_")))
        if not (found in MAKERS or found in NAMES or name in self.stand_ins or storage):
            raise Refused(f"asks for {module}.{name}"[:200])
        self.push(found)

    def make(self, what, args) -> None:
        if not isinstance(what, Global) or type(args) is not tuple:
            raise Refused(f"calls a {type(what).__name__}")
        if what[1] in self.stand_ins:
            self.push(SimpleNamespace())
        elif what[0].startswith("torch"):
            self.push(Tensor())
        elif what in MAKERS:
            self.push(MAKERS[what](args))
        else:
            raise Refused(f"calls {'.'.join(what)}")

    def build(self) -> None:
        import numpy as np

        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, np.ndarray):
            fill_array(value, state)
        elif isinstance(value, Dtype):
            value.set_order(state)
        elif isinstance(value, SimpleNamespace) and type(state) is dict and all(type(k) is str for k in state):
            vars(value).update(state)
        elif not (isinstance(value, dict) and type(state) is dict):
            # An OrderedDict of weights carries its metadata as attributes; nothing else has a state here.
            raise Refused(f"sets the state of a {type(value).__name__}")

    def set_items(self, values) -> None:
        target = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[plain_key(key)] = value

    def persistent(self, _key) -> None:
        if not self.torch:
            raise Refused("asks for an object outside the file")
        self.tensors = True
        self.push(Tensor())


def _step(code: bytes):
    def register(function):
        _STEPS[code[0]] = function
        return function

    return register


def _register(code: bytes, function) -> None:
    _STEPS[code[0]] = function


def _number(machine: Machine) -> None:
    text = machine.line()
    if len(text) > MAX_DIGITS:
        raise Refused(f"holds a number of {len(text)} digits")
    machine.push({b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text.rstrip(b"L")))


def _long(machine: Machine, count: int) -> None:
    if not 0 <= count <= MAX_DIGITS:
        raise Refused(f"holds a number of {count} bytes")
    machine.push(int.from_bytes(machine.take(count), "little", signed=True))


def _quoted(machine: Machine) -> None:
    text = machine.line().strip()
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
        raise ValueError("a text without quotes")
    # A literal: evaluates to bytes or fails, names and calls are no literals.
    machine.push(ast.literal_eval("b" + text.decode("ascii")).decode("latin-1"))


def _byte(m: Machine) -> int:
    # This and the next run millions of times a file; data that end inside the number stop at the next instruction.
    position = m.position
    m.position = position + 1
    return m.data[position]


def _unsigned(size: int):
    def number(m: Machine) -> int:
        start = m.position
        m.position = end = start + size
        return int.from_bytes(m.data[start:end], "little")

    return number


def _signed4(m: Machine) -> int:
    return struct.unpack("<i", m.take(4))[0]


def _text(m: Machine, count: int) -> None:
    m.stack.append(m.take(count).decode("utf-8", "surrogatepass"))


def _memo_put(index):
    def put(m: Machine) -> None:
        m.memo[index(m)] = m.stack[-1]

    return put


def _memo_get(index):
    def get(m: Machine) -> None:
        m.stack.append(m.memo[index(m)])

    return get


def _pack(count: int):
    def tuple_step(m: Machine) -> None:
        if len(m.stack) < count:
            raise IndexError("a tuple of more values than there are")
        m.stack[-count:] = [tuple(m.stack[-count:])]

    return tuple_step


def _tables() -> None:
    one, (two, four, eight) = _byte, (_unsigned(n) for n in (2, 4, 8))
    for code, value in ((b"N", None), (b"\x88", True), (b"\x89", False), (b")", ())):
        _register(code, lambda m, value=value: m.push(value))
    for code, make in ((b"]", list), (b"}", dict), (b"\x8f", set)):
        _register(code, lambda m, make=make: m.push(make()))
    for code, size in ((b"K", one), (b"M", two), (b"J", _signed4)):
        _register(code, lambda m, size=size: m.push(size(m)))
    for code, size in ((b"\x8c", one), (b"X", four), (b"\x8d", eight)):
        _register(code, lambda m, size=size: _text(m, size(m)))
    for code, size in ((b"C", one), (b"B", four), (b"\x8e", eight), (b"\x96", eight)):
        _register(code, lambda m, size=size: m.push(m.take(size(m))))
    for code, size in ((b"U", one), (b"T", _signed4)):
        _register(code, lambda m, size=size: m.push(m.take(size(m)).decode("latin-1")))
    for code, size in ((b"\x8a", one), (b"\x8b", _signed4)):
        _register(code, lambda m, size=size: _long(m, size(m)))
    for code, index in ((b"q", one), (b"r", four), (b"p", lambda m: int(m.line()))):
        _register(code, _memo_put(index))
    for code, index in ((b"h", one), (b"j", four), (b"g", lambda m: int(m.line()))):
        _register(code, _memo_get(index))
    for code, count in ((b"\x85", 1), (b"\x86", 2), (b"\x87", 3)):
        _register(code, _pack(count))
    for code, number in ((b"I", _number), (b"L", _number), (b"S", _quoted)):
        _register(code, number)
    for code, size in ((b"\x80", one), (b"\x95", eight)):  # the protocol's number; the frame's length
        _register(code, lambda m, size=size: size(m) and None)


_tables()
_register(b"F", lambda m: m.push(float(m.line())))
_register(b"G", lambda m: m.push(struct.unpack(">d", m.take(8))[0]))
_register(b"V", lambda m: m.push(m.line().decode("raw-unicode-escape")))
_register(b"(", lambda m: m.marks.append(len(m.stack)))
_register(b"0", lambda m: m.stack.pop())
_register(b"1", lambda m: m.popped())
_register(b"2", lambda m: m.push(m.stack[-1]))
_register(b"\x94", lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]))
_register(b"t", lambda m: m.push(tuple(m.popped())))
_register(b"l", lambda m: m.push(m.popped()))
_register(b"e", lambda m: (lambda values: m.top(list).extend(values))(m.popped()))
_register(b"u", lambda m: m.set_items(m.popped()))
_register(b"b", lambda m: m.build())
_register(b"P", lambda m: m.persistent(m.line()))
_register(b"Q", lambda m: m.persistent(m.stack.pop()))
_register(b"c", lambda m: m.name(m.line().decode("utf-8"), m.line().decode("utf-8")))


@_step(b"a")
def _append(m: Machine) -> None:
    value = m.stack.pop()
    m.top(list).append(value)


@_step(b"s")
def _set_item(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.set_items([key, value])


@_step(b"d")
def _dict(m: Machine) -> None:
    values = m.popped()
    m.push({})
    m.set_items(values)


@_step(b"\x90")
def _add_items(m: Machine) -> None:
    values = m.popped()
    m.top(set).update(plain_key(v) for v in values)


@_step(b"\x91")
def _frozen_set(m: Machine) -> None:
    m.push({plain_key(v) for v in m.popped()})


@_step(b"\x93")
def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise ValueError("a class without a name")
    m.name(module, name)


@_step(b"R")
@_step(b"\x81")
def _call(m: Machine) -> None:
    args, what = m.stack.pop(), m.stack.pop()
    m.make(what, args)


@_step(b"i")
def _instance(m: Machine) -> None:
    raise Refused(f"asks for an object of {m.line()[:80].decode('latin-1')}.{m.line()[:80].decode('latin-1')}")
