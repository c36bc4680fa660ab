"""Attention maps of transformers' models: outputs and maps are those of eager, whatever the mask, the cache or the layer."""

import sys

import pytest
import torch

from cpgr_kernels import native

transformers = pytest.importorskip("transformers")

from cpgr_kernels.integrations.transformers import AttentionMap, capture_maps, register

register()
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"vocab_size": 60, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


def build(make, config, seed=0):
    """A random model, in eval mode and eager."""
    torch.manual_seed(seed)
    model = make(config).eval()
    for parameter in model.parameters():  # some models start at zero, where all attention is uniform
        torch.nn.init.normal_(parameter, 0, 0.2)
    model.set_attn_implementation("eager")
    return model


def bert(**settings):
    return build(transformers.BertModel, transformers.BertConfig(**SIZES, **TEXT, **settings))


def llama(**settings):
    settings = {"num_key_value_heads": 2, "max_position_embeddings": 64} | settings
    return build(transformers.LlamaForCausalLM, transformers.LlamaConfig(**SIZES, **TEXT, **settings))


def opt():
    settings = {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
    sizes = {name: size for name, size in SIZES.items() if name != "intermediate_size"}
    return build(transformers.OPTForCausalLM, transformers.OPTConfig(**sizes, **TEXT, **settings))


def clip():
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    text = {**SIZES, **TEXT, "max_position_embeddings": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    return build(transformers.CLIPModel, config)


def blip2():
    vision = {**SIZES, "image_size": 32, "patch_size": 8, "initializer_range": 0.02}
    qformer = {**SIZES, "vocab_size": 60, "encoder_hidden_size": 32, "cross_attention_frequency": 1}
    text = {
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config={"model_type": "opt", **TEXT, **text},
        num_query_tokens=6,
        image_token_index=59,
    )
    return build(transformers.Blip2ForConditionalGeneration, config)


def tokens(*shape, seed=1):
    return torch.randint(3, 59, shape, generator=torch.Generator().manual_seed(seed))


def padded(side):
    """Ids [3, 9] and their mask: whole, four tokens less, one token."""
    ids, mask = tokens(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:], mask[2, 1:] = 0, 0
    mask = mask.flip(1) if side == "left" else mask
    return ids.masked_fill(mask == 0, 1), mask


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def compare(model, inputs, kinds="self", seen=None, get=lambda output: output.attentions, **chosen):
    """Run with eager, then captured; outputs and maps are the same where `seen` [B, T] says so. Returns the maps."""
    with torch.no_grad():
        eager = model(**inputs, output_attentions=True)
        model.set_attn_implementation("cpgr")
        with capture_maps(model, kinds=kinds, **chosen) as maps:
            ours = model(**inputs)
        outside = model(**inputs)
    seen = torch.ones(eager[0].shape[:2], dtype=torch.bool) if seen is None else seen.bool()
    same(ours[0][seen], eager[0][seen])
    same(outside[0][seen], eager[0][seen])
    assert len(maps) == len(get(eager))
    for found, wanted in zip(maps, get(eager), strict=True):
        same(found.map[seen], wanted.mean(1)[seen])
    return maps


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make", [bert, llama, opt])
def test_padded_batches(make, side):
    ids, mask = padded(side)
    compare(make(), {"input_ids": ids, "attention_mask": mask}, seen=mask)


@pytest.mark.parametrize("make", [bert, llama, opt])
def test_batches_without_padding(make):
    compare(make(), {"input_ids": tokens(3, 9)})
    compare(make(), {"input_ids": tokens(3, 9), "attention_mask": torch.ones(3, 9, dtype=torch.long)})
    compare(make(), {"input_ids": tokens(2, 1)})


@pytest.mark.parametrize("side", ["right", "left"])
def test_clip(side):
    model = clip()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = compare(model.vision_model, {"pixel_values": pixels})
    assert maps[0].map.shape == (2, 17, 17)
    ids, mask = padded(side)
    compare(model.text_model, {"input_ids": ids}, get=lambda output: output.attentions)
    model.set_attn_implementation("eager")
    compare(model.text_model, {"input_ids": ids, "attention_mask": mask}, seen=mask)


@pytest.mark.parametrize("side", ["right", "left"])
def test_decoding_with_a_cache(side):
    model = llama()
    ids, mask = padded(side)
    steps = {"eager": [], "cpgr": []}
    for implementation, found in steps.items():
        model.set_attn_implementation(implementation)
        cache = transformers.DynamicCache()
        for start, end in ((0, 5), (5, 8), (8, 9)):  # a prompt, a piece of several tokens, a single one
            inputs = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end], "past_key_values": cache}
            with torch.no_grad():
                if implementation == "eager":
                    output = model(**inputs, output_attentions=True)
                    maps = [each.mean(1) for each in output.attentions]
                else:
                    with capture_maps(model) as captured:
                        output = model(**inputs)
                    maps = [each.map for each in captured]
            found.append((output.logits, maps, mask[:, start:end].bool()))
    for (logits, maps, seen), (eager_logits, eager_maps, _) in zip(steps["cpgr"], steps["eager"], strict=True):
        # A token sees what its own prefix holds; rows of padding are nobody's.
        same(logits[seen], eager_logits[seen])
        for found, wanted in zip(maps, eager_maps, strict=True):
            assert found.shape == wanted.shape
            same(found[seen], wanted[seen])


