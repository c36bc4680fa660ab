"""The built-in detector's wrapper: geometry and words, with a network of known answers."""

import pytest
import torch
from PIL import Image as pil

from cpgr.data.proposals import ProposalConfig, build_detector, propose
from cpgr.data.proposals.tiny_detector import TinyDetector, TinyDetectorConfig
from cpgr.data.records import Image, Split
from cpgr.errors import CpgrError

WORDS = {
    "categories": ["circle", "star"], "colours": ["red", "blue"], "sizes": ["small", "large"], "patterns": ["plain", "striped"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("detector")
    TinyDetector(TinyDetectorConfig(image_size=64, width=16, layers=1, heads=2, **WORDS)).save_pretrained(path)
    return path


@pytest.fixture
def image(tmp_path):
    pil.new("RGB", (128, 64), (90, 90, 90)).save(tmp_path / "a.jpg")
    return Image("a", "a.jpg", tmp_path / "a.jpg", 128, 64)


def test_a_saved_network_runs(folder, image):
    config = ProposalConfig(min_score=0.0, device="cpu")
    rows = propose(build_detector(f"builtin:{folder}", config), Split("t", {"a": image}), config).rows
    assert 1 <= len(rows) <= config.max_regions
    assert {row.category for row in rows} <= set(WORDS["categories"])


def test_words_and_boxes_of_known_answers(folder, image, monkeypatch):
    config = ProposalConfig(min_score=0.3, device="cpu")
    detector = build_detector(f"builtin:{folder}", config)

    def predict(batch):
        assert batch.shape == (1, 3, 64, 64) and batch.dtype == torch.uint8
        sure = torch.tensor([0.9, 0.9, 0.9])
        return [{
            # The frame is the image at half its size, 16 pixels of padding above and below.
            "boxes": torch.tensor([[10.0, 20, 30, 40], [40, 20, 60, 48], [10, 20, 30, 41]]), "scores": torch.tensor([0.9, 0.8, 0.7]),
            "category": torch.tensor([0, 1, 0]), "category_score": sure, "colour": torch.tensor([0, 1, 0]), "colour_score": sure,
            "size": torch.tensor([1, 0, 0]), "size_score": torch.tensor([0.9, 0.4, 0.9]),
            "pattern": torch.tensor([1, 0, 0]), "pattern_score": sure,
        }]  # fmt: skip

    monkeypatch.setattr(detector.model, "predict", predict)
    rows = propose(detector, Split("t", {"a": image}), config).rows
    assert [row.box for row in rows] == [[20, 8, 60, 48], [80, 8, 120, 64]]
    # "plain" goes unsaid, and so does the size the network is unsure of.
    assert [row.words for row in rows] == ["left large striped red circle", "right blue star"]


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(CpgrError, match="builtin detector: no weights in"):
        build_detector(f"builtin:{tmp_path}", ProposalConfig())
