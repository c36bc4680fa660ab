"""The teacher as a part of the loop: proposals, fitting, labels, answers, its artefact, and errors a user can mend."""

import json
from dataclasses import replace

import pytest
import torch

from cpgr.errors import CpgrError, DataError
from cpgr.generation.expressions import DatasetExpressions
from cpgr.labels import LabelTable
from cpgr.language import LanguageConfig
from cpgr.recipes.refclip import open_grounder
from cpgr.refinement.anchors import AnchorConfig, AnchorRefiner
from cpgr.refinement.anchors.refiner import read_words
from cpgr.refinement.anchors.sources import Packing, build_source
from cpgr.stages import Grounded, Grounder, Query, TrainedRefiner
from cpgr.training import seed_everything


def queries(split):
    return [Query(split.images[e.image_id], e.text) for e in split.expressions]


def taught(config, accelerator, folder, split, grounder=None, teacher=None):
    teacher = teacher or AnchorRefiner(config, accelerator, folder / "work")
    proposals = teacher.propose(split)
    basic = DatasetExpressions().generate(split, proposals)
    seed_everything("refinement")
    teacher.fit(basic, proposals, split, folder / "training", grounder)
    return teacher, basic, proposals


@pytest.fixture(scope="session")
def darknet_config(small_config, darknet_file):
    return replace(small_config, detector=f"darknet:{darknet_file}", image_size=96, anchors=4)


@pytest.fixture(scope="session")
def yolos_config(small_config, tmp_path_factory):
    from transformers import YolosConfig, YolosForObjectDetection
    from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

    folder, labels = tmp_path_factory.mktemp("yolos"), {0: "cat", 1: "dog", 2: "tea cup"}
    torch.manual_seed(0)
    model = YolosForObjectDetection(YolosConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=[64, 64], patch_size=16,
        num_detection_tokens=5, use_mid_position_embeddings=False, initializer_range=0.3, id2label=labels,
        label2id={name: number for number, name in labels.items()},
    ))  # fmt: skip
    torch.nn.init.normal_(model.vit.embeddings.detection_tokens)  # zeros at first: all queries would be one
    model.save_pretrained(folder)
    YolosImageProcessorPil().save_pretrained(folder)
    return replace(small_config, detector=f"transformers:{folder}", image_size=64, anchors=3)


@pytest.fixture(params=["builtin", "darknet", "darknet train", "yolos"])
def config(request, small_config, darknet_config, yolos_config):
    return {
        "builtin": small_config, "darknet": darknet_config, "darknet train": replace(darknet_config, detector_norm="train"), "yolos": yolos_config,
    }[request.param]  # fmt: skip


def test_every_detector_teaches(config, accelerator, tmp_path, small_world):
    """Anchors as proposals, a training, a label for every expression, answers of the same boxes, and the artefact."""
    split = small_world[1]
    teacher, basic, proposals = taught(config, accelerator, tmp_path, split)
    assert isinstance(teacher, TrainedRefiner) and isinstance(teacher.history.losses, dict)
    assert len(proposals) == config.anchors * len(split.images)
    refined = teacher.refine(basic, proposals, split, None, None)
    assert [row.expression_id for row in refined] == [e.expression_id for e in split.expressions]
    regions = proposals.by_image()
    for row in refined:
        assert row.kind == "dataset" and row.kept and set(row.scores) == {"objectness", "similarity", "confidence"}
        x1, y1, x2, y2 = row.box
        assert 0 <= x1 < x2 <= row.width and 0 <= y1 < y2 <= row.height
        if config.detector_norm == "eval":
            region = regions[row.image_id][row.region_id]
            assert row.category == region.category and row.box == pytest.approx(region.box) and row.scores["objectness"] == pytest.approx(region.scores["detector"])
        else:
            assert row.region_id == -1
    asked = queries(split)
    answer, attention = teacher.ground(asked), teacher.attend(asked)
    torch.testing.assert_close(answer.boxes, torch.tensor([row.box for row in refined]))
    torch.testing.assert_close(attention.maps.sum(1), torch.ones(len(asked)))
    assert ((answer.scores > 0) & (answer.scores <= 1)).all() and attention.grid**2 == attention.maps.shape[1]
    teacher.save(tmp_path / "artefact")
    again = open_grounder(tmp_path / "artefact", accelerator, tmp_path / "work2")
    assert torch.equal(again.ground(asked).boxes, answer.boxes) and torch.equal(again.attend(asked).maps, attention.maps)


