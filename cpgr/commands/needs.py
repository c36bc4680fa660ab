"""What a run of a config needs, looked for before any work starts: data, splits, images, weights, packages, room on the disk.

Nothing is loaded: of a checkpoint its config and the headers of its files are read. As in `checks`, an item is
{name, ok, found, note}; the note of what is missing says where to get it and where to put it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from ..errors import CpgrError
from ..generation.checkpoints import TEXT_BRANCH, refuse_regionblip
from .checks import item

REFER = "github.com/lichengunc/refer (its README's Download)"
COCO = "images.cocodataset.org/zips/train2014.zip (13 GB)"
# Data set -> where its annotations and its images are to be had; where the images go.
SOURCES = {
    "refcoco": (f"{REFER}: refcoco.zip", COCO, "images/train2014"),
    "refcoco+": (f"{REFER}: refcoco+.zip", COCO, "images/train2014"),
    "refcocog": (f"{REFER}: refcocog.zip", COCO, "images/train2014"),
    "refclef": (f"{REFER}: refclef.zip", f"{REFER}: saiapr_tc-12.zip", "images/saiapr_tc-12"),
    "referit": ("github.com/djiajunustc/TransVG (docs/GETTING_STARTED.md: the index files)", f"{REFER}: saiapr_tc-12.zip", "images/saiapr_tc-12"),
    "flickr30k": ("github.com/BryanPlummer/flickr30k_entities (annotations.zip and the split files)", "shannon.cs.illinois.edu/DenotationGraph (by its form)", "flickr30k-images"),
}  # fmt: skip
LAVIS = "storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/blip2_pretrained.pth"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"), ("spiece.model",), ("tokenizer.model",))


def examine(name: str, more: list[str]) -> dict[str, list[dict]]:
    """Every need of the config called `name` (a file, or one that ships), with the options `more` over it."""
    config, out = read(name, more)
    checks = {
        "data": lambda: data(config), "proposals": lambda: proposals(config), "weights": lambda: weights(config),
        "attention_in_force": lambda: attention(config), "room": lambda: room(config, Path(out)),
    }  # fmt: skip
    return {section: _guarded(section, check) for section, check in checks.items()}


def read(name: str, more: list[str]):
    """The recipe's config and the run's folder."""
    import yaml

    from .. import recipes
    from ..config import config_files, make_parser

    files = config_files(name)
    own = yaml.safe_load(Path(files[-1]).read_text(encoding="utf-8"))
    recipe = str(own.get("recipe") or recipes.RECIPES[0]) if isinstance(own, dict) else ""
    if recipe not in recipes.RECIPES:
        raise CpgrError(f"{files[-1]}: is a config of {recipe or 'nothing'!r}, which is no recipe ({', '.join(recipes.RECIPES)})")
    parser = make_parser(recipes.load(recipe).Config, recipe, "cpgr doctor")
    given = parser.parse_args([*(f"--config={path}" for path in files), *more])
    return parser.instantiate(given), given.out


def _guarded(section: str, check) -> list[dict]:
    try:
        return list(check())
    except Exception as error:  # what a damaged file makes a library raise is part of the answer
        return [item(section.replace("_", " "), False, " ".join(str(error).split())[:300] or type(error).__name__)]


# -- data -----------------------------------------------------------------------------------------------------------


def data(config) -> Iterator[dict]:
    """Annotations, splits and images, read by the reader that the run will use."""
    from ..data.readers import FORMATS
    from ..data.records import Problems

    given = config.data
    if given.format == "scenes" and not given.root:
        yield item("data", True, "the built-in world", "made when the run starts")
        return
    if given.format not in FORMATS:
        yield item("format", False, repr(given.format), f"one of {', '.join(FORMATS)}")
        return
    annotations, pictures, place = SOURCES.get(given.dataset.partition(":")[0], ("", "", ""))
    root = Path(given.root).expanduser()
    where = f"get it from {annotations}; put it in {root.absolute()} (--data.root)" if annotations else f"give the folder as --data.root ({root.absolute()})"
    if not given.root or not root.is_dir():
        yield item("annotations", False, f"no folder {given.root!r}", where)
        if pictures:
            yield item("images", False, "not found", f"get them from {pictures}; put them in {(root / place).absolute()}, or give --data.images")
        return
    for name in splits(config):
        problems = Problems("skip")
        try:
            source = FORMATS[given.format](given, name, problems)
        except CpgrError as error:
            images = "images were not found" in str(error)
            yield item(f"split {name}", False, str(error), f"get them from {pictures}; put them in {(root / place).absolute()}" if images and pictures else where)
            continue
        yield from _split(name, source, given, problems, pictures)


def splits(config) -> list[str]:
    """The splits that the run will read."""
    names = [config.data.train_split, *(name.strip() for name in config.data.eval_split.split(",") if name.strip())]
    if _of(config, "grounding.training.validate_every"):
        names.append(config.data.val_split)
    return list(dict.fromkeys(names))


def _split(name: str, source, given, problems, pictures: str) -> Iterator[dict]:
    bad = len(problems.skipped)
    note = f"{bad} bad records, the first: {problems.skipped[0]}; --data.on_bad skip leaves them out" if bad else str(source.file)
    yield item(f"split {name}", not bad or given.on_bad == "skip", f"{len(source.records):,} expressions", note)
    files = dict.fromkeys(str(record.file_name) for record in source.records)
    missing = [file for file in files if not os.path.isfile(os.path.join(source.folder, file))]
    found = f"{len(files):,}" if not missing else f"{len(missing):,} of {len(files):,} are missing, e.g. {missing[0]}"
    note = str(source.folder) if not missing else f"get them from {pictures or 'their source'}; put them in {source.folder}"
    yield item(f"images of {name}", not missing or given.on_bad == "skip", found, note)


# -- weights ----------------------------------------------------------------------------------------------------------


def proposals(config) -> Iterator[dict]:
    """The detector's file, model or package."""
    kind, _, name = config.proposals.partition(":")
    if kind == "transformers":
        yield from _model("detector", name, "--proposals transformers:FOLDER", tokenizer=False, processor=True)
    elif kind == "builtin":
        yield item("detector", True, "the package's own")
    else:
        there = os.path.isfile(name)
        yield item("detector", there, name if there else f"no file {name!r}", "" if there else f"put it there, or give --proposals {kind}:FILE")
        if kind == "onnx":
            yield _package("onnxruntime", 'pip install "cpgr[onnx]"')


