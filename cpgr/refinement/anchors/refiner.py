"""The Refinement stage of `refclip`: RefCLIP is trained by contrast and gives each expression its anchor's box."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ...data.features import FeatureStore, load_frames
from ...data.proposals.darknet_weights import load_state, read_state
from ...data.records import Image, Split
from ...errors import CpgrError, DataError
from ...labels import Label, LabelTable
from ...language import Words, fill_vectors, read_vectors, split_words
from ...processes import count
from ...progress import track
from ...regions import Frame
from ...stages import Attention, Generator, Grounded, Grounder, Images, Query
from ...training import parameter_groups, train
from ...vocabulary import batches
from .checkpoints import check_words, published_names
from .network import AnchorNetwork, ContrastStep, choose_cells, own_scores
from .settings import AnchorConfig
from .sources import Cells, Packing, build_source, rebuild_source

log = logging.getLogger("cpgr")

ANSWERED = 32  # images answered together
NOMINAL_SIDE = 16  # of the attention map where the detector has object queries and no cells


class Answers(NamedTuple):
    """Of Q queries: the box [Q, 4] in original pixels, the chosen anchor [Q] among its image's, its objectness, raw score and
    class [Q], the share of the softmax over its image's anchors [Q, K], and those anchors' cells [Q, K]."""

    boxes: torch.Tensor
    anchor: torch.Tensor
    objectness: torch.Tensor
    similarity: torch.Tensor
    classes: torch.Tensor
    shares: torch.Tensor
    cells: torch.Tensor


class AnchorRefiner:
    """`stages.TrainedRefiner`, and a `stages.Grounder` by its own anchors, so that the teacher can be measured too."""

    def __init__(self, config: AnchorConfig, accelerator, work: Path):
        if config.weights and not config.words:
            raise CpgrError("refinement.weights: a RefCLIP checkpoint does not name its words; give its annotations as refinement.words")
        if not config.fit and not config.weights:
            raise CpgrError("refinement.fit false takes refinement.weights as they are; give them")
        if config.anchors < config.negatives_per_image:
            raise CpgrError(f"refinement.anchors {config.anchors} are fewer than negatives_per_image {config.negatives_per_image}")
        self.config, self.accelerator, self.work = config, accelerator, work
        self.network: AnchorNetwork | None = None
        self.words: Words | None = None
        self.detector, self.store = None, None

    # -- building and keeping ---------------------------------------------------------------------------------

    def _look_with(self, detector) -> None:
        """Take a detector; what another one saw is forgotten."""
        self.detector = detector.to(self.accelerator.device).eval()
        self.packing = Packing(torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float32)
        self.store = None
        if self.config.cache:
            self.store = FeatureStore(
                lambda frames: self.packing.pack(self._detect(frames)), detector.size, "letterbox", fill=detector.fill,
                memory_mb=self.config.memory_mb, folder=self.work / "maps", batch=ANSWERED,
            )  # fmt: skip

    def _detect(self, frames: torch.Tensor) -> Cells:
        with torch.no_grad(), self.accelerator.autocast():
            return self.detector(frames.to(self.accelerator.device))

    def open_detector(self) -> None:
        """The pretrained detector, read once."""
        if self.detector is None:
            if self.config.detector == "darknet:random":
                log.warning("refinement.detector darknet:random: the detector's weights are random, so its boxes mean nothing")
            self._look_with(build_source(self.config.detector, self.config.image_size))

    def check(self) -> None:
        """Raise for what a run would stumble over later: files that are not there, more anchors than the detector has cells."""
        for name, file in (("words", self.config.words), ("weights", self.config.weights), ("language.vectors", self.config.language.vectors)):
            if file and not Path(file).is_file():
                raise CpgrError(f"refinement.{name}: {file} is no file")
        self.open_detector()
        self._check_count(self._detect(torch.zeros(1, 3, self.detector.size, self.detector.size, dtype=torch.uint8)))

    def build(self, texts: Sequence[str]) -> None:
        """A network before training: the pretrained detector, and the words of `texts` or of the file that is given."""
        config = self.config
        self.open_detector()
        self.words = read_words(config.words) if config.words else Words.of(texts)
        vectors = read_vectors(Path(config.language.vectors)) if config.language.vectors else None
        width = len(next(iter(vectors.values()))) if vectors else None
        self.network = AnchorNetwork(config, self.detector, len(self.words), width).to(self.accelerator.device)
        if vectors:
            fill_vectors(self.network.language.embedding, self.words, vectors, config.language)
        if config.weights:
            state = published_names(read_state(config.weights))
            check_words(state, len(self.words), config.weights)
            load_state(self.network, state, config.weights)
            self._look_with(self.detector)  # with the checkpoint's batch norms
        self.network.eval()

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        about = {"grounder": "refclip", **dataclasses.asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(about, indent=2))
        (folder / "detector.json").write_text(json.dumps({"size": self.detector.size, **self.detector.described()}, indent=2))
        (folder / "words.json").write_text(json.dumps(self.words.words, ensure_ascii=False))
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(state, folder / "model.safetensors")

    def load(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            about = json.loads((folder / "detector.json").read_text())
            self.words = Words(json.loads((folder / "words.json").read_text()))
            state = load_file(folder / "model.safetensors")
            detector = rebuild_source(about, about["size"])
            width = state["language.embedding.weight"].shape[1]
            self.network = AnchorNetwork(self.config, detector, len(self.words), width)
            self.network.load_state_dict(state)
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            raise CpgrError(f"{folder}: not a RefCLIP model of this configuration: {error}") from error
        self.network.to(self.accelerator.device).eval()
        self._look_with(detector)

    # -- what the detector sees -------------------------------------------------------------------------------

    def _cells(self, images: Sequence[Image]) -> Cells:
        if self.store is None:
            return self._detect(self._frames(images))
        self.store.add({image.image_id: image for image in images}, "detector maps")
        if not self.packing.parts:  # with several processes another one may have seen all images
            self.packing.pack(self._detect(torch.zeros(1, 3, self.detector.size, self.detector.size, dtype=torch.uint8)))
        device = self.accelerator.device
        cells = self.packing.unpack(self.store[[image.image_id for image in images]])
        return Cells(tuple(m.to(device) for m in cells.maps), *(v.to(device) for v in cells[1:]))

    def _frames(self, images: Sequence[Image]) -> torch.Tensor:
        return load_frames(images, self.detector.size, "letterbox", self.detector.fill).to(self.accelerator.device)

    def propose(self, split: Split) -> LabelTable:
        """The anchors of every image as proposals: rows of kind "proposal", region_id the place among the anchors."""
        self.open_detector()
        rows = []
        for images in track(list(batches(list(split.images.values()), ANSWERED)), "anchors"):
            cells = self._cells(images)
            self._check_count(cells)
            chosen = choose_cells(cells.mean, self.config.anchors).cpu()
            for i, image in enumerate(images):
                boxes = _to_image(cells.boxes[i].cpu()[chosen[i]], self.detector.size, image)
                for place, cell in enumerate(chosen[i].tolist()):
                    rows.append(
                        Label(
                            image.image_id, image.file_name, image.width, image.height, boxes[place].tolist(), kind="proposal",
                            region_id=place, category=self.detector.names[int(cells.classes[i, cell])],
                            scores={"detector": float(cells.best[i, cell])},
                        )
                    )  # fmt: skip
        return LabelTable(rows)

    def _check_count(self, cells: Cells) -> None:
        there = cells.mean.shape[1]
        if self.config.anchors > there:
            raise CpgrError(f"refinement.anchors {self.config.anchors}: the detector gives {there} cells")

    # -- the contract -----------------------------------------------------------------------------------------

    def fit(self, basic: LabelTable, proposals: LabelTable, split: Split, work: Path, grounder: Grounder | None, validate=None) -> None:
        """Train on the images and texts of `basic`; with `in_image`, `grounder`'s boxes say which anchors to prefer."""
        config, images = self.config, split.images
        rows = [row for row in basic.kept if split_words(row.expression)]
        if len(rows) < 2:
            raise CpgrError(f"RefCLIP contrasts expressions of different images; the basic labels have {len(rows)}")
        if self.network is None:
            self.build([row.expression for row in rows])
        if not config.fit:
            return
        drifts = config.detector_norm == "train"
        if self.store is not None and not drifts:
            self.store.add({row.image_id: images[row.image_id] for row in rows}, "detector maps")
        data = _Examples(rows, images, self, drifts)
        if config.in_image and grounder is not None:
            data.aim(grounder)
        step = ContrastStep(self.network, config)
        groups = parameter_groups(step, config.training)
        self.history = train(
            step, data, data.collate, config.training, self.accelerator, seed=torch.initial_seed(), work=work,
            what="RefCLIP", groups=groups, validate=self._measured(validate, drifts),
        )  # fmt: skip
        self.network.eval()
        if drifts:
            self._look_with(self.detector)

    def _measured(self, validate, drifts: bool):
        """Validation by the weights as they are: batch norms that drift see the validation images anew."""
        if validate is None or not drifts:
            return validate

        def measure() -> float:
            self._look_with(self.detector)
            return validate()

        return measure

    def refine(
        self, basic: LabelTable, proposals: LabelTable, split: Split, generator: Generator, grounder: Grounder | None
    ) -> LabelTable:
        """Each expression with its anchor's box: rows of kind "dataset" with the scores `objectness`, `similarity` (the raw
        product) and `confidence` (its share among the image's anchors)."""
        rows = list(basic)
        found = self._answer([Query(split.images[row.image_id], row.expression) for row in rows])
        # anchors that drifted are not the proposals any more
        regions = found.anchor.tolist() if self.config.detector_norm == "eval" else [-1] * len(rows)
        refined = []
        for i, row in enumerate(rows):
            scores = {
                "objectness": float(found.objectness[i]), "similarity": float(found.similarity[i]), "confidence": float(found.shares[i].max()),
            }  # fmt: skip
            name = self.detector.names[int(found.classes[i])]
            refined.append(dataclasses.replace(row, box=found.boxes[i].tolist(), region_id=regions[i], category=name, scores=scores))
        return LabelTable(refined)

    def ground(self, queries: Sequence[Query]) -> Grounded:
        """The box of each expression's best anchor, clipped to the image; the score is its share among the anchors."""
        found = self._answer(queries)
        return Grounded(found.boxes, found.shares.amax(1))

    def attend(self, queries: Sequence[Query]) -> Attention:
        """The softmax over the image's anchors at their cells (object queries: at the cell of their box's centre)."""
        found = self._answer(queries)
        side = self.detector.side or NOMINAL_SIDE
        maps = torch.zeros(len(queries), side * side).scatter_add_(1, found.cells, found.shares)
        return Attention(maps, side, self.detector.size)

    def _answer(self, queries: Sequence[Query]) -> Answers:
        parts = [part for part in self._answered(list(queries))]
        if not parts:
            none, k = torch.zeros(0), self.config.anchors
            return Answers(torch.zeros(0, 4), none.long(), none, none, none.long(), torch.zeros(0, k), torch.zeros(0, k, dtype=torch.long))
        order = torch.cat([index for index, _ in parts]).argsort()
        return Answers(*(torch.cat(values)[order] for values in zip(*(part for _, part in parts), strict=True)))

    def _answered(self, queries: list[Query]) -> Iterator[tuple[torch.Tensor, Answers]]:
        """Answers image by image, with their places among the queries: a map is fused once an image."""
        groups: dict[str, list[int]] = {}
        for index, query in enumerate(queries):
            groups.setdefault(query.image.image_id, []).append(index)
        for some in track(list(batches(list(groups.values()), ANSWERED)), "grounding by anchors"):
            images = [queries[members[0]].image for members in some]
            index = torch.tensor([i for members in some for i in members])
            place = torch.tensor([p for p, members in enumerate(some) for _ in members], device=self.accelerator.device)
            cells = self._cells(images)
            self._check_count(cells)
            chosen = choose_cells(cells.mean, self.config.anchors)
            ids = self.words.encode([queries[i].text for i in index.tolist()], self.config.language.max_words)
            with torch.no_grad(), self.accelerator.autocast():
                anchors = self.network.anchors(cells.maps, chosen)[place].float()
                expressions = self.network.expressions(ids.to(place.device)).float()
            yield index, self._best(own_scores(anchors, expressions), cells, chosen, place, images)

    def _best(self, scores, cells: Cells, chosen, place, images) -> Answers:
        similarity, anchor = scores.max(1)
        mine = chosen[place]
        cell = mine.gather(1, anchor[:, None]).squeeze(1)
        frame_boxes = cells.boxes[place, cell].cpu()
        boxes = [_to_image(box, self.detector.size, images[p]) for box, p in zip(frame_boxes, place.tolist(), strict=True)]
        at = mine if self.detector.side else _centre_cells(cells.boxes[place[:, None], mine], self.detector.size, NOMINAL_SIDE)
        values = (anchor, cells.best[place, cell], similarity, cells.classes[place, cell], scores.softmax(1), at)
        return Answers(torch.stack(boxes), *(v.cpu() for v in values))


