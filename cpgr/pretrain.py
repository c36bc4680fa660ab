"""Pretraining of the models that ship with the package: `python -m cpgr.pretrain [--out DIR] [--minutes M]`.

They stand for what the published systems download: a detector with attributes (VinVL, DETR), a BERT whose word
states know what the words look like, and a BLIP-2. All of them see scenes of their own seeds with detection
labels (boxes, categories, attributes) and captions of whole images. No referring expression is drawn, so no run's
pairs can be among them; the grammar's words are listed for the vocabularies, without any region.
"""

from __future__ import annotations

import argparse
import logging
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cpgr_kernels import generalized_box_iou

from .data.proposals.tiny_detector import TinyDetector, TinyDetectorConfig
from .data.scenes import captions, grammar, vocabulary
from .data.scenes.render import render
from .data.scenes.sample import sample_scene
from .generation.checkpoints import load_blip2
from .generation.objectives import Texts, region_losses
from .generation.region_blip2 import RegionBlip2, clip_pixels
from .grounding.network import LEAST_AREA
from .training import TrainingConfig, make_accelerator, seed_everything, train
from .vocabulary import BUILTIN

log = logging.getLogger("cpgr")

# Every run's scenes come from its own seed; pretraining's come from a stream that no seed reaches.
STREAM = 0x70726574
PIXELS = 128
PARTS = ("detector", "bert", "blip2", "prefixes")


@dataclass
class Drawn:
    """A rendered scene: image uint8 [3, S, S], its objects, its boxes [n, 4] in 0..1."""

    image: torch.Tensor
    scene: object
    boxes: torch.Tensor


def draw(count: int) -> list[Drawn]:
    drawn = []
    for i in range(count):
        rng = np.random.default_rng([STREAM, i])
        scene = sample_scene(rng, PIXELS)
        image, _ = render(scene, rng)
        boxes = torch.tensor([item.box for item in scene.objects], dtype=torch.float32) / PIXELS
        drawn.append(Drawn(torch.from_numpy(image.transpose(2, 0, 1).copy()), scene, boxes))
    return drawn


def save_half(model, folder: Path) -> None:
    """Weights as fp16, a config that says fp32: half the bytes in the package, full precision where they run."""
    model.half().save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


class _Scenes(torch.utils.data.Dataset):
    def __init__(self, drawn):
        self.drawn = drawn

    def __len__(self):
        return len(self.drawn)

    def __getitem__(self, index):
        return index


# -- detector -----------------------------------------------------------------------------------------------------


def train_detector(drawn: list[Drawn], out: Path, steps: int, accelerator) -> TinyDetector:
    config = TinyDetectorConfig(
        image_size=PIXELS, categories=vocabulary.CATEGORIES, colours=list(vocabulary.COLOURS),
        sizes=list(vocabulary.SIZES), patterns=vocabulary.PATTERNS,
    )  # fmt: skip
    model = TinyDetector(config).to(memory_format=torch.channels_last)
    step = _DetectorStep(model, drawn)
    settings = TrainingConfig(steps=steps, batch_size=32, learning_rate=2e-3, weight_decay=1e-3, warmup=100, clip=2.0)
    train(step, _Scenes(drawn), lambda i: i, settings, accelerator, seed=1, work=out / "detector.work", what="detector")
    save_half(model.eval(), out / "detector")
    return model.float()


