"""RefCLIP at the smallest sizes: over the built-in detector, and over a DarkNet whose weights lie in a file."""

import importlib.util
from pathlib import Path

import pytest
import torch

from cpgr.data.proposals.darknet import DarkNetConfig
from cpgr.language import LanguageConfig
from cpgr.refinement.anchors import AnchorConfig
from cpgr.training import TrainingConfig

DARKNET = DarkNetConfig(width=2, blocks=(1, 1, 1, 1, 1), classes=80)


@pytest.fixture(scope="session")
def published():
    """The module of weights in the published form."""
    spec = importlib.util.spec_from_file_location("published", Path(__file__).parent / "published.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small_config():
    return AnchorConfig(
        detector="builtin", image_size=0, anchors=8, width=16,
        language=LanguageConfig(word_width=8, width=16, layers=1, heads=2, ffn=32, dropout=0.0), same_image="masked",
        training=TrainingConfig(steps=4, batch_size=16, learning_rate=1e-3, warmup=0, ema=0.9, weight_decay=0.0),
    )  # fmt: skip


@pytest.fixture(scope="session")
def darknet_file(published, tmp_path_factory):
    """A small detector in the form of yolov3_coco.pth."""
    path = tmp_path_factory.mktemp("weights") / "yolov3_coco.pth"
    torch.save(published.weights(published.detector_shapes(DARKNET)), path)
    return path
