"""Detectors in ONNX files: YOLOX networks, with the raw head of its exporter or with a decoded one, and FastestDet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import CpgrError, DataError
from ..images import open_image
from ..records import Image
from .coco import COCO_CLASSES
from .detections import Detections, first_line

STRIDES = (8, 16, 32), (8, 16, 32, 64)
PADDING = 114
FLEXIBLE_SIZE = 640  # of a network whose input size is left open
MAX_CANDIDATES = 1000  # before suppression; a low threshold lets thousands of cells through


class OnnxDetector:
    """A YOLOX or FastestDet network run by onnxruntime; the rank of its output says which.

    YOLOX's input: float32 [1, 3, S, S], BGR 0..255, the picture scaled to fit the top left corner, the rest 114. Output:
    [1, A, 5 + C] with cx, cy, w, h, objectness and C class probabilities for every cell of strides 8, 16, 32
    (and 64): raw (offsets in cells, log sizes) or decoded to pixels, told apart by their values.
    FastestDet's input: BGR 0..1, the picture stretched to S x S; its output [1, 5 + C, H, W] is read by `decode_map`.
    Class names are COCO's 80, or the lines of FILE.names beside FILE.onnx.
    """

    def __init__(self, path: str | Path, config):
        self.path, self.config = Path(path), config
        self.session = _session(self.path)
        inputs = self.session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] not in (3, None) and not isinstance(shape[1], str):
            takes = [(entry.name, entry.shape) for entry in inputs]
            raise DataError(self.path, "", f"takes {takes}, not one image [1, 3, H, W]", "give a YOLOX or FastestDet network")
        self.is_map = len(self.session.get_outputs()[0].shape) == 4
        self.input = inputs[0].name
        self.size = tuple(side if isinstance(side, int) else FLEXIBLE_SIZE for side in shape[2:])
        self.names: list[str] | None = None

    def detect(self, images: list[Image]) -> list[Detections]:
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> Detections:
        picture = open_image(image.path, record=f"image {image.image_id}")
        pixels, ratio = (stretch if self.is_map else letterbox)(picture, *self.size)
        output = self.session.run(None, {self.input: pixels})[0]
        cells = (decode_map if self.is_map else decode)(output, self.size, self.path)
        if self.names is None:
            self.names = _class_names(self.path, cells.shape[1] - 5)
        scores = cells[:, 4:5] ** 0.6 * cells[:, 5:] ** 0.4 if self.is_map else cells[:, 4:5] * cells[:, 5:]
        classes = scores.argmax(1)
        best = scores[np.arange(len(scores)), classes]
        chosen = np.flatnonzero(best >= self.config.min_score)
        chosen = chosen[np.argsort(-best[chosen], kind="stable")[:MAX_CANDIDATES]]
        centre, half = cells[chosen, :2], cells[chosen, 2:4] / 2
        boxes = np.concatenate([centre - half, centre + half], 1) / np.tile(ratio, 2)
        return Detections(boxes, best[chosen], [self.names[c] for c in classes[chosen]])


def letterbox(picture, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An RGB PIL image -> YOLOX's input [1, 3, height, width] and the scale (x, y) from its pixels to the input's."""
    from PIL import Image as pil

    ratio = min(width / picture.width, height / picture.height)
    # YOLOX cuts the fraction off; the true ratio of each side is kept for the way back.
    inner = max(1, int(picture.width * ratio)), max(1, int(picture.height * ratio))
    frame = np.full((height, width, 3), PADDING, np.uint8)
    frame[: inner[1], : inner[0]] = np.asarray(picture.resize(inner, pil.Resampling.BILINEAR))
    pixels = np.ascontiguousarray(frame[:, :, ::-1].transpose(2, 0, 1)[None], np.float32)
    return pixels, np.array([inner[0] / picture.width, inner[1] / picture.height])


