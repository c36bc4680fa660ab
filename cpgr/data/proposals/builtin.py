"""The built-in world's detector, with its words: category, size, pattern and colour of every region."""

from __future__ import annotations

from pathlib import Path

from ...errors import CpgrError
from ...regions import Frame
from ..images import open_image, to_frame
from ..records import Image
from .detections import Detections, first_line
from .hf import torch_device
from .words import order_attributes

WEIGHTS = Path(__file__).resolve().parents[2] / "builtin" / "detector"


class BuiltinDetector:
    """A `TinyDetector` from `folder` (the one in the package by default).

    An attribute the network is less sure of than `config.min_attribute` is left out.
    """

    def __init__(self, folder: str | Path | None, config):
        from .tiny_detector import TinyDetector

        folder = Path(folder or WEIGHTS)
        try:
            self.model = TinyDetector.from_pretrained(str(folder))
        except (OSError, ValueError) as error:
            raise CpgrError(f"builtin detector: no weights in {folder}: {first_line(error)}") from error
        self.least = config.min_attribute
        self.device = torch_device(config.device)
        self.model.to(self.device).eval()

    def detect(self, images: list[Image]) -> list[Detections]:
        import torch

        size = self.model.config.image_size
        frames = [Frame(size, image.width, image.height) for image in images]
        pictures = [open_image(image.path, record=f"image {image.image_id}") for image in images]
        batch = torch.stack([to_frame(picture, frame) for picture, frame in zip(pictures, frames, strict=True)])
        predicted = self.model.predict(batch.to(self.device))
        return [self._read(found, frame) for found, frame in zip(predicted, frames, strict=True)]

    def _read(self, found: dict, frame: Frame) -> Detections:
        vocabulary = self.model.config
        boxes = frame.to_image(found["boxes"].float().cpu())
        words = [
            self._words(found, "size", vocabulary.sizes),
            self._words(found, "pattern", vocabulary.patterns),
            self._words(found, "colour", vocabulary.colours),
        ]
        return Detections(
            boxes.numpy(), found["scores"].float().cpu().numpy(),
            [vocabulary.categories[i] for i in found["category"].tolist()],
            [order_attributes(*region) for region in zip(*words, strict=True)],
        )  # fmt: skip

    def _words(self, found: dict, what: str, words: list[str]) -> list[str]:
        sure = zip(found[what].tolist(), found[f"{what}_score"].tolist(), strict=True)
        return [words[index] if score >= self.least else "" for index, score in sure]
