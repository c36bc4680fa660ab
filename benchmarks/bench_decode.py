"""Decoding of JPEG files: a file's pixels, a batch in a network's frame, and a training that decodes from disk.

The pictures are made here, of 640 x 480 pixels and about as many bytes as photographs of that size have.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .harness import Case
from .peers import MissingPeer, peer

PICTURES, SIZE = 32, 224
GOALS = {"simplejpeg": 0.95}  # of its speed: what the checks of a file may cost


def cases(device: str = "cpu") -> Iterator[Case]:
    """Decoding alone, decoding into frames, a training step; on the CPU."""
    if device != "cpu":
        return
    from cpgr.data import decoding
    from cpgr.data.images import decode_images

    paths = _files()
    size = sum(path.stat().st_size for path in paths) / len(paths)
    facts = {"bytes a file": round(size), "engine": decoding.current().name}
    files = [(path, "") for path in paths]
    runs: dict[str, Callable[[], Any] | MissingPeer] = {
        "cpgr": lambda: [pixels for file in files for pixels in decode_images([file])],
        "simplejpeg": peer("simplejpeg", lambda m: lambda: [m.decode_jpeg(path.read_bytes()) for path in paths]),
        "Pillow": lambda: [_by_pillow(path) for path in paths],
        "OpenCV": peer("cv2", lambda m: lambda: [_by_opencv(m, path) for path in paths]),
    }
    if not (why := decoding.missing("dali")):
        dali = decoding.make("dali")
        runs["DALI, CPU pipeline"] = lambda: dali.decode([path.read_bytes() for path in paths])
    else:
        runs["DALI, CPU pipeline"] = MissingPeer(why)
    yield Case("decode", f"{len(paths)} files of 640 x 480", runs, _agree_in_pixels, goals=GOALS, facts=facts)
    yield Case(
        "decode", f"{len(paths)} files into frames of {SIZE}",
        {"cpgr": partial(_framed, paths), "Pillow": lambda: torch.stack([_framed_by_pillow(path) for path in paths])},
        _agree_exactly, facts=facts,
    )  # fmt: skip
    yield _training(paths, "a step as long as loading its pictures", 32, {})
    yield _training(paths, "a step of twice that", 64, {"features in memory": 0.95})


def _files() -> list[Path]:
    from PIL import Image

    folder = Path(tempfile.mkdtemp(prefix="cpgr-decode-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    for i in range(PICTURES):
        noise = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=88)
    return sorted(folder.iterdir())


def _by_pillow(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _by_opencv(cv2: Any, path: Path) -> np.ndarray:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def _records(paths: list[Path]) -> list:
    from cpgr.data.records import Image

    return [Image(path.stem, path.name, path, 640, 480) for path in paths]


def _framed(paths: list[Path]) -> torch.Tensor:
    from cpgr.data.features import load_frames

    return load_frames(_records(paths), SIZE, "letterbox")


def _framed_by_pillow(path: Path) -> torch.Tensor:
    from PIL import Image

    canvas = Image.new("RGB", (SIZE, SIZE))
    height = SIZE * 480 // 640
    with Image.open(path) as image:
        canvas.paste(image.convert("RGB").resize((SIZE, height), Image.Resampling.BILINEAR), (0, (SIZE - height) // 2))
    return torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1)


def _training(paths: list[Path], name: str, width: int, goals: dict[str, float]) -> Case:
    """Steps of a network of convolutions on 8 pictures each: decoded ahead, held in memory, and decoded in the loop."""
    from cpgr.prefetch import ahead

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, width, 7, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(width, 64, 3, 2, 1), torch.nn.ReLU(),
        torch.nn.Conv2d(64, 2 * width, 3, 1, 1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(2 * width, 4),
    )  # fmt: skip
    batches = [paths[i : i + 8] for i in range(0, len(paths), 8)]
    held = [_framed(batch) for batch in batches]

    def steps(loaded) -> float:
        total = 0.0
        for frames in loaded:
            loss = network(frames.float() / 255).pow(2).mean()
            loss.backward()
            network.zero_grad()
            total += loss.item()
        return total

    runs = {
        "decoded ahead": lambda: steps(ahead((_framed(batch) for batch in batches * 4), 2)),
        "features in memory": lambda: steps(iter(held * 4)),
        "decoded in the loop": lambda: steps(_framed(batch) for batch in batches * 4),
    }
    return Case("training", f"16 batches of 8, {name}", runs, _agree_in_loss, goals=goals)


def _agree_in_pixels(ours: list, theirs: list) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))


def _agree_exactly(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert torch.equal(ours, theirs)


def _agree_in_loss(ours: float, theirs: float) -> None:
    assert ours == theirs, f"{ours} and {theirs}"
