"""The region BLIP-2: what each objective may see, per-sample prefixes, and that it starts as plain BLIP-2."""

import pytest
import torch
from torch import nn

from cpgr.generation.objectives import Texts, contrast, hard_negatives, latent_losses, matching
from cpgr.generation.region_blip2 import LoraSettings, RegionBlip2
from cpgr.pretrain.blip2 import make_blip2

WORDS = "a red blue green circle square left right top of the".split()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.manual_seed(0)
    captioner, matcher, llm_words, words = make_blip2(WORDS, tmp_path_factory.mktemp("blip2"))
    names = ("embeddings", "vision_projection", "text_projection", "itm_head")
    model = RegionBlip2(captioner, nn.ModuleDict({n: getattr(matcher, n) for n in names})).eval()
    return model, llm_words, words


@pytest.fixture
def image(made):
    torch.manual_seed(1)
    vision = made[0].blip2.config.vision_config
    return torch.randn(3, 1 + (vision.image_size // vision.patch_size) ** 2, vision.hidden_size)


BOXES = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0.0, 0.6, 0.3, 1.0]])


def encode(words, texts):
    out = words(texts, padding=True, return_tensors="pt")
    return Texts(out["input_ids"], out["attention_mask"], words.bos_token_id)


@torch.no_grad()
def test_zero_coordinates_are_plain_blip2(made, image):
    """e(b) starts at zero and Q_region as BLIP-2's queries: before training a region's queries are the image's."""
    model, _, _ = made
    torch.testing.assert_close(model.regions(image, BOXES), model.regions(image, None))


@torch.no_grad()
def test_causal_pass_hides_the_future_and_the_text_from_the_queries(made, image):
    model, _, words = made
    texts = encode(words, ["red circle left", "blue square top", "green circle right"])
    queries, out = model.read(image, BOXES, texts.ids, texts.mask, causal=True)
    torch.testing.assert_close(queries, model.regions(image, BOXES), atol=2e-5, rtol=1e-4)
    changed = texts.ids.clone()
    changed[:, 3] = words.convert_tokens_to_ids("top")
    other_queries, other = model.read(image, BOXES, changed, texts.mask, causal=True)
    torch.testing.assert_close(other_queries, queries)
    torch.testing.assert_close(other[:, :3], out[:, :3])
    assert not torch.allclose(other[:, 3], out[:, 3])


@torch.no_grad()
def test_joint_pass_sees_everything_but_padding(made, image):
    model, _, words = made
    texts = encode(words, ["red circle left of the blue square", "red", "green circle"])
    queries, _ = model.read(image, BOXES, texts.ids, texts.mask, causal=False)
    short = encode(words, ["red"])
    alone, _ = model.read(image[1:2], BOXES[1:2], short.ids, short.mask, causal=False)
    torch.testing.assert_close(queries[1:2], alone, atol=2e-5, rtol=1e-4)
    changed = texts.ids.clone()
    changed[0, 1] = words.convert_tokens_to_ids("blue")
    assert not torch.allclose(model.read(image, BOXES, changed, texts.mask, causal=False)[0][0], queries[0])