def weights(config) -> Iterator[dict]:
    """Every checkpoint by its files, and BLIP-2's two by the tensors in them."""
    from ..vocabulary import located

    if _of(config, "generation.captioner"):
        names = located(config.generation.captioner, "blip2"), located(config.generation.matcher, "blip2-itm")
        for role, name, place in (("captioner", names[0], "--generation.captioner"), ("matcher", names[1], "--generation.matcher")):
            yield from _model(role, name, f"{place} FOLDER")
        yield from _blip2(*names)
    if head := _of(config, "generation.itg_head"):
        there = os.path.isfile(head)
        get = f"get it from {LAVIS}; put it there, or leave --generation.itg_head empty: the head then starts fresh"
        yield item("ITG's head", there, head if there else f"no file {head!r}", "" if there else get)
    kind, _, name = _of(config, "grounding.visual").partition(":")
    if kind == "transformers":
        yield from _model("visual branch", name, "--grounding.visual transformers:FOLDER", tokenizer=False)
    text = _of(config, "grounding.text")
    if text not in ("", "builtin"):
        yield from _model("text encoder", text, "--grounding.text FOLDER")
    kind, _, name = _of(config, "refinement.pairing.text_match").partition(":")
    if kind == "vectors":
        there = os.path.isfile(name)
        yield item("word vectors", there, name if there else f"no file {name!r}", "" if there else "a .npz of `words` and `vectors`, made of GloVe or word2vec by numpy.savez")
    elif kind == "transformers":
        yield from _model("text match", name, "--refinement.pairing.text_match transformers:FOLDER")


