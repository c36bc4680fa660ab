"""RefCLIP's checkpoints: the published names of weights and ours. (Files are read by `data.proposals.darknet_weights`.)"""

from __future__ import annotations

import torch

from ...errors import CpgrError

# The published name of a part and ours, the longer names first.
NAMES = (
    ("visual_encoder.", "detector.network."),
    ("lang_encoder.lstm.", "language.gru."),
    ("lang_encoder.sa_list.", "language.blocks."),
    ("lang_encoder.att_flat.mlp.fc.linear.", "language.pool.score1."),
    ("lang_encoder.att_flat.mlp.linear.", "language.pool.score2."),
    ("lang_encoder.att_flat.linear_merge.", "language.pool.merge."),
    ("lang_encoder.", "language."),
    ("multi_scale_manner.", "fusion."),
    ("linear_vs.", "anchor_projection."),
    ("linear_ts.", "expression_projection."),
)
BLOCK_NAMES = (("mhatt.linear_", ""), ("ffn.mlp.fc.linear.", "ffn1."), ("ffn.mlp.linear.", "ffn2."))


def published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A RefCLIP checkpoint's tensors by the names of `AnchorNetwork`."""
    return {_our_name(name): value for name, value in state.items()}


def _our_name(name: str) -> str:
    for theirs, ours in NAMES:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    if name.startswith("language.blocks."):
        for theirs, ours in BLOCK_NAMES:
            name = name.replace(theirs, ours)
    return name


def check_words(state: dict[str, torch.Tensor], words: int, path) -> None:
    """A checkpoint's word vectors have no names: their number must be that of the words given."""
    rows = state.get("language.embedding.weight")
    if rows is not None and len(rows) != words:
        raise CpgrError(
            f"{path} has {len(rows)} word vectors, refinement.words gives {words}: name the annotations (all splits, in their "
            "order) that the checkpoint was trained with"
        )
