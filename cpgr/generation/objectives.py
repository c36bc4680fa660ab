"""L = L_ITC + L_ITM + L_ITG + L_LLM of regions (CPGR's figure; BLIP-2 section 3.1; RegionBLIP section 3.3), and
the same likelihood and contrast for expressions whose region is not known.

RegionBLIP computes no ITM for regions because it broadcasts one query set over the batch; here every sample
brings its own box, and the hard negatives include the other regions of the same image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..processes import from_main
from .region_blip2 import RegionBlip2


@dataclass
class Texts:
    """A batch of texts in the Q-Former's tokens, right-padded: [CLS] ... for ITC and ITM, [DEC] ... for ITG."""

    ids: torch.Tensor
    mask: torch.Tensor
    decoder_token: int

    def __getitem__(self, index) -> Texts:
        return Texts(self.ids[index], self.mask[index], self.decoder_token)

    @property
    def decoded(self) -> torch.Tensor:
        """ITG's input: the first token replaced by [DEC]."""
        return torch.cat([torch.full_like(self.ids[:, :1], self.decoder_token), self.ids[:, 1:]], 1)


def contrast(similarity: torch.Tensor, same: torch.Tensor, smoothing: float = 0.1) -> torch.Tensor:
    """L_ITC, symmetric: similarity [R, R] of region i and text j, the diagonal being the pairs.

    `same` [R, R] marks pairs that are no negatives (the same region, or the same words); they take no part.
    """
    eye = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    logits = similarity.masked_fill(same & ~eye, float("-inf"))
    target = torch.arange(len(similarity), device=similarity.device)
    return (_smoothed(logits, target, smoothing) + _smoothed(logits.t(), target, smoothing)) / 2


def _smoothed(logits, target, smoothing):
    """Label-smoothed cross-entropy that spreads over the entries that take part only."""
    log_p = logits.log_softmax(-1)
    part = logits.isfinite()
    spread = -log_p.masked_fill(~part, 0).sum(-1) / part.sum(-1)
    return ((1 - smoothing) * F.nll_loss(log_p, target, reduction="none") + smoothing * spread).mean()


def hard_negatives(similarity: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """One negative a row, drawn by softmax of the similarity among the true negatives; [R], -1 where there is none."""
    chance = similarity.softmax(-1) + 1e-4
    chance = chance.masked_fill(same, 0)
    some = chance.sum(-1) > 0
    chance = torch.where(some[:, None], chance, torch.ones_like(chance))
    return from_main(torch.where(some, torch.multinomial(chance, 1).squeeze(1), -1))


def matching_pairs(similarity: torch.Tensor, same: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Regions and texts that ITM tells apart: the R pairs first, then a hard negative text of each region and a hard negative
    region of each text, where there are any."""
    with torch.no_grad():
        text_for = hard_negatives(similarity, same)
        region_for = hard_negatives(similarity.t(), same.t())
    rows = torch.arange(len(similarity), device=similarity.device)
    regions = torch.cat([rows, rows[text_for >= 0], region_for[region_for >= 0]])
    return regions, torch.cat([rows, text_for[text_for >= 0], rows[region_for >= 0]])


def matching(model: RegionBlip2, image, boxes, texts: Texts, similarity, same, owner) -> torch.Tensor:
    """L_ITM: every pair, and per pair a hard negative text and a hard negative region, each with its own queries."""
    regions, words = matching_pairs(similarity, same)
    its_boxes = None if boxes is None else boxes[regions]
    queries, _ = model.read(image, its_boxes, texts.ids[words], texts.mask[words], causal=False, owner=owner[regions])
    target = (torch.arange(len(regions), device=image.device) < len(owner)).long()
    # one positive to two negatives, as BLIP-2 draws them: the mean over all is its loss
    return F.cross_entropy(model.match_logits(queries), target)


def region_losses(model: RegionBlip2, image, boxes, texts: Texts, prompt, target, same, weights, owner, smoothing: float = 0.1) -> dict:
    """The four losses of R labelled regions.

    image [I, S, V], owner [R] each region's image, boxes [R, 4], prompt and target: (ids, mask) in the language model's tokens, same [R, R] pairs
    that are no negatives, weights [R] of the labels (mean 1).
    """
    queries, out = model.read(image, boxes, texts.decoded, texts.mask, causal=True, owner=owner)
    likelihood = model.text_log_likelihood(out, texts.ids, texts.mask)
    similarity = model.similarity(model.region_features(queries), model.text_features(texts.ids, texts.mask))
    return {
        "itc": contrast(similarity, same, smoothing),
        "itm": matching(model, image, boxes, texts, similarity.detach(), same, owner),
        "itg": (-likelihood.sum(1) / texts.mask[:, 1:].sum(1).clamp(min=1) * weights).mean(),
        "llm": (model.language_loss(queries, *prompt, *target) * weights).mean(),
    }


def latent_losses(model: RegionBlip2, image, boxes, texts: Texts, prior, owner, regions) -> dict:
    """Likelihood and contrast of expressions whose region is one of their image's, weighted by a prior.

    The regions of I images, N at most each: regions [I, N] is each one's place in boxes [R, 4] (or None) and in the
    list of owners that comes with them, -1 at padding; texts of E expressions; prior [E, N] sums to 1 over the true regions,
    0 at padding; owner (each expression's image [E], each region's row of `image` [R]).
      itg_latent = -log sum_j pi_j p(E | b_j)            (per token, as ITG)
      itc_latent = -log softmax over images of [max-query similarity, log-sum over regions, own image under pi]
    """
    owner, shown = owner
    images, count = regions.shape
    pairs = prior > 0
    expression, region = pairs.nonzero(as_tuple=True)
    where = owner[expression]

    def of(which):
        return (None if boxes is None else boxes[which]), shown[which]

    its_boxes, its_image = of(regions[where, region])
    _, out = model.read(image, its_boxes, texts.decoded[expression], texts.mask[expression], causal=True, owner=its_image)
    log_p = model.text_log_likelihood(out, texts.ids[expression], texts.mask[expression]).sum(1)
    scores = prior.new_full(prior.shape, float("-inf"))
    scores[expression, region] = log_p + prior[expression, region].log()
    length = texts.mask[:, 1:].sum(1).clamp(min=1)
    generation = (-scores.logsumexp(1) / length).mean()

    real = torch.zeros(images, count, dtype=torch.bool, device=regions.device)
    real.index_put_((where, region), torch.ones_like(where, dtype=torch.bool))
    at_image, at_region = real.nonzero(as_tuple=True)
    features = model.region_features(model.regions(image, *of(regions[at_image, at_region])))
    similarity = model.similarity(features, model.text_features(texts.ids, texts.mask)).t()  # [E, all regions]
    spread = prior.new_full((len(owner), images, count), float("-inf"))
    spread[:, at_image, at_region] = similarity - real.sum(1).float().log()[at_image]
    rows = torch.arange(len(owner), device=owner.device)
    own = torch.where(pairs, prior, torch.ones_like(prior)).log() + _at(similarity, real, owner)
    own = own.masked_fill(~pairs, float("-inf"))
    spread[rows, owner] = own
    return {"itg_latent": generation, "itc_latent": F.cross_entropy(spread.logsumexp(2), owner)}


def _at(similarity, real, owner):
    """[E, N] similarities of each expression with its own image's regions; 0 at padding."""
    table = similarity.new_zeros(len(owner), *real.shape)
    table[:, real] = similarity
    return table[torch.arange(len(owner), device=owner.device), owner]
