"""The loss against its formula, in one process and in two; anchors, and the loss within the image."""

import os
import socket
from dataclasses import replace

import pytest
import torch

from cpgr.refinement.anchors.network import AnchorNetwork, ContrastStep, choose_cells, contrast, in_image
from cpgr.refinement.anchors.settings import AnchorConfig
from cpgr.refinement.anchors.sources import Cells, build_source
from cpgr.training import seed_everything

Q, K, D = 7, 5, 6


def features(seed=0, count=Q):
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randn(count, K, D, generator=generator, dtype=torch.float64).requires_grad_()
    return anchors, torch.randn(count, D, generator=generator, dtype=torch.float64).requires_grad_()


def by_formula(anchors, expressions, numbers=None):
    """Loss and both gradients as the paper's formula and its derivative say, number by number, in float64:

    Z_b = log(sum_a exp M1[b, a] + sum_{a != b} exp M2[b, a]); L = mean_b (Z_b - M1[b, b]). The gradient reaches the two winners.
    """
    v, q, count = anchors.detach(), expressions.detach(), len(anchors)
    loss, dv, dq = 0.0, torch.zeros_like(v), torch.zeros_like(q)
    for b in range(count):
        others = [a for a in range(count) if a != b and (numbers is None or numbers[a] != numbers[b])]
        terms = [(b, int((v[b] @ q[b]).argmax()))]
        for a in others:
            terms += [(a, int(n)) for n in (v[a] @ q[b]).argsort(descending=True)[:2]]
        scores = torch.stack([v[a, n] @ q[b] for a, n in terms])
        z = scores.logsumexp(0)
        loss += (z - scores[0]) / count
        for place, ((a, n), share) in enumerate(zip(terms, (scores - z).exp(), strict=True)):
            p = (share - float(place == 0)) / count
            dv[a, n] += p * q[b]
            dq[b] += p * v[a, n]
    return loss, dv, dq


def test_loss_and_gradients_are_the_formulas():
    anchors, expressions = features()
    loss = contrast(anchors, expressions, torch.arange(Q), AnchorConfig())
    wanted, dv, dq = by_formula(anchors, expressions)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    found = torch.autograd.grad(loss, [anchors, expressions])
    torch.testing.assert_close(found[0], dv, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found[1], dq, rtol=1e-10, atol=1e-14)


def test_expressions_of_one_picture_may_be_no_negatives():
    anchors, expressions = features(1)
    numbers = torch.tensor([0, 1, 0, 2, 3, 2, 0])
    loss = contrast(anchors, expressions, numbers, AnchorConfig(same_image="masked"))
    torch.testing.assert_close(loss, by_formula(anchors, expressions, numbers)[0], rtol=1e-12, atol=0)
    assert contrast(anchors, expressions, numbers, AnchorConfig()) > loss