class _DetectorStep(nn.Module):
    """Varifocal score (target: IoU), GIoU, and four cross-entropies at the cells in the middle of each box."""

    def __init__(self, model: TinyDetector, drawn: list[Drawn]):
        super().__init__()
        self.model, self.drawn = model, drawn
        c = model.config
        self.words = [list(c.categories), list(c.colours), list(c.sizes), list(c.patterns)]

    def forward(self, indices: list[int]) -> dict:
        score, boxes, labels = self.model(torch.stack([self.drawn[i].image for i in indices]))
        rows, cells, targets, classes = [], [], [], []
        for row, i in enumerate(indices):
            picked, owner = _positive_cells(self.drawn[i].boxes, self.model.config.grid)
            rows.append(torch.full_like(picked, row))
            cells.append(picked)
            targets.append(self.drawn[i].boxes[owner])
            items = self.drawn[i].scene.objects
            named = torch.tensor(
                [[words.index(getattr(o, name)) for words, name in zip(self.words, ("category", "colour", "size", "pattern"), strict=True)] for o in items]
            )
            classes.append(named[owner])
        at, cell, target, named = torch.cat(rows), torch.cat(cells), torch.cat(targets), torch.cat(classes)
        giou = generalized_box_iou(boxes[at, cell], target, pairwise=False, eps=LEAST_AREA)
        quality = torch.zeros_like(score, dtype=torch.float32)
        quality[at, cell] = giou.detach().clamp(min=0)
        focus = torch.where(quality > 0, quality, 0.75 * score.detach().float().sigmoid() ** 2)
        found = (F.binary_cross_entropy_with_logits(score.float(), quality, reduction="none") * focus).sum() / len(at)
        names = sum(F.cross_entropy(logits[at, cell].float(), named[:, i]) for i, logits in enumerate(labels))
        return {"score": found, "box": (1 - giou).mean(), "names": names, "loss": 1.5 * found + 2 * (1 - giou).mean() + 0.6 * names}


def _positive_cells(boxes: torch.Tensor, grid: int):
    """Cells in the central half of each box and the nearest one; (cells, their object), later objects in front."""
    centre = (torch.arange(grid) + 0.5) / grid
    owner = torch.full((grid, grid), -1)
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        cx, cy, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        inside = ((centre - cy).abs() <= h / 4)[:, None] & ((centre - cx).abs() <= w / 4)[None]
        owner[inside] = i
        owner[min(int(cy * grid), grid - 1), min(int(cx * grid), grid - 1)] = i
    flat = owner.flatten()
    cells = (flat >= 0).nonzero().squeeze(1)
    return cells, flat[cells]


@torch.no_grad()
def cell_tokens(detector: TinyDetector, drawn: list[Drawn]) -> torch.Tensor:
    """The detector's last level of every scene, [N, cells, width] bf16: what words and image encoder are aligned to."""
    chunks = range(0, len(drawn), 16)
    return torch.cat([detector.levels(torch.stack([d.image for d in drawn[i : i + 16]]))[-1].bfloat16() for i in chunks])


# -- words -----------------------------------------------------------------------------------------------------------


def word_list() -> list[str]:
    """Every word of captions, detection phrases and the grammar, sorted."""
    words: set[str] = set()
    for i in range(1500):
        rng = np.random.default_rng([STREAM, 1, i])
        scene = sample_scene(rng, PIXELS)
        words.update(captions.caption(scene, rng).split())
        for index, item in enumerate(scene.objects):
            words.update(captions.detection_phrase(item, rng).split())
            for kind in ("attr", "abs", "rel", "sup", "ord"):
                made = grammar.express(scene, index, rng, kind)
                words.update(made[0].split() if made else ())
    return sorted(words)


def bert_tokenizer(words: list[str], folder: Path):
    from transformers import BertTokenizerFast

    letters = [chr(c) for c in range(33, 127)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *words]
    vocab += [c for c in letters if c not in vocab] + ["##" + c for c in letters]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(vocab)}, do_lower_case=True, bos_token="[DEC]")
    (folder / "vocab.txt").unlink()
    tokenizer.save_pretrained(folder)
    return tokenizer


