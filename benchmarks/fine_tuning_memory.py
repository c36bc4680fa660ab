"""The peak memory of a fine-tuning step of BLIP-2 at the published size: `python -m benchmarks.fine_tuning_memory [--device cuda]`.

Without a GPU the step runs on fake tensors: torch's own code decides what is allocated and freed and every storage is counted, but
nothing is computed. What a kernel uses inside itself and what the allocator loses by fragments is not in the count. With --device cuda
the step runs and the allocator's peak is read. A step as `cpgr.generation.fine_tuning` takes it: cached image features, LoRA, the four
losses, AdamW, bf16 autocast over bf16 frozen weights.
"""

from __future__ import annotations

import argparse
import weakref
from contextlib import ExitStack
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

GIB = 2**30
REGIONS = 96  # of the published config: 16 images a batch, 6 regions of an image at most
WORDS, PREFIX = 10, 4  # tokens of an expression and of a prefix


def small(captioner, matcher) -> None:
    """Configurations of the published kinds that fit a test."""
    for config in (captioner, matcher):
        config.vision_config.hidden_size, config.vision_config.intermediate_size = 64, 128
        config.vision_config.num_hidden_layers, config.vision_config.num_attention_heads = 1, 4
        qformer = config.qformer_config
        qformer.hidden_size, qformer.intermediate_size, qformer.num_hidden_layers, qformer.num_attention_heads = 64, 128, 2, 4
        qformer.encoder_hidden_size, qformer.vocab_size = 64, 64
    text = captioner.text_config
    if text.model_type == "opt":
        text.hidden_size = text.word_embed_proj_dim = 128
        text.ffn_dim, text.num_hidden_layers, text.num_attention_heads, text.vocab_size = 256, 2, 4, 500
        text.eos_token_id = 3
    else:
        text.d_model, text.d_kv, text.d_ff, text.num_layers, text.num_decoder_layers, text.num_heads, text.vocab_size = 128, 32, 256, 1, 1, 4, 500


class Allocated(TorchDispatchMode):
    """Counts the bytes of all storages that live, and the most there were at once. Made before what it is to count."""

    def __init__(self):
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._note, made)
        return made

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.live:
            self.live[key] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)
        return tensor

    def _drop(self, key: int) -> None:
        self.now -= self.live.pop(key)


def build(name: str, device: str, *, checkpointing: bool = True, weights=torch.bfloat16, shrink=None):
    """`RegionBlip2` of the published size (or what `shrink` makes of the configurations), with random weights and LoRA."""
    from cpgr.generation.checkpoints import assemble
    from cpgr.generation.published import captioner_config, matcher_config, random_models
    from cpgr.generation.region_blip2 import LoraSettings, RegionBlip2

    captioner, matcher = captioner_config(name), matcher_config()
    if shrink:
        shrink(captioner, matcher)
    loaded = assemble(*random_models(captioner, matcher, device, weights))
    with torch.device(device):
        model = RegionBlip2(loaded.captioner, loaded.parts).eval()
    model.add_lora(LoraSettings())
    if checkpointing:
        model.checkpoint_gradients()
    return model


