"""`cpgr doctor --config`: what a run needs and lacks, and the named configs that it is asked about."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from cpgr import cli
from cpgr.commands import needs
from cpgr.config import CONFIGS, config_files
from cpgr.errors import CpgrError
from cpgr.recipes import shipped_configs
from cpgr.run import main
from cpgr.vocabulary import BUILTIN

DATA_SETS = ("refcoco", "refcoco+", "refcocog-umd", "refcocog-google", "referitgame", "flickr30k")


def doctor(capsys, *args):
    """Exit code, and the needs' items by name."""
    code = cli.main(["doctor", "--json", "--config", *map(str, args)])
    found = json.loads(capsys.readouterr().out)
    sections = ("data", "proposals", "weights", "attention_in_force", "room")
    return code, {item["name"]: item for section in sections for item in found[section]}


@pytest.fixture
def config(tmp_path, small_world):
    """A config of the small world with the shipped models in folders of their own."""
    for name in ("blip2", "blip2-itm"):
        shutil.copytree(BUILTIN / name, tmp_path / name)
    data = {"format": "refer", "root": str(small_world[0]), "dataset": "scenes", "eval_split": "val"}
    generation = {"captioner": str(tmp_path / "blip2"), "matcher": str(tmp_path / "blip2-itm"), "attention": "auto"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"base": "cpgr", "out": str(tmp_path / "out"), "data": data, "generation": generation}))
    return tmp_path / "run.yaml"


# -- the named configs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_has_a_named_config(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--config", f"cpgr-{name}", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert stop.value.code == 0 and printed["out"] == f"runs/cpgr-{name}" and printed["base"] == "cpgr-published"
    assert printed["generation"]["captioner"] == "Salesforce/blip2-opt-2.7b" and printed["grounding"]["network"]["head"] == "regression"
    assert printed["grounding"]["max_words"] == (40 if "refcocog" in name else 20)
    data = printed["data"]
    annotations, pictures, place = needs.SOURCES[data["dataset"].partition(":")[0]]
    assert annotations and pictures and place


def leaves(tree, at=()):
    for key, value in tree.items():
        yield from leaves(value, (*at, key)) if isinstance(value, dict) else [(*at, key)]


def test_nothing_of_the_built_in_worlds_config_shows_through():
    """cpgr.yaml's values are every config's defaults; the published config must override each one."""
    small, published = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("cpgr", "cpgr-published"))
    refcoco = yaml.safe_load((CONFIGS / "cpgr-refcoco.yaml").read_text())
    harmless = {("data", "seed"), ("data", "world_images")}
    assert set(leaves(small)) - harmless <= set(leaves(published)) | set(leaves(refcoco))


def test_every_published_setting_says_its_source():
    for line in (CONFIGS / "cpgr-published.yaml").read_text().splitlines():
        key, _, value = line.split("#")[0].strip().partition(":")
        settles = value.strip() and value.strip() != "0" and key not in ("validate_every", "steps")
        if settles:
            assert any(tag in line for tag in ("[FIG]", "[CPL]", "[RB]", "[TVG]", "[BLIP2]", "choice", "read only", "nothing is decoded")), line


