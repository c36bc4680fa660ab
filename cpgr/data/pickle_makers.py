"""The data constructors that a pickle may name, each rebuilt here with its arguments checked.

Only names are compared: nothing is imported because a file says so.
"""

from __future__ import annotations

import re

SCALARS = (str, bytes, int, float, bool, type(None))
_DTYPE = re.compile(r"[<>|=]?([biufc](1|2|4|8|16)|[SU]\d{1,6}|\?)")


class Refused(Exception):
    """The file asks for something that is not plain data."""


class Global(tuple):
    """The (module, name) of a class or function the file asks for; never imported."""


class Dtype:
    """A numpy dtype that a following BUILD may give another byte order."""

    def __init__(self, dtype):
        self.dtype = dtype

    def set_order(self, state) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a numpy type of no known byte order")
        self.dtype = self.dtype.newbyteorder(state[1])


def _numpy_dtype(args):
    import numpy as np

    code = args[0].decode("latin-1") if isinstance(args[0], bytes) else args[0]
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise Refused(f"asks for the numpy type {str(code)[:40]!r}")
    return Dtype(np.dtype(code))


def _raw(value) -> bytes:
    # Python 2 wrote an array's memory as a byte string, which is read as latin-1 text.
    if not isinstance(value, (str, bytes)):
        raise ValueError("array data that are no bytes")
    return value.encode("latin-1") if isinstance(value, str) else value


def _numpy_scalar(args):
    import numpy as np

    kind, data = args[0].dtype, _raw(args[1])
    if len(data) != kind.itemsize:
        raise ValueError("a numpy scalar of the wrong length")
    return np.frombuffer(data, kind, 1)[0].item()


def fill_array(array, state) -> None:
    """ndarray.__setstate__ with the shape checked against the data, so that it cannot ask for more memory."""
    _version, shape, kind, fortran, data = state
    data = _raw(data)
    _check_shape(shape, kind.dtype, data)
    array.__setstate__((1, shape, kind.dtype, bool(fortran), data))


def _numpy_frombuffer(args):
    import numpy as np

    data, kind, shape, order = args
    _check_shape(shape, kind.dtype, data)
    return np.frombuffer(bytes(data), kind.dtype).reshape(shape, order="F" if order == "F" else "C").copy()


def _check_shape(shape, dtype, data) -> None:
    count = 1
    for side in shape:
        if type(side) is not int or side < 0:
            raise ValueError("a numpy array of no valid shape")
        count *= side
    if len(shape) > 32 or dtype.itemsize == 0 or count * dtype.itemsize != len(data):
        raise ValueError("a numpy array whose shape does not fit its data")


def _numpy_empty(args):
    import numpy as np

    if tuple(args[0]) != ("numpy", "ndarray"):
        raise Refused(f"asks for an array of the class {'.'.join(args[0])}")
    return np.zeros((0,), "u1")


def _encode(args) -> bytes:
    if len(args) > 1 and args[1] not in ("latin1", "latin-1"):
        raise Refused(f"asks for the codec {str(args[1])[:40]!r}")
    return args[0].encode("latin-1")


def _set(args):
    return {plain_key(v) for v in (args[0] if args else ())}


def plain_key(value):
    # A container as a key is hashed, and the hash of a deeply nested tuple overflows the C stack.
    if type(value) in SCALARS or (type(value) is tuple and all(type(v) in SCALARS for v in value)):
        return value
    raise Refused(f"uses a {type(value).__name__} as a key")


def _empty_bytes(args) -> bytes:
    if args:
        raise Refused("asks for bytes made of other values")
    return b""


def _ordered(args) -> dict:
    return {plain_key(k): v for k, v in (args[0] if args else ())}


MAKERS = {
    ("collections", "OrderedDict"): _ordered,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,  # how Python 3 writes b"" in the protocols of Python 2
    ("numpy", "dtype"): _numpy_dtype,
    **{(m, n): _set for m in ("builtins", "__builtin__") for n in ("set", "frozenset")},
    **{(f"numpy.{core}.multiarray", "scalar"): _numpy_scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _numpy_empty for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _numpy_frombuffer for core in ("core", "_core")},
}
NAMES = {("numpy", "ndarray"), ("builtins", "object"), ("__builtin__", "object")}
