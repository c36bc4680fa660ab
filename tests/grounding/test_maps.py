"""Layers over feature maps: against sums written out by hand, and their shapes."""

import math

import pytest
import torch

from cpgr.errors import CpgrError
from cpgr.grounding.maps import Garan, MultiScale, TextGate, check_scales, pack, unpack
from cpgr.grounding.recurrent import RecurrentConfig, RecurrentEncoder

SCALES = [(4, 8), (6, 4), (5, 2)]


def maps(batch=3):
    torch.manual_seed(0)
    return [torch.randn(batch, channels, side, side) for channels, side in SCALES]


def test_packed_maps_come_back():
    made = maps()
    packed = pack(made)
    assert packed.shape == (3, 4 * 64 + 6 * 16 + 5 * 4)
    assert all(torch.equal(a, b) for a, b in zip(made, unpack(packed, SCALES), strict=True))


def test_sides_that_are_not_halved_are_refused():
    check_scales(SCALES)
    with pytest.raises(CpgrError, match=r"maps of \[8, 3\] cells"):
        check_scales([(4, 8), (4, 3)])
    with pytest.raises(CpgrError, match="3 heads do not part a width of 4"):
        Garan(text=3, width=4, heads=3)


def test_garan_is_the_sum_it_says():
    torch.manual_seed(1)
    layer = Garan(text=3, width=4, heads=2).eval()
    x, text = torch.randn(2, 4, 3, 3), torch.randn(2, 3)
    out, logits = layer(x, text)
    cells = x.flatten(2)

    def project(part, b):  # [cells, 4]
        return cells[b].T @ part.weight[:, :, 0, 0].T + part.bias

    for b in range(2):
        query, gathered, mean = layer.query(text[b]), torch.zeros(9, 4), torch.zeros(9)
        for h in range(2):
            part = slice(2 * h, 2 * h + 2)
            scores = project(layer.collect, b)[:, part] @ query[part] / math.sqrt(2)
            found = scores.softmax(0) @ project(layer.value, b)[:, part]
            given = torch.sigmoid(project(layer.spread, b)[:, part] @ query[part] / math.sqrt(2))
            gathered[:, part], mean = given[:, None] * found, mean + scores / 2
        torch.testing.assert_close(logits[b], mean)
        wanted = torch.nn.functional.leaky_relu((gathered + cells[b].T) / math.sqrt(1 + 1e-5), 0.1)
        torch.testing.assert_close(out[b].flatten(1).T, wanted)


def test_the_text_gates_the_map():
    torch.manual_seed(2)
    layer = TextGate(torch.nn.Conv2d(4, 6, 1), 3, 6).eval()
    x, text = torch.randn(2, 4, 5, 5), torch.randn(2, 3)
    gate = torch.nn.functional.leaky_relu(layer.text(text) / math.sqrt(1 + 1e-5), 0.1)
    wanted = torch.nn.functional.leaky_relu(layer.visual(x) * gate[..., None, None] / math.sqrt(1 + 1e-5), 0.1)
    torch.testing.assert_close(layer(x, text), wanted)


def test_multi_scale_fusion_reads_every_scale_and_has_the_published_widths():
    layer = MultiScale([(512, 52), (512, 26), (512, 13)], 512)
    inputs = [[block[0].conv.in_channels for block in way] for way in (layer.up, layer.down)]
    # coarse -> middle, (middle, 256) -> fine; (fine, 256) -> middle, (middle, 256, 256) -> coarse
    assert inputs == [[512, 768], [768, 1024]] and layer.out.conv.in_channels == 768
    layer, made = MultiScale(SCALES, 8).eval(), maps()
    out = layer(made)
    assert out.shape == (3, 8, 2, 2)
    for place in range(3):
        changed = [m + (i == place) for i, m in enumerate(made)]
        assert not torch.allclose(layer(changed), out)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_padding_is_not_read(cell):
    torch.manual_seed(3)
    encoder = RecurrentEncoder(RecurrentConfig(cell, word_width=6, width=5), words=9).eval()
    ids = torch.tensor([[3, 4, 0, 0], [5, 6, 7, 8]])
    read, alone = encoder(ids, ids > 0), encoder(ids[:1, :2], ids[:1, :2] > 0)
    assert read.vector.shape == (2, 10) and read.states.shape == (2, 4, 10) and read.embedded.shape == (2, 4, 6)
    torch.testing.assert_close(read.vector[:1], alone.vector)
    torch.testing.assert_close(read.states[:1, :2], alone.states)
    # the vector is the forward direction's last state and the backward direction's first
    torch.testing.assert_close(read.vector[1], torch.cat([read.states[1, 3, :5], read.states[1, 0, 5:]]))
    assert torch.isfinite(encoder(ids * 0, ids < 0).vector).all()
