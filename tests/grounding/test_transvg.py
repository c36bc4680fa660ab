"""The Grounding stage: fitting, answering, its artefact, its branches, and errors."""

from dataclasses import replace

import pytest
import torch

from cpgr.errors import CpgrError
from cpgr.grounding.network import NetworkConfig
from cpgr.grounding.transvg import TransVGConfig, TransVGGrounder
from cpgr.labels import LabelTable
from cpgr.stages import Query
from cpgr.training import TrainingConfig, seed_everything

CONFIG = TransVGConfig(
    visual="builtin", text="builtin", image_size=0, freeze_visual=True, vocabulary="extend", loss_l1=5.0, loss_giou=2.0,
    network=NetworkConfig(head="pointer", width=32, heads=2, layers=1, ffn=64, dropout=0.0, pool=2, attention_layer=0, attention_kind="eager"),
    training=TrainingConfig(steps=4, batch_size=8, learning_rate=1e-3, warmup=0),
)  # fmt: skip


@pytest.fixture(scope="module")
def labels(small_world, small_proposals):
    regions = small_proposals.by_image()
    _, split, _ = small_world
    return LabelTable(
        replace(regions[e.image_id][0], expression=e.text, expression_id=e.expression_id, kind="dataset", scores={}) for e in split.expressions
    )


def fitted(accelerator, tmp_path, small_world, labels, **changes):
    grounder = TransVGGrounder(replace(CONFIG, **changes), accelerator, tmp_path / "work")
    seed_everything("fit")
    grounder.fit(labels, small_world[1].images, tmp_path / "training")
    return grounder


def queries(small_world):
    split = small_world[1]
    return [Query(split.images[e.image_id], e.text) for e in split.expressions]


@pytest.mark.parametrize("network", [
    {"head": "pointer"}, {"head": "regression", "attention_layer": 1}, {"fusion": "query"}, {"fusion": "query", "width": 16, "attention_layer": 1},
])  # fmt: skip
@pytest.mark.parametrize("text_layers", [None, 0])
def test_fit_save_load(accelerator, tmp_path, small_world, labels, network, text_layers):
    grounder = fitted(accelerator, tmp_path, small_world, labels, network=replace(CONFIG.network, **network), text_layers=text_layers)
    assert len(grounder.network.text_encoder.encoder.layer) == (2 if text_layers is None else text_layers)
    asked = queries(small_world)
    answer, attention = grounder.ground(asked), grounder.attend(asked)
    assert answer.boxes.shape == (len(asked), 4) and attention.maps.shape == (len(asked), attention.grid**2)
    torch.testing.assert_close(attention.maps.sum(1), torch.ones(len(asked)))
    sizes = torch.tensor([[q.image.width, q.image.height] * 2 for q in asked])
    assert (answer.boxes >= 0).all() and (answer.boxes <= sizes).all()
    grounder.save(tmp_path / "artefact")
    again = TransVGGrounder(grounder.config, accelerator, tmp_path / "work2")
    again.load(tmp_path / "artefact")
    assert torch.equal(again.ground(asked).boxes, answer.boxes) and torch.equal(again.attend(asked).maps, attention.maps)


def test_the_artefact_opens_without_its_config(accelerator, tmp_path, small_world, labels):
    from cpgr.recipes.cpgr import open_grounder

    grounder = fitted(accelerator, tmp_path, small_world, labels)
    grounder.save(tmp_path / "artefact")
    again = open_grounder(tmp_path / "artefact", accelerator, tmp_path / "w")
    assert again.config == grounder.config
    assert torch.equal(again.ground(queries(small_world)).boxes, grounder.ground(queries(small_world)).boxes)


def test_answers_do_not_depend_on_the_company(accelerator, tmp_path, small_world, labels):
    grounder = fitted(accelerator, tmp_path, small_world, labels)
    asked = queries(small_world)
    torch.testing.assert_close(grounder.ground(asked[5:6]).boxes[0], grounder.ground(asked).boxes[5], atol=1e-2, rtol=1e-3)


def test_a_frozen_branch_is_not_trained_and_a_free_one_is(accelerator, tmp_path, small_world, labels):
    from cpgr.data.proposals.tiny_detector import TinyDetector
    from cpgr.vocabulary import BUILTIN

    shipped = TinyDetector.from_pretrained(BUILTIN / "detector").state_dict()
    for freeze in (True, False):
        grounder = fitted(accelerator, tmp_path / str(freeze), small_world, labels, freeze_visual=freeze)
        now = grounder.network.branch.detector.state_dict()
        assert all(torch.equal(shipped[k], now[k]) for k in shipped) == freeze
        assert (grounder.store is not None) == freeze


