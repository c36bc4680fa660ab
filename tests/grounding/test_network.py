"""The grounding network: masks, heads, the marginal loss, and the attention that is returned."""

import pytest
import torch
from transformers import BertConfig, BertModel

from cpgr.data.proposals.tiny_detector import TinyDetector, TinyDetectorConfig
from cpgr.grounding.attention import Attention, CrossAttention
from cpgr.grounding.backbones import TinyBranch
from cpgr.grounding.network import GroundingNetwork, NetworkConfig, box_loss, pointer_loss
from cpgr.grounding.query_network import CellAttention, QueryNetwork
from cpgr_kernels import generalized_box_iou


@pytest.fixture(scope="module")
def branch(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("detector")
    TinyDetector(
        TinyDetectorConfig(image_size=64, width=32, categories=["a", "b"], colours=["c"], sizes=["d"], patterns=["e"])
    ).save_pretrained(folder)
    return TinyBranch(folder).eval()


def network(branch, **options):
    torch.manual_seed(1)
    text = BertModel(BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    config = NetworkConfig(**{"width": 32, "heads": 4, "layers": 2, "ffn": 64, "dropout": 0.0, **options})
    kind = QueryNetwork if config.fusion == "query" else GroundingNetwork
    return kind(config, branch, text, max_words=10).eval()


def inputs(branch, words=6):
    torch.manual_seed(2)
    levels = branch(torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)).detach()
    ids = torch.randint(1, 20, (2, words))
    return levels, ids, torch.ones(2, words), torch.ones(2, branch.grid**2, dtype=torch.bool)


SHAPES = [*({"head": head, "pool": pool} for head in ("regression", "pointer") for pool in (1, 2)), {"fusion": "query", "head": "pointer"}]
POINTERS = [{"head": "pointer"}, {"fusion": "query", "head": "pointer"}]


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_word_padding_changes_nothing(branch, shape):
    """CPL's released mask is added to the logits and raises padding; here padding is hidden."""
    model = network(branch, **shape)
    levels, ids, mask, cells = inputs(branch)
    padded_ids = torch.cat([ids, torch.full((2, 3), 7)], 1)
    padded_mask = torch.cat([mask, torch.zeros(2, 3)], 1)
    a = model(levels, ids, mask, cells, attention_layer=1)
    b = model(levels, padded_ids, padded_mask, cells, attention_layer=1)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", POINTERS)
@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.no_grad()
def test_the_map_alone_is_the_map(branch, layer, shape):
    """Layers beyond the map's are left out; with the pointer's own row none is."""
    model = network(branch, layers=3, **shape)
    asked = inputs(branch)
    whole, calls = model(*asked, attention_layer=layer), []
    for block in model.fusion:
        block.register_forward_hook(lambda *_: calls.append(1))
    alone = model(*asked, attention_layer=layer, attention_only=True)
    assert torch.equal(alone["attention"], whole["attention"]) and len(calls) == (layer - 1 if layer else 3)


@pytest.mark.parametrize("shape", POINTERS)
@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.no_grad()
def test_cells_outside_the_picture_get_no_attention(branch, layer, shape):
    model = network(branch, **shape)
    levels, ids, mask, cells = inputs(branch)
    cells[:, :24] = False
    out = model(levels, ids, mask, cells, attention_layer=layer)
    assert out["attention"][:, :24].abs().max() == 0
    torch.testing.assert_close(out["attention"].sum(1), torch.ones(2))
    noisy = levels.clone()
    noisy[:, :, :24] += 5
    again = model(noisy, ids, mask, cells, attention_layer=layer)
    torch.testing.assert_close(again["boxes"], out["boxes"], atol=1e-5, rtol=1e-4)


def test_pointer_loss_is_the_marginal():
    torch.manual_seed(0)
    weights = torch.rand(2, 5).softmax(1)
    boxes = torch.rand(2, 5, 2).sort(-1).values
    boxes = torch.stack([boxes[..., 0], boxes[..., 0] * 0.5, boxes[..., 1], boxes[..., 1] * 0.5 + 0.5], -1)
    target = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.3, 0.3, 0.9, 0.8]])
    expected = 0
    for i in range(5):
        expected = expected + weights[:, i] * torch.exp(-box_loss(boxes[:, i], target, 5.0, 2.0))
    torch.testing.assert_close(pointer_loss({"weights": weights, "cell_boxes": boxes}, target), -expected.log())


def test_box_loss_weights():
    a, b = torch.tensor([0.0, 0.0, 0.2, 0.2]), torch.tensor([0.1, 0.0, 0.3, 0.2])
    torch.testing.assert_close(box_loss(a, b, 1.0, 0.0), torch.tensor(0.1))
    torch.testing.assert_close(box_loss(a, b, 0.0, 1.0), torch.tensor(1 - 1 / 3))


def test_box_loss_of_boxes_without_area_is_finite():
    point = torch.tensor([[0.3, 0.3, 0.3, 0.3], [0.2, 0.5, 0.4, 0.5]], requires_grad=True)
    for target in (torch.tensor([0.1, 0.1, 0.5, 0.5]), torch.tensor([0.3, 0.3, 0.3, 0.3])):
        loss = box_loss(point, target.expand(2, 4), 5.0, 2.0).sum()
        (gradient,) = torch.autograd.grad(loss, point)
        assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_attention_row_is_the_row(kind):
    torch.manual_seed(0)
    attention = Attention(16, 4, kind=kind)
    query, key = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    row = attention.row(query[:, :1], key, mask)
    assert row.shape == (2, 5) and row[0, 3:].abs().sum() == 0
    # the output of a value that is one-hot in the keys, averaged over heads, is that row
    q, k = attention._split(attention.q(query)), attention._split(attention.k(key))
    full = (q @ k.transpose(-1, -2) / 2).masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)
    torch.testing.assert_close(row, full.mean(1)[:, 0])


