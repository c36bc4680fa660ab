"""Late interaction: score[q, b] = sum over tokens t of max over n of <queries[q, t], documents[b, n]>.

The tokens of all queries are the rows of one matrix product, so that a tile of a document is read once for 128 of
them: PACK queries of up to TOKENS tokens. Where D <= 128 they stay in shared memory while the program walks through
documents, tile by tile.

The maximum over a document is kept element by element across its tiles, next to the number of the tile that had it, 3
operations an element instead of the 6 that value and index of every tile's rows would cost, and rows are reduced once
a document. At D = 128 a tensor core needs 64 cycles for what then takes 48 on the other units, so that neither waits
much for the other where two programs share a multiprocessor.

Bytes (elements of e bytes): reads e D (Q T + B N), writes 4 Q B (1 + T). FLOPs: 2 Q T B N D. Queries longer than 128
tokens are split; a sum over the parts follows. The gradients are in `gradients`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from . import gradients
from ._common import (
    INTERPRETED,
    TYPES,
    aot_case,
    ceil_div,
    dot,
    matmul_precision,
    multiprocessors,
    power_of_two,
    take_options,
)

_NOWHERE = tl.constexpr(2**31 - 1)  # after every index


@triton.jit(do_not_specialize=["query_count", "tokens", "document_count", "count", "documents_per_program"])
def _maxsim_kernel(
    queries,
    documents,
    query_mask,
    document_mask,
    scores,
    indices,
    query_count,
    tokens,
    document_count,
    count,
    features,
    documents_per_program,
    PACK: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_CHUNK: tl.constexpr,
    WHOLE_D: tl.constexpr,
    WHOLE_T: tl.constexpr,
    QUERY_MASKED: tl.constexpr,
    DOCUMENT_MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """scores [parts, Q, B] of queries [Q, T, D], each of `parts` for TOKENS of the tokens, and indices [Q, B, T].

    ONE_CHUNK: features <= BLOCK_D. WHOLE_D: BLOCK_D divides `features`. WHOLE_T: TOKENS divides `tokens`.
    """
    packs = tl.cdiv(query_count, PACK)
    parts = tl.cdiv(tokens, TOKENS)
    first_query = (tl.program_id(0) % packs) * PACK
    part = tl.program_id(0) // packs % parts
    walker = tl.program_id(0) // packs // parts

    row = tl.arange(0, PACK * TOKENS)
    query = first_query + row // TOKENS
    token = part * TOKENS + row % TOKENS
    is_token = (query < query_count) & (token < tokens)
    query_row = tl.minimum(query, query_count - 1).to(tl.int64) * tokens + tl.minimum(token, tokens - 1)
    row_counts = is_token
    if QUERY_MASKED:
        row_counts &= tl.load(query_mask + query_row) != 0
    d = tl.arange(0, BLOCK_D)
    query_at = queries + query_row[:, None] * features + d[None, :]
    if ONE_CHUNK:
        x = tl.load(query_at, mask=None if WHOLE_D else (d < features)[None, :], other=None if WHOLE_D else 0.0)

    each = first_query + tl.arange(0, PACK)
    score_row = (part * query_count + each).to(tl.int64) * document_count
    index_row = query.to(tl.int64) * document_count * tokens + token

    column = tl.arange(0, TILE)
    tiles = tl.cdiv(count, TILE)
    first = walker * documents_per_program
    last = tl.minimum(first + documents_per_program, document_count)
    best = tl.full([PACK * TOKENS, TILE], -float("inf"), tl.float32)
    best_tile = tl.zeros([PACK * TOKENS, TILE], tl.int32)
    seen = tl.zeros([TILE], tl.int32)  # columns of which a token counts
    for step in tl.range(first * tiles, last * tiles):
        document = step // tiles
        tile = step % tiles
        # After the last token comes itself again, which changes no maximum.
        item = document.to(tl.int64) * count + tl.minimum(tile * TILE + column, count - 1)
        document_at = documents + item[:, None] * features + d[None, :]
        if ONE_CHUNK:
            y = tl.load(document_at, mask=None if WHOLE_D else (d < features)[None, :], other=None if WHOLE_D else 0.0)
            products = tl.zeros([PACK * TOKENS, TILE], tl.float32)
            products = dot(x, y.T, products, PRECISION, INTERPRETED)
        else:
            products = tl.zeros([PACK * TOKENS, TILE], tl.float32)
            for chunk in range(0, features, BLOCK_D):
                inside = None if WHOLE_D else (chunk + d < features)[None, :]
                part_x = tl.load(query_at + chunk, mask=inside, other=None if WHOLE_D else 0.0)
                part_y = tl.load(document_at + chunk, mask=inside, other=None if WHOLE_D else 0.0)
                products = dot(part_x, part_y.T, products, PRECISION, INTERPRETED)
        if DOCUMENT_MASKED:
            counts = tl.load(document_mask + item) != 0
            products = tl.where(counts[None, :], products, -float("inf"))
            seen |= counts.to(tl.int32)
        best_tile = tl.where(products > best, tile, best_tile)
        best = tl.maximum(best, products, propagate_nan=tl.PropagateNan.ALL)

        if tile == tiles - 1:
            is_nan = best != best  # noqa: PLR0124
            has_nan = tl.max(is_nan.to(tl.int32), 1) != 0
            best = tl.where(is_nan, -float("inf"), best)
            top = tl.max(best, 1)
            n = tl.where(best == top[:, None], best_tile * TILE + column[None, :], _NOWHERE)
            at = tl.minimum(tl.min(n, 1), count - 1)
            top = tl.where(has_nan, float("nan"), top)
            counted = row_counts
            if DOCUMENT_MASKED:
                counted &= tl.max(seen, 0) != 0
            if QUERY_MASKED or DOCUMENT_MASKED or not WHOLE_T:
                top = tl.where(counted, top, 0.0)
            total = tl.sum(tl.reshape(top, [PACK, TOKENS]), 1)
            tl.store(scores + score_row + document, total, mask=each < query_count)
            index_at = index_row + document.to(tl.int64) * tokens
            if QUERY_MASKED or DOCUMENT_MASKED:
                at = tl.where(counted, at, -1)
            tl.store(indices + index_at, at, mask=is_token)
            best = tl.full([PACK * TOKENS, TILE], -float("inf"), tl.float32)
            best_tile = tl.zeros([PACK * TOKENS, TILE], tl.int32)
            seen = tl.zeros([TILE], tl.int32)


def plan(
    dtype: torch.dtype,
    queries: int,
    tokens: int,
    documents: int,
    features: int,
    masked: bool,
    processors: int,
    config: dict[str, Any] | None = None,
) -> tuple[int, dict[str, Any], dict[str, int]]:
    """Documents a program, the constants of `_maxsim_kernel` that depend on sizes, and its options.

    `config` overrides constants and options.
    """
    half = dtype is not torch.float32
    most = 128 if half else 64
    block = min(power_of_two(tokens), most)
    pack = min(power_of_two(queries), max(most // block, 1))
    pack = max(pack, 16 // block)
    block_d = max(16, power_of_two(features))
    if block_d > 128 or not half:
        block_d = min(block_d, 64 if half else 32)
    chosen = {"PACK": pack, "TOKENS": block, "TILE": 64 if half else 32, "BLOCK_D": block_d}
    # 128 rows: 4 warps of 255 registers, of which two programs fit a multiprocessor; with masks, or more than one chunk
    # of features, or in float32, these would spill, and 8 warps do not.
    wide = not half or (pack * block == 128 and (masked or tokens % block != 0 or block_d < features))
    chosen |= {"num_warps": 8 if wide else 4, "num_stages": 3, **(config or {})}
    chosen["ONE_CHUNK"] = features <= chosen["BLOCK_D"]
    chosen["WHOLE_T"] = tokens % chosen["TOKENS"] == 0
    chosen["WHOLE_D"] = features > 0 and features % chosen["BLOCK_D"] == 0
    options = take_options(chosen)
    programs = ceil_div(queries, chosen["PACK"]) * ceil_div(tokens, chosen["TOKENS"])
    # One wave: a multiprocessor has room for 8 warps of 128 rows, or for more programs of fewer rows.
    residents = 8 * 128 // (options["num_warps"] * min(chosen["PACK"] * chosen["TOKENS"], 128))
    walkers = max(1, processors * residents // programs)
    return ceil_div(documents, walkers), chosen, options


def maxsim_forward(
    queries: Tensor,
    documents: Tensor,
    query_mask: Tensor | None,
    document_mask: Tensor | None,
    *,
    config: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """scores [Q, B] of queries [Q, T, D] and documents [B, N, D], and indices [Q, B, T] of the tokens that have them.

    Masks are bool, [Q, T] and [B, N]. An index is -1 where nothing counts. Types float32, float16, bfloat16; scores
    are float32, indices int32. The reference computes in float64.
    """
    if queries.dtype not in TYPES:
        return reference.maxsim_terms(queries, documents, query_mask, document_mask)
    query_count, tokens, features = queries.shape
    document_count, count, _ = documents.shape
    indices = torch.empty(query_count, document_count, tokens, dtype=torch.int32, device=queries.device)
    if not indices.numel() or not count:
        return queries.new_zeros(query_count, document_count, dtype=torch.float32), indices.fill_(-1)
    per_program, constants, options = plan(
        queries.dtype,
        query_count,
        tokens,
        document_count,
        features,
        query_mask is not None or document_mask is not None,
        multiprocessors(queries),
        config,
    )
    parts = ceil_div(tokens, constants["TOKENS"])
    scores = torch.empty(parts, query_count, document_count, dtype=torch.float32, device=queries.device)
    programs = ceil_div(query_count, constants["PACK"]) * parts * ceil_div(document_count, per_program)
    _maxsim_kernel[(programs,)](
        queries, documents, *(indices if mask is None else mask.view(torch.uint8) for mask in (query_mask, document_mask)),
        scores, indices, query_count, tokens, document_count, count, features, per_program,
        QUERY_MASKED=query_mask is not None, DOCUMENT_MASKED=document_mask is not None,
        PRECISION=matmul_precision(queries.dtype), INTERPRETED=INTERPRETED, **constants, **options,
    )  # fmt: skip
    return scores[0] if parts == 1 else scores.sum(0), indices


def maxsim_backward(
    grad: Tensor, queries: Tensor, documents: Tensor, indices: Tensor, *, config: dict[str, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and documents, in their type, from grad [Q, B] of the scores and the indices [Q, B, T]."""
    if queries.dtype not in TYPES:
        return reference.maxsim_backward(grad, queries, documents, indices)
    tokens = queries.shape[1]
    grad_documents, grad_queries = gradients.gradients(
        gradients.SHARED,
        documents,
        queries.flatten(0, 1),
        grad.contiguous(),
        indices,
        k=1,
        tokens=tokens,
        config=config,
    )
    return grad_queries.view_as(queries), grad_documents