def stretch(picture, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An RGB PIL image -> FastestDet's input [1, 3, height, width] and the scale (x, y) from its pixels to the input's."""
    from PIL import Image as pil

    frame = np.asarray(picture.resize((width, height), pil.Resampling.BILINEAR))
    pixels = np.ascontiguousarray(frame[:, :, ::-1].transpose(2, 0, 1)[None], np.float32) / 255
    return pixels, np.array([width / picture.width, height / picture.height])


def decode_map(output: np.ndarray, size: tuple[int, int], path: str | Path = "") -> np.ndarray:
    """FastestDet's output [1, 5 + C, H, W] for an input of `size` (height, width) -> [H * W, 5 + C] with cx, cy, w, h in
    input pixels. Channels: objectness, the centre's offset from the cell in cells (tanh), the sides in shares of the
    picture (sigmoid), C class probabilities."""
    if output.ndim != 4 or output.shape[0] != 1 or output.shape[1] < 6:
        raise DataError(path, "", f"its output {list(output.shape)} is not FastestDet's [1, 5 + classes, H, W]", "give its exported network")
    _, channels, rows, columns = output.shape
    cells = np.array(output[0], np.float32).reshape(channels, -1).T
    row, column = (grid.ravel() for grid in np.mgrid[:rows, :columns])
    scale = np.array([size[1], size[0]], np.float32)
    centre = (np.stack([column, row], 1) + np.tanh(cells[:, 1:3])) / [columns, rows] * scale
    sides = scale / (1 + np.exp(-cells[:, 3:5]))
    return np.concatenate([centre, sides, cells[:, :1], cells[:, 5:]], 1)


def decode(output: np.ndarray, size: tuple[int, int], path: str | Path = "") -> np.ndarray:
    """YOLOX's output [1, A, 5 + C] for an input of `size` (height, width) -> [A, 5 + C] with boxes in input pixels."""
    grids = {sum(len(_grid(size, s)) for s in strides): strides for strides in STRIDES}
    if output.ndim != 3 or output.shape[0] != 1 or output.shape[1] not in grids or output.shape[2] < 6:
        raise DataError(
            path, "", f"its output {list(output.shape)} is not YOLOX's [1, {' or '.join(map(str, grids))}, 5 + classes]",
            "export it with YOLOX's tools/export_onnx.py, or write its detections to a file and pass file:FILE",
        )  # fmt: skip
    cells = np.array(output[0], np.float32)
    # Decoded sizes are pixels: positive, and centres reach far beyond the few cells that raw offsets span.
    if cells[:, 2:4].min() > 0 and cells[:, :2].max() > max(size) / 4:
        return cells
    strides = grids[output.shape[1]]
    corner = np.concatenate([_grid(size, s) for s in strides])
    step = np.concatenate([np.full((len(_grid(size, s)), 1), s, np.float32) for s in strides])
    cells[:, :2] = (cells[:, :2] + corner) * step
    cells[:, 2:4] = np.exp(cells[:, 2:4].clip(max=20)) * step
    return cells


def _grid(size: tuple[int, int], stride: int) -> np.ndarray:
    """Column and row of every cell, row-major: [cells, 2]."""
    rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
    return np.stack([columns.ravel(), rows.ravel()], 1).astype(np.float32)


def _session(path: Path):
    try:
        import onnxruntime
    except ImportError as error:
        raise CpgrError(f"onnx:{path} needs onnxruntime: pip install onnxruntime") from error
    import torch

    if not path.is_file():
        raise DataError(path, "", "the ONNX file is missing", "check the path after onnx:")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's own exception classes have no public common base
        raise DataError(path, "", f"onnxruntime cannot load it: {first_line(error)}", "export the network again") from error


def _class_names(path: Path, count: int) -> list[str]:
    beside = path.with_suffix(".names")
    names = [line.strip() for line in beside.read_text(encoding="utf-8").splitlines() if line.strip()] if beside.is_file() else COCO_CLASSES
    if len(names) != count:
        held = f"{beside.name} has {len(names)}" if beside.is_file() else "its classes are not COCO's 80"
        raise DataError(path, "", f"the network has {count} classes, {held}", f"write {count} class names, one a line, to {beside}")
    return list(names)
