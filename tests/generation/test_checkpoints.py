"""BLIP-2 put together from checkpoints in the published formats: at the true shapes by name, at small sizes in value."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, T5Config
from torch import nn

from cpgr.errors import CpgrError, DataError
from cpgr.generation import attention
from cpgr.generation.checkpoints import DECODER, HEAD, assemble, load_blip2
from cpgr.generation.published import CAPTIONERS, captioner_config, matcher_config, random_models
from cpgr.generation.region_blip2 import LoraSettings, RegionBlip2
from cpgr.pretrain.blip2 import make_blip2

WORDS = "a red blue circle square left of the".split()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Small models with random weights as the two published checkpoints and LAVIS's file keep theirs, of three trainings."""
    root = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    captioner, _, _, _ = make_blip2(WORDS, root / "tokens")
    torch.manual_seed(1)
    _, matcher, _, _ = make_blip2(WORDS, root / "tokens")
    shake(captioner), shake(matcher)
    matcher.save_pretrained(root / "matcher")
    save_captioner(captioner, root / "captioner")
    torch.save({"model": lavis_state(matcher)}, root / "blip2_pretrained.pth")
    return root


def shake(model):
    """Biases and norms are zeros and ones in a fresh model: a tensor that was not taken would not be seen."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)


def save_captioner(captioner, folder):
    captioner.config.qformer_config.use_qformer_text_input = False
    for layer in captioner.qformer.encoder.layer:
        if hasattr(layer, "intermediate"):
            del layer.intermediate, layer.output
    captioner.save_pretrained(folder)


def lavis_state(matcher):
    width, words = matcher.config.qformer_config.hidden_size, matcher.embeddings.word_embeddings.weight
    shapes = {"dense.weight": (width, width), "dense.bias": (width,), "norm.weight": (width,), "norm.bias": (width,), "bias": (len(words),)}
    state = {HEAD[name]: torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    return {**state, DECODER: words.detach().clone(), "visual_encoder.cls_token": torch.zeros(1), "Qformer.bert.embeddings.position_ids": torch.zeros(1)}


@pytest.mark.parametrize("name", CAPTIONERS)
def test_every_tensor_of_the_true_architecture(name):
    """On the meta device: the names, the shapes and the parameters that LoRA trains are those of the published models."""
    model, matcher = random_models(captioner_config(name), matcher_config())
    loaded = assemble(model, matcher, None, names=(name, "blip2-itm-vit-g", ""))
    shapes = {n: tuple(p.shape) for n, p in [*loaded.captioner.state_dict().items(), *loaded.parts.state_dict().items()]}
    assert set(loaded.sources) == set(shapes)
    branch = {n for n, source in loaded.sources.items() if source == "blip2-itm-vit-g" and n.startswith("qformer.")}
    assert len(branch) == 12 * 6 and all(".intermediate." in n or ".output." in n for n in branch)
    with torch.device("meta"):
        published = Blip2ForConditionalGeneration(captioner_config(name)).state_dict()  # without a text branch, as it is downloaded
    assert set(published) == {n for n, source in loaded.sources.items() if source == name}
    assert shapes["vision_model.encoder.layers.38.self_attn.qkv.weight"] == (3 * 1408, 1408)
    assert shapes["qformer.encoder.layer.10.crossattention.attention.value.weight"] == (768, 1408)
    assert "qformer.encoder.layer.11.crossattention.attention.value.weight" not in shapes
    assert shapes["qformer.encoder.layer.11.intermediate.dense.weight"] == (3072, 768)
    assert shapes["embeddings.word_embeddings.weight"] == (30523, 768) and shapes["itm_head.weight"] == (2, 768)
    last, width = {"blip2-opt-2.7b": ("language_model.model.decoder.layers.31.self_attn.q_proj.weight", 2560)}.get(
        name, ("language_model.decoder.block.23.layer.1.EncDecAttention.q.weight", 2048)
    )
    assert shapes[last] == (width, width) and shapes["language_projection.weight"] == (width, 768)

    with torch.device("meta"):
        region = RegionBlip2(loaded.captioner, loaded.parts)
    region.add_lora(LoraSettings())
    trained = {n: p.numel() for n, p in region.named_parameters() if p.requires_grad}
    assert sum(v for n, v in trained.items() if "lora_" in n and "qformer" in n) == 473_088
    llm = sum(v for n, v in trained.items() if "lora_" in n and "language_model" in n)
    assert llm == (2_621_440 if "opt" in name else 4_718_592)
    assert trained["region_queries"] == 24_576 and sum(v for n, v in trained.items() if n.startswith("coordinates.")) == 99_712


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "float16"])
def test_values_come_from_the_right_file(saved, weights):
    loaded = load_blip2(str(saved / "captioner"), str(saved / "matcher"), itg_head=str(saved / "blip2_pretrained.pth"), weights=weights)
    assert type(loaded.captioner) is Blip2ForConditionalGeneration
    files = {str(saved / name): load_file(saved / name / "model.safetensors") for name in ("captioner", "matcher")}
    lavis = torch.load(saved / "blip2_pretrained.pth", weights_only=True)["model"]
    state = {**loaded.captioner.state_dict(), **loaded.parts.state_dict()}
    for name, source in loaded.sources.items():
        own = name.removeprefix("itg_head.")
        there = files[source].get(name) if source in files else lavis[HEAD[own]]
        if there is None:  # OPT's head is tied to its embeddings and is not kept twice
            assert name == "language_model.lm_head.weight"
            continue
        half = name.startswith(("vision_model.", "language_model."))
        assert state[name].dtype == (getattr(torch, weights) if half else torch.float32), name
        assert torch.equal(state[name], there.to(state[name].dtype)), name
    assert {loaded.sources[n] for n in loaded.sources if ".output." in n and "attention" not in n and n.startswith("qformer")} == {str(saved / "matcher")}


def test_itgs_head_is_used(saved):
    torch.manual_seed(2)
    text, ids, mask = torch.randn(1, 4, 128), torch.tensor([[2, 5, 6, 3]]), torch.ones(1, 4)
    found = []
    for head in ("", str(saved / "blip2_pretrained.pth")):
        loaded = load_blip2(str(saved / "captioner"), str(saved / "matcher"), itg_head=head)
        model = RegionBlip2(loaded.captioner, loaded.parts).eval()
        found.append(model.text_log_likelihood(text, ids, mask))
    lavis = torch.load(saved / "blip2_pretrained.pth", weights_only=True)["model"]
    hidden = nn.functional.gelu(text @ lavis[HEAD["dense.weight"]].t() + lavis[HEAD["dense.bias"]])
    hidden = nn.functional.layer_norm(hidden, (128,), lavis[HEAD["norm.weight"]], lavis[HEAD["norm.bias"]], 1e-12)
    log_p = (hidden @ lavis[DECODER].t() + lavis[HEAD["bias"]]).log_softmax(-1)[0, :-1]
    torch.testing.assert_close(found[1][0], log_p.gather(1, ids[0, 1:, None])[:, 0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1])


def test_the_log_says_what_was_taken(saved, caplog):
    import logging

    with caplog.at_level(logging.DEBUG, "cpgr"):
        loaded = load_blip2(str(saved / "captioner"), str(saved / "matcher"))
    assert "ITG's head is tied to the word embeddings and starts fresh" in caplog.text
    assert all(f"{name} from {source}" in caplog.text for name, source in loaded.sources.items())


def test_flan_t5_in_value(saved, tmp_path):
    config = Blip2Config.from_pretrained(saved / "captioner")
    text = T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    t5 = Blip2Config(vision_config=config.vision_config, qformer_config=config.qformer_config, text_config=text, num_query_tokens=8)
    torch.manual_seed(3)
    model = Blip2ForConditionalGeneration(t5)
    shake(model)
    model.save_pretrained(tmp_path / "t5")
    loaded = load_blip2(str(tmp_path / "t5"), str(saved / "matcher"), weights="bfloat16")
    file = load_file(tmp_path / "t5" / "model.safetensors")
    assert all(torch.equal(loaded.captioner.state_dict()[n], v.to(loaded.captioner.state_dict()[n].dtype)) for n, v in file.items())
    with pytest.raises(CpgrError, match="overflows in float16"):
        load_blip2(str(tmp_path / "t5"), str(saved / "matcher"), weights="float16")


# -- what is refused ----------------------------------------------------------------------------------------------


def edited(saved, folder, which, edit):
    """A copy of a checkpoint with its tensors changed by `edit`."""
    import shutil

    shutil.copytree(saved / which, folder)
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("lost", ["qformer.encoder.layer.1.output.dense.bias", "itm_head.weight", "text_projection.bias", "embeddings.position_embeddings.weight"])
def test_a_matcher_that_lacks_one_tensor_is_refused(saved, tmp_path, lost):
    matcher = edited(saved, tmp_path / "m", "matcher", lambda state: state.pop(lost))
    with pytest.raises(CpgrError, match=f"1 tensors are missing.*{lost}"):
        load_blip2(str(saved / "captioner"), matcher)


@pytest.mark.parametrize("lost", ["qformer.encoder.layer.0.output_query.dense.weight", "vision_model.post_layernorm.weight", "query_tokens"])
def test_a_captioner_that_lacks_one_tensor_is_refused(saved, tmp_path, lost):
    captioner = edited(saved, tmp_path / "c", "captioner", lambda state: state.pop(lost))
    with pytest.raises(CpgrError, match=f"1 tensors are missing.*{lost}"):
        load_blip2(captioner, str(saved / "matcher"))


def test_a_tensor_of_another_shape_is_refused(saved, tmp_path):
    captioner = edited(saved, tmp_path / "c", "captioner", lambda state: state.update(query_tokens=torch.zeros(1, 4, 128)))
    with pytest.raises(CpgrError, match="1 of another shape.*query_tokens"):
        load_blip2(captioner, str(saved / "matcher"))


def test_lavis_files_that_do_not_fit_are_refused(saved, tmp_path):
    state = torch.load(saved / "blip2_pretrained.pth", weights_only=True)["model"]

    def load(**content):
        torch.save({"model": content}, tmp_path / "x.pth")
        load_blip2(str(saved / "captioner"), str(saved / "matcher"), itg_head=str(tmp_path / "x.pth"))

    with pytest.raises(CpgrError, match="different trainings"):
        load(**{**state, DECODER: state[DECODER] + 1})
    with pytest.raises(CpgrError, match="does not fit the word embeddings"):
        load(**{**state, DECODER: state[DECODER][:-1], HEAD["bias"]: state[HEAD["bias"]][:-1]})
    with pytest.raises(DataError, match="not BLIP-2's first stage"):
        load(**{n: t for n, t in state.items() if n != HEAD["dense.bias"]})
    (tmp_path / "y.pth").write_bytes(b"no tensors")
    with pytest.raises(DataError, match="no file of tensors"):
        load_blip2(str(saved / "captioner"), str(saved / "matcher"), itg_head=str(tmp_path / "y.pth"))
    with pytest.raises(DataError, match="cannot be read"):
        load_blip2(str(saved / "captioner"), str(saved / "matcher"), itg_head=str(tmp_path / "nothing.pth"))


def test_nothing_in_a_lavis_file_is_executed(saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": {"a": Evil()}}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match="no file of tensors"):
        load_blip2(str(saved / "captioner"), str(saved / "matcher"), itg_head=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


# -- attention by part --------------------------------------------------------------------------------------------


def test_attention_by_part(monkeypatch):
    parts = ("vision_config", "qformer_config", "text_config")
    assert attention.by_part("auto", "opt", "bfloat16", "cpu") == dict.fromkeys(parts, "sdpa")
    assert attention.by_part("eager", "opt", "float32") == dict.fromkeys(parts, "eager")
    with pytest.raises(CpgrError, match="flash_attention_2 cannot run: it wants bfloat16"):
        attention.by_part("flash_attention_2", "opt", "float32")
    with pytest.raises(CpgrError, match="none of auto"):
        attention.by_part("flash", "opt", "float32")
    monkeypatch.setattr(attention, "flash_reason", lambda weights, device: "")
    flash = attention.by_part("auto", "opt", "bfloat16")
    assert flash == {"vision_config": "flash_attention_2", "qformer_config": "sdpa", "text_config": "flash_attention_2"}
    assert attention.by_part("auto", "t5", "bfloat16")["text_config"] == "sdpa"


@torch.no_grad()
@pytest.mark.parametrize("other", ["eager", pytest.param("flash_attention_2", marks=pytest.mark.gpu)])
def test_attention_implementations_agree_to_rounding(saved, other):
    weights, device = ("float32", "cpu") if other == "eager" else ("bfloat16", "cuda")
    if other != "eager" and (reason := attention.flash_reason(weights, device)):
        pytest.skip(reason)
    torch.manual_seed(4)
    pixels, prompt = torch.randn(2, 3, 128, 128), torch.tensor([[0, 1, 5], [1, 6, 7]])
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.2, 0.4, 0.9, 1.0]])
    found = []
    for kind in ("sdpa", other):
        loaded = load_blip2(str(saved / "captioner"), str(saved / "matcher"), attention=kind, weights=weights, device=device)
        model = RegionBlip2(loaded.captioner, loaded.parts).to(device).eval()
        assert model.blip2.vision_model.config._attn_implementation == kind
        image = model.blip2.vision_model(pixels.to(device, model.blip2.vision_model.dtype)).last_hidden_state.float()
        arguments = [x.to(device) for x in (boxes, prompt, (prompt > 0).long(), prompt, torch.ones_like(prompt))]
        found.append((image, model.language_loss(model.regions(image, arguments[0]), *arguments[1:])))
    tolerance = 1e-4 if other == "eager" else 5e-2
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
