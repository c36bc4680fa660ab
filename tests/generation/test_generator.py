"""The Generation stage with the shipped models: templates, fine-tuning, writing, judging, and its artefact."""

from dataclasses import replace

import pytest
import torch

from cpgr.errors import CpgrError
from cpgr.generation.checkpoints import load_blip2
from cpgr.generation.generator import Blip2Generator
from cpgr.generation.region_blip2 import LoraSettings
from cpgr.generation.settings import DecodingConfig, GenerationConfig
from cpgr.labels import LabelTable
from cpgr.training import TrainingConfig, seed_everything
from cpgr.vocabulary import BUILTIN

TRAINING = TrainingConfig(steps=10, batch_size=4, learning_rate=1e-3, warmup=0)
CONFIG = GenerationConfig(
    captioner="builtin", matcher="builtin", vocabulary="extend", training=TRAINING,
    decoding=DecodingConfig(beams=2, samples=1, max_new_tokens=6),
)  # fmt: skip


@pytest.fixture(scope="module")
def refined(small_world, small_proposals):
    """Every expression paired with each region of its image, posterior falling with the region's number."""
    _, split, _ = small_world
    rows = []
    regions = small_proposals.by_image()
    for e in split.expressions:
        for j, region in enumerate(regions[e.image_id]):
            row = replace(region, expression=e.text, expression_id=e.expression_id, kind="dataset", scores={"posterior": 2.0**-j})
            rows.append(row if j == 0 else row.drop("pairing: region 0 fits better"))
    return LabelTable(rows)


def make(accelerator, tmp_path, refined=None, split=None, **changes):
    generator = Blip2Generator(replace(CONFIG, **changes), accelerator, tmp_path / "work", seed=0)
    if refined is not None:
        seed_everything("fit")
        generator.fit(refined, split.images, tmp_path / "training")
    return generator


def test_the_first_cycle_writes_templates(accelerator, tmp_path, small_world, small_proposals):
    generator = make(accelerator, tmp_path, LabelTable(), small_world[1])
    made = generator.generate(small_world[1], small_proposals)
    assert not generator.fitted and {row.kind for row in made} == {"template"}
    assert generator.judge(small_world[1].images, small_proposals, small_world[1].expressions) == {}
    boxes = {(row.image_id, row.region_id): row.box for row in small_proposals}
    assert all(row.box == boxes[row.image_id, row.region_id] for row in made)


def test_fit_write_judge_save_load(accelerator, tmp_path, small_world, small_proposals, refined):
    _, split, _ = small_world
    generator = make(accelerator, tmp_path, refined, split)
    assert set(generator.history.losses) == {"itc", "itm", "itg", "llm", "itg_latent", "itc_latent", "loss"}
    seed_everything("write")
    made = generator.generate(split, small_proposals)
    assert {row.kind for row in made} == {"generated"}
    keys = [(row.image_id, row.region_id, row.expression) for row in made]
    assert len(keys) == len(set(keys)) and all(row.expression for row in made)
    judged = generator.judge(split.images, small_proposals, split.expressions)
    regions = small_proposals.by_image()
    for name in ("itg", "itc", "itm"):
        assert all(len(judged[name][e.expression_id]) == len(regions[e.image_id]) for e in split.expressions)
    assert max(float(v.max()) for v in judged["itg"].values()) < 0

    generator.save(tmp_path / "artefact")
    assert (tmp_path / "artefact" / "adapter_model.safetensors").exists()
    again = make(accelerator, tmp_path)
    again.load(tmp_path / "artefact")
    seed_everything("write")
    assert list(again.generate(split, small_proposals)) == list(made)
    for name, found in again.judge(split.images, small_proposals, split.expressions).items():
        assert all(torch.equal(value, judged[name][key]) for key, value in found.items())