def test_an_empty_static_cache_has_keys_that_no_row_sees():
    model = llama()
    ids = tokens(2, 5)
    found = {}
    for implementation in ("eager", "cpgr"):
        model.set_attn_implementation(implementation)
        cache = transformers.StaticCache(config=model.config, max_cache_len=12)
        with torch.no_grad():
            if implementation == "eager":
                output = model(input_ids=ids, past_key_values=cache, output_attentions=True)
                found[implementation] = output.logits, output.attentions[1].mean(1)
            else:
                with capture_maps(model, layers=1) as maps:
                    output = model(input_ids=ids, past_key_values=cache)
                found[implementation] = output.logits, maps[0].map
    for ours, eager in zip(found["cpgr"], found["eager"], strict=True):
        same(ours, eager)
    assert found["cpgr"][1].shape == (2, 5, 12)


def test_generate_records_every_step():
    model, ids = llama(), tokens(2, 6)
    settings = {"max_new_tokens": 4, "do_sample": False, "output_attentions": True, "return_dict_in_generate": True}
    settings |= {"min_new_tokens": 4, "attention_mask": torch.ones_like(ids)}
    eager = model.generate(ids, **settings)
    model.set_attn_implementation("cpgr")
    with capture_maps(model, rows=-1, layers=1) as maps:
        ours = model.generate(ids, **settings | {"output_attentions": False})
    assert torch.equal(ours.sequences, eager.sequences)
    assert [each.call for each in maps] == [0, 1, 2, 3]
    for found, wanted in zip(maps, eager.attentions, strict=True):
        same(found.map, wanted[1].mean(1)[:, -1:])


def encoder_decoder():
    """Cross-attention over padded keys: BERT as a decoder behind an encoder."""
    settings = {"is_decoder": True, "add_cross_attention": True, **SIZES, **TEXT}
    return build(transformers.BertModel, transformers.BertConfig(**settings))


@pytest.mark.parametrize("kinds", ["self", "cross"])
def test_cross_attention_over_padded_keys(kinds):
    model = encoder_decoder()
    states = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(2))
    _, mask = padded("right")
    inputs = {"input_ids": tokens(3, 5), "encoder_hidden_states": states, "encoder_attention_mask": mask}
    get = (lambda output: output.attentions) if kinds == "self" else (lambda output: output.cross_attentions)
    with torch.no_grad():
        eager = model(**inputs, use_cache=False, output_attentions=True)
        model.set_attn_implementation("cpgr")
        with capture_maps(model, kinds=kinds) as maps:
            ours = model(**inputs, use_cache=False)
    same(ours[0], eager[0])
    wanted = [each for each in get(eager) if each.shape[-1] == (5 if kinds == "self" else 9)]
    assert {each.kind for each in maps} == {kinds} and len(maps) == len(wanted) == 2
    for found, truth in zip(maps, wanted, strict=True):
        same(found.map, truth.mean(1))


