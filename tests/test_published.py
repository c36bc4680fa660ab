"""The published configs from end to end, on small random checkpoints and data in the published formats, read by their names' paths."""

import json
import shutil

import pytest
import torch

from cpgr.labels import LabelTable
from cpgr.run import main


@pytest.fixture(scope="module")
def published(tmp_path_factory, small_world):
    """A folder with data/refcoco, data/images/train2014 and the four checkpoints as Hugging Face lays them out."""
    from transformers import BertConfig, BertModel, DetrConfig, DetrForObjectDetection, ResNetConfig
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    from cpgr.pretrain.blip2 import make_blip2
    from cpgr.pretrain.words import bert_tokenizer

    root = tmp_path_factory.mktemp("published")
    world = small_world[0]
    (root / "data" / "refcoco").mkdir(parents=True)
    refs = next(world.rglob("refs(*).p"))
    shutil.copy(refs, root / "data" / "refcoco" / "refs(unc).p")
    shutil.copy(refs.parent / "instances.json", root / "data" / "refcoco")
    images = root / "data" / "images" / "train2014"
    images.mkdir(parents=True)
    for file in world.rglob("*"):
        if file.suffix in (".jpg", ".png"):
            shutil.copy(file, images / file.name)
    torch.manual_seed(0)
    words = sorted({w for e in small_world[1].expressions for w in e.text.lower().split()})
    captioner, matcher, _, _ = make_blip2(words, root)
    matcher.save_pretrained(root / "blip2-itm")
    captioner.config.qformer_config.use_qformer_text_input = False
    for layer in captioner.qformer.encoder.layer:
        del layer.intermediate, layer.output
    captioner.save_pretrained(root / "blip2")
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"])
    detr = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=32, encoder_layers=3,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=6,
    )  # fmt: skip
    DetrForObjectDetection(detr).save_pretrained(root / "detr")
    DetrImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 128}).save_pretrained(root / "detr")
    tokenizer = bert_tokenizer(words, root / "bert")
    BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)).save_pretrained(root / "bert")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_published_config_runs_as_it_is(published, tmp_path, precision):
    """cpgr-refcoco with nothing changed but where things lie and how long it trains: every stage of two cycles, at bf16 weights,
    with gradient checkpointing, DETR's proposals, the regression head and the third layer's map."""
    options = {
        "config": "cpgr-refcoco", "out": tmp_path / "run", "precision": precision, "cycles": 2, "data.root": published / "data",
        "proposals": f"transformers:{published / 'detr'}", "detection.min_score": 0.0, "detection.device": "cpu",
        "generation.captioner": published / "blip2", "generation.matcher": published / "blip2-itm", "generation.image_size": 0,
        "generation.training.steps": 2, "generation.training.batch_size": 4, "generation.decoding.max_new_tokens": 3,
        "grounding.visual": f"transformers:{published / 'detr'}", "grounding.text": published / "bert", "grounding.image_size": 128,
        "grounding.training.steps": 2, "grounding.training.batch_size": 4,
    }  # fmt: skip
    assert main([f"--{name}={value}" for name, value in options.items()]) == 0
    for cycle in (1, 2):
        metrics = json.loads((tmp_path / "run" / f"cycle-{cycle}" / "metrics.json").read_text())
        assert set(metrics) >= {"val", "testA", "testB", "labels"}
    written = LabelTable.load(tmp_path / "run" / "cycle-2" / "basic.parquet")
    assert {row.kind for row in written} <= {"generated"}
    assert (tmp_path / "run" / "cycle-2" / "generation" / "adapter_model.safetensors").exists() and (tmp_path / "run" / "report.html").exists()
