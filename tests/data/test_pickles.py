"""Pickles as plain data: every protocol, Python 2's, torch's containers, and what is refused."""

import os
import pickle
import random
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch

from cpgr.data.pickles import load_pickle, load_torch, load_torch_corpus
from cpgr.errors import DataError

PLAIN = [{"ref_id": 1, "raw": "a dög\n'q'", "n": [1.5, -3, 10**30, 2**31, 255, None, True, False], "t": (1, (2, "x"), ()), "b": b"\x00\xff", "e": b""}]


def saved(tmp_path, data):
    path = tmp_path / "file.p"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol(tmp_path, protocol):
    assert load_pickle(saved(tmp_path, pickle.dumps(PLAIN, protocol))) == PLAIN


@pytest.mark.parametrize("protocol", range(6))
def test_sets_numpy_and_ordered_dicts(tmp_path, protocol):
    arrays = [np.arange(6, dtype="f4").reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array([1, 2], ">i2"), np.array(["aa", "b"])]
    value = {"s": {1, 2}, "f": frozenset(["x"]), "o": OrderedDict(b=1, a=2), "x": np.float64(2.5), "i": np.int64(7), "arrays": arrays}
    read = load_pickle(saved(tmp_path, pickle.dumps(value, protocol)))
    assert (read["s"], read["f"], list(read["o"].items()), read["x"], read["i"]) == ({1, 2}, {"x"}, [("b", 1), ("a", 2)], 2.5, 7)
    for got, expected in zip(read["arrays"], arrays, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_python_2_pickle(tmp_path):
    # As Python 2 wrote it: byte strings (U, T, S), longs with L, a unicode text by V.
    data = b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9 \"x\"'\np3\nsS'ids'\n(lp4\nI7\naL12L\nasS'u'\nVna\\u00efve\np5\nsa."
    assert load_pickle(saved(tmp_path, data)) == [{"sent": 'café "x"', "ids": [7, 12], "u": "naïve"}]
    assert load_pickle(saved(tmp_path, b"\x80\x02U\x04caf\xe9q\x00.")) == "café"
    numpy2 = b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x08" + struct.pack("<d", 2.5) + b"\x86R."
    assert load_pickle(saved(tmp_path, numpy2)) == 2.5


class Command:
    def __reduce__(self):
        return os.system, ("touch executed",)


class Thing:
    def __init__(self):
        self.x = 1


def nested_tuple_key():
    return b"\x80\x02})" + b"\x85" * 10_000 + b"K\x01s."


HOSTILE = {
    "command": (pickle.dumps([Command()]), "posix.system"),
    "eval by protocol 0": (b"c__builtin__\neval\n(S'1+1'\ntR.", "__builtin__.eval"),
    "instance of protocol 0": (b"(S'touch executed'\nios\nsystem\n.", "os.system"),
    "class by its stack name": (pickle.dumps(Command(), 4), "posix.system"),
    "ordinary object": (pickle.dumps(Thing()), "Thing"),
    "numpy object array": (pickle.dumps(np.array([Thing()], dtype=object)), "numpy type 'O8'"),
    "object outside the file": (b"\x80\x02K\x01Q.", "outside the file"),
    "extension registry": (b"\x80\x02\x82\x01.", "instruction 0x82"),
    "endless nesting": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "nested deeper"),
    "nested key": (nested_tuple_key(), "as a key"),
    "value that holds itself": (b"\x80\x02]q\x00h\x00a.", "nested deeper"),
    "announced terabyte": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.", "ends early"),
    "huge number": (b"\x80\x02\x8b" + struct.pack("<i", 5000) + b"\x01" * 5000 + b".", "number of 5000 bytes"),
    "array larger than its data": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85c_codecs\nencode\nX\x01\x00\x00\x00bX\x06\x00\x00\x00latin1\x86R\x87R"
        b"(K\x01J\x00\x00\x00\x7f\x85cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R\x89C\x01xtb.",
        "does not fit",
    ),
    "array of no bytes": (b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00f8\x85RJ\xff\xff\xff\x7f\x86R.", "no bytes"),
    "cut off": (pickle.dumps(PLAIN, 2)[:-9], "not a readable pickle"),
    "no pickle": (b"GIF89a", "pickle"),
    "empty": (b"", "empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    data, expected = HOSTILE[name]
    with pytest.raises(DataError, match=expected) as caught:
        load_pickle(saved(tmp_path, data))
    assert "file.p" in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_a_large_memo_index_takes_no_memory(tmp_path):
    assert load_pickle(saved(tmp_path, b"\x80\x02K\x05r\xff\xff\xff\x7f.")) == 5


def test_shared_parts_are_walked_once(tmp_path):
    value = []
    for _ in range(60):
        value = [value, value]
    assert len(load_pickle(saved(tmp_path, pickle.dumps(value)))) == 2


def test_size_limit_and_missing_file(tmp_path):
    with pytest.raises(DataError, match="larger than 10 bytes"):
        load_pickle(saved(tmp_path, b"x" * 11), max_bytes=10)
    with pytest.raises(DataError, match="cannot be read"):
        load_pickle(tmp_path / "none.p")


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(tmp_path, zipped):
    path = tmp_path / "x.pth"
    rows = [("a.jpg", np.array([1.0, 2.0], "f4"), "text"), ("b.jpg", [1, 2], np.float32(0.5))]
    torch.save(rows, path, _use_new_zipfile_serialization=zipped)
    read = load_torch(path)
    np.testing.assert_array_equal(read[0][1], rows[0][1])
    assert (read[0][0], read[1]) == ("a.jpg", ("b.jpg", [1, 2], 0.5))
    torch.save([("a.jpg", torch.tensor([1.0, 2.0]), 0.25), np.float64(1.5)], path, _use_new_zipfile_serialization=zipped)
    read = load_torch(path)
    assert torch.equal(read[0][1], torch.tensor([1.0, 2.0])) and float(read[1]) == 1.5
    torch.save([torch.zeros(2), Command()], path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match="posix.system"):
        load_torch(path)


def test_torch_files_that_are_damaged_or_old(tmp_path):
    path = tmp_path / "x.pth"
    torch.save([torch.zeros(100)], path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged zip"):
        load_torch(path)
    path.write_bytes(b"\0" * 257 + b"ustar" + b"\0" * 300)
    with pytest.raises(DataError, match="before 2017"):
        load_torch(path)


def test_damaged_files_raise_nothing_else(tmp_path):
    rng = random.Random(0)
    whole = [pickle.dumps([*PLAIN, np.arange(3), np.float64(1), {1}], protocol) for protocol in range(6)]
    for _ in range(500):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            load_pickle(saved(tmp_path, data))
        except DataError:
            pass


def test_real_files(real):
    for name, count in (("refcoco/refs(unc).p", 31), ("refcoco+/refs(unc).p", 31), ("refcocog/refs(umd).p", 9)):
        path = real("real/refer") / name
        with open(path, "rb") as file:
            assert load_pickle(path) == pickle.load(file)  # noqa: S301 - our own file
        assert len(load_pickle(path)) == count
    folder = real("text/transvg_pth")
    assert len(load_torch(folder / "unc__unc_testA.pth")) == 5657
    assert len(load_torch(folder / "flickr__flickr_test.pth")) == 14481
    corpus = load_torch_corpus(folder / "unc__corpus.pth")
    assert len(corpus.dictionary.idx2word) == 12099 and corpus.dictionary.word2idx["<unk>"] == 3
    with pytest.raises(DataError, match="utils.word_utils.Corpus"):
        load_torch(folder / "unc__corpus.pth")
