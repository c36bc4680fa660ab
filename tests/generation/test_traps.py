"""The traps that BLIP-2 and RegionBLIP lay for region captioning, each with the test that keeps it shut."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from cpgr.errors import CpgrError
from cpgr.generation.checkpoints import load_blip2
from cpgr.generation.fine_tuning import Groups
from cpgr.generation.generator import Blip2Generator
from cpgr.generation.objectives import hard_negatives, matching, region_losses
from cpgr.generation.region_blip2 import LoraSettings, RegionBlip2
from cpgr.generation.settings import DecodingConfig, GenerationConfig
from cpgr.labels import Label, LabelTable
from cpgr.vocabulary import BUILTIN

CONFIG = GenerationConfig(captioner="builtin", matcher="builtin", decoding=DecodingConfig(beams=1, max_new_tokens=5))
BOXES = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0.0, 0.6, 0.3, 1.0]])
TEXTS = ["red circle", "the large blue square on the left", "green cross"]


def build(accelerator, tmp_path, **changes):
    torch.manual_seed(0)
    generator = Blip2Generator(replace(CONFIG, **changes), accelerator, tmp_path, seed=0)
    generator.build()
    return generator


@pytest.fixture
def generator(accelerator, tmp_path):
    return build(accelerator, tmp_path)


@pytest.fixture
def image():
    torch.manual_seed(1)
    return torch.randn(3, 65, 128)


def labels(words=("", "left large blue square", "green"), images=("a", "a", "b"), texts=TEXTS):
    rows = []
    for i, (attributes, image_id, text) in enumerate(zip(words, images, texts, strict=True)):
        *rest, category = attributes.split() or [""]
        rows.append(Label(image_id, f"{image_id}.jpg", 100, 100, [10.0 * i, 0, 50, 60], expression=text, region_id=i, category=category, attributes=rest))
    return rows


def edited(tmp_path, which, **tensors):
    import shutil

    shutil.copytree(BUILTIN / which, tmp_path / which)
    state = load_file(tmp_path / which / "model.safetensors") | tensors
    save_file(state, tmp_path / which / "model.safetensors", metadata={"format": "pt"})
    return str(tmp_path / which)


# -- checkpoints (1.1, traps A and B) -----------------------------------------------------------------------------


def test_text_branch_missing():
    """A stage-2 checkpoint has no text branch: as a matcher it is refused, not filled up with random numbers."""
    with pytest.raises(CpgrError, match="has no text branch: take a Blip2ForImageTextRetrieval"):
        load_blip2(str(BUILTIN / "blip2"), str(BUILTIN / "blip2"))


@pytest.mark.parametrize("which", ["blip2", "blip2-itm"])
@pytest.mark.parametrize("name", [
    "query_tokens_img_region", "img_region_posembed.0.weight", "opt_proj_img_region.weight", "qformer.encoder.layer.0.attention.attention.query.lora_A_img",
])  # fmt: skip
def test_leak_through_regionblip_weights(tmp_path, which, name):
    """RegionBLIP's weights were trained on RefCOCO's boxes; a checkpoint with its tensors is refused."""
    names = {"blip2": str(BUILTIN / "blip2"), "blip2-itm": str(BUILTIN / "blip2-itm")}
    names[which] = edited(tmp_path, which, **{name: torch.zeros(2, 2)})
    with pytest.raises(CpgrError, match="trained on RefCOCO's labelled boxes"):
        load_blip2(*names.values())


def test_leak_through_regionblip_weights_in_lavis_format(tmp_path):
    torch.save({"model": {"query_tokens_img_region": torch.zeros(1)}}, tmp_path / "regionblip.pth")
    with pytest.raises(CpgrError, match="trained on RefCOCO's labelled boxes"):
        load_blip2(str(BUILTIN / "blip2"), str(BUILTIN / "blip2-itm"), itg_head=str(tmp_path / "regionblip.pth"))


# -- LoRA and precision (1.3, LAVIS 111 and 267, peft 376) -----------------------------------------------------------


def test_lora_is_as_strong_as_regionblips():
    """loralib's alpha is 1 where it is not set, so the update is scaled by 1/8; peft's customary 8 or 16 is 8 to 16 times that."""
    loaded = load_blip2(str(BUILTIN / "blip2"), str(BUILTIN / "blip2-itm"))
    model = RegionBlip2(loaded.captioner, loaded.parts)
    model.add_lora(LoraSettings())
    assert {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")} == {0.125}


@pytest.mark.parametrize(("weights", "autocast"), [
    ("float32", torch.bfloat16), ("float32", torch.float16), ("bfloat16", torch.bfloat16), ("float16", torch.float16),
], ids=str)  # fmt: skip
def test_fp16_nan_with_lora(accelerator, tmp_path, image, weights, autocast):
    """Activations of BLIP-2's Q-Former exceed fp16's 65,504. It and all that is trained stay in fp32, whatever the weights of the
    frozen parts and the autocast; losses and gradients are then finite."""
    generator = build(accelerator, tmp_path, weights=weights)
    model = generator.model
    with torch.no_grad():  # an intermediate feed-forward state of 1e5, brought back to size by the next product
        for layer in model.blip2.qformer.encoder.layer:
            for first, second in ((layer.intermediate, layer.output), (layer.intermediate_query, layer.output_query)):
                first.dense.weight *= 1e5
                second.dense.weight *= 1e-5
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in [*trained, *model.blip2.qformer.parameters(), *model.parts.parameters()])
    batch = region_batch(generator, image)
    with torch.autocast("cpu", autocast):
        losses = region_losses(model, **batch)
    assert all(torch.isfinite(v) for v in losses.values()), losses
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in trained if p.grad is not None)
    if autocast == torch.float16:  # the trap is real: the same states under fp16 are not finite
        with torch.autocast("cpu", autocast), torch.no_grad():
            out = model.blip2.qformer(query_embeds=model.queries(BOXES, 3), encoder_hidden_states=image).last_hidden_state
        assert not torch.isfinite(out).all()


def test_two_half_precisions_are_not_mixed(tmp_path):
    accelerator = SimpleNamespace(device=torch.device("cpu"), mixed_precision="bf16")
    with pytest.raises(CpgrError, match="generation.weights is float16, precision bf16"):
        build(accelerator, tmp_path, weights="float16")


def region_batch(generator, image):
    return {
        "image": image, "boxes": BOXES, "texts": generator.qformer_texts(TEXTS), "prompt": generator.prompts(labels()),
        "target": generator.targets(TEXTS), "same": torch.eye(3, dtype=torch.bool), "weights": torch.ones(3),
        "owner": torch.arange(3),
    }  # fmt: skip


# -- losses (1.4, 1.5, traps C and D) ------------------------------------------------------------------------------


@torch.no_grad()
def test_per_sample_masks_of_the_prefix_loss(generator, image):
    """With one prompt length for the whole batch, as RegionBLIP masks, a sample's loss would hang on its company."""
    model, rows = generator.model, labels()
    queries = model.regions(image, BOXES)
    together = model.language_loss(queries, *generator.prompts(rows), *generator.targets(TEXTS))
    alone = [model.language_loss(queries[i : i + 1], *generator.prompts(rows[i : i + 1]), *generator.targets(TEXTS[i : i + 1])) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    lengths = generator.prompts(rows)[1].sum(1).tolist()
    assert len(set(lengths)) == 3  # or the test shows nothing


@torch.no_grad()
def test_left_padding_when_generating(generator, image):
    """Padding leads: between the prefix and the first new token it would be read as text."""
    model, rows = generator.model, labels()
    queries, (ids, mask) = model.regions(image, BOXES), generator.prompts(rows)
    assert (mask.diff(dim=1) >= 0).all()  # zeros, then ones
    decoding = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    together = model.write(queries, ids, mask, **decoding)
    alone = torch.cat([model.write(queries[i : i + 1], *generator.prompts(rows[i : i + 1]), **decoding) for i in range(3)])
    assert torch.equal(together, alone)
    seen = []
    generate = model.blip2.language_model.generate
    model.blip2.language_model.generate = lambda **given: seen.append(given["attention_mask"]) or generate(**given)
    model.write(queries, ids, mask, **decoding)
    assert (seen[0].diff(dim=1) >= 0).all() and seen[0].sum(1).tolist() == (mask.sum(1) + queries.shape[1]).tolist()


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 5])
def test_max_new_tokens_does_not_count_the_soft_prompt(generator, image, count):
    """`max_length` counts the soft prompt in newer transformers, so that nothing, or an error, is left (LAVIS 707)."""
    queries, prompt = generator.model.regions(image, BOXES), generator.prompts(labels())
    assert queries.shape[1] > count
    ids = generator.model.write(queries, *prompt, max_new_tokens=count, min_new_tokens=count, num_beams=2, pad_token_id=0)
    assert ids.shape == (3, count)