def test_the_artefact_needs_no_detector_file(accelerator, tmp_path, small_world, published, small_config):
    file = tmp_path / "yolov3_coco.pth"
    from cpgr.data.proposals.darknet import DarkNetConfig

    torch.save(published.weights(published.detector_shapes(DarkNetConfig(2, (1, 1, 1, 1, 1), 5))), file)
    config = replace(small_config, detector=f"darknet:{file}", image_size=64, anchors=2)
    teacher, *_ = taught(config, accelerator, tmp_path, small_world[1])
    teacher.save(tmp_path / "artefact")
    file.unlink()
    asked = queries(small_world[1])
    again = open_grounder(tmp_path / "artefact", accelerator, tmp_path / "work2")
    assert torch.equal(again.ground(asked).boxes, teacher.ground(asked).boxes)


def test_the_frozen_detector_drifts_only_where_it_is_asked_to(accelerator, tmp_path, small_world, darknet_config):
    for norm in ("eval", "train"):
        teacher, *_ = taught(replace(darknet_config, detector_norm=norm), accelerator, tmp_path / norm, small_world[1])
        fresh = build_source(darknet_config.detector, 96).state_dict()
        moved = {name for name, value in teacher.detector.state_dict().items() if not torch.equal(value, fresh[name])}
        kinds = {name.rpartition(".")[2] for name in moved}
        assert kinds == (set() if norm == "eval" else {"running_mean", "running_var", "num_batches_tracked"})


def test_maps_are_computed_once_an_image(accelerator, tmp_path, small_world, small_config):
    split = small_world[1]
    teacher = AnchorRefiner(small_config, accelerator, tmp_path)
    teacher.open_detector()
    seen = []
    teacher.detector.register_forward_hook(lambda m, inputs, _: seen.append(len(inputs[0])))
    taught(small_config, accelerator, tmp_path, split, teacher=teacher)
    teacher.ground(queries(split))
    assert sum(seen) == len(split.images)


def test_packed_cells_come_back(small_config, darknet_config):
    source = build_source(darknet_config.detector, 96).eval()
    with torch.no_grad():
        cells = source(torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8))
    packing = Packing(torch.float32)
    back = packing.unpack(packing.pack(cells)[[2, 0]])
    for a, b in zip((*cells.maps, *cells[1:]), (*back.maps, *back[1:]), strict=True):
        assert torch.equal(a[[2, 0]], b)


class Student(Grounder):
    """Answers the top left corner of every image, half sure."""

    def ground(self, asked):
        return Grounded(torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(len(asked), -1), torch.full((len(asked),), 0.5))


@pytest.mark.parametrize("kind", ["small_config", "yolos_config"])
def test_a_later_cycles_teacher_learns_from_the_student(request, accelerator, tmp_path, small_world, kind):
    config = replace(request.getfixturevalue(kind), in_image=1.0)
    config = replace(config, training=replace(config.training, steps=40, batch_size=8, ema=0.0, learning_rate=1e-2))
    teacher, *_ = taught(config, accelerator, tmp_path, small_world[1], Student())
    losses = teacher.history.losses["in_image"]
    assert losses[-1] < losses[0]
    plain, *_ = taught(config, accelerator, tmp_path / "first", small_world[1])
    assert "in_image" not in plain.history.losses


def test_a_published_checkpoint_is_taken_as_it_is(accelerator, tmp_path, small_world, published, small_config):
    from cpgr.data.proposals.darknet import DarkNetConfig

    size, split = DarkNetConfig(2, (1, 1, 1, 1, 1), 5), small_world[1]
    annotations = {"train": [{"iid": 1, "bbox": [0, 0, 1, 1], "refs": [e.text for e in split.expressions]}], "val": [{"iid": 2, "refs": ["zebra"]}]}
    words = tmp_path / "scenes.json"
    words.write_text(json.dumps(annotations))
    count = len(read_words(words))
    assert read_words(words).words[-1] == "zebra"
    state = published.weights(published.refclip_shapes(size, count, vector=6, width=16, ffn=32, layers=1, space=16))
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "det_best.pth")
    config = replace(
        small_config, detector=f"darknet:{tmp_path / 'det_best.pth'}", image_size=64, anchors=2, fit=False, weights=str(tmp_path / "det_best.pth"),
        words=str(words), language=replace(small_config.language, word_width=6),
    )  # fmt: skip
    teacher, basic, proposals = taught(config, accelerator, tmp_path, split)
    assert torch.equal(teacher.network.anchor_projection.weight, state["linear_vs.weight"])
    assert len(teacher.refine(basic, proposals, split, None, None)) == len(split.expressions)
    (tmp_path / "few.txt").write_text("red\nblue\n")
    with pytest.raises(CpgrError, match=f"has {count} word vectors, refinement.words gives 5"):
        taught(replace(config, words=str(tmp_path / "few.txt")), accelerator, tmp_path / "b", split)