def _of(config, name: str):
    """The setting of that name, or "" where the recipe's config has none."""
    for part in name.split("."):
        config = getattr(config, part, "")
    return config


def _model(role: str, name: str, place: str, tokenizer: bool = True, processor: bool = False) -> Iterator[dict]:
    """A checkpoint of Hugging Face: config, weights with all their shards, tokenizer or image processor."""
    folder = Path(name).expanduser()
    local = folder.is_dir()
    get = f"put them into {folder.absolute()}" if local else f"get it by `hf download {name}` (it goes to {_cache()}), or give a folder as {place}"
    lacking = [] if file(name, "config.json") else ["config.json"]
    if not any(file(name, first) for first in WEIGHTS):
        lacking.append("weights (model.safetensors)")
    lacking += [shard for shard in shards(name) if not file(name, shard)]
    if tokenizer and not any(all(file(name, part) for part in parts) for parts in TOKENIZERS):
        lacking.append("tokenizer (tokenizer.json)")
    if processor and not file(name, "preprocessor_config.json"):
        lacking.append("preprocessor_config.json")
    absent = "config.json" in lacking and not local
    yield item(role, not lacking, name if not lacking else f"{name} is not here" if absent else f"{name} lacks {', '.join(lacking)}", "" if not lacking else get)
    settings = file(name, "config.json")
    if settings and _uses_timm(json.loads(Path(settings).read_text())):
        yield _package("timm", f"pip install timm (the backbone of {name} is one of its)")


def _uses_timm(settings: dict) -> bool:
    backbone = settings.get("backbone_config") or {}
    return bool(settings.get("use_timm_backbone")) or backbone.get("model_type") == "timm_backbone"


