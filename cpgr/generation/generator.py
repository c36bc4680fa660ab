"""The Generation stage of CPGR: BLIP-2, told where to look, writes an expression for every proposal."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..data.features import FeatureStore, load_crops
from ..data.records import Expression, Split
from ..errors import CpgrError
from ..labels import Label, LabelTable
from ..processes import joined, share
from ..progress import track
from ..stages import Images
from ..training import parameter_groups, seed_everything, train
from ..vocabulary import batches, clean, extend, located, opened
from .checkpoints import load_blip2
from .fine_tuning import FineTuning, Groups
from .image_encoders import image_encoder
from .objectives import Texts
from .region_blip2 import RegionBlip2
from .settings import GenerationConfig
from .templates import templates


class RegionInputs(NamedTuple):
    """Image features [I, S, V], boxes [R, 4] (None: each region is an image of its own) and owner [R] of R regions."""

    image: torch.Tensor
    boxes: torch.Tensor | None
    owner: torch.Tensor


SCORES = ("itg", "itc", "itm")  # what `judge` can tell


class Blip2Generator:
    """`stages.Generator` by `RegionBlip2`. Before the first `fit` it writes templates (reference 4.2, option A)."""

    def __init__(self, config: GenerationConfig, accelerator, work: Path, seed: int):
        self.config, self.accelerator, self.work, self.seed = config, accelerator, work, seed
        self.model: RegionBlip2 | None = None
        self.store: FeatureStore | None = None
        self.fitted = False

    # -- building and keeping -------------------------------------------------------------------------------------

    def build(self, texts: Sequence[str] = ()) -> None:
        """A fresh model from the checkpoints: frozen BLIP-2, new LoRA, zero coordinate embedding."""
        from transformers import AutoTokenizer

        config = self.config
        if {config.weights, self.accelerator.mixed_precision} in ({"float16", "bf16"}, {"bfloat16", "fp16"}):
            raise CpgrError(f"generation.weights is {config.weights}, precision {self.accelerator.mixed_precision}: take one half precision")
        names = located(config.captioner, "blip2"), located(config.matcher, "blip2-itm")
        with opened(*names):
            self.llm_words, self.words = (AutoTokenizer.from_pretrained(name) for name in names)
            loaded = load_blip2(
                *names, attention=config.attention, itg_head=config.itg_head, weights=config.weights, device=self.accelerator.device
            )
        captioner, parts = loaded.captioner, loaded.parts
        if self.words.bos_token is None:
            self.words.add_special_tokens({"bos_token": "[DEC]"})
        added = (
            (extend(self.llm_words, texts), extend(self.words, texts)) if config.vocabulary == "extend" else (0, 0)
        )
        _resize(captioner.language_model, parts["embeddings"], self.llm_words, self.words)
        self.model = RegionBlip2(captioner, parts)
        tuned = Path(names[0]) / "coordinates.safetensors"
        if tuned.is_file():  # a captioner that was pretrained with a coordinate embedding brings it along
            from safetensors.torch import load_file

            with torch.no_grad():
                for name, value in load_file(tuned).items():
                    parameter = self.model.get_parameter(name)
                    parameter[tuple(map(slice, value.shape))] = value.to(parameter.dtype)  # new words keep a zero bias
        self.model.add_lora(config.lora)
        if config.gradient_checkpointing:
            self.model.checkpoint_gradients()
        for embedding, new in ((self.model.blip2.language_model.get_input_embeddings(), added[0]), (parts["embeddings"].word_embeddings, added[1])):
            embedding.weight.requires_grad_(new > 0)  # words the checkpoint has never seen must be learnt
        if not config.coordinates:
            nn.init.zeros_(self.model.coordinates.outer.weight)
            nn.init.zeros_(self.model.coordinates.outer.bias)
            self.model.coordinates.requires_grad_(False)
        self.model.to(self.accelerator.device).eval()
        self.encoder = image_encoder(captioner, config.image_size)
        if self.store is None:
            self.store = FeatureStore(self._encode, self.encoder.size, "squash", memory_mb=config.memory_mb, folder=self.work / "features")

    @torch.no_grad()
    def _encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Image features [B, S, V] of uint8 frames: once an image, whatever the number of its regions."""
        with self.accelerator.autocast():
            return self.encoder(frames.to(self.accelerator.device)).bfloat16()

    def save(self, folder: Path) -> None:
        """PEFT's adapter, the other trained tensors, and the two vocabularies."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fitted").write_text("yes" if self.fitted else "no")
        if not self.fitted:
            return
        if hasattr(self.model.captioner, "peft_config"):
            self.model.captioner.save_pretrained(folder, save_embedding_layers=False)
        save_file(self.model.own_state(), folder / "region.safetensors")
        self.llm_words.save_pretrained(folder / "llm_words")
        self.words.save_pretrained(folder / "words")

    def load(self, folder: Path) -> None:
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file
        from transformers import AutoTokenizer

        self.fitted = (folder / "fitted").read_text() == "yes"
        if not self.fitted:
            return
        try:
            self.build()
            self.llm_words, self.words = (AutoTokenizer.from_pretrained(folder / n) for n in ("llm_words", "words"))
            _resize(self.model.blip2.language_model, self.model.parts["embeddings"], self.llm_words, self.words)
            self.model.word_bias = nn.Parameter(torch.zeros(self.model.parts["embeddings"].word_embeddings.num_embeddings))
            own = load_file(folder / "region.safetensors")
            unknown = self.model.load_state_dict(own, strict=False).unexpected_keys
            if unknown:
                raise CpgrError(f"{folder}: tensors of another model: {unknown[:3]}")
            if hasattr(self.model.captioner, "peft_config"):
                set_peft_model_state_dict(self.model.captioner, load_file(folder / "adapter_model.safetensors"))
        except (OSError, RuntimeError) as error:
            raise CpgrError(f"{folder}: not a Generation model of this configuration: {error}") from error
        self.model.to(self.accelerator.device).eval()

    # -- inputs -----------------------------------------------------------------------------------------------------

    def qformer_texts(self, texts: Sequence[str]) -> Texts:
        out = self.words(
            [clean(t) for t in texts], padding=True, truncation=True, max_length=32, padding_side="right", return_tensors="pt"
        )
        device = self.accelerator.device
        return Texts(out["input_ids"].to(device), out["attention_mask"].to(device), self.words.bos_token_id)

    def prompts(self, labels: Sequence[Label]):
        """Left-padded ids and mask of the prefixes `[Spat] [Attr] [Cls]`, each after the language model's BOS."""
        bos = [self.llm_words.bos_token_id] if self.llm_words.bos_token_id is not None else []
        rows = [
            bos + self.llm_words(clean(label.words) if self.config.prefix else "", add_special_tokens=False)["input_ids"]
            for label in labels
        ]
        return self._pad(rows, left=True)

    def targets(self, texts: Sequence[str]):
        """Right-padded ids and mask of the expressions, each with the end token the captioner was trained with."""
        end = [self.end_token]
        return self._pad([self.llm_words(clean(t), add_special_tokens=False)["input_ids"] + end for t in texts], left=False)

    @property
    def end_token(self) -> int:
        """What ends a text: BLIP-2's OPT was trained to end captions by a line break (50118), not by OPT's own </s>."""
        end = self.model.blip2.generation_config.eos_token_id
        end = end[0] if isinstance(end, (list, tuple)) and end else end
        end = getattr(self.model.blip2.config.text_config, "eos_token_id", None) if end is None else end
        return self.llm_words.eos_token_id if end is None else end

    def _pad(self, rows: list[list[int]], left: bool):
        longest, fill = max(1, max(map(len, rows))), self.llm_words.pad_token_id or 0
        ids = torch.full((len(rows), longest), fill)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            span = slice(longest - len(row), longest) if left else slice(0, len(row))
            ids[i, span] = torch.tensor(row, dtype=torch.long)
            mask[i, span] = 1
        return ids.to(self.accelerator.device), mask.to(self.accelerator.device)

    def _features(self, image_ids: Sequence[str]) -> torch.Tensor:
        return self.store[list(image_ids)].to(self.accelerator.device).float()

    def region_inputs(self, labels: Sequence[Label]) -> RegionInputs:
        """What the model reads of the labels' regions: their images and boxes or, with `crops`, what is cut out of them."""
        if self.config.crops:
            keys = [_crop_key(row) for row in labels]
            unique = list(dict.fromkeys(keys))
            where = {key: i for i, key in enumerate(unique)}
            owner = torch.tensor([where[key] for key in keys], device=self.accelerator.device)
            return RegionInputs(self._features(unique), None, owner)
        ids = list(dict.fromkeys(row.image_id for row in labels))
        return RegionInputs(self._features(ids), self.boxes(labels), self.owners(labels, ids))

    def look_at(self, images: Images, labels: Iterable[Label]) -> None:
        """Encode what the model will read of these regions, once."""
        if not self.config.crops:
            self.store.add({row.image_id: images[row.image_id] for row in labels}, "image features")
            return
        crops = {_crop_key(row): row for row in labels}
        missing = [key for key in crops if key not in self.store]
        for chunk in track(list(batches(missing, self.store.batch)), "crop features"):
            frames = load_crops([(images[crops[key].image_id], crops[key].box) for key in chunk], self.store.size)
            self.store.put(chunk, self._encode(frames))

    def owners(self, labels: Sequence[Label], image_ids: Sequence[str]) -> torch.Tensor:
        """Index in `image_ids` of each label's image, [R]."""
        where = {image_id: i for i, image_id in enumerate(image_ids)}
        return torch.tensor([where[row.image_id] for row in labels], device=self.accelerator.device)

    def boxes(self, labels: Sequence[Label]) -> torch.Tensor:
        rows = [[row.box[0] / row.width, row.box[1] / row.height, row.box[2] / row.width, row.box[3] / row.height] for row in labels]
        return torch.tensor(rows, dtype=torch.float32, device=self.accelerator.device).clamp(0, 1)

    # -- the contract -------------------------------------------------------------------------------------------------

    def fit(self, labels: LabelTable, images: Images, work: Path) -> None:
        """Fine-tune on the last cycle's refined labels; nothing in the first cycle, which has none."""
        if not len(labels.kept) or not self.config.fine_tune:
            return
        texts = [row.expression for row in labels if row.expression_id or row.kept]
        if not (self.fitted and self.config.carry_over):
            self.build(texts)
        self.look_at(images, labels)
        data = Groups(labels, self)
        step = FineTuning(self)
        self.history = train(
            step, data, data.collate, self.config.training, self.accelerator, seed=torch.initial_seed(), work=work,
            what="Generation", groups=parameter_groups(step, self.config.training),
        )  # fmt: skip
        self.model.eval()
        self.fitted = True

    def generate(self, split: Split, proposals: LabelTable) -> LabelTable:
        images = split.images
        made = self._written(images, proposals) if self.fitted else []
        if not self.fitted or self.config.keep_templates:
            made += self._templates(proposals)
        order = {image_id: i for i, image_id in enumerate(images)}
        made.sort(key=lambda row: (order[row.image_id], row.region_id))
        return LabelTable(made)

    def _templates(self, proposals: LabelTable) -> list[Label]:
        rows = []
        for image_id, regions in track(proposals.by_image().items(), "templates"):
            rng = random.Random(f"{self.seed} {image_id}")
            rows += templates(regions, self.config.templates, rng)
        return rows

    def _written(self, images: Images, proposals: LabelTable) -> list[Label]:
        decoding = self.config.decoding
        self.look_at(images, proposals)
        rows: list[Label] = []
        common = {
            "max_new_tokens": decoding.max_new_tokens, "min_new_tokens": decoding.min_new_tokens,
            "pad_token_id": self.llm_words.pad_token_id or 0, "eos_token_id": self.end_token,
        }  # fmt: skip
        if decoding.cache == "static":
            common["cache_implementation"] = "static"
        ordered = list(proposals)
        if decoding.by_length:  # rows of like prefix length stand together, so that little of a batch is padding
            length = {words: len(self.llm_words.tokenize(clean(words))) for words in {row.words for row in ordered}}
            ordered.sort(key=lambda row: (length[row.words], row.image_id, row.region_id))
        seed = torch.initial_seed()
        for number, chunk in track(share(list(enumerate(batches(ordered, decoding.batch_size)))), "writing expressions"):
            seed_everything(seed, number)  # whichever process writes it
            with torch.no_grad(), self.accelerator.autocast():
                queries = self.model.regions(*self.region_inputs(chunk))
                prompt, mask = self.prompts(chunk)
                made = [(chunk, self.model.write(queries, prompt, mask, num_beams=decoding.beams, do_sample=False, **common))]
                if decoding.samples:
                    many = dict(do_sample=True, top_p=decoding.top_p, num_return_sequences=decoding.samples)
                    repeated = [row for row in chunk for _ in range(decoding.samples)]
                    made.append((repeated, self.model.write(queries, prompt, mask, **many, **common)))
            for labels, ids in made:
                for row, text in zip(labels, self.llm_words.batch_decode(ids, skip_special_tokens=True), strict=True):
                    rows.append(replace(row, expression=clean(text), kind="generated", scores=dict(row.scores)))
        seen: set[tuple] = set()
        distinct = []
        for row in joined(rows):
            key = (row.image_id, row.region_id, row.expression)
            if row.expression and key not in seen:
                seen.add(key)
                distinct.append(row)
        return self._ranked(distinct, decoding.best) if decoding.best else distinct

    @torch.no_grad()
    def _ranked(self, labels: list[Label], best: int) -> list[Label]:
        """Each region's `best` texts by ITM on the region; the score stays with them."""
        scored: list[Label] = []
        for chunk in batches(labels, self.config.decoding.batch_size):
            texts = self.qformer_texts([row.expression for row in chunk])
            with self.accelerator.autocast():
                inputs = self.region_inputs(chunk)
                queries, _ = self.model.read(inputs.image, inputs.boxes, texts.ids, texts.mask, causal=False, owner=inputs.owner)
                chances = self.model.match_logits(queries).softmax(-1)[:, 1]
            scored += [row.keep(itm_region=c) for row, c in zip(chunk, chances.tolist(), strict=True)]
        regions: dict[tuple, list[Label]] = {}
        for row in scored:
            regions.setdefault((row.image_id, row.region_id), []).append(row)
        return [row for rows in regions.values() for row in sorted(rows, key=lambda row: -row.scores["itm_region"])[:best]]

    @torch.no_grad()
    def match(self, images: Images, labels: LabelTable) -> list[float]:
        """ITM probability of each label's text on the crop of its box: the first cycle's gate (CPL, section 2.3)."""
        if self.model is None:
            self.build([row.expression for row in labels])
        chances: dict[int, float] = {}
        order = sorted(range(len(labels)), key=lambda i: labels[i].image_id)  # an image is decoded for all its labels
        for chunk in track(share(list(batches(order, self.config.decoding.batch_size))), "matching crops"):
            rows = [labels[i] for i in chunk]
            texts = self.qformer_texts([row.expression for row in rows])
            with self.accelerator.autocast():
                image = self._encode(load_crops([(images[row.image_id], row.box) for row in rows], self.store.size)).float()
                queries, _ = self.model.read(image, None, texts.ids, texts.mask, causal=False)
                found = self.model.match_logits(queries).softmax(-1)[:, 1]
            chances.update(zip(chunk, found.tolist(), strict=True))
        chances = joined(chances)
        return [chances[i] for i in range(len(labels))]

    @torch.no_grad()
    def judge(
        self, images: Images, proposals: LabelTable, expressions: Sequence[Expression], scores: Sequence[str] = SCORES
    ) -> dict[str, dict[str, torch.Tensor]]:
        """`itg`: log p(E | b_j) over the tokens; `itc`: similarity over temperature; `itm`: log-odds of a match, a pass of its
        own. Nothing before the first fit."""
        if not self.fitted or not scores:
            return {}
        self.look_at(images, proposals)
        regions = proposals.by_image()
        found: dict[str, dict[str, torch.Tensor]] = {name: {} for name in scores}
        asked = [e for e in expressions if e.image_id in regions]
        for chunk in track(share(list(batches(asked, 48))), "judging expressions"):
            rows = [row for e in chunk for row in regions[e.image_id]]
            counts = [len(regions[e.image_id]) for e in chunk]
            which = torch.repeat_interleave(torch.arange(len(chunk)), torch.tensor(counts)).to(self.accelerator.device)
            texts = self.qformer_texts([e.text for e in chunk])
            with self.accelerator.autocast():
                image, boxes, owner = self.region_inputs(rows)
                queries, out = self.model.read(image, boxes, texts.decoded[which], texts.mask[which], causal=True, owner=owner)
                likelihood = self.model.text_log_likelihood(out, texts.ids[which], texts.mask[which]).sum(1)
                words = self.model.text_features(texts.ids, texts.mask)[which]
                features = self.model.region_features(queries)
                similar = torch.einsum("rkp,rp->rk", features, words).amax(1) / self.model.temperature.clamp(0.001, 0.5)
                made = {"itg": likelihood, "itc": similar}
                if "itm" in scores:
                    joint, _ = self.model.read(image, boxes, texts.ids[which], texts.mask[which], causal=False, owner=owner)
                    matched = self.model.match_logits(joint)
                    made["itm"] = matched[:, 1] - matched[:, 0]
            for name in scores:
                for e, part in zip(chunk, made[name].float().cpu().split(counts), strict=True):
                    found[name][e.expression_id] = part
        return joined(found)


def _crop_key(row: Label) -> str:
    return f"{row.image_id}\t{row.region_id}"


def _resize(language_model, embeddings, llm_words, words) -> None:
    """Grow both word embeddings to their tokenizers; never shrink a checkpoint's padded table."""
    if len(llm_words) > language_model.get_input_embeddings().num_embeddings:
        language_model.resize_token_embeddings(len(llm_words), mean_resizing=False)
    old = embeddings.word_embeddings
    if len(words) > old.num_embeddings:
        new = nn.Embedding(len(words), old.embedding_dim, padding_idx=old.padding_idx).to(old.weight.device)
        nn.init.normal_(new.weight, std=0.02)
        with torch.no_grad():
            new.weight[: old.num_embeddings] = old.weight
        embeddings.word_embeddings = new