def test_word_vectors_from_a_file(accelerator, tmp_path, small_world, small_config):
    import numpy as np

    word = small_world[1].expressions[0].text.split()[-1]
    np.savez(tmp_path / "v.npz", words=np.array([word, "other"]), vectors=np.eye(2, 5, dtype=np.float32) * 3)
    language = replace(small_config.language, vectors=str(tmp_path / "v.npz"))
    teacher, *_ = taught(replace(small_config, language=language), accelerator, tmp_path, small_world[1])
    embedding = teacher.network.language.embedding
    assert embedding.weight[teacher.words.ids[word]].tolist() == [3.0, 0.0, 0.0, 0.0, 0.0] and not embedding.weight.requires_grad
    assert embedding.weight[1].abs().sum() == 0


@pytest.mark.parametrize(("changes", "message"), [
    ({"detector": "darknet:/no/yolov3_coco.pth"}, "/no/yolov3_coco.pth: cannot be read"),
    ({"detector": "yolo"}, "names no detector"),
    ({"detector": "transformers:/no/model"}, "no object-detection model could be loaded"),
    ({"detector": "builtin:/no/folder"}, "no built-in detector in /no/folder"),
    ({"anchors": 300}, "the detector gives 256 cells"),
    ({"anchors": 1}, "fewer than negatives_per_image"),
    ({"fit": False}, "give them"),
    ({"weights": "x.pth"}, "does not name its words"),
    ({"words": "/no/words.json"}, "/no/words.json: cannot be read"),
    ({"words": "/no/words.txt"}, "/no/words.txt: cannot be read"),
    ({"language": LanguageConfig(vectors="/no/v.npz")}, "/no/v.npz: is no .npz"),
])  # fmt: skip
def test_mistakes(accelerator, tmp_path, small_world, small_config, changes, message):
    """Above all: a detector's file that is not there is an error, not a detector of random weights."""
    with pytest.raises(CpgrError, match=message):
        taught(replace(small_config, **changes), accelerator, tmp_path, small_world[1])
    with pytest.raises(CpgrError):  # and before anything is written
        AnchorRefiner(replace(small_config, **changes), accelerator, tmp_path).check()


def test_a_darknet_of_random_weights_must_be_asked_for(accelerator, tmp_path, caplog, small_config):
    teacher = AnchorRefiner(replace(small_config, detector="darknet:random"), accelerator, tmp_path)
    teacher.open_detector()
    assert "are random" in caplog.text


def test_a_damaged_artefact_is_one_error(accelerator, tmp_path, small_world, small_config):
    teacher, *_ = taught(small_config, accelerator, tmp_path, small_world[1])
    teacher.save(tmp_path / "artefact")
    (tmp_path / "artefact" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CpgrError, match="not a RefCLIP model of this configuration"):
        open_grounder(tmp_path / "artefact", accelerator, tmp_path)


def test_one_expression_is_nothing_to_contrast(accelerator, tmp_path, small_world, small_config):
    teacher = AnchorRefiner(small_config, accelerator, tmp_path)
    with pytest.raises(CpgrError, match="basic labels have 0"):
        teacher.fit(LabelTable(), LabelTable(), small_world[1], tmp_path, None)
    assert AnchorConfig().training.steps == 25 * (42_404 // 64)


def test_an_expression_without_words_gets_a_box_and_teaches_nothing(accelerator, tmp_path, small_world, small_config):
    teacher, basic, proposals = taught(small_config, accelerator, tmp_path, small_world[1])
    odd = LabelTable([replace(basic[0], expression="?!"), *basic.rows[1:]])
    first = teacher.refine(odd, proposals, small_world[1], None, None)[0]
    assert first.box is not None and all(value == value for value in first.scores.values())


def test_validation_chooses_among_averaged_weights(accelerator, tmp_path, small_world, darknet_config):
    """It sees the network as it answers: batch norms and dropout in evaluation, and the statistics stay as they are."""
    split = small_world[1]
    config = replace(darknet_config, training=replace(darknet_config.training, validate_every=2))
    teacher = AnchorRefiner(config, accelerator, tmp_path / "work")
    proposals = teacher.propose(split)
    seen = []

    def validate():
        norm = teacher.network.fusion.top_proj.batch_norm
        before = norm.running_mean.clone()
        teacher.ground(queries(split))
        assert not teacher.network.training and torch.equal(norm.running_mean, before)
        seen.append(len(seen))
        return 1.0

    teacher.fit(DatasetExpressions().generate(split, proposals), proposals, split, tmp_path / "training", None, validate)
    assert len(seen) == 2