@torch.no_grad()
def test_language_loss_is_per_sample_whatever_the_padding(made, image):
    """Trap C and D of the reference: every sample's loss covers its own target, with prefixes of any length."""
    model, llm, _ = made
    queries = model.regions(image, BOXES)
    prefixes, targets = [[1], [1, *llm("left red")["input_ids"]], [1, *llm("top")["input_ids"]]], ["circle", "blue square top", "red"]
    ids = [llm(t)["input_ids"] + [llm.eos_token_id] for t in targets]
    together = model.language_loss(queries, *pad(prefixes, True), *pad(ids, False))
    for i in range(3):
        alone = model.language_loss(queries[i : i + 1], *pad([prefixes[i]], True), *pad([ids[i]], False))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)
    # by hand: the mean negative log-likelihood of the target's tokens after [soft][prefix]
    embed = model.blip2.language_model.get_input_embeddings()
    inputs = torch.cat([model.soft_prompt(queries[1:2]), embed(torch.tensor([prefixes[1] + ids[1]]))], 1)
    log_p = model.blip2.language_model(inputs_embeds=inputs).logits.log_softmax(-1)[0]
    start = inputs.shape[1] - len(ids[1])
    by_hand = -sum(log_p[start - 1 + k, token] for k, token in enumerate(ids[1])) / len(ids[1])
    torch.testing.assert_close(together[1], by_hand, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_writing_does_not_depend_on_the_batch(made, image):
    model, llm, _ = made
    queries = model.regions(image, BOXES)
    prefixes = [[1], [1, *llm("left red circle")["input_ids"]], [1, *llm("top")["input_ids"]]]
    decoding = dict(max_new_tokens=5, do_sample=False, pad_token_id=llm.pad_token_id)
    together = model.write(queries, *pad(prefixes, True), **decoding)
    assert together.shape[1] <= 5
    for i in range(3):
        alone = model.write(queries[i : i + 1], *pad([prefixes[i]], True), **decoding)
        assert llm.decode(together[i], skip_special_tokens=True) == llm.decode(alone[0], skip_special_tokens=True)


def test_contrast_leaves_false_negatives_out():
    similarity = torch.tensor([[2.0, 9.0, 0.0], [9.0, 1.0, 0.5], [0.0, 0.5, 1.0]])
    same = torch.eye(3, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    plain = contrast(similarity, torch.eye(3, dtype=torch.bool), smoothing=0.0)
    masked = contrast(similarity, same, smoothing=0.0)
    by_hand = -torch.stack([
        torch.tensor([2.0, 0.0]).log_softmax(0)[0], torch.tensor([1.0, 0.5]).log_softmax(0)[0], torch.tensor([0.0, 0.5, 1.0]).log_softmax(0)[2],
    ]).mean()
    torch.testing.assert_close(masked, by_hand)
    assert plain > masked + 1
    assert torch.isfinite(contrast(similarity, torch.ones(3, 3, dtype=torch.bool)))


def test_hard_negatives_are_never_the_same_region():
    torch.manual_seed(0)
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    for _ in range(50):
        drawn = hard_negatives(torch.randn(3, 3), same)
        assert all(not same[i, j] for i, j in enumerate(drawn.tolist()))
    assert hard_negatives(torch.randn(2, 2), torch.ones(2, 2, dtype=torch.bool)).tolist() == [-1, -1]


def test_matching_gives_every_sample_its_own_queries(made, image):
    """RegionBLIP broadcasts one sample's coordinates over the batch; here gradients reach e of every box."""
    model, _, words = made
    nn.init.normal_(model.coordinates.outer.weight, std=0.1)
    boxes = BOXES.clone().requires_grad_()
    texts = encode(words, ["red circle", "blue square", "green circle"])
    loss = matching(model, image, boxes, texts, torch.zeros(3, 3), torch.eye(3, dtype=torch.bool), torch.arange(3))
    (gradient,) = torch.autograd.grad(loss, boxes)
    assert (gradient.abs().sum(1) > 0).all()
    nn.init.zeros_(model.coordinates.outer.weight)


@torch.no_grad()
def test_latent_likelihood_is_the_marginal(made, image):
    model, _, words = made
    nn.init.normal_(model.coordinates.outer.weight, std=0.1)
    texts = encode(words, ["red circle left", "blue square"])
    boxes = BOXES[None].repeat(2, 1, 1)
    prior = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]])
    places = torch.arange(6).view(2, 3)
    owners = torch.tensor([0, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    losses = latent_losses(model, image[:2], boxes.flatten(0, 1), texts, prior, owners, places)
    total = 0.0
    for e in range(2):
        chance = 0.0
        for j in range(3):
            one = texts[e : e + 1]
            _, out = model.read(image[e : e + 1], boxes[e, j : j + 1], one.decoded, one.mask, causal=True)
            chance += prior[e, j] * model.text_log_likelihood(out, one.ids, one.mask).sum().exp()
        total -= chance.log() / texts.mask[e, 1:].sum()
    torch.testing.assert_close(losses["itg_latent"], total / 2, atol=1e-4, rtol=1e-4)
    assert torch.isfinite(losses["itc_latent"])
    nn.init.zeros_(model.coordinates.outer.weight)


@torch.no_grad()
def test_an_image_is_read_once_for_all_its_regions(made, image):
    """`owner` gives what a copy of the image for every region gives."""
    model, _, words = made
    nn.init.normal_(model.coordinates.outer.weight, std=0.1)
    texts, owner = encode(words, ["red circle left", "blue square", "green circle"]), torch.tensor([1, 0, 1])
    for causal in (True, False):
        shared = model.read(image[:2], BOXES, texts.ids, texts.mask, causal=causal, owner=owner)
        copied = model.read(image[:2][owner], BOXES, texts.ids, texts.mask, causal=causal)
        for one, other in zip(shared, copied, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.regions(image[:2], BOXES, owner), model.regions(image[:2][owner], BOXES), atol=1e-5, rtol=1e-5)
    nn.init.zeros_(model.coordinates.outer.weight)


def test_lora_trains_what_regionblip_trains(tmp_path):
    captioner, matcher, _, _ = make_blip2(WORDS, tmp_path)
    names = ("embeddings", "vision_projection", "text_projection", "itm_head")
    model = RegionBlip2(captioner, nn.ModuleDict({n: getattr(matcher, n) for n in names}))
    model.add_lora(LoraSettings(rank=8))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    lora = {n for n in trained if "lora_" in n}
    assert any("qformer" in n and "crossattention" in n for n in lora) and any("language_model" in n and "q_proj" in n for n in lora)
    assert all(".query." in n or ".value." in n or "q_proj" in n or "v_proj" in n for n in lora)
    assert not any("vision_model" in n for n in trained)
    assert {"region_queries", "temperature", "coordinates.inner.weight"} <= trained


def pad(rows, left):
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        span = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, span], mask[i, span] = torch.tensor(row), 1
    return ids, mask
