"""Whole models of transformers with their attention maps: eager and its [B, H, T, S] weights against captured maps.

What a user gains: attention is a part of a model, so these ratios are smaller than those of the op. A third column runs
sdpa without maps, which is what a forward costs that shows nothing.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .harness import Case
from .peers import MissingPeer

LAYERS = 2  # of models that have 12 and more: the ratios are those of a layer
EAGER, SDPA = "transformers eager, output_attentions", "transformers sdpa, no maps"


def cases(device: str) -> Iterator[Case]:
    """Where a Q-Former's 32 queries look in an image, and where the class token of a ViT looks."""
    try:
        import transformers
    except ImportError as error:
        yield Case("transformers", "all", {"cpgr_kernels": lambda: None, EAGER: MissingPeer(str(error))}, _agree)
        return
    from cpgr_kernels.integrations.transformers import register

    register()
    with torch.device(device):
        yield _qformer_case(transformers, 8)
        for pixels, batch in ((224, 4), (384, 2), (672, 1)):
            yield _vit_case(transformers, pixels, batch)


def _qformer_case(transformers, batch: int) -> Case:
    settings = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": LAYERS}
    config = transformers.Blip2QFormerConfig(**settings, encoder_hidden_size=1408, cross_attention_frequency=2)
    model = _random(transformers.Blip2QFormerModel(config))
    queries, image = _noise(batch, 32, 768), _noise(batch, 257, 1408)
    inputs = {"query_embeds": queries, "encoder_hidden_states": image}
    pairs = batch * LAYERS * 32 * (32 + 257 // 2)
    return _case(
        f"Q-Former, {LAYERS} layers, batch {batch}, 32 queries x 257 patches, all rows",
        model,
        inputs,
        lambda output: output.cross_attentions,
        {"kinds": "cross"},
        None,
        batch * 32,
        4 * pairs * 768,
    )


def _vit_case(transformers, pixels: int, batch: int) -> Case:
    settings = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": LAYERS}
    config = transformers.CLIPVisionConfig(**settings, image_size=pixels, patch_size=16)
    model = _random(transformers.CLIPVisionModel(config))
    tokens = (pixels // 16) ** 2 + 1
    return _case(
        f"CLIP ViT-B/16, {LAYERS} layers, batch {batch}, {tokens} tokens, class token's row",
        model,
        {"pixel_values": _noise(batch, 3, pixels, pixels)},
        lambda output: output.attentions,
        {"rows": 0},
        0,
        batch * tokens,
        4 * batch * LAYERS * tokens * tokens * 768,
    )


def _case(
    name: str,
    model: nn.Module,
    inputs: dict[str, Tensor],
    weights: Callable,
    chosen: dict,
    row: int | None,
    tokens: int,
    attention_flops: int,
) -> Case:
    from cpgr_kernels.integrations.transformers import capture_maps

    ours, eager, sdpa = (_with(model, implementation) for implementation in ("cpgr", "eager", "sdpa"))

    @torch.no_grad()
    def captured():
        with capture_maps(ours, **chosen) as maps:
            output = ours(**inputs)
        return output[0], torch.stack([each.map for each in maps])

    @torch.no_grad()
    def returned():
        output = eager(**inputs, output_attentions=True)
        maps = torch.stack([each.mean(1) for each in weights(output)])
        return output[0], maps if row is None else maps[:, :, row : row + 1]

    @torch.no_grad()
    def without_maps():
        return sdpa(**inputs)[0]

    parameters = sum(each.weight.numel() for each in model.modules() if isinstance(each, nn.Linear))
    return Case(
        "transformers",
        name,
        {"cpgr_kernels": captured, EAGER: returned, SDPA: without_maps},
        _agree,
        floor_bytes=4 * parameters,
        floor_flops=2 * parameters * tokens + attention_flops,
        other_work=(SDPA,),
    )


def _agree(ours, theirs) -> None:
    for each, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(each, wanted, rtol=1e-3, atol=1e-4)


def _with(model: nn.Module, implementation: str) -> nn.Module:
    found = copy.deepcopy(model)
    found.set_attn_implementation(implementation)
    return found


def _random(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, device="cpu") * 0.02)
    return model.eval()


def _noise(*shape: int) -> Tensor:
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(1), device="cpu")
    return noise.to(torch.empty(0).device)