def file(name: str, part: str) -> str | None:
    """The path of a checkpoint's file: in its folder, or in Hugging Face's cache."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder / part) if (folder / part).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, part)
    except HFValidationError:
        return None
    return found if isinstance(found, str) and os.path.isfile(found) else None


def _cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return HF_HUB_CACHE


def shards(name: str) -> list[str]:
    """The files of a sharded checkpoint, by its index; none of one that is whole."""
    if file(name, WEIGHTS[0]):
        return []
    index = file(name, WEIGHTS[1]) or (None if file(name, WEIGHTS[2]) else file(name, WEIGHTS[3]))
    return sorted(set(json.loads(Path(index).read_text())["weight_map"].values())) if index else []


def tensors(name: str) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of a checkpoint's tensors, from the headers of its safetensors files; None where it has none."""
    from safetensors import safe_open

    paths = [file(name, part) for part in (shards(name) or [WEIGHTS[0]])]
    if not all(path and path.endswith(".safetensors") for path in paths):
        return None
    found = {}
    for path in paths:
        with safe_open(path, "pt") as opened:
            found |= {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118 - no dict
    return found


def _blip2(captioner: str, matcher: str) -> Iterator[dict]:
    """Whether the two checkpoints hold every tensor of the model that is put together of them."""
    import torch
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

    if not (file(captioner, "config.json") and file(matcher, "config.json")):
        return
    config, theirs = Blip2Config.from_pretrained(captioner), Blip2Config.from_pretrained(matcher)
    config.qformer_config.use_qformer_text_input = theirs.qformer_config.use_qformer_text_input = True
    theirs.vision_config.num_hidden_layers = 0
    with torch.device("meta"):
        model, other = Blip2ForConditionalGeneration(config), Blip2ForImageTextRetrieval(theirs)
    branch = {f"qformer.{n}": tuple(t.shape) for n, t in model.qformer.state_dict().items() if TEXT_BRANCH.match(n)}
    wanted = {n: tuple(t.shape) for n, t in model.state_dict().items() if n not in branch}
    needed = branch | {n: tuple(t.shape) for n, t in other.state_dict().items() if not n.startswith("vision_model.")}
    for role, name, expected in (("captioner's tensors", captioner, wanted), ("matcher's tensors", matcher, needed)):
        have = tensors(name)
        if have is None:
            yield item(role, None, "not looked at", "no safetensors files; they are checked when the run loads them")
            continue
        try:
            refuse_regionblip(name, have)
        except CpgrError as error:
            yield item(role, False, str(error))
            continue
        tied = ("lm_head.weight", "embed_tokens.weight")  # tied to others, and then not kept twice
        bad = [n for n, shape in expected.items() if have.get(n, shape) != shape or (n not in have and not n.endswith(tied))]
        no_branch = "; it has no text branch: take Salesforce/blip2-itm-vit-g" if any(n in branch for n in bad) else ""
        found = f"all {len(expected):,} are there" if not bad else f"{len(bad)} of {len(expected):,} missing or of another shape, e.g. {bad[0]}"
        yield item(role, not bad, found, "" if not bad else f"take a pair with the same Q-Former{no_branch}")


# -- what runs, and where -----------------------------------------------------------------------------------------------


def attention(config) -> Iterator[dict]:
    """The attention of each part as the run will set it, and why."""
    from ..generation.attention import by_part, flash_reason
    from ..vocabulary import located

    if not _of(config, "generation.captioner"):
        return
    generation = config.generation
    settings = file(located(generation.captioner, "blip2"), "config.json")
    language_model = json.loads(Path(settings).read_text()).get("text_config", {}).get("model_type", "opt") if settings else "opt"
    reason = flash_reason(generation.weights)
    try:
        parts = by_part(generation.attention, language_model, generation.weights)
    except CpgrError as error:
        yield item("BLIP-2", False, str(error))
        return
    note = f"no flash attention: {reason}" if reason and generation.attention == "auto" else ""
    for name, part in (("image encoder", "vision_config"), ("Q-Former", "qformer_config"), ("language model", "text_config")):
        flash = "flash_attention_2" in parts.values() and parts[part] != "flash_attention_2"
        yield item(name, True, parts[part], "it has no flash attention" if flash else note)
    yield item("grounding network", True, _of(config, "grounding.network.attention_kind"), "its maps are cpgr_kernels' attention_map")


def _package(module: str, command: str) -> dict:
    try:
        import_module(module)
        return item(module, True, "installed")
    except Exception as error:
        return item(module, False, "not installed" if isinstance(error, ImportError) else str(error)[:200], command)


def room(config, out: Path) -> Iterator[dict]:
    """The disk that cached image features will take beyond their memory, against what is free where the run lies."""
    from ..data.readers import FORMATS
    from ..data.records import Problems

    if not _of(config, "generation.captioner"):
        return
    images = config.data.world_images
    if config.data.root:
        if not Path(config.data.root).expanduser().is_dir():
            yield item("disk", None, "not looked at", "how much is wanted is known once the annotations are there")
            return
        source = FORMATS[config.data.format](config.data, config.data.train_split, Problems("skip"))
        images = len({record.image_id for record in source.records})
    place = next(folder for folder in [out.absolute(), *out.absolute().parents] if folder.is_dir())
    free = shutil.disk_usage(place).free / 2**30
    wanted = max(0.0, images * feature_bytes(config) / 2**30 - config.generation.memory_mb / 1024)
    note = f"image features of {images:,} images beyond {config.generation.memory_mb:,.0f} MB of memory (--generation.memory_mb)"
    yield item("disk", free > wanted, f"{free:,.0f} GiB free in {place}, {wanted:,.1f} GiB wanted", note)


def feature_bytes(config) -> int:
    """What the cached features of an image take: bf16 [1 + cells, width] of the image encoder."""
    from ..vocabulary import located

    settings = file(located(config.generation.captioner, "blip2"), "config.json")
    vision = json.loads(Path(settings).read_text()).get("vision_config", {}) if settings else {}
    size = config.generation.image_size or vision.get("image_size", 224)
    return 2 * (1 + (size // vision.get("patch_size", 14)) ** 2) * vision.get("hidden_size", 1408)
