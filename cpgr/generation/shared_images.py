"""Regions of one image share its keys and values in the Q-Former's cross-attention.

transformers projects the image's tokens once a query set, so a region costs the projection of a whole image. Here the
image comes once and `owner` says which image each region belongs to: the projected tokens are looked up instead.
"""

from __future__ import annotations

from torch import nn


def share_images(qformer: nn.Module) -> None:
    """Let the Q-Former's cross-attention take `owner` [R], for features of I images; without it nothing changes."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.models.blip_2.modeling_blip_2 import ALL_ATTENTION_FUNCTIONS, eager_attention_forward

    plain = qformer.config._attn_implementation or "eager"
    if not plain.endswith("_shared"):
        name = f"{plain}_shared"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(plain, eager_attention_forward)
        AttentionInterface.register(name, _looked_up(attend))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[plain])
        qformer.config._attn_implementation = name
    for layer in qformer.encoder.layer:
        if layer.has_cross_attention:
            layer.crossattention.attention.reads_image = True


def _looked_up(attend):
    def shared(module, query, key, value, attention_mask, owner=None, **kwargs):
        if owner is not None and getattr(module, "reads_image", False):
            key, value = (x.flatten(1).index_select(0, owner).unflatten(1, x.shape[1:]) for x in (key, value))
        return attend(module, query, key, value, attention_mask, **kwargs)

    return shared