def test_help_lists_the_named_configs(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = "".join(capsys.readouterr().out.split())
    assert all(f"cpgr-{name}" in said for name in DATA_SETS)


def test_bases(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("base: cpgr-refcoco\ncycles: 7\n")
    assert [Path(p).stem for p in config_files(str(tmp_path / "mine.yaml"))] == ["cpgr-published", "cpgr-refcoco", "mine"]
    with pytest.raises(SystemExit):
        main(["--config", str(tmp_path / "mine.yaml"), "--print_config", "--cycles", "9"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["cycles"] == 9 and printed["data"]["dataset"] == "refcoco:unc"
    (tmp_path / "a.yaml").write_text(f"base: {tmp_path / 'b.yaml'}\n")
    (tmp_path / "b.yaml").write_text(f"base: {tmp_path / 'a.yaml'}\n")
    with pytest.raises(CpgrError, match="leads back to it"):
        config_files(str(tmp_path / "a.yaml"))
    (tmp_path / "c.yaml").write_text("base: [\n")
    with pytest.raises(CpgrError, match="no readable YAML"):
        config_files(str(tmp_path / "c.yaml"))
    assert main(["--base", "smallest"]) == 2 and "said in a config file" in capsys.readouterr().err


# -- what is there, and what is missing ------------------------------------------------------------------------------


def test_all_that_is_needed_is_there(config, capsys):
    code, found = doctor(capsys, config)
    assert code == 0 and {item["ok"] for item in found.values()} == {True}
    assert found["images of train"]["found"] == "12" and found["captioner's tensors"]["found"].startswith("all ")
    assert found["image encoder"]["found"] == "sdpa" and "no flash attention" in found["image encoder"]["note"]


def test_everything_that_refcoco_lacks_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    code, found = doctor(capsys, "cpgr-refcoco", "--data.root", tmp_path / "data")
    assert code == 1
    assert "refcoco.zip" in found["annotations"]["note"] and str(tmp_path / "data") in found["annotations"]["note"]
    assert "train2014.zip" in found["images"]["note"] and str(tmp_path / "data/images/train2014") in found["images"]["note"]
    for role, name in (("captioner", "Salesforce/blip2-opt-2.7b"), ("matcher", "Salesforce/blip2-itm-vit-g"), ("text encoder", "bert-base-uncased")):
        assert found[role]["ok"] is False and f"hf download {name}" in found[role]["note"]


def test_missing_images_and_splits(config, capsys, small_world, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(small_world[0], root)
    victim = next(path for path in root.rglob("*") if path.name in {i.file_name.split("/")[-1] for i in small_world[1].images.values()})
    victim.unlink()
    code, found = doctor(capsys, config, "--data.root", root)
    assert code == 1 and "1 of 12 are missing" in found["images of train"]["found"] and victim.name in found["images of train"]["found"]
    code, found = doctor(capsys, config, "--data.eval_split", "val,testX")
    assert code == 1 and "has no split 'testX'" in found["split testX"]["found"]
    code, found = doctor(capsys, config, "--data.format", "nope")
    assert code == 1 and found["format"]["ok"] is False


def test_files_of_a_checkpoint(config, capsys):
    matcher = config.parent / "blip2-itm"
    (matcher / "tokenizer.json").unlink()
    code, found = doctor(capsys, config)
    assert code == 1 and "lacks tokenizer" in found["matcher"]["found"] and str(matcher) in found["matcher"]["note"]
    state = load_file(matcher / "model.safetensors")
    (matcher / "model.safetensors").unlink()
    (matcher / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    save_file({n: t for n, t in list(state.items())[:40]}, matcher / "one.safetensors")
    code, found = doctor(capsys, config)
    assert "two.safetensors" in found["matcher"]["found"] and found["matcher's tensors"]["ok"] is None
    save_file({n: t for n, t in list(state.items())[40:]}, matcher / "two.safetensors")
    code, found = doctor(capsys, config)
    assert found["matcher's tensors"]["ok"] is True


@pytest.mark.parametrize(("edit", "said"), [
    (lambda state: [state.pop(n) for n in list(state) if ".intermediate." in n], "it has no text branch"),
    (lambda state: state.update({"itm_head.weight": torch.zeros(3, 128)}), "itm_head.weight"),
    (lambda state: state.update(query_tokens_img_region=torch.zeros(1)), "trained on RefCOCO's labelled boxes"),
], ids=["text branch missing", "shape", "RegionBLIP"])  # fmt: skip
def test_tensors_of_a_checkpoint(config, capsys, edit, said):
    path = config.parent / "blip2-itm" / "model.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path)
    code, found = doctor(capsys, config)
    item = found["matcher's tensors"]
    assert code == 1 and item["ok"] is False and said in item["found"] + item["note"]


def test_files_and_packages_by_option(config, capsys, monkeypatch):
    options = ("--proposals", "onnx:no.onnx", "--generation.itg_head", "no.pth", "--refinement.pairing.text_match", "vectors:no.npz")
    monkeypatch.setattr(needs, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    code, found = doctor(capsys, config, *options)
    assert code == 1 and all(found[name]["ok"] is False for name in ("detector", "onnxruntime", "ITG's head", "word vectors"))
    assert "cpgr[onnx]" in found["onnxruntime"]["note"] and "blip2_pretrained.pth" in found["ITG's head"]["note"]
    code, found = doctor(capsys, config, "--generation.attention", "flash_attention_2")
    assert code == 1 and "cannot run" in found["BLIP-2"]["found"]
    assert needs._uses_timm({"use_timm_backbone": True}) and not needs._uses_timm({"backbone_config": {"model_type": "resnet"}})


def test_a_full_disk(config, capsys, monkeypatch):
    monkeypatch.setattr(needs, "feature_bytes", lambda config: 2**50)
    code, found = doctor(capsys, config)
    assert code == 1 and found["disk"]["ok"] is False


def test_published_features_take_what_the_reference_says():
    config, _ = needs.read("cpgr-refcoco", [])
    assert needs.feature_bytes(config) == 2 * 257 * 1408


def test_wrong_use(capsys):
    assert cli.main(["doctor", "--config", "nope"]) == 2 and "no config file 'nope'" in capsys.readouterr().err
    assert cli.main(["doctor", "--cycles", "3"]) == 2 and "need --config" in capsys.readouterr().err
    assert "cpgr-refcoco" in shipped_configs()