def language_tokenizer(words: list[str], folder: Path):
    """OPT's tokens at the world's size: whole words, OPT's special tokens, spaces between words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    vocab = {word: i for i, word in enumerate([*special, *words])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="</s>", eos_token="</s>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def train_bert(drawn, words, tokens, out: Path, steps: int, accelerator) -> None:
    """InfoNCE of a phrase's mean word state against the detector's token at the object's centre."""
    from transformers import BertConfig, BertModel

    tokenizer = bert_tokenizer(words, out / "bert")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    step = _AlignStep(model, tokenizer, tokens, drawn)
    settings = TrainingConfig(steps=steps, batch_size=64, learning_rate=1e-3, warmup=50)
    train(step, _Scenes(drawn), lambda i: i, settings, accelerator, seed=2, work=out / "bert.work", what="BERT")
    save_half(model.eval(), out / "bert")


class _AlignStep(nn.Module):
    def __init__(self, model, tokenizer, tokens, drawn):
        super().__init__()
        self.model, self.tokenizer, self.tokens, self.drawn = model, tokenizer, tokens, drawn
        self.scale = nn.Parameter(torch.tensor(2.6))
        self.project = nn.Linear(model.config.hidden_size, tokens.shape[-1])

    def forward(self, indices):
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        grid = math.isqrt(self.tokens.shape[1])
        tokens, phrases = [], []
        for i in indices:
            # two objects of a scene: the other one is the negative that the words must tell it from
            for k in rng.permutation(len(self.drawn[i].boxes))[:2]:
                tokens.append(self.tokens[i, _centre_cell(self.drawn[i].boxes[k], grid)].float())
                phrases.append(captions.detection_phrase(self.drawn[i].scene.objects[k], rng))
        batch = self.tokenizer(phrases, padding=True, return_tensors="pt")
        states = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        text = F.normalize(self.project((states * mask).sum(1) / mask.sum(1)).float(), dim=-1)
        logits = text @ F.normalize(torch.stack(tokens), dim=-1).t() * self.scale.exp()
        same = torch.tensor([[a == b for b in phrases] for a in phrases])
        logits = logits.masked_fill(same & ~torch.eye(len(phrases), dtype=torch.bool), float("-inf"))
        target = torch.arange(len(phrases))
        return {"loss": (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2}


def _centre_cell(box: torch.Tensor, grid: int) -> int:
    x, y = float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2
    return min(int(y * grid), grid - 1) * grid + min(int(x * grid), grid - 1)


# -- BLIP-2 ----------------------------------------------------------------------------------------------------------


def make_blip2(words: list[str], out: Path):
    """The real classes at small sizes: (captioner, matcher, their tokenizers)."""
    from transformers import (
        Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig, OPTConfig,
    )  # fmt: skip

    llm_words, qformer_words = language_tokenizer(words, out / "blip2"), bert_tokenizer(words, out / "blip2-itm")
    width = 128
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=4, num_attention_heads=4, image_size=PIXELS,
            patch_size=16, initializer_range=0.02,
        ),
        qformer_config=Blip2QFormerConfig(
            vocab_size=len(qformer_words), hidden_size=width, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=2 * width, max_position_embeddings=64, cross_attention_frequency=1, encoder_hidden_size=width,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=qformer_words.pad_token_id,
            use_qformer_text_input=True,
        ),
        text_config=OPTConfig(
            vocab_size=len(llm_words), hidden_size=width, word_embed_proj_dim=width, num_hidden_layers=3, num_attention_heads=4,
            ffn_dim=2 * width, max_position_embeddings=128, dropout=0.0, bos_token_id=llm_words.bos_token_id,
            eos_token_id=llm_words.eos_token_id, pad_token_id=llm_words.pad_token_id,
        ),
        num_query_tokens=8, image_text_hidden_size=64, image_token_index=None,
    )  # fmt: skip
    captioner = Blip2ForConditionalGeneration(config)
    captioner.set_attn_implementation("eager")
    nn.init.normal_(captioner.query_tokens, 0, 0.02)  # transformers leaves them zero: all queries would be one
    matcher = Blip2ForImageTextRetrieval(config)
    matcher.qformer = captioner.qformer
    return captioner, matcher, llm_words, qformer_words


