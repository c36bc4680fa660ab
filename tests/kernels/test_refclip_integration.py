"""RefCLIP's head by the kernel: the same loss and gradients, undone on demand, refused where the loss is another."""

import runpy
import sys
import types
from pathlib import Path

import pytest
import torch

from cpgr_kernels import anchor_contrast
from cpgr_kernels.integrations import refclip

refclip_loss = runpy.run_path(str(Path(__file__).with_name("refclip_loss.py")))["refclip_loss"]


@pytest.fixture
def head(monkeypatch):
    """A module like RefCLIP's head: a function, and a model that calls it by name while it trains."""
    module = types.ModuleType("someones_code.head")
    module.torch, module.refclip_loss = torch, refclip_loss
    source = """
def getContrast(vis_emb, lan_emb):
    return refclip_loss(vis_emb, lan_emb)

class WeakREChead(torch.nn.Module):
    def forward(self, vis_fs, lan_fs):
        if self.training:
            return getContrast(vis_fs, lan_fs)
        scores = torch.einsum("bkd,byd->byk", vis_fs, lan_fs)
        return scores == scores.amax(-1, keepdim=True)
"""
    exec(source, vars(module))  # noqa: S102 - so that the names are the module's own
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield module
    refclip.unpatch()


def features():
    generator = torch.Generator().manual_seed(0)
    shapes = (6, 17, 32), (6, 1, 32)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def with_gradients(loss, given):
    return loss, *torch.autograd.grad(loss, given)


def count_kernels(monkeypatch):
    calls = []
    monkeypatch.setattr(refclip, "anchor_contrast", lambda *a, **k: calls.append(a) or anchor_contrast(*a, **k))
    return calls


@pytest.mark.parametrize("given", ["module", "class", "model", "nothing"])
def test_the_head_computes_the_same(head, monkeypatch, given):
    model, emb = head.WeakREChead(), features()
    wanted, before = with_gradients(model(*emb), emb), head.getContrast
    chosen = {"module": head, "class": head.WeakREChead, "model": model, "nothing": None}[given]
    with refclip.patch(chosen):
        calls = count_kernels(monkeypatch)
        actual = with_gradients(model(*emb), emb)
        assert len(calls) == 1
        assert model.eval()(*emb).sum() == 6  # the prediction is untouched
    for ours, theirs in zip(actual, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert head.getContrast is before


@pytest.mark.parametrize("static", [True, False])
def test_a_method(static, monkeypatch):
    class Head(torch.nn.Module):
        if static:
            getContrast = staticmethod(refclip_loss)  # noqa: N815
        else:

            def getContrast(self, vis_emb, lan_emb):  # noqa: N802
                return refclip_loss(vis_emb, lan_emb)

        def forward(self, vis_fs, lan_fs):
            return self.getContrast(vis_fs, lan_fs)

    model, emb = Head(), features()
    wanted, before = with_gradients(model(*emb), emb), vars(Head)["getContrast"]
    patch = refclip.patch(model)
    calls = count_kernels(monkeypatch)
    actual = with_gradients(model(*emb), emb)
    for ours, theirs in zip(actual, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    patch.undo()
    patch.undo()
    assert len(calls) == 1 and vars(Head)["getContrast"] is before


def test_unpatch_undoes_all(head):
    before = head.getContrast
    refclip.patch(head)
    assert head.getContrast is not before
    with pytest.raises(ValueError, match="patched already"):
        refclip.patch(head.WeakREChead)
    refclip.unpatch()
    assert head.getContrast is before


def test_another_loss_is_left_alone(head):
    head.getContrast = another = lambda vis_emb, lan_emb: refclip_loss(vis_emb, lan_emb / 0.07)
    with pytest.raises(ValueError, match=r"getContrast of someones_code\.head computes another loss"):
        refclip.patch(head)
    assert head.getContrast is another
    head.getContrast = lambda vis_emb: vis_emb
    with pytest.raises(TypeError, match=r"takes \(vis_emb\), not \(vis_emb, lan_emb\)"):
        refclip.patch(head)
    head.getContrast = lambda vis_emb, lan_emb: vis_emb @ lan_emb
    with pytest.raises(TypeError, match="fails on vis_emb"):
        refclip.patch(head)


def test_what_is_no_head_is_named():
    with pytest.raises(TypeError, match="Linear is not RefCLIP's head.*no module has|Linear is not RefCLIP's head"):
        refclip.patch(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="found: none.*Import RefCLIP's head first"):
        refclip.patch()


def test_several_expressions_an_image_are_refused(head):
    refclip.patch(head)
    with pytest.raises(ValueError, match=r"lan_emb must be \[B, 1, D\].*\[2, 3, 4\]"):
        head.getContrast(torch.zeros(2, 5, 4), torch.zeros(2, 3, 4))
