"""Filtering's attention maps of an image's expressions: the image encoded once for all of them, against the whole network for each.

The published network (ResNet-50 and DETR's encoder at 640 pixels, BERT base, six fusion layers, the third one's map) with random weights,
and the built-in one. The maps of both ways are the same. `python -m benchmarks.bench_filtering` counts the operations of the published one.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from .harness import Case
from .peers import MissingPeer

EXPRESSIONS = 10  # an image's, its true and pseudo ones
EACH = "whole network per expression"
GOALS = {EACH: 5.0}
TEXTS = [
    "left man", "the woman in the red coat", "second dog from the left", "bus", "small white plate on the table",
    "boy holding a bat", "the chair near the window", "black cat", "front car", "bowl of soup on the right",
]  # fmt: skip


def cases(device: str = "cpu") -> Iterator[Case]:
    """The published size, then the built-in one."""
    try:
        import accelerate  # noqa: F401 - the package cpgr, not only its kernels
        import transformers  # noqa: F401
    except ImportError as error:
        yield Case("filtering", "all", {"cpgr": lambda: None, EACH: MissingPeer(str(error))}, _agree)
        return
    yield _case("published", _published(device))
    yield _case("built-in", _builtin(device))


def _case(name: str, grounder) -> Case:
    from cpgr.data.records import Image
    from cpgr.stages import Query

    folder = Path(tempfile.mkdtemp(prefix="cpgr-bench-"))
    image = Image("a", "a.png", _picture(folder / "a.png"), 640, 480)
    queries = [Query(image, text) for text in TEXTS[:EXPRESSIONS]]
    layer = grounder.config.network.attention_layer

    def maps() -> torch.Tensor:
        if grounder.store is not None:  # a frozen branch: every run starts with nothing cached
            grounder.store.memory.clear()
        return grounder.attend(queries).maps

    @torch.no_grad()
    def whole() -> torch.Tensor:
        """The network from the picture on, for each expression."""
        from cpgr.data.features import load_frames

        found, place = [], grounder.accelerator.device
        for query in queries:
            ids, mask = grounder._words([query.text])
            with grounder.accelerator.autocast():
                levels = grounder.network.visual_levels(load_frames([image], grounder.size, "letterbox", grounder.fill).to(place))
                levels = levels if grounder.store is None else levels.bfloat16()
                cells = grounder._cells([image]).to(place)
                found.append(grounder.network(levels, ids.to(place), mask.to(place), cells, layer)["attention"])
        return torch.cat(found).float().cpu()

    return Case(
        "filtering",
        f"{name} network, {len(queries)} expressions an image",
        {"cpgr": maps, EACH: whole},
        _agree,
        goals=GOALS,
    )


def _published(device: str):
    from transformers import BertConfig, BertModel, DetrConfig, DetrForObjectDetection, ResNetConfig

    from cpgr.grounding.transvg import TransVGConfig

    folder = Path(tempfile.mkdtemp(prefix="cpgr-bench-"))
    torch.manual_seed(0)
    backbone = ResNetConfig(out_features=["stage4"])  # ResNet-50
    detr = DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone)
    DetrForObjectDetection(detr).save_pretrained(folder / "detr")
    config = TransVGConfig(visual=f"transformers:{folder / 'detr'}", image_size=640)
    return _grounder(config, device, BertModel(BertConfig()))


def _builtin(device: str):
    from transformers import AutoModel

    from cpgr.grounding.network import NetworkConfig
    from cpgr.grounding.transvg import TransVGConfig
    from cpgr.vocabulary import BUILTIN

    network = NetworkConfig(fusion="query", head="pointer", width=128, heads=4, layers=3, ffn=256, attention_layer=0, attention_kind="eager")
    config = TransVGConfig(visual="builtin", text="builtin", text_layers=0, image_size=0, freeze_visual=True, network=network)
    return _grounder(config, device, AutoModel.from_pretrained(BUILTIN / "bert"))


def _grounder(config, device: str, encoder):
    """A grounder of random weights. The built-in tokenizer stands for BERT's: the ids are others, the lengths alike."""
    from transformers import AutoTokenizer

    from cpgr.grounding.transvg import TransVGGrounder
    from cpgr.training import make_accelerator
    from cpgr.vocabulary import BUILTIN

    accelerator = make_accelerator("bf16" if device == "cuda" else "fp32")
    grounder = TransVGGrounder(config, accelerator, Path(tempfile.mkdtemp(prefix="cpgr-bench-")))
    grounder.tokenizer = AutoTokenizer.from_pretrained(BUILTIN / "bert")
    grounder._take(grounder._network(encoder))
    return grounder


def _picture(path: Path) -> Path:
    from PIL import Image as pil

    noise = torch.randint(0, 256, (480, 640, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pil.frombytes("RGB", (640, 480), noise.numpy().tobytes()).save(path)
    return path


def _agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    # maps of 400 cells have entries about 1/400; under bf16 autocast they agree to its rounding
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-4)


def main() -> None:
    """Count the operations of one run of each way (the matrix products, which are nearly all)."""
    from torch.utils.flop_counter import FlopCounterMode

    case, found = _case("published", _published("cpu")), {}
    for way, run in case.run.items():
        with FlopCounterMode(display=False) as counter:
            run()
        found[way] = counter.get_total_flops() / 1e9
    print(f"{case.name}: " + ", ".join(f"{way} {value:,.0f} GFLOP" for way, value in found.items()) + f", {found[EACH] / found['cpgr']:.1f}x")


if __name__ == "__main__":
    main()