def test_texts_end_as_the_captioner_ends_them(generator):
    """BLIP-2's OPT was trained on caption + line break, which its generation config calls the end; OPT's own </s> never comes."""
    newline = generator.llm_words.convert_tokens_to_ids("red")
    generator.model.blip2.generation_config.eos_token_id = newline
    ids, mask = generator.targets(["blue square"])
    assert ids[0, -1] == newline != generator.llm_words.eos_token_id and mask.all()
    asked = {}
    generator.model.write = lambda *_, **decoding: asked.update(decoding) or torch.zeros(3, 1, dtype=torch.long)
    generator.look_at = lambda *_: None
    generator._features, generator.fitted = lambda ids: torch.randn(len(ids), 65, 128), True
    generator._written({}, LabelTable(labels()))
    assert asked["eos_token_id"] == newline


@pytest.mark.parametrize("end", [7, [7, 2], None])
def test_the_end_token_in_every_form_of_a_generation_config(generator, end):
    generator.model.blip2.generation_config.eos_token_id = end
    generator.model.blip2.config.text_config.eos_token_id = 7
    assert generator.end_token == 7


def test_a_checkpoint_that_is_not_there_is_named(accelerator, tmp_path):
    with pytest.raises(CpgrError, match="nobody/nothing.*cannot be loaded.*cpgr doctor --config"):
        build(accelerator, tmp_path, captioner="nobody/nothing")