def materialise(model: torch.nn.Module) -> None:
    """Put empty CPU tensors in the place of meta ones, tied ones staying tied (`to_empty` cannot where tensors are fake)."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None and id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    parameter = isinstance(tensor, torch.nn.Parameter)
                    made[id(tensor)] = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad) if parameter else empty
                if tensor is not None:
                    table[name] = made[id(tensor)]


class Step:
    """A model and an optimiser, and what a step of training does with them."""

    def __init__(self, model, device: str, *, regions: int = REGIONS):
        self.model, self.device, self.regions = model, device, regions
        self.half = model.blip2.language_model.dtype == torch.bfloat16
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def batch(self) -> dict:
        from cpgr.generation.objectives import Texts

        count, device, vision = self.regions, self.device, self.model.blip2.config.vision_config
        cells = 1 + (vision.image_size // vision.patch_size) ** 2

        def ids(length):
            return torch.full((count, length), 5, device=device), torch.ones(count, length, dtype=torch.long, device=device)

        return {
            "image": torch.randn(count, cells, vision.hidden_size, device=device), "boxes": torch.rand(count, 4, device=device),
            "texts": Texts(*ids(WORDS), 2), "prompt": ids(PREFIX), "target": ids(WORDS),
            "same": torch.eye(count, dtype=torch.bool, device=device), "weights": torch.ones(count, device=device),
            "owner": torch.arange(count, device=device),
        }  # fmt: skip

    def run(self) -> None:
        from cpgr.generation.objectives import region_losses

        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.half):
            losses = region_losses(self.model, **self.batch())
        sum(losses.values()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def all_pairs(similarity: torch.Tensor, same: torch.Tensor):
    """ITM's pairs as always drawn in full: three rows a region. Which regions are drawn does not change what is allocated."""
    rows = torch.arange(len(similarity), device=similarity.device)
    return rows.repeat(3), torch.cat([rows, rows.roll(1), rows.roll(1)])


def counted_peak(name: str, *, fake: bool = True, regions: int = REGIONS, **options) -> dict[str, int]:
    """Bytes at the peak of two steps, of fake or of real CPU tensors: `peak`, and of it `weights` and `state` (gradients, AdamW)."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = build(name, "meta", **options) if fake else None
    with ExitStack() as stack:
        stack.enter_context(mock.patch("cpgr.generation.objectives.matching_pairs", all_pairs))
        # whether a mask is all ones is asked of its values, which a fake tensor has not; here none is dropped
        stack.enter_context(mock.patch("transformers.masking_utils._ignore_causal_mask_sdpa", lambda *_, **__: False))
        if fake:
            stack.enter_context(FakeTensorMode())
            materialise(model)
        else:
            model = build(name, "cpu", **options)
        parameters = list(model.parameters())
        trained, weights = (sum(p.numel() * p.element_size() for p in parameters if p.requires_grad or every) for every in (False, True))
        step, allocated = Step(model, "cpu", regions=regions), stack.enter_context(Allocated())
        # a view of a weight is no new memory
        allocated.live.update((t.untyped_storage()._cdata, 0) for t in [*parameters, *model.buffers()])
        for _ in range(2):
            step.run()
        return {"peak": weights + allocated.peak, "weights": weights, "state": 3 * trained}


def cuda_peak(name: str, *, regions: int = REGIONS, **options) -> int:
    """Bytes the allocator held at most in two steps on a GPU."""
    torch.cuda.reset_peak_memory_stats()
    step = Step(build(name, "cuda", **options), "cuda", regions=regions)
    for _ in range(2):
        step.run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def main() -> None:
    """Print the peaks as a table."""
    from cpgr.generation.published import CAPTIONERS

    parser = argparse.ArgumentParser(prog="python -m benchmarks.fine_tuning_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("fake", "cuda"), default="fake", help="count on fake tensors, or run (default: fake)")
    parser.add_argument("--regions", type=int, default=REGIONS, help=f"regions a step (default: {REGIONS}, the published config's)")
    arguments = parser.parse_args()
    print("| captioner | gradient checkpointing | regions a step | peak, GiB | of it weights | gradients and AdamW | activations and the rest |")
    print("|---|---|---|---|---|---|---|")
    for name in CAPTIONERS:
        for checkpointing in (True, False):
            start = f"| {name} | {'on' if checkpointing else 'off'} | {arguments.regions} |"
            if arguments.device == "cuda":
                print(f"{start} {cuda_peak(name, regions=arguments.regions, checkpointing=checkpointing) / GIB:.1f} | | | |", flush=True)
                continue
            found = counted_peak(name, regions=arguments.regions, checkpointing=checkpointing)
            rest = found["peak"] - found["weights"] - found["state"]
            cells = " | ".join(f"{value / GIB:.2f}" for value in (*found.values(), rest))
            print(f"{start} {cells} |", flush=True)


if __name__ == "__main__":
    main()
