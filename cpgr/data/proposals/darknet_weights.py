"""Weights files by name, and the detector in RefCLIP's flat one (`yolov3_coco.pth`).

Files are read as plain data. What a file lacks, or holds in another shape, is an error; what it holds beyond is listed.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from ...errors import DataError
from ..pickles import load_torch
from .darknet import BOXES, DarkNet, DarkNetConfig

log = logging.getLogger("cpgr")

STAGES = (2, 4, 6, 8, 10)  # DarkNet-53's residual stages in the list of layers


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by name: a flat state dict, or one under `state_dict`; without DDP's `module.`."""
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(path, "", f"is no readable safetensors file: {error}", "get the file again from its source") from error
    else:
        found = load_torch(path, max_bytes=1 << 32)
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    tensors = {k: v for k, v in found.items() if isinstance(v, torch.Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise DataError(path, "", "holds no weights by name", "give a state dict, or a checkpoint with one under `state_dict`")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def read_darknet(path: str | Path) -> DarkNet:
    """The detector of a file of `module_list.*` weights (or of a RefCLIP checkpoint's), its size read from the file."""
    state = read_state(path)
    if any(name.startswith("visual_encoder.") for name in state):
        state = {n.removeprefix("visual_encoder."): v for n, v in state.items() if n.startswith("visual_encoder.")}
    network = DarkNet(darknet_size(state, path))
    load_state(network, state, path)
    return network


def darknet_size(state: dict[str, torch.Tensor], path) -> DarkNetConfig:
    """The size of the detector whose weights `state` holds."""
    first, head = state.get("module_list.0.conv.weight"), state.get("module_list.19.conv.weight")
    if first is None or head is None or first.ndim != 4 or head.ndim != 4:
        raise DataError(
            path, "", "holds no weights of RefCLIP's detector (module_list.0.conv.weight and module_list.19.conv.weight)",
            "give yolov3_coco.pth or yolov3_vg.pth; stock YOLOv3 weights have other heads",
        )  # fmt: skip
    names = [name.split(".") for name in state]
    blocks = tuple(len({n[3] for n in names if n[:3] == ["module_list", str(stage), "module_list"]}) for stage in STAGES)
    return DarkNetConfig(width=len(first), blocks=blocks, classes=len(head) // BOXES - 5)


def load_state(module: nn.Module, state: dict[str, torch.Tensor], path) -> list[str]:
    """Fill `module` from `state`; returns, and logs, the names in the file that it has no use for.

    Raises DataError for what the file lacks and for wrong shapes: nothing stays random without a word.
    """
    wanted = module.state_dict()
    # files older than PyTorch 0.4.1 have no such counters, and nothing reads them
    missing = sorted(n for n in wanted if n not in state and not n.endswith("num_batches_tracked"))
    wrong = [
        f"{name} is {list(state[name].shape)}, not {list(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing:
        raise DataError(path, "", f"lacks {len(missing)} of {len(wanted)} weights: {_some(missing)}", "give weights of this model")
    if wrong:
        raise DataError(path, "", f"{len(wrong)} weights have another shape: {_some(wrong)}", "give weights of this size, or set the sizes to the file's")
    unused = sorted(set(state) - set(wanted))
    module.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)
    log.info("%s: %d weights read, %d not used%s", path, len(wanted), len(unused), f": {', '.join(unused)}" if unused else "")
    return unused


def _some(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