def _aot_cases() -> list[dict]:
    cases = []
    for dtype, queries, tokens, documents, features, masked in (
        (torch.bfloat16, 128, 32, 128, 128, True),
        (torch.bfloat16, 128, 32, 128, 128, False),
        (torch.float16, 64, 17, 64, 512, False),
        (torch.float32, 32, 32, 32, 128, True),
        (torch.bfloat16, 1, 32, 10000, 128, True),
    ):
        name = TYPES[dtype]
        _, constants, options = plan(dtype, queries, tokens, documents, features, masked, 132)
        types = dict.fromkeys(("queries", "documents"), f"*{name}") | {"scores": "*fp32", "indices": "*i32"}
        types |= dict.fromkeys(("query_mask", "document_mask"), "*u8") | {"features": "i32"}
        types |= dict.fromkeys(("query_count", "tokens", "document_count", "count", "documents_per_program"), "i32:1")
        constants |= {"QUERY_MASKED": masked, "DOCUMENT_MASKED": masked, "PRECISION": "ieee", "INTERPRETED": False}
        title = f"maxsim {name} {queries}x{tokens} {documents} {features}{' masked' if masked else ''}"
        instruction = None if name == "fp32" else "wgmma" if constants["PACK"] * constants["TOKENS"] >= 64 else "mma"
        cases.append(aot_case(title, _maxsim_kernel, types, constants, options, instruction))
    return cases


AOT_CASES = _aot_cases()