def test_warm_start_goes_on_from_the_last_weights(accelerator, tmp_path, small_world, labels):
    grounder = fitted(accelerator, tmp_path, small_world, labels, warm_start=True)
    before = grounder.network
    grounder.fit(labels, small_world[1].images, tmp_path / "training")
    assert grounder.network is before
    cold = fitted(accelerator, tmp_path, small_world, labels)
    before = cold.network
    cold.fit(labels, small_world[1].images, tmp_path / "training")
    assert cold.network is not before


def test_cpl_weighting_is_a_softmax_over_the_batch(accelerator, tmp_path, small_world, labels):
    from cpgr.grounding.grounder import Examples

    grounder = fitted(accelerator, tmp_path, small_world, labels)
    rows = [replace(row, weight=float(i % 2) * 8) for i, row in enumerate(list(labels)[:4])]
    images = small_world[1].images

    def loss(weighting, *indices):
        grounder.config = replace(grounder.config, weighting=weighting)
        with torch.no_grad():
            return grounder._step().eval()(Examples(rows, images, grounder).collate(list(indices)))["loss"]

    a, b = loss("none", 0), loss("none", 1)
    torch.testing.assert_close(loss("none", 0, 1), (a + b) / 2)
    share = torch.tensor([0.0, 1.0]).softmax(0)
    torch.testing.assert_close(loss("cpl", 0, 1), share[0] * a + share[1] * b)


def test_a_detr_serves_as_visual_branch(accelerator, tmp_path, small_world, labels):
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"])
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=32, encoder_layers=3,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=4,
    )  # fmt: skip
    DetrForObjectDetection(config).save_pretrained(tmp_path / "detr")
    grounder = fitted(
        accelerator, tmp_path, small_world, labels, visual=f"transformers:{tmp_path / 'detr'}", image_size=128, freeze_visual=False,
        network=replace(CONFIG.network, head="regression", pool=1, attention_layer=1),
    )  # fmt: skip
    assert grounder.network.branch.count == 3 and grounder.network.grid == 4
    assert grounder.attend(queries(small_world)[:2]).maps.shape == (2, 16)


@pytest.mark.parametrize("frozen", [True, False])
def test_each_image_is_encoded_once_for_all_its_expressions(accelerator, tmp_path, small_world, labels, monkeypatch, frozen):
    """Whatever the order of the expressions and wherever the batches end; and the answers keep their places."""
    network = replace(CONFIG.network, head="regression", layers=3, attention_layer=2)
    grounder = fitted(accelerator, tmp_path, small_world, labels, freeze_visual=frozen, network=network)
    monkeypatch.setattr("cpgr.grounding.grounder.ANSWERED", 5)
    monkeypatch.setattr("cpgr.grounding.grounder.ENCODED", 2)
    asked = queries(small_world)
    shuffled = torch.randperm(len(asked), generator=torch.Generator().manual_seed(0)).tolist()
    maps, answer = grounder.attend(asked), grounder.ground(asked)
    seen = []
    levels = grounder.network.visual_levels
    monkeypatch.setattr(grounder.network, "visual_levels", lambda frames: seen.append(len(frames)) or levels(frames))
    again = grounder.attend([asked[i] for i in shuffled])
    images = len({q.image.image_id for q in asked})
    assert sum(seen) == (0 if frozen else images) and len(asked) > 5 * images / 2
    torch.testing.assert_close(again.maps, maps.maps[shuffled], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(grounder.ground([asked[i] for i in shuffled]).boxes, answer.boxes[shuffled], atol=1e-2, rtol=1e-3)


def test_errors(accelerator, tmp_path, small_world, labels):
    for changes in ({"text": "nobody/nothing"}, {"visual": "transformers:nobody/nothing"}):
        with pytest.raises(CpgrError, match="nobody/nothing: cannot be loaded.*cpgr doctor --config"):
            fitted(accelerator, tmp_path, small_world, labels, **changes)
    with pytest.raises(CpgrError, match="no labels to train on"):
        fitted(accelerator, tmp_path, small_world, LabelTable(row.drop("no") for row in labels))
    with pytest.raises(CpgrError, match="unknown visual branch"):
        fitted(accelerator, tmp_path, small_world, labels, visual="resnet50")
    with pytest.raises(CpgrError, match="'query' with the head 'regression'"):
        fitted(accelerator, tmp_path, small_world, labels, network=replace(CONFIG.network, fusion="query", head="regression"))
    with pytest.raises(CpgrError, match="text_layers: -1"):
        fitted(accelerator, tmp_path, small_world, labels, text_layers=-1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CpgrError, match="not a grounding model"):
        TransVGGrounder(CONFIG, accelerator, tmp_path).load(tmp_path / "empty")
