"""Published weights: their names and number, wrappers and prefixes, what is left over, and what is refused."""

import logging
import pickle

import pytest
import torch

from cpgr.data.proposals.darknet import DarkNet, DarkNetConfig
from cpgr.data.proposals.darknet_weights import load_state, read_darknet, read_state
from cpgr.errors import CpgrError, DataError
from cpgr.language import LanguageConfig
from cpgr.refinement.anchors.checkpoints import published_names
from cpgr.refinement.anchors.network import AnchorNetwork
from cpgr.refinement.anchors.settings import AnchorConfig
from cpgr.refinement.anchors.sources import DarkNetSource

SIZE = DarkNetConfig(width=2, classes=5)  # the published blocks: the number of names is the published one
WORDS = 11


@pytest.fixture(scope="module")
def state(published):
    return published.weights(published.refclip_shapes(SIZE, WORDS, vector=6, width=8, ffn=16, layers=3, space=12))


@pytest.fixture
def network():
    config = AnchorConfig(width=12, anchors=4, language=LanguageConfig(word_width=6, width=8, layers=3, heads=2, ffn=16))
    return AnchorNetwork(config, DarkNetSource(DarkNet(SIZE), 64), WORDS)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_refclip_checkpoint_fills_the_network(tmp_path, state, network, caplog, prefix, wrapped):
    assert len(state) == 591
    path = tmp_path / "det_best.pth"
    named = {prefix + name: value for name, value in state.items()}
    torch.save({"epoch": 24, "state_dict": named, "optimizer": {"state": {}}, "lr": 1e-6} if wrapped else named, path)
    with caplog.at_level(logging.INFO, logger="cpgr"):
        unused = load_state(network, published_names(read_state(path)), path)
    # two heads and two projections that nothing reads: 16 + 12 names, each of them said
    assert len(unused) == 28 and {n.split(".")[3] for n in unused if "module_list" in n} == {"28", "37"}
    assert all(name in caplog.text for name in unused)
    ours = network.state_dict()
    assert torch.equal(ours["language.gru.weight_hh_l0"], state["lang_encoder.lstm.weight_hh_l0"])
    assert torch.equal(ours["language.blocks.2.merge.bias"], state["lang_encoder.sa_list.2.mhatt.linear_merge.bias"])
    assert torch.equal(ours["language.blocks.0.ffn2.weight"], state["lang_encoder.sa_list.0.ffn.mlp.linear.weight"])
    assert torch.equal(ours["language.pool.score1.weight"], state["lang_encoder.att_flat.mlp.fc.linear.weight"])
    assert torch.equal(ours["fusion.up_modules.1.2.conv.weight"], state["multi_scale_manner.up_modules.1.2.conv.weight"])
    assert torch.equal(ours["anchor_projection.weight"], state["linear_vs.weight"])
    assert torch.equal(ours["detector.network.module_list.34.module_list.0.1.conv.weight"], state["visual_encoder.module_list.34.module_list.0.1.conv.weight"])


def test_published_sizes():
    """27,501,057 trained parameters, less the two projections of the fusion that are never trained."""
    with torch.device("meta"):
        network = AnchorNetwork(AnchorConfig(), DarkNetSource(DarkNet(), 416), 10_344)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad) - 10_344 * 300
    assert trained == 27_501_057 - 2_363_392


@pytest.mark.parametrize("form", ["flat", "whole checkpoint", "safetensors"])
def test_the_size_of_a_detector_is_read_from_its_file(tmp_path, published, state, form):
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "yolov3_coco.pth")
    flat = {n.removeprefix("visual_encoder."): v for n, v in state.items() if n.startswith("visual_encoder.")}
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(flat, path)
    else:
        torch.save(flat if form == "flat" else {"state_dict": state}, path)
    network = read_darknet(path)
    assert (network.config.width, network.config.blocks, network.config.classes) == (2, (1, 2, 8, 8, 4), 5)
    assert torch.equal(network.module_list[0].conv.weight, state["visual_encoder.module_list.0.conv.weight"])


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.pop("linear_vs.bias"), "lacks 1 of .* weights: anchor_projection.bias"),
    (lambda s: s.update({"linear_vs.bias": torch.zeros(13)}), r"anchor_projection.bias is \[13\], not \[12\]"),
])  # fmt: skip
def test_missing_and_wrong_weights_are_named(tmp_path, state, network, change, message):
    broken = dict(state)
    change(broken)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(DataError, match=message):
        load_state(network, published_names(broken), tmp_path / "x.pth")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items()), "nothing was filled"


def test_what_is_no_such_file(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("executed",))

    for name, content, message in [
        ("missing.pth", None, "cannot be read"), ("stock.pth", {"conv1.weight": torch.zeros(2)}, "stock YOLOv3 weights have other heads"),
        ("list.pth", [1, 2], "holds no weights by name"), ("empty.pth", {"epoch": 3}, "holds no weights by name"),
    ]:  # fmt: skip
        if content is not None:
            torch.save(content, tmp_path / name)
        with pytest.raises(CpgrError, match=message):
            read_darknet(tmp_path / name)
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="nothing in the file was executed"):
        read_darknet(tmp_path / "trap.pth")
