"""RefCLIP's published loss in the steps in which it was published, for comparison: not the way to compute it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def refclip_loss(anchors: Tensor, queries: Tensor) -> Tensor:
    """The loss of anchors [B, N, D] and queries [B, 1, D], query b belonging to image b.

    All scores [B, B, 1, N]; the two best of each image; the best of all images and, of the others alone, the second
    best as the 2 B - 1 logits of each query; cross entropy with its own image's best.
    """
    count = len(anchors)
    best = torch.einsum("avd,bqd->baqv", anchors, queries).topk(2, dim=-1).values.squeeze(2)
    others = ~torch.eye(count, dtype=torch.bool).to(anchors.device)
    second = best[..., 1].masked_select(others).view(count, count - 1)
    own = torch.eye(count).to(anchors.device).argmax(1)
    return F.cross_entropy(torch.cat([best[..., 0], second], dim=1), own)
