"""Detectors of Hugging Face: any object-detection model that transformers loads (DETR, YOLOS, RT-DETR, ...)."""

from __future__ import annotations

from ...errors import CpgrError
from ..images import open_image
from ..records import Image
from .detections import Detections, first_line


class TransformersDetector:
    """An object-detection model and its image processor, by name or folder.

    Class names are the model's `id2label`. The processor falls back to its Pillow form where torchvision is
    absent. Raises CpgrError for a name or folder that holds no such model.
    """

    def __init__(self, name: str, config):
        import torch
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        try:
            self.processor = AutoImageProcessor.from_pretrained(name)
            self.model = AutoModelForObjectDetection.from_pretrained(name)
        except (OSError, ValueError, ImportError) as error:
            raise CpgrError(
                f"transformers:{name}: no object-detection model could be loaded: {first_line(error)} "
                "(give a folder with config.json, model.safetensors and preprocessor_config.json, or a name Hugging Face hosts)"
            ) from error
        self.threshold = config.min_score
        self.device = torch_device(config.device)
        self.model.to(self.device).eval()

    def detect(self, images: list[Image]) -> list[Detections]:
        """Images that the processor brings to one size share a batch: padding one to another's size moves the
        boxes of models that know no mask (YOLOS), and would make detections hang on their company."""
        inputs = [self._prepare(image) for image in images]
        groups: dict[tuple, list[int]] = {}
        for index, one in enumerate(inputs):
            groups.setdefault(tuple(one["pixel_values"].shape), []).append(index)
        found: list[Detections] = [None] * len(images)  # type: ignore[list-item]
        for members in groups.values():
            for index, one in zip(members, self._run([inputs[i] for i in members], [images[i] for i in members]), strict=True):
                found[index] = one
        return found

    def _prepare(self, image: Image) -> dict:
        picture = open_image(image.path, record=f"image {image.image_id}")
        return dict(self.processor(images=picture, return_tensors="pt"))

    def _run(self, inputs: list[dict], images: list[Image]) -> list[Detections]:
        import torch

        batch = {key: torch.cat([one[key] for one in inputs]).to(self.device) for key in inputs[0]}
        with torch.inference_mode():
            outputs = self.model(**batch)
        sizes = [(image.height, image.width) for image in images]
        results = self.processor.post_process_object_detection(outputs, threshold=self.threshold, target_sizes=sizes)
        names = self.model.config.id2label
        return [
            Detections(
                one["boxes"].double().cpu().numpy(), one["scores"].double().cpu().numpy(),
                [str(names.get(label, label)) for label in one["labels"].tolist()],
            )
            for one in results
        ]  # fmt: skip


def torch_device(name: str):
    """The torch device of a `device` setting; "auto" is a GPU if there is one."""
    import torch

    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
