"""The frozen image encoder whose tokens the Q-Former reads: the checkpoint's own, or the one its config names."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..data.proposals.builtin import WEIGHTS
from ..errors import CpgrError
from .region_blip2 import clip_pixels


class OwnEncoder:
    """The ViT in the checkpoint, for frames of `size` pixels (0: what it was trained at)."""

    def __init__(self, blip2, size: int = 0):
        self.model, trained = blip2.vision_model, blip2.config.vision_config.image_size
        self.size = size or trained
        self.stretched = self.size != trained

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, S, S] -> tokens [B, 1 + cells, V]."""
        pixels = clip_pixels(frames).to(self.model.dtype)
        return self.model(pixels, interpolate_pos_encoding=self.stretched).last_hidden_state


class DetectorEncoder:
    """The cells of the built-in detector's last block, normalised as a ViT's last tokens are, with their sine positions: a detector's
    cells know what is there better than where they lie."""

    def __init__(self, folder, device):
        from ..data.proposals.tiny_detector import TinyDetector, sine_positions

        self.model = TinyDetector.from_pretrained(folder).float().eval().requires_grad_(False).to(device)
        config = self.model.config
        self.size, self.places = config.image_size, sine_positions(config.grid, config.width).to(device)

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, S, S] -> tokens [B, cells, V]."""
        cells = self.model.levels(frames)[-1]
        return F.layer_norm(cells, cells.shape[-1:]) + self.places


def image_encoder(blip2, size: int = 0, detector=WEIGHTS):
    """The encoder of a `Blip2ForConditionalGeneration`: a function of uint8 frames with the side `size` they must have.

    A published checkpoint brings its own. The built-in one was trained on the built-in detector's cells and its config says so
    (`image_encoder: builtin`): BLIP-2 (section 3) takes any frozen image encoder. `detector` is that one's folder.
    """
    named = getattr(blip2.config, "image_encoder", "own")
    if named == "own":
        return OwnEncoder(blip2, size)
    if named != "builtin":
        raise CpgrError(f"the captioner's config names the image encoder {named!r}; own and builtin are known")
    made = DetectorEncoder(detector, next(blip2.parameters()).device)
    if size not in (0, made.size):
        raise CpgrError(f"generation.image_size {size}: the built-in image encoder takes {made.size} pixels")
    return made
