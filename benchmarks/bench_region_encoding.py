"""One image encoding for all regions of an image, against one crop a region: what Generation spends before it writes a word.

Ours encodes the image once, and each region takes BLIP-2's queries with its coordinates through the Q-Former; the peer encodes the crop of
every region (224 pixels either way). `python -m benchmarks.bench_region_encoding` counts the operations of the published models
(ViT-g 1408 x 39, Q-Former 768 x 12, OPT-2.7B 2560 x 32) on the meta device. The timed cases: on the CPU a thirteenth of the depth at the full
width (3 layers of ViT-g, 1 of the Q-Former) in fp32; with --device cuda the whole models in bf16, flash attention where it is
installed, with the writing of the expressions by a static key-value cache as further cases.
"""

from collections.abc import Iterator

import torch

from .harness import Case
from .peers import MissingPeer

REGIONS = (10, 20)
CROPS = "one crop per region"
GOALS = {10: 5.0, 20: 8.0}  # of the encoder-bound part
TOKENS = 8  # written for a region: RefCOCO's expressions average 3.5 words
BOX = (0.2, 0.1, 0.6, 0.7)


def cases(device: str = "cpu") -> Iterator[Case]:
    """By number of regions; on a GPU also with the language model."""
    try:
        import peft  # noqa: F401 - the package cpgr, not only its kernels
        import transformers  # noqa: F401
    except ImportError as error:
        yield Case("region_encoding", "all", {"cpgr": lambda: None, CROPS: MissingPeer(str(error))}, _agree)
        return
    cuda = device == "cuda"
    model = build(device, torch.bfloat16 if cuda else torch.float32, None if cuda else 13)
    size = "ViT-g and Q-Former" if cuda else "3 layers of ViT-g, 1 of the Q-Former"
    for regions in REGIONS:
        yield _case(model, regions, f"{size}, {regions} regions an image", False)
    if cuda:
        for regions in REGIONS:
            yield _case(model, regions, f"{size}, OPT-2.7B writes {TOKENS} tokens, {regions} regions an image", True)


def build(device: str, dtype: torch.dtype, part: int | None):
    """`RegionBlip2` of the published size with random weights; `part` keeps one layer in so many, and no language model to speak of."""
    from cpgr.generation.attention import by_part
    from cpgr.generation.checkpoints import assemble
    from cpgr.generation.published import captioner_config, matcher_config, random_models
    from cpgr.generation.region_blip2 import RegionBlip2

    captioner, matcher = captioner_config(), matcher_config()
    if part:
        captioner.vision_config.num_hidden_layers //= part
        for config in (captioner, matcher):
            config.qformer_config.num_hidden_layers = max(1, config.qformer_config.num_hidden_layers // part)
        captioner.text_config.num_hidden_layers, captioner.text_config.vocab_size = 1, 64
        captioner.text_config.bos_token_id = captioner.text_config.eos_token_id = 2
    torch.manual_seed(0)
    model, other = random_models(captioner, matcher, device, dtype)
    loaded = assemble(model, other)
    if device != "meta":
        model.set_attn_implementation(by_part("auto", "opt", str(dtype).removeprefix("torch."), device))
    with torch.device(device):
        return RegionBlip2(loaded.captioner, loaded.parts).eval()


def encode(model, pixels: torch.Tensor) -> torch.Tensor:
    """Image features [B, 257, 1408] of pixels [B, 3, 224, 224]."""
    return model.blip2.vision_model(pixels.to(model.blip2.vision_model.dtype)).last_hidden_state.float()


def ours(model, pixels: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Query outputs [R, 32, 768] of R boxes in one picture."""
    return model.regions(encode(model, pixels[:1]).expand(len(boxes), -1, -1), boxes)


def crops(model, pixels: torch.Tensor) -> torch.Tensor:
    """Query outputs [R, 32, 768] of R crops."""
    return model.regions(encode(model, pixels), None)


def write(model, queries: torch.Tensor) -> torch.Tensor:
    """Greedy expressions of TOKENS tokens after a prefix of three."""
    ids = torch.full((len(queries), 4), 5, device=queries.device)
    decoding = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "cache_implementation": "static", "pad_token_id": 1}
    return model.write(queries, ids, torch.ones_like(ids), **decoding)


def _case(model, regions: int, name: str, writes: bool) -> Case:
    device = model.region_queries.device
    generator = torch.Generator().manual_seed(0)
    # the crops' pictures are all the image itself and the coordinates start at zero: both ways then give the same numbers
    pixels = torch.randn(1, 3, 224, 224, generator=generator).to(device).repeat(regions, 1, 1, 1)
    boxes = torch.tensor([BOX] * regions, device=device)

    def run(queries):
        with torch.no_grad():
            made = queries()
            return write(model, made) if writes else made

    return Case(
        "region_encoding",
        name,
        {"cpgr": lambda: run(lambda: ours(model, pixels, boxes)), CROPS: lambda: run(lambda: crops(model, pixels))},
        _agree_writing if writes else _agree,
        goals={} if writes else {CROPS: GOALS[regions]},
        facts={"expressions": regions},
    )


def _agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    tolerance = 2e-3 if ours.device.type == "cpu" else 5e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def _agree_writing(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape  # of random weights: near ties, which rounding decides


def count(regions: int) -> dict[str, dict[str, float]]:
    """Floating-point operations for an image with so many regions, in 1e9, of the published models: by way and by part."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build("meta", torch.bfloat16, None)
    pixels, boxes = torch.empty(regions, 3, 224, 224, device="meta"), torch.empty(regions, 4, device="meta")

    def flops(run) -> float:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / 1e9

    image = torch.empty(regions, 257, 1408, device="meta")
    qformer = flops(lambda: model.regions(image, boxes))
    written = flops(lambda: _decode(model, regions))
    one, many = flops(lambda: encode(model, pixels[:1])), flops(lambda: encode(model, pixels))
    return {
        "cpgr": {"image encoder": one, "Q-Former": qformer, "language model": written},
        CROPS: {"image encoder": many, "Q-Former": qformer, "language model": written},
    }


def _decode(model, regions: int) -> None:
    """What writing computes, without the loop that looks at tokens, which meta tensors have none of: the prompt, then token by token."""
    from transformers import DynamicCache

    language_model, width = model.blip2.language_model, model.blip2.config.text_config.hidden_size
    cache, length = DynamicCache(config=language_model.config), 32 + 4
    for step in range(TOKENS):
        new = length if step == 0 else 1
        inputs = torch.empty(regions, new, width, device="meta", dtype=language_model.dtype)
        positions = torch.arange(length + step - new, length + step, device="meta").expand(regions, -1)
        language_model(inputs_embeds=inputs, position_ids=positions, past_key_values=cache, logits_to_keep=1)


def main() -> None:
    """Print the counted operations as a table."""
    print("| regions an image | way | image encoder | Q-Former | OPT-2.7B, greedy | encoder-bound part | all |")
    print("|---|---|---|---|---|---|---|")
    for regions in REGIONS:
        found = count(regions)
        bound = {way: parts["image encoder"] + parts["Q-Former"] for way, parts in found.items()}
        for way, parts in found.items():
            cells = " | ".join(f"{value:,.0f}" for value in (*parts.values(), bound[way], sum(parts.values())))
            print(f"| {regions} | {way}, GFLOP an image | {cells} |")
        ratio, whole = bound[CROPS] / bound["cpgr"], sum(found[CROPS].values()) / sum(found["cpgr"].values())
        print(f"| {regions} | ratio | | | | {ratio:.1f}x | {whole:.1f}x |")


if __name__ == "__main__":
    main()
