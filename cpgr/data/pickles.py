"""Pickle and `torch.save` files read as plain data: nothing that such a file asks for is ever called.

A pickle is a program, and Python's own `pickle.load` runs whatever it names. The machine here knows the pickle
instructions and a closed list of data constructors (numbers, texts, containers, numpy scalars and arrays); any
other class is refused by name. It also refuses what would hang or crash the reader: lengths beyond the end of the
file, endless nesting, keys that are containers, arrays larger than the data they come with.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from types import SimpleNamespace

from ..errors import DataError
from .pickle_machine import SCALARS, Machine, Refused

MAX_BYTES = 1 << 30
MAX_DEPTH = 100
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_MEND = "get the file again from its source"


def load_pickle(path: str | Path, *, max_bytes: int = MAX_BYTES):
    """The value in a pickle file of any protocol, Python 2's (byte strings become latin-1 text) and 3's.

    Builds str, bytes, numbers, None, list, tuple, dict (OrderedDict too), set, numpy scalars (as Python numbers) and
    numpy arrays of numbers or texts. Raises `DataError`, naming the file and the class, for all else.
    """
    machine = Machine(_read(path, max_bytes))
    return _checked(path, machine.run)


def load_torch(path: str | Path, *, max_bytes: int = MAX_BYTES):
    """The value of a `torch.save` file: zip, or the older sequence of pickles. As `load_pickle`, and tensors.

    A file that holds tensors is gone through here first and then read by `torch.load(weights_only=True)`.
    """
    machine, value = _torch_value(path, max_bytes, stand_ins=())
    return _load_tensors(path) if machine.tensors else value


def load_torch_corpus(path: str | Path, *, max_bytes: int = MAX_BYTES) -> SimpleNamespace:
    """TransVG's and CPL's vocabulary file `corpus.pth`: `.dictionary.idx2word`, `.dictionary.word2idx`.

    The classes it names, `Corpus` and `Dictionary`, are not loaded: plain objects with their attributes stand in.
    """
    return _torch_value(path, max_bytes, stand_ins=("Corpus", "Dictionary"))[1]


def _read(path, max_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise DataError(path, "", f"cannot be read: {error.strerror or error}", "check the path") from error
    if len(data) > max_bytes:
        raise DataError(path, "", f"is larger than {max_bytes} bytes", _MEND)
    if not data:
        raise DataError(path, "", "is empty (zero bytes)", _MEND)
    return data


def _checked(path, call):
    """The result of `call`, whose failures become DataErrors."""
    try:
        value = call()
        _check_depth(value)
    except Refused as error:
        raise DataError(path, "", str(error), "only plain data is read; nothing in the file was executed") from error
    except (IndexError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, struct.error) as error:
        raise DataError(path, "", f"is not a readable pickle: {str(error)[:200] or type(error).__name__}", _MEND) from error
    return value


def _check_depth(value) -> None:
    """Refuse nesting so deep that printing, comparing or hashing the value would overflow the stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        # Each container once a level: shared parts must not make the walk exponential.
        inside = {id(v): v for v in level if isinstance(v, (list, tuple, dict, SimpleNamespace))}
        level = []
        for v in inside.values():
            parts = vars(v).values() if isinstance(v, SimpleNamespace) else v.values() if isinstance(v, dict) else v
            level += [p for p in parts if type(p) not in SCALARS]
        if not level:
            return
    raise Refused(f"is nested deeper than {MAX_DEPTH} levels, or holds itself")


def _torch_value(path, max_bytes: int, stand_ins):
    data = _read(path, max_bytes)
    machine = Machine(b"", stand_ins, torch=True)

    def value():
        if not data.startswith(b"PK\x03\x04"):
            machine.data = data
            first = machine.run()
            if first != _TORCH_MAGIC:
                return first
            machine.run(), machine.run()  # the protocol's version and the writer's machine
            return machine.run()
        machine.data = _zip_member(data, "/data.pkl", max_bytes)
        return machine.run()

    if data[257:262] == b"ustar":
        raise DataError(path, "", "is a torch.save file of before 2017 (tar)", "load and save it with a current PyTorch")
    return machine, _checked(path, value)


def _zip_member(data: bytes, suffix: str, max_bytes: int) -> bytes:
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = [info for info in archive.infolist() if info.filename.endswith(suffix)]
            if len(found) != 1:
                raise Refused(f"is a zip archive with {len(found)} members *{suffix}: not a torch.save file")
            if sum(info.file_size for info in archive.infolist()) > max_bytes:
                raise Refused(f"unpacks to more than {max_bytes} bytes")
            return archive.read(found[0])
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"damaged zip archive: {error}") from error


def _load_tensors(path):
    import _codecs

    import numpy as np
    import torch
    from numpy._core import multiarray

    numpy_types = [type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8", "u1", "?")]
    functions = [(multiarray.scalar, "scalar"), (multiarray._reconstruct, "_reconstruct")]
    renamed = [(function, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for function, name in functions]
    try:
        with torch.serialization.safe_globals([np.ndarray, np.dtype, _codecs.encode, *numpy_types, *renamed]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader meets damaged files with errors of any type
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
        raise DataError(path, "", f"cannot be read by torch.load: {reason.splitlines()[0][:200]}", _MEND) from error