def blip2_inputs():
    ids = torch.cat([torch.full((2, 6), 59), tokens(2, 5)], 1)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_blip2_queries_in_the_image():
    model, inputs = blip2(), blip2_inputs()
    with torch.no_grad():
        image = model.vision_model(inputs["pixel_values"]).last_hidden_state
        queries = {"query_embeds": model.query_tokens.expand(2, -1, -1), "encoder_hidden_states": image}
        eager = model.qformer(**queries, output_attentions=True)
        logits = model(**inputs).logits
        model.set_attn_implementation({"qformer_config": "cpgr", "vision_config": "sdpa", "text_config": "sdpa"})
        with capture_maps(model, kinds="cross") as maps:
            ours = model(**inputs)
    same(ours.logits, logits)
    assert [each.module for each in maps] == [f"qformer.encoder.layer.{i}.crossattention.attention" for i in (0, 1)]
    assert [each.layer for each in maps] == [0, 1]
    for found, wanted in zip(maps, eager.cross_attentions, strict=True):
        assert found.map.shape == (2, 6, 17)
        same(found.map, wanted.mean(1))


def test_queries_shared_by_a_batch():
    model, inputs = blip2(), blip2_inputs()
    with torch.no_grad():
        image = model.vision_model(inputs["pixel_values"]).last_hidden_state
        queries = {"query_embeds": model.query_tokens, "encoder_hidden_states": image}
        eager = model.qformer(**queries, output_attentions=True)
        model.set_attn_implementation({"qformer_config": "cpgr"})
        with capture_maps(model, kinds="cross") as maps:
            ours = model.qformer(**queries)
    same(ours[0], eager[0])
    same(maps[0].map, eager.cross_attentions[0].mean(1))


def test_a_whole_blip2_generates_and_is_filtered_by_part():
    model, inputs = blip2(), blip2_inputs()
    wanted = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    model.set_attn_implementation("cpgr")
    with capture_maps(model, rows=-1, modules=r"^language_model\.", layers=[1]) as maps:
        found = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(found, wanted)
    assert {each.module for each in maps} == {"language_model.model.decoder.layers.1.self_attn"}
    assert [each.map.shape for each in maps] == [(2, 1, 11 + step) for step in range(len(maps))]
    with capture_maps(model, modules=lambda name: name.startswith("vision_model")) as maps, torch.no_grad():
        model(**inputs)
    assert len(maps) == 2 and maps[0].map.shape == (2, 17, 17)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (0, [[0], [0], [0]]),
        (-1, [[8], [8], [8]]),
        ([1, -2], [[1, 7]] * 3),
        (range(3), [[0, 1, 2]] * 3),
        (torch.tensor([[0, 1], [-1, 3], [2, 2]]), [[0, 1], [8, 3], [2, 2]]),
    ],
)
def test_rows(rows, wanted):
    model, ids = bert(), tokens(3, 9)
    model.set_attn_implementation("cpgr")
    with torch.no_grad(), capture_maps(model) as every:
        model(ids)
    with torch.no_grad(), capture_maps(model, rows) as maps:
        model(ids)
    for found, all_rows in zip(maps, every, strict=True):
        same(found.map, torch.stack([rows_of[index] for rows_of, index in zip(all_rows.map, wanted, strict=True)]))