def test_itm_with_per_sample_queries(generator, image):
    """RegionBLIP broadcasts the first sample's coordinates. Here the loss is that of every pair with its own box."""
    model = generator.model
    nn.init.normal_(model.coordinates.outer.weight, std=0.5)
    texts = generator.qformer_texts(TEXTS)
    everything = torch.ones(3, 3, dtype=torch.bool)  # no negatives: the loss is the mean over the pairs alone
    with torch.no_grad():
        loss = matching(model, image, BOXES, texts, torch.zeros(3, 3), everything, torch.arange(3))
        own = []
        for i in range(3):
            queries, _ = model.read(image[i : i + 1], BOXES[i : i + 1], texts.ids[i : i + 1], texts.mask[i : i + 1], causal=False)
            own.append(F.cross_entropy(model.match_logits(queries), torch.ones(1, dtype=torch.long)))
        broadcast = matching(model, image, BOXES[:1].expand(3, -1), texts, torch.zeros(3, 3), everything, torch.arange(3))
    torch.testing.assert_close(loss, torch.stack(own).mean(), atol=1e-5, rtol=1e-5)
    assert abs(loss - broadcast) > 1e-4


def test_same_image_hard_negatives(generator, monkeypatch):
    """Other regions of the same image are negatives, and the hardest; the same region, or the same words, is none."""
    rows = labels(images=("a", "a", "a"), texts=["red circle", "blue square", "red circle"])
    rows.append(replace(rows[1], expression="the square"))
    rows = [replace(row, kept=True) for row in rows]
    monkeypatch.setattr(generator, "_features", lambda ids: torch.zeros(len(ids), 65, 128))
    monkeypatch.setattr("cpgr.generation.fine_tuning.random.sample", lambda items, count: list(items)[:count])
    same = Groups(LabelTable(rows), generator).collate([0])["regions"]["same"]
    expected = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)
    assert torch.equal(same, expected)
    similarity = torch.tensor([[9.0, 8.0, 9.0, 0.0]] * 4)
    drawn = torch.stack([hard_negatives(similarity, same) for _ in range(40)])
    assert (drawn[:, 0] == 1).float().mean() > 0.9 and not same[torch.arange(4), drawn].any()


# -- options that must not change what comes out ----------------------------------------------------------------------


def test_gradient_checkpointing_changes_no_gradient(accelerator, tmp_path, image):
    found = []
    for on in (False, True):
        generator = build(accelerator, tmp_path, gradient_checkpointing=on)
        torch.manual_seed(5)  # ITM draws its negatives
        sum(region_losses(generator.model, **region_batch(generator, image)).values()).backward()
        found.append({n: p.grad for n, p in generator.model.named_parameters() if p.grad is not None})
        with torch.no_grad():
            generator.model.write(generator.model.regions(image, BOXES), *generator.prompts(labels()), max_new_tokens=3, pad_token_id=0)
    assert set(found[0]) == set(found[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_gradient_checkpointing_keeps_less(accelerator, tmp_path, image):
    kept = []
    for on in (False, True):
        generator = build(accelerator, tmp_path, gradient_checkpointing=on)
        sizes = {}
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.update({t.data_ptr(): t.numel()}) or t, lambda t: t)
        with hooks:
            sum(region_losses(generator.model, **region_batch(generator, image)).values())
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.6 * kept[0]


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_a_static_cache_writes_the_same(generator, image, beams):
    queries, prompt = generator.model.regions(image, BOXES), generator.prompts(labels())
    decoding = dict(max_new_tokens=6, num_beams=beams, do_sample=False, pad_token_id=0)
    dynamic = generator.model.write(queries, *prompt, **decoding)
    assert torch.equal(dynamic, generator.model.write(queries, *prompt, cache_implementation="static", **decoding))


def test_the_order_of_decoding_changes_no_text(accelerator, tmp_path, small_world, small_proposals):
    made = []
    for decoding in (DecodingConfig(1, by_length=True, batch_size=5, max_new_tokens=4), DecodingConfig(1, by_length=False, batch_size=7, max_new_tokens=4)):
        generator = build(accelerator, tmp_path, decoding=decoding)
        generator.fitted = True
        made.append(list(generator.generate(small_world[1], small_proposals)))
    assert made[0] == made[1]
