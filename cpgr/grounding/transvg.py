"""The Grounding stage of CPGR: TransVG with CPL's multi-level cross-attention, trained on refined labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import CpgrError
from ..labels import Label
from ..stages import Images
from ..training import TrainingConfig
from ..vocabulary import clean, extend, located, opened
from .backbones import visual_branch
from .grounder import Examples, GrounderConfig, NetworkGrounder
from .network import GroundingNetwork, NetworkConfig, box_loss, pointer_loss
from .query_network import QueryNetwork


@dataclass
class TransVGConfig(GrounderConfig):
    """The grounding model.

    Attributes:
        visual: Visual branch: `builtin`, or `transformers:NAME_OR_FOLDER` of a DETR-type detector.
        text: Text encoder: `builtin`, or the name or folder of a BERT-type model.
        text_layers: How many of its layers are used (default: all); 0 takes its word embeddings alone.
        max_words: Longest expression in tokens, [CLS] and [SEP] counted (20; 40 for RefCOCOg).
        vocabulary: `extend` adds the training expressions' words that the tokenizer breaks up, `keep` does not.
        loss_l1: Weight of the L1 term (1 as published; 5 suits the pointer head).
        loss_giou: Weight of the GIoU term (1 as published; 2 suits the pointer head).
        weighting: `none`; `weight`: each loss times its label's weight, over the batch's mean weight; `cpl`: each batch's
            losses weighted by softmax(label weight / 8).
        network: Shape of the fusion network.
    """

    visual: str = "transformers:facebook/detr-resnet-50"
    text: str = "bert-base-uncased"
    text_layers: int | None = None
    image_size: int = 640
    max_words: int = 20
    freeze_visual: bool = False
    vocabulary: str = "keep"
    loss_l1: float = 1.0
    loss_giou: float = 1.0
    weighting: str = "none"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=20, batch_size=128, learning_rate=1e-4, warmup=0))


class TransVGGrounder(NetworkGrounder):
    """`stages.Grounder` by a `GroundingNetwork`."""

    name = "transvg"

    def __init__(self, config: TransVGConfig, accelerator, work: Path):
        super().__init__(config, accelerator, work)
        if config.weighting not in ("none", "weight", "cpl"):
            raise CpgrError(f"grounding.weighting: {config.weighting!r} is none of none, weight, cpl")
        if config.text_layers is not None and config.text_layers < 0:
            raise CpgrError(f"grounding.text_layers: {config.text_layers} is no number of layers; 0 takes the word embeddings alone")
        network = config.network
        if network.fusion not in ("joint", "query") or (network.fusion == "query" and network.head != "pointer"):
            raise CpgrError(f"grounding.network.fusion: {network.fusion!r} with the head {network.head!r}; give joint, or query with the head pointer")
        self.tokenizer = None

    def _build(self, rows: Sequence[Label]) -> GroundingNetwork | QueryNetwork:
        from transformers import AutoModel, AutoTokenizer

        name = located(self.config.text, "bert")
        with opened(name):
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            encoder = AutoModel.from_pretrained(name, dtype=torch.float32)
        if self.config.vocabulary == "extend" and extend(self.tokenizer, [row.expression for row in rows]):
            encoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        return self._network(encoder)

    def _restore(self, folder: Path) -> GroundingNetwork | QueryNetwork:
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        encoder = AutoModel.from_config(AutoConfig.from_pretrained(folder / "text"))
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "text")
        return self._network(encoder)

    def _network(self, encoder) -> GroundingNetwork | QueryNetwork:
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # nothing reads it, and it would be trained for nothing
        config = self.config
        if config.text_layers is not None:
            encoder.encoder.layer = encoder.encoder.layer[: config.text_layers]
            encoder.config.num_hidden_layers = len(encoder.encoder.layer)
        kind = {"joint": GroundingNetwork, "query": QueryNetwork}[config.network.fusion]
        return kind(config.network, visual_branch(config.visual, config.image_size), encoder, config.max_words)

    def _keep_words(self, folder: Path) -> None:
        self.network.text_encoder.config.save_pretrained(folder / "text")
        self.tokenizer.save_pretrained(folder / "text")

    def _words(self, texts: Sequence[str]):
        out = self.tokenizer(
            [clean(t) for t in texts], padding=True, truncation=True, max_length=self.config.max_words, return_tensors="pt"
        )
        return out["input_ids"], out["attention_mask"]

    def _output(self, batch: dict, attend: bool) -> dict:
        layer = self.config.network.attention_layer if attend else None
        return self.network(batch["levels"], batch["word_ids"], batch["word_mask"], batch["cells"], layer, attention_only=attend)

    def _pretrained(self, name: str) -> bool:
        return "branch." in name or "text_encoder." in name

    def _examples(self, rows: list[Label], images: Images) -> Examples:
        return _Shared(rows, images, self)

    def losses(self, output: dict, batch: dict) -> dict:
        """The loss on a batch (TransVG 3.3; CPL's weighting of labels)."""
        config = self.config
        if config.network.head == "pointer":
            losses = pointer_loss(output, batch["boxes"], config.loss_l1, config.loss_giou)
        else:
            losses = box_loss(output["boxes"], batch["boxes"], config.loss_l1, config.loss_giou)
        if config.weighting == "cpl":
            return {"loss": ((batch["weights"] / 8).softmax(0) * losses).sum()}
        if config.weighting == "weight":
            return {"loss": (batch["weights"] * losses).sum() / batch["weights"].sum().clamp(min=1e-6)}
        return {"loss": losses.mean()}


class _Shared(Examples):
    """Examples whose loss is a mean over a batch's rows, so that processes may share them."""

    def row_weights(self, indices: list[int]) -> torch.Tensor:
        if self.grounder.config.weighting == "cpl":
            return (self.weights[indices] / 8).exp()
        return torch.ones(len(indices))
