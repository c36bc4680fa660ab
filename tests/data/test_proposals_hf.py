"""Detectors of Hugging Face: tiny ones with random weights, saved to a folder and loaded by it."""

import numpy as np
import pytest
import torch
from PIL import Image as pil

from cpgr.data.proposals import ProposalConfig, build_detector
from cpgr.data.records import Image
from cpgr.errors import CpgrError

LABELS = {0: "cat", 1: "dog", 2: "tea cup"}
NAMES = {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}


def save_yolos(folder):
    from transformers import YolosConfig, YolosForObjectDetection
    from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

    config = YolosConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=[64, 64], patch_size=16,
        num_detection_tokens=5, use_mid_position_embeddings=False, initializer_range=0.3, **NAMES,
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)


def save_detr(folder):
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage4"])
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_queries=6, **NAMES,
    )  # fmt: skip
    DetrForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)


@pytest.fixture(scope="module", params=[save_yolos, save_detr], ids=["yolos", "detr"])
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    request.param(path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    made, path = [], tmp_path_factory.mktemp("images")
    for index, (width, height) in enumerate([(100, 60), (50, 80), (100, 60)]):
        pixels = np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8)
        pil.fromarray(pixels).save(path / f"{index}.jpg")
        made.append(Image(str(index), f"{index}.jpg", path / f"{index}.jpg", width, height))
    return made


def test_detections_are_in_original_pixels_and_named(folder, images):
    found = build_detector(f"transformers:{folder}", ProposalConfig(min_score=0.0, device="cpu")).detect(images)
    assert [len(one) for one in found] == [len(found[0])] * 3 and len(found[0]) > 0
    for image, one in zip(images, found, strict=True):
        assert set(one.categories) <= set(LABELS.values())
        centres = (one.boxes[:, :2] + one.boxes[:, 2:]) / 2
        assert (centres >= 0).all() and (centres <= [image.width, image.height]).all()
        assert ((one.scores > 0) & (one.scores <= 1)).all() and one.attributes == [[]] * len(one)


def test_an_image_is_detected_alike_alone_and_in_company(folder, images):
    detector = build_detector(f"transformers:{folder}", ProposalConfig(min_score=0.0, device="cpu"))
    for image, together in zip(images, detector.detect(images), strict=True):
        alone = detector.detect([image])[0]
        np.testing.assert_allclose(alone.boxes, together.boxes, atol=1e-3)
        np.testing.assert_allclose(alone.scores, together.scores, atol=1e-5)
        assert alone.categories == together.categories


def test_the_threshold_is_the_configs(folder, images):
    detector = build_detector(f"transformers:{folder}", ProposalConfig(min_score=0.9999, device="cpu"))
    assert [len(one) for one in detector.detect(images)] == [0, 0, 0]


def test_a_folder_without_a_model_says_what_to_give(tmp_path):
    with pytest.raises(CpgrError, match="no object-detection model could be loaded"):
        build_detector(f"transformers:{tmp_path}", ProposalConfig())
