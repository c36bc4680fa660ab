"""JPEG files to pixels by one of three engines, which give the same pixels in the same geometry.

`simplejpeg` (libjpeg-turbo) and `pillow` decode on the CPU; `dali` decodes a batch on the GPU, or on the CPU where it is
asked for and there is no GPU. No engine turns a picture by its Exif orientation: boxes were drawn on the stored pixels.
An engine is given plain JPEG files alone (grey, YCbCr or RGB). All other files, and those an engine refuses, are
Pillow's to decode or to name what is wrong with them, so errors do not depend on the engine.
"""

from __future__ import annotations

import functools
import io
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import CpgrError

ENGINES = ("dali", "simplejpeg", "pillow")
INSTALL = {"dali": 'pip install "cpgr[dali]"', "simplejpeg": 'pip install "cpgr[decode]"'}


class Engine(NamedTuple):
    """`header(data)` is a plain JPEG's (width, height), else None; `decode` maps files' bytes to pixels, uint8 [H, W, 3]
    RGB: numpy arrays, or tensors where they lie on a GPU. It raises what it likes for a file that it refuses."""

    name: str
    device: str
    header: Callable[[bytes], tuple[int, int] | None]
    decode: Callable[[Sequence[bytes]], list]


def missing(name: str) -> str:
    """Why an engine cannot run here; empty where it can."""
    try:
        make(name)
    except Exception as error:
        return f"{str(error).strip().partition(chr(10))[0][:120] or type(error).__name__}: {INSTALL.get(name, '')}"
    return ""


@functools.cache
def make(name: str) -> Engine:
    """The engine of that name; raises where it cannot run."""
    if name == "simplejpeg":
        return _simplejpeg()
    if name == "dali":
        return _dali()
    if name == "pillow":
        return Engine("pillow", "cpu", _pillow_header, lambda files: [_pillow(data) for data in files])
    raise CpgrError(f"data.decoder: {name!r} is none of auto, {', '.join(ENGINES)}")


def _simplejpeg() -> Engine:
    import simplejpeg

    def header(data: bytes) -> tuple[int, int] | None:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        return (width, height) if colours in ("YCbCr", "Gray", "RGB") else None

    # strict: a file cut short is refused, as Pillow refuses it
    return Engine("simplejpeg", "cpu", header, lambda files: [simplejpeg.decode_jpeg(data, strict=True) for data in files])


def _pillow_header(data: bytes) -> tuple[int, int] | None:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return image.size if image.mode in ("RGB", "L") else None


def _pillow(data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return np.asarray(image.convert("RGB"))


def _dali() -> Engine:
    import torch

    on_gpu = torch.cuda.is_available()
    return Engine("dali", "gpu" if on_gpu else "cpu", _pillow_header, _DaliPipeline(torch.cuda.current_device() if on_gpu else None))


class _DaliPipeline:
    """DALI's decoder for batches of any size; one thread at a time."""

    def __init__(self, device: int | None):
        import nvidia.dali  # noqa: F401 - here, so that a missing package is known at once

        self.device, self.pipeline, self.largest, self.lock = device, None, 0, threading.Lock()

    def __call__(self, files: Sequence[bytes]) -> list:
        with self.lock:
            if len(files) > self.largest:
                self.largest = len(files)
                self.pipeline = self._build()
            try:
                self.pipeline.feed_input("files", [np.frombuffer(data, np.uint8) for data in files])
                found = self.pipeline.run()[0]
                # DALI's next batch lies where this one does, so it is copied
                if self.device is None:
                    return [np.array(found.at(i)) for i in range(len(files))]
                import torch

                return [torch.from_dlpack(found[i]).clone() for i in range(len(files))]
            except Exception:
                self.pipeline, self.largest = None, 0  # after an error the pipeline is no longer good
                raise

    def _build(self):
        import torch
        from nvidia.dali import Pipeline, fn, types

        pipeline = Pipeline(self.largest, torch.get_num_threads(), self.device, prefetch_queue_depth=1)
        with pipeline:
            encoded = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
            # fancy upsampling is libjpeg's own way, so the pixels are the other engines'
            pixels = fn.decoders.image(
                encoded, device="cpu" if self.device is None else "mixed", output_type=types.RGB,
                adjust_orientation=False, jpeg_fancy_upsampling=True,
            )  # fmt: skip
            pipeline.set_outputs(pixels)
        pipeline.build()
        return pipeline


# -- the choice ---------------------------------------------------------------------------------------------------

_chosen: str | None = None


def use(name: str) -> None:
    """Decode by this engine from now on; raises CpgrError with the mend where it cannot run."""
    global _chosen
    if name not in ENGINES:
        make(name)
    if why := missing(name):
        raise CpgrError(f"data.decoder: {name} cannot run here: {why}")
    _chosen = name


def current() -> Engine:
    """The engine in force; where none was named, `choose` says which."""
    if _chosen is None:
        use(choose())
    return make(_chosen)


def choose(name: str = "auto") -> str:
    """The name itself, or for `auto` the engine that decodes fastest here. DALI is among them on a GPU alone: on a CPU it is
    no faster, and is taken where it is named."""
    if name != "auto":
        return name
    speeds = rates()
    return max(speeds, key=speeds.get)


@functools.cache
def rates() -> dict[str, float]:
    """Images of 640 x 480 a second, by the engines that `auto` chooses from; measured once, in some 50 ms."""
    import torch

    names = [n for n in ENGINES if (n != "dali" or torch.cuda.is_available()) and not missing(n)]
    return {name: rate(make(name)) for name in names}


def rate(engine: Engine, rounds: int = 5) -> float:
    """Images of 640 x 480 a second that an engine decodes: the best of some rounds."""
    import torch

    files = [_sample()] * (64 if engine.device == "gpu" else 1)
    engine.decode(files)
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        engine.decode(files)
        if engine.device == "gpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return len(files) / best


@functools.cache
def _sample() -> bytes:
    """A JPEG file of 640 x 480 pixels and about 90 KB, as photographs of that size have."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(out, "JPEG", quality=88)
    return out.getvalue()