def test_judging_does_not_depend_on_the_company(accelerator, tmp_path, small_world, small_proposals, refined):
    _, split, _ = small_world
    generator = make(accelerator, tmp_path, refined, split)
    together = generator.judge(split.images, small_proposals, split.expressions)
    alone = generator.judge(split.images, small_proposals, split.expressions[3:4])
    key = split.expressions[3].expression_id
    for name in ("itg", "itc"):
        torch.testing.assert_close(alone[name][key], together[name][key], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("changes", [
    {"latent": False}, {"prefix": False}, {"coordinates": False}, {"lora": LoraSettings(qformer=False)}, {"lora": LoraSettings(llm=False)},
    {"lora": LoraSettings(qformer=False, llm=False)}, {"crops": True},
], ids=str)  # fmt: skip
def test_every_part_can_be_left_out(accelerator, tmp_path, small_world, small_proposals, refined, changes):
    _, split, _ = small_world
    generator = make(accelerator, tmp_path, refined, split, **changes)
    generator.save(tmp_path / "artefact")
    again = make(accelerator, tmp_path, **changes)
    again.load(tmp_path / "artefact")
    expressions = split.expressions[:2]
    a, b = (g.judge(split.images, small_proposals, expressions) for g in (generator, again))
    assert all(torch.equal(a["itg"][k], b["itg"][k]) for k in a["itg"])
    if changes == {"coordinates": False}:  # all regions of an image are then alike
        assert all(float(v.std()) < 1e-3 for v in a["itg"].values() if len(v) > 1)


def test_the_best_samples_by_itm(accelerator, tmp_path, small_world, small_proposals, refined):
    _, split, _ = small_world
    decoding = DecodingConfig(beams=1, samples=3, max_new_tokens=6)
    texts = {}
    for best in (0, 1):
        generator = make(accelerator, tmp_path / str(best), refined, split, decoding=replace(decoding, best=best))
        seed_everything("write")
        for row in generator.generate(split, small_proposals):
            texts.setdefault(best, {}).setdefault((row.image_id, row.region_id), []).append(row)
    assert all(len(rows) == 1 for rows in texts[1].values()) and any(len(rows) > 1 for rows in texts[0].values())
    assert all(texts[1][k][0].expression in [row.expression for row in texts[0][k]] and "itm_region" in texts[1][k][0].scores for k in texts[1])


def test_without_fine_tuning_the_templates_stay(accelerator, tmp_path, small_world, small_proposals, refined):
    _, split, _ = small_world
    generator = make(accelerator, tmp_path, refined, split, fine_tune=False)
    assert not generator.fitted and {row.kind for row in generator.generate(split, small_proposals)} == {"template"}


def test_the_image_encoder_runs_once_an_image(accelerator, tmp_path, small_world, small_proposals, refined, monkeypatch):
    _, split, _ = small_world
    seen = []
    encode = Blip2Generator._encode
    monkeypatch.setattr(Blip2Generator, "_encode", lambda self, frames: seen.append(len(frames)) or encode(self, frames))
    generator = make(accelerator, tmp_path, refined, split)
    generator.generate(split, small_proposals)
    generator.judge(split.images, small_proposals, split.expressions)
    assert sum(seen) == len(split.images) < len(small_proposals)


def test_features_on_disk_give_the_same(accelerator, tmp_path, small_world, small_proposals, refined):
    _, split, _ = small_world
    judged = [
        make(accelerator, tmp_path / str(mb), refined, split, memory_mb=mb).judge(split.images, small_proposals, split.expressions[:3])
        for mb in (64, 0.05)
    ]
    assert all(torch.equal(judged[0]["itg"][k], judged[1]["itg"][k]) for k in judged[0]["itg"])


def test_crops_are_matched(accelerator, tmp_path, small_world, small_proposals):
    _, split, _ = small_world
    labels = LabelTable(replace(row, expression=row.words) for row in list(small_proposals)[:7])
    chances = make(accelerator, tmp_path).match(split.images, labels)
    assert len(chances) == 7 and all(0 <= c <= 1 for c in chances)


def test_words_no_checkpoint_knows_are_learnt(accelerator, tmp_path, small_world, refined):
    _, split, _ = small_world
    strange = LabelTable(replace(row, expression=row.expression + " giraffe") for row in refined)
    generator = make(accelerator, tmp_path, strange, split)
    assert generator.words.tokenize("giraffe") == ["giraffe"] == generator.llm_words.tokenize("giraffe")
    assert generator.model.parts["embeddings"].word_embeddings.weight.requires_grad
    kept = make(accelerator, tmp_path / "b", strange, split, vocabulary="keep")
    assert kept.words.tokenize("giraffe") != ["giraffe"]


def test_a_matcher_of_another_shape_is_refused(tmp_path):
    from cpgr.pretrain.blip2 import make_blip2
    from transformers import Blip2ForImageTextRetrieval

    _, matcher, _, _ = make_blip2(["a"], tmp_path)
    config = matcher.config
    config.qformer_config.intermediate_size = 96
    Blip2ForImageTextRetrieval(config).save_pretrained(tmp_path / "other")
    with pytest.raises(CpgrError, match="text-branch tensors are missing or of another shape"):
        load_blip2(str(BUILTIN / "blip2"), str(tmp_path / "other"))


def test_the_artefact_of_another_model_is_refused(accelerator, tmp_path):
    (tmp_path / "artefact").mkdir()
    (tmp_path / "artefact" / "fitted").write_text("yes")
    with pytest.raises(CpgrError, match="not a Generation model"):
        make(accelerator, tmp_path).load(tmp_path / "artefact")
