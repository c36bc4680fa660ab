"""RealGIN, SimREC and MAttNet as grounders: fitting, answering, their artefacts, and errors. (TransVG: test_transvg.py.)"""

from dataclasses import replace

import pytest
import torch

from cpgr.data.proposals import ProposalConfig
from cpgr.errors import CpgrError
from cpgr.grounding.mattnet import MAttNetConfig
from cpgr.grounding.realgin import RealGINConfig
from cpgr.grounding.recurrent import RecurrentConfig
from cpgr.grounding.simrec import SimRECConfig
from cpgr.grounding.students import GROUNDERS, StudentConfig, build_student, open_student
from cpgr.labels import Label, LabelTable
from cpgr.language import LanguageConfig
from cpgr.metrics import paired_iou
from cpgr.stages import Query
from cpgr.training import TrainingConfig, seed_everything

FEW = TrainingConfig(steps=3, batch_size=8, learning_rate=1e-3, warmup=0)
CONFIG = StudentConfig(
    realgin=RealGINConfig(
        language=RecurrentConfig(word_width=32, width=16, dropout=0.0), width=32, anchors=[(16.0, 16.0), (32.0, 32.0)], training=FEW
    ),
    simrec=SimRECConfig(
        language=LanguageConfig(layers=1, word_width=32, width=32, heads=2, ffn=32, dropout=0.0), width=32, head_width=32, training=FEW
    ),
    mattnet=MAttNetConfig(
        language=RecurrentConfig("lstm", word_width=32, inner_width=32, width=16, dropout=0.0), width=32, side=3, training=FEW,
        detection=ProposalConfig(max_regions=8), match_dropout=0.0, visual_dropout=0.0,
    ),
)  # fmt: skip
STUDENTS = ["realgin", "simrec", "mattnet"]


@pytest.fixture(scope="module")
def labels(small_world):
    _, split, truth = small_world
    return LabelTable(
        Label(e.image_id, i.file_name, i.width, i.height, truth.boxes[e.expression_id], expression=e.text, expression_id=e.expression_id)
        for e in split.expressions
        for i in [split.images[e.image_id]]
    )


def student(name, accelerator, work, training=FEW, **changes):
    own = replace(getattr(CONFIG, name), training=training, **changes)
    return build_student(replace(CONFIG, student=name, **{name: own}), accelerator, work)


def fitted(name, accelerator, tmp_path, small_world, labels, **changes):
    seed_everything("fit")
    grounder = student(name, accelerator, tmp_path / "work", **changes)
    grounder.fit(labels, small_world[1].images, tmp_path / "training")
    return grounder


def asked(small_world):
    split = small_world[1]
    return [Query(split.images[e.image_id], e.text) for e in split.expressions]


@pytest.mark.parametrize("name", STUDENTS)
def test_fit_answer_save_load(accelerator, tmp_path, small_world, labels, name):
    grounder, queries = fitted(name, accelerator, tmp_path, small_world, labels), asked(small_world)
    answer, attention = grounder.ground(queries), grounder.attend(queries)
    assert answer.boxes.shape == (len(queries), 4) and attention.maps.shape == (len(queries), 16 * 16) and attention.size == 128
    torch.testing.assert_close(attention.maps.sum(1), torch.ones(len(queries)))
    assert (attention.maps >= 0).all() and ((answer.scores >= 0) & (answer.scores <= 1)).all()
    sizes = torch.tensor([[q.image.width, q.image.height] * 2 for q in queries])
    assert (answer.boxes >= 0).all() and (answer.boxes <= sizes).all()
    assert grounder.history.losses == {} or "loss" in grounder.history.losses
    grounder.save(tmp_path / "artefact")
    again = open_student(tmp_path / "artefact", accelerator, tmp_path / "w")
    assert again.config == grounder.config and again.name == name
    same = again.ground(queries)
    assert torch.equal(same.boxes, answer.boxes) and torch.equal(same.scores, answer.scores)
    assert torch.equal(again.attend(queries).maps, attention.maps)