def test_both_kinds_of_attention_agree():
    torch.manual_seed(0)
    a = Attention(16, 4, kind="eager")
    b = Attention(16, 4, kind="sdpa")
    b.load_state_dict(a.state_dict())
    x, mask = torch.randn(2, 5, 16), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    torch.testing.assert_close(a(x, x, x, mask), b(x, x, x, mask))


@pytest.mark.parametrize(("few", "many"), [(3, 7), (7, 3), (4, 4)])
def test_cross_attention_is_plain_attention(few, many):
    """Carrying the projections over to the smaller set changes the order of the products, not the function."""
    torch.manual_seed(0)
    cross = CrossAttention(8, 12).double()
    query, key = torch.randn(2, few, 8, dtype=torch.float64), torch.randn(2, many, 12, dtype=torch.float64)
    mask = torch.ones(2, many, dtype=torch.bool)
    mask[0, -1] = False
    scores = (cross.q(query) @ cross.k(key).transpose(1, 2) / 8**0.5).masked_fill(~mask[:, None], float("-inf"))
    torch.testing.assert_close(cross(query, key, mask), cross.out(scores.softmax(-1) @ cross.v(key)))


def test_cell_attention_is_plain_attention():
    """The cells' projections carried over to the queries: torch's own multi-head attention with the places in the keys."""
    torch.manual_seed(0)
    ours, plain = CellAttention(16, 4).double(), torch.nn.MultiheadAttention(16, 4, batch_first=True).double()
    query, cells, places = torch.randn(2, 3, 16).double(), torch.randn(2, 9, 16).double(), torch.randn(9, 16).double()
    mask = torch.rand(2, 9) < 0.7
    with torch.no_grad():
        plain.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        plain.in_proj_bias.copy_(torch.cat([ours.q.bias, torch.zeros(16), ours.v.bias]))
        plain.out_proj.weight.copy_(ours.out.weight)
        plain.out_proj.bias.copy_(ours.out.bias)
        expected, weights = plain(query, cells + places, cells, key_padding_mask=~mask, average_attn_weights=False)
    torch.testing.assert_close(ours(query, cells, places, mask), expected)
    torch.testing.assert_close(ours.weights(query, cells, places, mask), weights)


def test_the_query_network_tells_left_from_right(branch):
    """Two cells alike but for their place: a word of position can choose between them."""
    model = network(branch, fusion="query", head="pointer").train()
    levels, _, words, cells = inputs(branch, words=2)
    same = levels[:, :, :1].expand_as(levels).contiguous()
    ids = torch.tensor([[3, 4], [3, 5]])
    target = torch.tensor([0, branch.grid - 1])  # the first row's ends
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(40):
        loss = torch.nn.functional.nll_loss(model(same, ids, words, cells)["weights"].clamp(min=1e-9).log(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model(same, ids, words, cells)["weights"].argmax(1).tolist() == target.tolist()


@pytest.mark.parametrize("pool", [1, 2])
@torch.no_grad()
def test_pointer_is_plain_products(branch, pool):
    """Merging, pooling and the pointer's query in another order of the products: the function of the formula."""
    model = network(branch, head="pointer", pool=pool, attention_kind="eager").double()
    levels, ids, words, cells = inputs(branch)
    levels, words = levels.double(), words.bool()
    seen = {}
    model.fusion[-1].register_forward_hook(lambda module, args, output: seen.update(fused=output))
    model.fusion[0].register_forward_hook(lambda module, args, output: seen.update(first=args[0]))
    got = model(levels, ids, words, cells)["weights"]
    text = model.text_encoder(input_ids=ids, attention_mask=words.long()).last_hidden_state
    unmerged, _ = model.cross(levels, text, cells, words)
    visual = model.cross.visual_merge(torch.cat(list(unmerged.unbind(1)), -1))
    side, grid = branch.grid // pool, branch.grid
    tokens = model.visual_in(visual).unflatten(1, (side, pool, side, pool)).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(seen["first"][:, -(side**2) :], tokens)
    fused = seen["fused"][:, -(side**2) :].unflatten(1, (side, side))
    fused = fused.repeat_interleave(pool, 1).repeat_interleave(pool, 2).reshape(2, grid**2, -1)
    keys = model.pointer_key(fused + model.pointer_skip(visual))
    scores = (keys @ model.pointer_query(seen["fused"][:, 0])[:, :, None]).squeeze(-1) / keys.shape[-1] ** 0.5
    torch.testing.assert_close(got, scores.float().softmax(-1))


def test_regression_head_has_no_pointer(branch):
    with pytest.raises(ValueError, match="regression head has none"), torch.no_grad():
        network(branch, head="regression")(*inputs(branch), attention_layer=0)


def test_the_pointer_learns_without_labelled_cells(branch):
    """A few steps on two boxes: the box and the attention's mass move to the target."""
    model = network(branch, head="pointer").train()
    model.branch.requires_grad_(False)
    levels, ids, mask, cells = inputs(branch)
    target = torch.tensor([[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    for _ in range(60):
        loss = pointer_loss(model(levels, ids, mask, cells), target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = model(levels, ids, mask, cells)["boxes"].detach()
    assert (generalized_box_iou(found, target, pairwise=False) > 0.5).all()
