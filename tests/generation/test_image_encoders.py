"""Which frozen image encoder the Q-Former reads."""

import types

import pytest
import torch

from cpgr.errors import CpgrError
from cpgr.generation.image_encoders import DetectorEncoder, OwnEncoder, image_encoder


@pytest.fixture(scope="module")
def tiny():
    from transformers import Blip2VisionConfig
    from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

    torch.manual_seed(0)
    vision = Blip2VisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16)
    model = torch.nn.Module()
    model.vision_model, model.config = Blip2VisionModel(vision).eval(), types.SimpleNamespace(vision_config=vision)
    return model


@torch.no_grad()
def test_a_checkpoint_brings_its_own(tiny):
    frames = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    encoder = image_encoder(tiny)
    assert isinstance(encoder, OwnEncoder) and encoder.size == 32 and encoder(frames).shape == (2, 5, 16)
    larger = image_encoder(tiny, 64)  # positions are interpolated
    assert larger.size == 64 and larger(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 17, 16)


@torch.no_grad()
def test_the_shipped_captioner_names_the_detector():
    from transformers import Blip2Config

    from cpgr.data.proposals.builtin import WEIGHTS
    from cpgr.data.proposals.tiny_detector import TinyDetector, sine_positions
    from cpgr.vocabulary import BUILTIN

    config = Blip2Config.from_pretrained(BUILTIN / "blip2")
    model = torch.nn.Module()
    model.weight, model.config = torch.nn.Parameter(torch.zeros(1)), config
    encoder = image_encoder(model)
    frames = torch.randint(0, 255, (2, 3, encoder.size, encoder.size), dtype=torch.uint8)
    assert isinstance(encoder, DetectorEncoder) and not any(p.requires_grad for p in encoder.model.parameters())
    cells = TinyDetector.from_pretrained(WEIGHTS).float().eval().levels(frames)[-1]
    normed = (cells - cells.mean(-1, keepdim=True)) / (cells.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(encoder(frames), normed + sine_positions(16, 128))
    with pytest.raises(CpgrError, match="takes 128 pixels"):
        image_encoder(model, 224)
    config.image_encoder = "other"
    with pytest.raises(CpgrError, match="'other'"):
        image_encoder(model)