def test_gradient_of_a_loss_on_the_map():
    model = bert(attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0).train()
    ids, mask = padded("right")
    grads = []
    for implementation in ("eager", "cpgr"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        if implementation == "eager":
            output = model(ids, attention_mask=mask, output_attentions=True)
            maps = [each.mean(1)[:, [0]] for each in output.attentions]
        else:
            with capture_maps(model, rows=[0]) as captured:
                output = model(ids, attention_mask=mask)
            maps = [each.map for each in captured]
        target = torch.rand(3, 1, 9, generator=torch.Generator().manual_seed(4))
        (sum((found - target).square().sum() for found in maps) + output.pooler_output.square().sum()).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for ours, eager in zip(*grads, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4)


def test_dropout_is_applied_to_the_output_and_not_to_the_map():
    model = bert(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    model.set_attn_implementation("cpgr")
    ids = tokens(2, 7)
    with torch.no_grad():
        with capture_maps(model, layers=0) as clean:
            model(ids)
        model.train()
        torch.manual_seed(5)
        with capture_maps(model, layers=0) as dropped:
            output = model(ids)[0]
        model.set_attn_implementation("sdpa")
        torch.manual_seed(5)
        wanted = model(ids)[0]
    same(dropped[0].map, clean[0].map)
    same(output, wanted)


@pytest.mark.parametrize("make", [bert, llama])
def test_autocast(make):
    model, ids = make(), tokens(2, 7)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        eager = model(ids, output_attentions=True)
        model.set_attn_implementation("cpgr")
        with capture_maps(model) as maps:
            ours = model(ids)
        outside = model(ids)
    assert ours[0].dtype is eager[0].dtype and maps[0].map.dtype is torch.float32
    truth = make().double()
    with torch.no_grad():
        exact = truth(ids, output_attentions=True)
    for found, theirs, wanted in zip(maps, eager.attentions, exact.attentions, strict=True):
        allowed = 2 * (theirs.double().mean(1) - wanted.mean(1)).abs().max() + 2**-8
        assert (found.map - wanted.mean(1)).abs().max() <= allowed
    allowed = 2 * (outside[0] - exact[0]).abs().max()
    assert (ours[0] - exact[0]).abs().max() <= allowed


def largest_allocation(run):
    with torch.profiler.profile(profile_memory=True) as profile, torch.no_grad():
        run()
    return max(event.self_cpu_memory_usage for event in profile.events())


@pytest.mark.skipif(native.why_no_cpp() is not None, reason="the reference makes the weights")
def test_the_weights_are_not_made():
    model, ids = bert(max_position_embeddings=256), tokens(2, 256)
    weights = 2 * 4 * 256 * 256 * 4

    def captured():
        with capture_maps(model, rows=0):
            model(ids)

    assert largest_allocation(lambda: model(ids, output_attentions=True)) >= weights
    model.set_attn_implementation("cpgr")
    assert largest_allocation(captured) < weights / 4


def test_captures_nest_and_end():
    model, other = bert(), bert()
    model.set_attn_implementation("cpgr")
    other.set_attn_implementation("cpgr")
    ids = tokens(2, 7)
    with capture_maps(model) as outer, torch.no_grad():
        with capture_maps(model, rows=0, layers=1) as inner:
            model(ids)
            other(ids)
        model(ids)
    assert [len(outer), len(inner)] == [4, 1]
    assert isinstance(inner[0], AttentionMap) and [each.call for each in outer] == [0, 0, 1, 1]
    same(inner[0].map, outer[1].map[:, :1])
    with pytest.raises(ZeroDivisionError), capture_maps(model) as maps:
        raise ZeroDivisionError
    with torch.no_grad():
        model(ids)
    assert not maps and len(outer) == 4


def test_rows_that_are_not_there():
    model = bert()
    model.set_attn_implementation("cpgr")
    for rows in (7, -8, [0, 7]):
        with pytest.raises(IndexError, match=r"outside the 7 tokens of encoder\.layer\.0"), capture_maps(model, rows):
            model(tokens(2, 7))
    for rows in (torch.zeros(1, 1, 1, dtype=torch.long), torch.zeros(2), [True]):
        with pytest.raises(ValueError, match="rows must be integers"), capture_maps(model, rows):
            pass
    with pytest.raises(ValueError, match="kinds must be"), capture_maps(model, kinds="diagonal"):
        pass


def test_output_attentions_is_eagers():
    model, ids = bert(), tokens(2, 7)
    for implementation in ("sdpa", "cpgr"):
        model.set_attn_implementation(implementation)
        with pytest.raises(ValueError, match="not supported when using the `attn_implementation`"):
            model.config.output_attentions = True
    with pytest.raises(ValueError, match="use capture_maps in its place"):
        model(ids, output_attentions=True)


def test_nothing_captured_is_said():
    model = bert()
    with pytest.raises(ValueError, match=r"BertConfig: eager.*set_attn_implementation\('cpgr'\)"), capture_maps(model):
        pass
    with pytest.raises(ValueError, match="no configuration"), capture_maps(torch.nn.Linear(1, 1)):
        pass
    model.set_attn_implementation("cpgr")
    with pytest.warns(UserWarning, match=r"left out.*encoder\.layer\.0"), capture_maps(model, kinds="cross"):
        model(tokens(1, 3))
    with pytest.warns(UserWarning, match="no attention of BertModel"), capture_maps(model):
        pass


def test_gradient_checkpointing_is_refused_where_it_would_break_the_maps():
    model = llama().train()
    model.set_attn_implementation("cpgr")
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    ids = tokens(1, 4)
    model(ids).logits.sum().backward()
    with pytest.raises(RuntimeError, match="gradient_checkpointing_disable"), capture_maps(model):
        model(ids)
    with capture_maps(model) as maps, torch.no_grad():
        model(ids)
    assert len(maps) == 2


def test_attention_that_a_map_would_not_show_is_refused():
    settings = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 60}
    t5 = build(transformers.T5EncoderModel, transformers.T5Config(**settings, decoder_start_token_id=0))
    ids = tokens(1, 5)
    with torch.no_grad():
        wanted = t5(ids)[0]
        t5.set_attn_implementation("cpgr")
        same(t5(ids)[0], wanted)  # outside a capture sdpa takes the bias
    with pytest.raises(ValueError, match=r"T5Attention attends with position_bias.*'eager'"), capture_maps(t5):
        t5(ids)
    sinks = {**SIZES, **TEXT, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
    oss = build(transformers.GptOssModel, transformers.GptOssConfig(**sinks))
    oss.set_attn_implementation("cpgr")
    with pytest.raises(ValueError, match="GptOssAttention attends with s_aux, which sdpa does not compute"):
        oss(ids)
    with pytest.raises(ValueError, match="GptOssModel.*attention of its own"), capture_maps(oss):
        pass


def test_a_sliding_window_is_in_the_mask():
    settings = {**SIZES, **TEXT, "num_key_value_heads": 2, "sliding_window": 3}
    model = build(transformers.MistralModel, transformers.MistralConfig(**settings))
    maps = compare(model, {"input_ids": tokens(2, 9)})
    assert (maps[0].map[:, 8, :6] == 0).all() and (maps[0].map[:, 8, 6:] > 0).all()
    ids, mask = padded("left")
    model.set_attn_implementation("eager")
    compare(model, {"input_ids": ids, "attention_mask": mask}, seen=mask)


def test_registering(monkeypatch):
    register()  # again
    register("cpgr_too")
    model = bert()
    model.set_attn_implementation("cpgr_too")
    with capture_maps(model) as maps, torch.no_grad():
        model(tokens(1, 3))
    assert len(maps) == 2
    for taken in ("sdpa", "eager"):
        with pytest.raises(ValueError, match="already"):
            register(taken)
    monkeypatch.setattr("transformers.__version__", "5.16.1")
    with pytest.raises(ImportError, match=r"5\.17 or later is needed, found 5\.16\.1"):
        register()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install 'transformers>=5.17'"):
        register()