@pytest.mark.parametrize("name", STUDENTS)
def test_answers_do_not_depend_on_the_company(accelerator, tmp_path, small_world, labels, name):
    grounder, queries = fitted(name, accelerator, tmp_path, small_world, labels), asked(small_world)
    alone, together = grounder.ground(queries[5:6]), grounder.ground(queries)
    torch.testing.assert_close(alone.boxes[0], together.boxes[5], atol=1e-2, rtol=1e-3)
    assert len(grounder.ground([]).boxes) == 0 and grounder.attend([]).maps.shape == (0, 256)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_handful_of_labels_is_learned_by_heart(accelerator, tmp_path, small_world, labels, name):
    """Eight expressions of two images: only who reads the words finds all eight regions."""
    images = list(dict.fromkeys(row.image_id for row in labels))[:2]
    few = LabelTable([row for row in labels if row.image_id in images][:8])
    training = TrainingConfig(steps=100 if name == "mattnet" else 80, batch_size=8, learning_rate=5e-3, warmup=5, clip=0.0)
    grounder = fitted(name, accelerator, tmp_path, small_world, few, training=training)
    answer = grounder.ground([Query(small_world[1].images[row.image_id], row.expression) for row in few])
    hits = paired_iou(answer.boxes.tolist(), [row.box for row in few]) >= 0.5
    assert hits.sum() >= 7
    losses = grounder.history.losses["loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", STUDENTS)
