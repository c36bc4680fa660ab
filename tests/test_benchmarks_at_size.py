"""What the benchmarks at the published size count, checked where it can be computed: small models, real tensors."""

import pytest
import torch

from benchmarks import bench_region_encoding as encoding
from benchmarks import fine_tuning_memory as memory
from cpgr.generation import published


@pytest.mark.slow
@pytest.mark.parametrize(("name", "checkpointing"), [("blip2-opt-2.7b", True), ("blip2-opt-2.7b", False), ("blip2-flan-t5-xl", True)])
def test_fake_tensors_take_the_memory_of_real_ones(name, checkpointing):
    found = [memory.counted_peak(name, fake=fake, shrink=memory.small, regions=3, checkpointing=checkpointing)["peak"] for fake in (True, False)]
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_live_storages_are_counted_and_freed():
    with memory.Allocated() as allocated:
        a = torch.zeros(1000)
        b = a.view(10, 100) + 1
        assert allocated.now == 8000
        del a
        assert allocated.now == 4000
        del b
    assert allocated.now == 0 and allocated.peak == 8000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_count_is_near_what_a_gpu_allocates():
    counted = memory.counted_peak("blip2-opt-2.7b")["peak"]
    assert memory.cuda_peak("blip2-opt-2.7b") == pytest.approx(counted, rel=0.15) and counted < 24 * memory.GIB


def test_one_encoding_serves_all_regions_of_an_image(monkeypatch):
    """At a small size: the two ways agree before training, and the image encoder runs once instead of once a region."""

    def shrunk(full):
        def config(*args):
            made = full(*args)
            made.vision_config.hidden_size = made.qformer_config.encoder_hidden_size = 64
            made.vision_config.num_attention_heads, made.vision_config.intermediate_size = 4, 64
            made.text_config.hidden_size = made.text_config.word_embed_proj_dim = made.text_config.ffn_dim = 64
            made.text_config.num_attention_heads, made.qformer_config.vocab_size = 4, 64
            return made

        return config

    for name in ("captioner_config", "matcher_config"):
        monkeypatch.setattr(published, name, shrunk(getattr(published, name)))
    model = encoding.build("cpu", torch.float32, 13)
    seen = []
    model.blip2.vision_model.register_forward_hook(lambda module, inputs, output: seen.append(len(output.last_hidden_state)))
    case = encoding._case(model, 10, "small", False)
    results = [run() for run in case.run.values()]
    case.agree(*results)
    assert seen == [1, 10] and results[0].shape == (10, 32, 768)
