"""Encoder outputs, computed once an image and kept in memory or on disk by a stated budget."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ..processes import count, joined, share
from ..progress import track
from ..regions import Frame
from . import decoding
from .records import Image

log = logging.getLogger("cpgr")


def load_frames(images: Sequence[Image], size: int, mode: str, fill: tuple[int, int, int] = (0, 0, 0)) -> torch.Tensor:
    """Decode images into a network's frame: uint8 [B, 3, size, size], RGB; `fill` colours a letterbox's padding."""
    from .images import as_picture, decode_images, to_frame

    def load(some: Sequence[Image]) -> list[torch.Tensor]:
        decoded = decode_images([(image.path, image.image_id) for image in some])
        pictures = [p if isinstance(p, torch.Tensor) else as_picture(p) for p in decoded]
        return [to_frame(p, Frame(size, image.width, image.height, mode), fill=fill) for p, image in zip(pictures, some, strict=True)]

    threads = torch.get_num_threads()
    if threads == 1 or decoding.current().name == "dali":  # which has threads of its own
        return torch.stack(load(images))
    with ThreadPoolExecutor(threads) as pool:
        return torch.stack([frame for frames in pool.map(lambda image: load([image]), images) for frame in frames])


def load_crops(crops: Sequence[tuple[Image, list[float]]], size: int) -> torch.Tensor:
    """Cut boxes (x1, y1, x2, y2, original pixels) out of their images and stretch them: uint8 [B, 3, size, size]."""
    from .images import open_image, to_frame

    frames, last, picture = [], None, None
    for image, (x1, y1, x2, y2) in crops:
        if image.image_id != last:
            last, picture = image.image_id, open_image(image.path, record=image.image_id)
        left, top = int(x1), int(y1)
        crop = picture.crop((left, top, max(left + 1, round(x2)), max(top + 1, round(y2))))
        frames.append(torch.as_tensor(to_frame(crop, Frame(size, *crop.size, "squash"))))
    return torch.stack(frames)


class FeatureStore:
    """A frozen encoder's output for every image it is asked for, each computed once.

    `encode` maps uint8 frames [B, 3, size, size] to features [B, ...]. Entries stay in memory while they fit
    `memory_mb`; later ones go to one file in `folder` (deleted with the store), read back by offset.
    """

    def __init__(self, encode: Callable[[torch.Tensor], torch.Tensor], size: int, mode: str, *, memory_mb: float, folder: Path, batch: int = 32, fill: tuple[int, int, int] = (0, 0, 0)):
        self.encode, self.size, self.mode, self.batch, self.fill = encode, size, mode, batch, fill
        self.budget, self.folder = int(memory_mb * 2**20), folder
        self.memory: dict[str, torch.Tensor] = {}
        self.offsets: dict[str, int] = {}
        self.file = None
        self.shape, self.dtype = None, None

    def __len__(self) -> int:
        return len(self.memory) + len(self.offsets)

    def __contains__(self, key: str) -> bool:
        return key in self.memory or key in self.offsets

    def put(self, keys: Sequence[str], features: torch.Tensor) -> None:
        """Keep features that were encoded elsewhere, [B, ...], under names of their own."""
        for key, feature in zip(keys, features.cpu(), strict=True):
            self._put(key, feature.contiguous())

    def add(self, images: Mapping[str, Image], what: str = "image features") -> None:
        """Encode the images that are not stored yet."""
        missing = [image for image_id, image in images.items() if image_id not in self]
        chunks = [missing[i : i + self.batch] for i in range(0, len(missing), self.batch)]
        rounds = [chunks[i : i + count()] for i in range(0, len(chunks), count())]
        for some in track(rounds, what):  # a chunk for each process, and everybody keeps all of them
            for chunk, features in joined([(chunk, self._encoded(chunk)) for chunk in share(some)]):
                self.put([image.image_id for image in chunk], features)

    @torch.no_grad()
    def _encoded(self, images: Sequence[Image]) -> torch.Tensor:
        return self.encode(load_frames(images, self.size, self.mode, self.fill)).cpu()

    def __getitem__(self, image_ids: Sequence[str]) -> torch.Tensor:
        """Features of the images, [B, ...], in the order of the ids."""
        return torch.stack([self._get(image_id) for image_id in image_ids])

    def _put(self, image_id: str, feature: torch.Tensor) -> None:
        self.shape, self.dtype = feature.shape, feature.dtype
        size = feature.numel() * feature.element_size()
        if (len(self.memory) + 1) * size <= self.budget:
            self.memory[image_id] = feature.clone()
            return
        if self.file is None:
            import tempfile

            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(buffering=0, dir=self.folder)  # noqa: SIM115 - lives as long as the store
            log.info("image features beyond %d MB go to disk in %s", self.budget >> 20, self.folder)
        self.offsets[image_id] = self.file.seek(0, 2)
        self.file.write(feature.view(torch.uint8).numpy().tobytes())

    def _get(self, image_id: str) -> torch.Tensor:
        if image_id in self.memory:
            return self.memory[image_id]
        size = self.shape.numel() * self.dtype.itemsize
        data = bytearray(os.pread(self.file.fileno(), size, self.offsets[image_id]))  # threads may read side by side
        return torch.frombuffer(data, dtype=self.dtype).view(self.shape)