def train_blip2(drawn, words, tokens, out: Path, steps: int, accelerator) -> None:
    captioner, matcher, llm_words, qformer_words = make_blip2(words, out)
    parts = nn.ModuleDict(
        {name: getattr(matcher, name) for name in ("embeddings", "vision_projection", "text_projection", "itm_head")}
    )
    model = RegionBlip2(captioner, parts)
    nn.init.normal_(model.coordinates.outer.weight, std=0.05)
    step = _Blip2Step(model, llm_words, qformer_words, tokens, drawn, prefixes=0.0)
    settings = TrainingConfig(steps=steps, batch_size=32, learning_rate=1.5e-3, weight_decay=0.05, warmup=100, final_rate=0.02)
    train(step, _Scenes(drawn), lambda i: i, settings, accelerator, seed=3, work=out / "blip2.work", what="BLIP-2")
    save_blip2(model, matcher, out)


def train_prefixes(drawn, tokens, out: Path, steps: int, accelerator) -> None:
    """Go on from the saved BLIP-2 with prefixes before the phrases: a large language model reads its prompt, a small one
    has to learn to."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, Blip2ForImageTextRetrieval

    loaded = load_blip2(str(out / "blip2"), str(out / "blip2-itm"), attention="eager")
    captioner, parts = loaded.captioner, loaded.parts
    model = RegionBlip2(captioner, parts)
    model.load_state_dict({n: t.float() for n, t in load_file(out / "blip2" / "coordinates.safetensors").items()}, strict=False)
    llm_words, qformer_words = (AutoTokenizer.from_pretrained(out / name) for name in ("blip2", "blip2-itm"))
    step = _Blip2Step(model, llm_words, qformer_words, tokens, drawn, prefixes=0.7)
    settings = TrainingConfig(steps=steps, batch_size=32, learning_rate=1e-3, weight_decay=0.05, warmup=50, final_rate=0.02)
    train(step, _Scenes(drawn), lambda i: i, settings, accelerator, seed=4, work=out / "prefixes.work", what="BLIP-2, prefixes")
    matcher = Blip2ForImageTextRetrieval.from_pretrained(out / "blip2-itm", dtype=torch.float32)
    matcher.qformer = captioner.qformer
    for name, part in parts.items():
        setattr(matcher, name, part)
    save_blip2(model, matcher, out)


def save_blip2(model: RegionBlip2, matcher, out: Path) -> None:
    """As published: a captioner without text branch, a matcher with it; and the coordinate embedding beside them."""
    from safetensors.torch import save_file

    captioner = model.blip2
    own = {n: p.detach().half().contiguous() for n, p in model.named_parameters() if n.split(".")[0] in ("region_queries", "coordinates", "word_bias")}
    matcher.vision_model, matcher.query_tokens = captioner.vision_model, captioner.query_tokens
    save_half(matcher, out / "blip2-itm")
    captioner.config.qformer_config.use_qformer_text_input = False
    for layer in captioner.qformer.encoder.layer:
        del layer.intermediate, layer.output
    save_half(captioner, out / "blip2")
    save_file(own, out / "blip2" / "coordinates.safetensors")


class _Blip2Step(nn.Module):
    """Captions of whole images and detection phrases of boxes, with the image encoder distilled from the detector."""

    def __init__(self, model: RegionBlip2, llm_words, qformer_words, tokens, drawn, prefixes: float):
        super().__init__()
        self.prefixes = prefixes  # how often a phrase is written after another phrase of the same object
        self.model, self.llm_words, self.qformer_words, self.tokens, self.drawn = model, llm_words, qformer_words, tokens, drawn
        vision = model.blip2.config.vision_config
        self.cells = math.isqrt(tokens.shape[1]) // (vision.image_size // vision.patch_size)
        self.distil = nn.Linear(vision.hidden_size, tokens.shape[-1] * self.cells**2)

    def forward(self, indices: list[int]) -> dict:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
        frames = torch.stack([self.drawn[i].image for i in indices])
        image = self.model.blip2.vision_model(clip_pixels(frames)).last_hidden_state
        losses = {"distil": self._distil(image, indices)}
        queries = self.model.regions(image, None)
        losses["caption"] = self._language(queries, [captions.caption(self.drawn[i].scene, rng) for i in indices])
        picks = [(row, int(k)) for row, i in enumerate(indices) for k in rng.permutation(len(self.drawn[i].boxes))[:3]]
        objects = [self.drawn[indices[row]].scene.objects[k] for row, k in picks]
        phrases = [captions.detection_phrase(o, rng) for o in objects]
        prefixes = [captions.detection_phrase(o, rng) if rng.random() < self.prefixes else "" for o in objects]
        boxes = torch.stack([self.drawn[indices[row]].boxes[k] for row, k in picks])
        boxes = (boxes + torch.randn_like(boxes) * 0.01).clamp(0, 1)
        encoded = self.qformer_words(phrases, padding=True, return_tensors="pt")
        texts = Texts(encoded["input_ids"], encoded["attention_mask"], self.qformer_words.bos_token_id)
        same = torch.tensor([[a == b for b in phrases] for a in phrases])
        named = region_losses(
            self.model, image[[row for row, _ in picks]], boxes, texts, self._ids(prefixes, True),
            self._ids(phrases, False), same, torch.ones(len(picks)), smoothing=0.0,
        )  # fmt: skip
        losses |= named
        return {**losses, "loss": sum(losses.values())}

    def _distil(self, image, indices):
        grid, cells = math.isqrt(self.tokens.shape[1]), self.cells
        target = self.tokens[indices].float().unflatten(1, (grid // cells, cells, grid // cells, cells))
        target = target.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
        # raw, it takes most of the clipped gradient at first: image features come before the words for them
        return F.mse_loss(self.distil(image[:, 1:]).float(), target)

    def _language(self, queries, texts):
        return self.model.language_loss(queries, *self._ids([""] * len(texts), True), *self._ids(texts, False)).mean()

    def _ids(self, texts, prompt: bool):
        bos, eos = self.llm_words.bos_token_id, self.llm_words.eos_token_id
        rows = [self.llm_words(t, add_special_tokens=False)["input_ids"] for t in texts]
        rows = [[bos, *r] if prompt else [*r, eos] for r in rows]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.llm_words.pad_token_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, r in enumerate(rows):
            span = slice(longest - len(r), longest) if prompt else slice(0, len(r))
            ids[i, span], mask[i, span] = torch.tensor(r), 1
        return ids, mask


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cpgr.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BUILTIN, help="folder of the weights (default: the package's own)")
    parser.add_argument("--images", type=int, default=8000, help="scenes to draw")
    parser.add_argument("--detector-steps", type=int, default=700)
    parser.add_argument("--bert-steps", type=int, default=800)
    parser.add_argument("--blip2-steps", type=int, default=1500)
    parser.add_argument("--prefix-steps", type=int, default=800)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    accelerator = make_accelerator()
    args.out.mkdir(parents=True, exist_ok=True)
    drawn, words = draw(args.images), word_list()
    log.info("%d scenes, %d words", len(drawn), len(words))
    seed_everything("pretrain", "detector")
    if "detector" in args.only:
        detector = train_detector(drawn, args.out, args.detector_steps, accelerator)
    else:
        detector = TinyDetector.from_pretrained(args.out / "detector").float()
    detector.eval().requires_grad_(False)
    with accelerator.autocast():
        tokens = cell_tokens(detector, drawn)
    if "bert" in args.only:
        seed_everything("pretrain", "bert")
        train_bert(drawn, words, tokens, args.out, args.bert_steps, accelerator)
    if "blip2" in args.only:
        seed_everything("pretrain", "blip2")
        train_blip2(drawn, words, tokens, args.out, args.blip2_steps, accelerator)
    if "prefixes" in args.only:
        seed_everything("pretrain", "prefixes")
        train_prefixes(drawn, tokens, args.out, args.prefix_steps, accelerator)
    for work in args.out.glob("*.work"):
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