def test_the_same_seed_gives_the_same_weights(accelerator, tmp_path, small_world, labels, name):
    one, two = (fitted(name, accelerator, tmp_path / str(i), small_world, labels).network.state_dict() for i in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_frozen_branch_is_not_trained_and_a_free_one_is(accelerator, tmp_path, small_world, labels, name):
    from cpgr.data.proposals.tiny_detector import TinyDetector
    from cpgr.vocabulary import BUILTIN

    shipped = TinyDetector.from_pretrained(BUILTIN / "detector").state_dict()
    for freeze in (True, False):
        grounder = fitted(name, accelerator, tmp_path / str(freeze), small_world, labels, freeze_visual=freeze)
        now = grounder.network.branch.detector.state_dict()
        assert all(torch.equal(shipped[k], now[k]) for k in shipped) == freeze
        assert (grounder.store is not None) == freeze


@pytest.mark.parametrize("name", STUDENTS)
def test_warm_start_goes_on_from_the_last_weights(accelerator, tmp_path, small_world, labels, name):
    for warm in (True, False):
        grounder = fitted(name, accelerator, tmp_path / str(warm), small_world, labels, warm_start=warm)
        before = grounder.network
        grounder.fit(labels, small_world[1].images, tmp_path / "again")
        assert (grounder.network is before) == warm


@pytest.mark.parametrize("name", STUDENTS)
def test_words_that_training_never_saw_are_answered(accelerator, tmp_path, small_world, labels, name):
    grounder, image = fitted(name, accelerator, tmp_path, small_world, labels), asked(small_world)[0].image
    answer = grounder.ground([Query(image, "zeppelin"), Query(image, "?!"), Query(image, "the " * 60)])
    assert torch.isfinite(answer.boxes).all() and answer.boxes.shape == (3, 4)


def test_simrec_takes_word_vectors_of_a_file(accelerator, tmp_path, small_world, labels):
    """Words of the file keep their vectors through the training, others are zeros; the artefact opens when the file is gone."""
    import numpy as np

    known = sorted({word for row in labels for word in row.expression.split()})[:5]
    np.savez(tmp_path / "vectors.npz", words=np.array(known), vectors=np.arange(5 * 7, dtype=np.float32).reshape(5, 7) + 1)
    language = replace(CONFIG.simrec.language, vectors=str(tmp_path / "vectors.npz"))
    grounder = fitted("simrec", accelerator, tmp_path, small_world, labels, language=language)
    table = grounder.network.language.embedding.weight.detach()
    assert table.shape[1] == 7 and not table.requires_grad
    for i, word in enumerate(known):
        assert table[grounder.words.ids[word]].tolist() == [7.0 * i + 1 + k for k in range(7)]
    rest = [grounder.words.ids[w] for w in grounder.words.words if w not in known]
    assert rest and table[rest].abs().max() == 0
    answer = grounder.ground(asked(small_world))
    grounder.save(tmp_path / "artefact")
    (tmp_path / "vectors.npz").unlink()
    assert torch.equal(open_student(tmp_path / "artefact", accelerator, tmp_path / "w").ground(asked(small_world)).boxes, answer.boxes)


@pytest.mark.parametrize("name", ["realgin", "simrec"])
def test_garans_attention_can_be_asked_for(accelerator, tmp_path, small_world, labels, name):
    grounder, queries = fitted(name, accelerator, tmp_path, small_world, labels), asked(small_world)[:3]
    by_box = grounder.attend(queries).maps
    grounder.config = replace(grounder.config, attention="garan")
    garan = grounder.attend(queries).maps
    torch.testing.assert_close(garan.sum(1), torch.ones(3))
    assert not torch.allclose(garan, by_box)


def test_an_image_backbone_serves_as_visual_branch(accelerator, tmp_path, small_world, labels):
    from transformers import ResNetBackbone, ResNetConfig

    seed_everything("backbone")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic")
    ResNetBackbone(config).save_pretrained(tmp_path / "resnet")
    for name in STUDENTS:
        grounder = fitted(name, accelerator, tmp_path / name, small_world, labels, visual=f"transformers:{tmp_path / 'resnet'}", image_size=128)
        assert grounder.network.scales == [(8, 16), (16, 8), (16, 4)]
        assert grounder.attend(asked(small_world)[:2]).maps.shape == (2, 16)


def test_refclips_darknet_serves_as_visual_branch(accelerator, tmp_path, small_world, labels):
    from cpgr.data.proposals.darknet import DarkNet, DarkNetConfig

    seed_everything("darknet")
    torch.save(DarkNet(DarkNetConfig(width=2, blocks=(1, 1, 1, 1, 1), classes=3)).state_dict(), tmp_path / "yolo.pth")
    for name in STUDENTS:
        grounder = fitted(name, accelerator, tmp_path / name, small_world, labels, visual=f"darknet:{tmp_path / 'yolo.pth'}", image_size=128)
        assert grounder.network.scales == [(16, 16), (32, 8), (64, 4)] and grounder.fill == (127, 127, 127)
        assert grounder.attend(asked(small_world)[:2]).maps.shape == (2, 16)
    with pytest.raises(CpgrError, match="multiple of 32"):
        fitted(name, accelerator, tmp_path, small_world, labels, visual=f"darknet:{tmp_path / 'yolo.pth'}", image_size=100)


@pytest.mark.parametrize("name", STUDENTS)
def test_errors(accelerator, tmp_path, small_world, labels, name):
    with pytest.raises(CpgrError, match="no labels to train on"):
        fitted(name, accelerator, tmp_path, small_world, LabelTable(row.drop("no") for row in labels))
    with pytest.raises(CpgrError, match="two or more"):
        fitted(name, accelerator, tmp_path, small_world, LabelTable([labels[0]]))
    with pytest.raises(CpgrError, match="unknown visual branch 'resnet50'"):
        fitted(name, accelerator, tmp_path, small_world, labels, visual="resnet50")
    with pytest.raises(CpgrError, match="no image backbone"):
        fitted(name, accelerator, tmp_path, small_world, labels, visual=f"transformers:{tmp_path}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CpgrError, match="not a grounding model"):
        student(name, accelerator, tmp_path).load(tmp_path / "empty")


def test_settings_that_cannot_be_are_named():
    for changes in ({"side": 0}, {"negatives": 0}, {"margin": 0.0}):
        with pytest.raises(CpgrError, match="mattnet: side"):
            replace(CONFIG.mattnet, **changes)
    for anchors in ([], [(16.0, 0.0)]):
        with pytest.raises(CpgrError, match="realgin: anchors"):
            replace(CONFIG.realgin, anchors=anchors)


def test_an_artefact_of_no_student_is_refused(accelerator, tmp_path):
    (tmp_path / "config.json").write_text('{"grounder": "maxnet"}')
    with pytest.raises(CpgrError, match="'maxnet', which this version does not have"):
        open_student(tmp_path, accelerator, tmp_path)
    assert set(GROUNDERS) == {"realgin", "simrec", "transvg", "mattnet"}
