"""Weights in the published form, at any width: the names are written out from their description, not from our modules."""

import torch

from cpgr.data.proposals.darknet import DarkNetConfig

NORM = {"weight": 1, "bias": 1, "running_mean": 1, "running_var": 1, "num_batches_tracked": 0}


def conv_block(name, inside, outside, kernel):
    shapes = {f"{name}.conv.weight": (outside, inside, kernel, kernel)}
    return shapes | {f"{name}.batch_norm.{part}": (outside,) * dims for part, dims in NORM.items()}


def residuals(name, channels, count):
    shapes = {}
    for j in range(count):
        shapes |= conv_block(f"{name}.module_list.{j}.0", channels, channels // 2, 1)
        shapes |= conv_block(f"{name}.module_list.{j}.1", channels // 2, channels, 3)
    return shapes


def head(name, channels, classes):
    return {
        f"{name}.guide_wh.weight": (8, channels, 1, 1), f"{name}.guide_wh.bias": (8,),
        f"{name}.Feature_adaption.conv_offset.weight": (72, 2, 1, 1), f"{name}.Feature_adaption.conv_offset.bias": (72,),
        f"{name}.Feature_adaption.dconv.weight": (channels, channels, 3, 3), f"{name}.Feature_adaption.dconv.bias": (channels,),
        f"{name}.conv.weight": (4 * (5 + classes), channels, 1, 1), f"{name}.conv.bias": (4 * (5 + classes),),
    }  # fmt: skip


def detector_shapes(config: DarkNetConfig) -> dict:
    """The flat names of yolov3_coco.pth."""
    w, at = config.width, "module_list."
    shapes = conv_block(at + "0", 3, w, 3)
    for stage in range(5):
        shapes |= conv_block(f"{at}{1 + 2 * stage}", w << stage, w << stage + 1, 3)
        shapes |= residuals(f"{at}{2 + 2 * stage}", w << stage + 1, config.blocks[stage])
    shapes |= residuals(at + "11", 32 * w, 1)
    for index, inside, outside, kernel in (
        (12, 32, 16, 1), (14, 64, 16, 1), (15, 16, 32, 3), (17, 32, 16, 1), (18, 16, 32, 3),
        (20, 16, 8, 1), (22, 24, 8, 1), (23, 8, 16, 3), (26, 16, 8, 1), (27, 8, 16, 3),
        (29, 8, 4, 1), (31, 12, 4, 1), (32, 4, 8, 3), (35, 8, 4, 1), (36, 4, 8, 3),
    ):  # fmt: skip
        shapes |= conv_block(f"{at}{index}", inside * w, outside * w, kernel)
    shapes |= residuals(at + "25", 16 * w, 1) | residuals(at + "34", 8 * w, 1)
    for index, channels in ((19, 32 * w), (28, 16 * w), (37, 8 * w)):
        shapes |= head(f"{at}{index}", channels, config.classes)
    return shapes


def refclip_shapes(config: DarkNetConfig, words: int, vector: int, width: int, ffn: int, layers: int, space: int) -> dict:
    """The 591 names of a RefCLIP checkpoint (three self-attention blocks)."""
    shapes = {f"visual_encoder.{name}": shape for name, shape in detector_shapes(config).items()}
    lang = "lang_encoder."
    shapes[lang + "embedding.weight"] = (words, vector)
    shapes |= {f"{lang}lstm.weight_ih_l0": (3 * width, vector), f"{lang}lstm.weight_hh_l0": (3 * width, width)}
    shapes |= {f"{lang}lstm.bias_{side}_l0": (3 * width,) for side in ("ih", "hh")}

    def linear(name, inside, outside):
        return {f"{name}.weight": (outside, inside), f"{name}.bias": (outside,)}

    for k in range(layers):
        block = f"{lang}sa_list.{k}."
        for part in "vkq":
            shapes |= linear(f"{block}mhatt.linear_{part}", width, width)
        shapes |= linear(f"{block}mhatt.linear_merge", width, width)
        shapes |= linear(f"{block}ffn.mlp.fc.linear", width, ffn) | linear(f"{block}ffn.mlp.linear", ffn, width)
        shapes |= {f"{block}norm{i}.{part}": (width,) for i in (1, 2) for part in ("weight", "bias")}
    shapes |= linear(f"{lang}att_flat.mlp.fc.linear", width, width // 2) | linear(f"{lang}att_flat.mlp.linear", width // 2, 1)
    shapes |= linear(f"{lang}att_flat.linear_merge", width, width)
    coarse, middle, fine = config.channels
    half = coarse // 2
    shapes |= linear("linear_vs", coarse, space) | linear("linear_ts", width, space)
    ways = {"up_modules.0": middle + half, "up_modules.1": coarse, "down_modules.0": fine + half, "down_modules.1": middle + coarse}
    for name, inside in ways.items():
        shapes |= conv_block(f"multi_scale_manner.{name}.1", inside, half, 1) | conv_block(f"multi_scale_manner.{name}.2", half, half, 3)
    for name, inside in (("top", coarse + half), ("mid", middle + coarse), ("bot", fine + half)):
        shapes |= conv_block(f"multi_scale_manner.{name}_proj", inside, coarse, 1)
    return shapes


def weights(shapes: dict, seed: int = 0) -> dict:
    """Random tensors of these shapes, such as a network that works could have."""
    generator = torch.Generator().manual_seed(seed)

    def one(name, shape):
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        if name.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight")):
            return torch.rand(shape, generator=generator) + 0.5
        fan = max(1, torch.Size(shape[1:]).numel())
        return torch.randn(shape, generator=generator) / fan**0.5

    return {name: one(name, shape) for name, shape in shapes.items()}