def _process(rank, port, out):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    anchors, expressions = features(2, 6)
    mine = [values[3 * rank : 3 * rank + 3].detach().requires_grad_() for values in (anchors, expressions)]
    numbers = torch.tensor([0, 1, 2, 0, 3, 4])[3 * rank : 3 * rank + 3]
    loss = contrast(*mine, numbers, AnchorConfig(same_image="masked"), whole=6)
    loss.backward()
    torch.save([loss.detach(), *(each.grad for each in mine)], f"{out}.{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_loss_and_gradients_of_the_whole_batch(tmp_path):
    """Each has half of the batch and all negatives; the mean over processes, which DDP takes, is the whole batch's."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, tmp_path / "out"), 2)
    parts = [torch.load(f"{tmp_path / 'out'}.{rank}", weights_only=True) for rank in range(2)]
    anchors, expressions = features(2, 6)
    loss = contrast(anchors, expressions, torch.tensor([0, 1, 2, 0, 3, 4]), AnchorConfig(same_image="masked"))
    loss.backward()
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss.detach(), rtol=1e-12, atol=0)
    for place, whole in ((1, anchors.grad), (2, expressions.grad)):
        torch.testing.assert_close(torch.cat([p[place] for p in parts]) / 2, whole, rtol=1e-12, atol=1e-15)


def test_anchors_are_the_most_confident_cells_in_the_order_of_the_grid():
    mean = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.3], [0.5, 0.4, 0.3, 0.2, 0.1]])
    assert choose_cells(mean, 3).tolist() == [[1, 3, 4], [0, 1, 2]]
    assert choose_cells(mean, 3, torch.tensor([0, -1])).tolist() == [[0, 1, 3], [0, 1, 2]]


def test_loss_within_the_image():
    anchors, expressions = features(3)
    target = torch.zeros(Q, K, dtype=torch.bool)
    target[0, 2] = target[4, 1] = True
    trust = torch.linspace(0.1, 0.7, Q, dtype=torch.float64)
    scores = (anchors * expressions[:, None]).sum(-1)
    wanted = (trust[0] * -scores[0].log_softmax(0)[2] + trust[4] * -scores[4].log_softmax(0)[1]) / 2
    torch.testing.assert_close(in_image(anchors, expressions, target, trust), wanted, rtol=1e-12, atol=0)
    assert in_image(anchors, expressions, target & False, trust) == 0


@pytest.fixture(scope="module")
def cells():
    torch.manual_seed(0)
    maps = (torch.randn(6, 64, 4, 4), torch.randn(6, 32, 8, 8), torch.randn(6, 16, 16, 16))
    return Cells(maps, torch.rand(6, 16, 4), torch.rand(6, 16), torch.rand(6, 16), torch.zeros(6, 16, dtype=torch.long))


def batch(cells, **more):
    return {
        "cells": cells, "place": torch.tensor([0, 1, 2, 2, 3, 4, 5]), "ids": torch.randint(3, 20, (7, 5), generator=torch.Generator().manual_seed(0)),
        "numbers": torch.arange(6), **more,
    }  # fmt: skip


@pytest.fixture
def make(small_config, darknet_file):
    def made(**changes):
        seed_everything("network")
        config = replace(small_config, detector=f"darknet:{darknet_file}", image_size=128, anchors=4, **changes)
        return ContrastStep(AnchorNetwork(config, build_source(config.detector, 128), 20), config).train()

    return made


def test_activations_computed_again_give_the_same_gradients(cells, make):
    """In batches as large as the batch the two ways are the same computation; smaller ones differ by their batch norms alone,
    whose running statistics must not count a batch twice."""
    plain, again = make(), make(recompute=6)
    plain(batch(cells))["loss"].backward()
    again(batch(cells))["loss"].backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(_trained(plain), _trained(again), strict=True))
    parts = make(recompute=2)
    parts(batch(cells))["loss"].backward()
    assert all(p.grad is not None for p in _trained(parts))
    norm = parts.network.fusion.top_proj.batch_norm
    assert norm.momentum == 0.1
    seen, moved = make(), torch.zeros_like(norm.running_mean)
    with torch.no_grad():
        for some in (slice(0, 2), slice(2, 4), slice(4, 6)):
            seen.network.fusion(tuple(m[some] for m in cells.maps), choose_cells(cells.mean[some], 4))
            moved = seen.network.fusion.top_proj.batch_norm.running_mean
    torch.testing.assert_close(norm.running_mean, moved)


def _trained(step):
    return [p for p in step.parameters() if p.requires_grad]


def test_what_is_frozen_and_what_is_trained(cells, make):
    step = make()
    assert not step.network.detector.training and step.network.fusion.training
    step(batch(cells))["loss"].backward()
    assert all(p.grad is not None for p in _trained(step)), "a trained parameter without a gradient is a dead one"
    assert all(not p.requires_grad for p in step.network.detector.parameters())
    assert make(detector_norm="train").network.detector.training


def test_targets_are_among_the_anchors(cells, make):
    step = make(in_image=0.5)
    targets = torch.tensor([15, -1, 0, 1, -1, 2, 3])
    losses = step(batch(cells, targets=targets, trust=torch.ones(7)))
    torch.testing.assert_close(losses["loss"], losses["contrast"] + 0.5 * losses["in_image"])
    assert losses["in_image"] > 0