def _to_image(boxes: torch.Tensor, size: int, image: Image) -> torch.Tensor:
    """Frame pixels -> original pixels inside the image, with at least a hair of area."""
    found = Frame(size, image.width, image.height).to_image(boxes.float())
    low, high = found[..., :2], found[..., 2:]
    limit = found.new_tensor([image.width, image.height])
    low = torch.minimum(low, limit - 1e-2)
    return torch.cat([low, torch.maximum(high, low + 1e-2)], -1)


def _centre_cells(boxes: torch.Tensor, size: int, side: int) -> torch.Tensor:
    """The cell of a side x side grid in which each box's centre lies: [..., 4] frame pixels -> [...]."""
    centre = ((boxes[..., :2] + boxes[..., 2:]) / 2 * side / size).long().clamp(0, side - 1)
    return centre[..., 1] * side + centre[..., 0]


class _Examples(torch.utils.data.Dataset):
    """Expressions with their images; a batch brings each image once."""

    def __init__(self, rows: Sequence[Label], images: Images, refiner: AnchorRefiner, as_frames: bool):
        self.rows, self.images, self.refiner, self.as_frames = rows, images, refiner, as_frames
        self.ids = refiner.words.encode([row.expression for row in rows], refiner.config.language.max_words)
        self.numbers = {image_id: number for number, image_id in enumerate(images)}
        self.targets = self.trust = None
        size = min(refiner.config.training.batch_size, len(rows))
        self.whole = size if size >= count() else None  # a smaller batch is not shared

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return index

    def row_weights(self, indices: Sequence[int]) -> torch.Tensor:
        """Processes share a batch: `contrast` brings the anchors of all together."""
        return torch.ones(len(indices))

    def aim(self, grounder: Grounder) -> None:
        """Take the boxes that `grounder` gives as targets within the image: the cell at a box's centre, or the object query
        whose box fits best; its score is how far it is trusted."""
        from cpgr_kernels import box_iou

        queries = [Query(self.images[row.image_id], row.expression) for row in self.rows]
        answer, refiner = grounder.ground(queries), self.refiner
        size, side = refiner.detector.size, refiner.detector.side
        frames = [Frame(size, q.image.width, q.image.height) for q in queries]
        boxes = torch.stack([frame.to_frame(box) for frame, box in zip(frames, answer.boxes, strict=True)])
        if side:
            self.targets = _centre_cells(boxes, size, side)
        else:
            found = [box_iou(box[None], refiner._cells([q.image]).boxes[0].cpu()).argmax() for box, q in zip(boxes, queries, strict=True)]
            self.targets = torch.stack(found)
        self.trust = answer.scores.float()

    def collate(self, indices: list[int]) -> dict:
        refiner, device = self.refiner, self.refiner.accelerator.device
        rows = [self.rows[i] for i in indices]
        unique = list(dict.fromkeys(row.image_id for row in rows))
        images = [self.images[image_id] for image_id in unique]
        at = {image_id: place for place, image_id in enumerate(unique)}
        batch = {
            "place": torch.tensor([at[row.image_id] for row in rows]),
            "ids": self.ids[torch.tensor(indices)],
            "numbers": torch.tensor([self.numbers[image_id] for image_id in unique]),
        }
        if self.targets is not None:
            batch |= {"targets": self.targets[torch.tensor(indices)], "trust": self.trust[torch.tensor(indices)]}
        batch = {name: value.to(device) for name, value in batch.items()} | {"whole": self.whole}
        return batch | ({"frames": refiner._frames(images)} if self.as_frames else {"cells": refiner._cells(images)})


def read_words(path: str | Path) -> Words:
    """The words of RefCLIP's annotations (all splits, in file order) or of a text file, a word a line."""
    from ...data.readers.files import load_json

    path = Path(path)
    if path.suffix != ".json":
        try:
            words = path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(path, "", f"cannot be read as words: {error}", "give RefCLIP's annotations, or a text file with a word a line") from error
        return Words.of(words)
    splits = load_json(path)
    items = [item for split in splits.values() if isinstance(split, list) for item in split] if isinstance(splits, dict) else []
    texts = [text for item in items if isinstance(item, dict) and isinstance(item.get("refs"), list) for text in item["refs"]]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(path, "", "holds no expressions under `refs`", "give RefCLIP's annotations {split: [{refs, ...}]}")
    return Words.of(texts)
