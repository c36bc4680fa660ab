"""Attention, forward: the output with the logarithm of each row's sum, and the map's rows by two ways.

`forward_kernel` is FlashAttention: a program owns a tile of rows of one head and walks the keys; without v it leaves the
sums alone, and walks one of several chunks of keys, so that few rows fill a card too. `map_kernel` knows the sums: a
program owns a tile of the map, walks the heads, and writes the mean once. Nothing is added up in memory, so that two
runs give the same bits.

Few rows over many keys (`attention_map` of a long text) are bound by reading K, and reading it twice would double their
time. There `scores_kernel` reads each block of keys once and keeps exp(score - the block's largest) of the chosen rows,
16 bits each beside 16-bit inputs; `sums_kernel` puts the blocks' sums together; `mean_kernel` makes the map of them.
Bytes: K once, B H R S 16-bit numbers written and read (from L2, where they fit), the map once.
"""

import triton
import triton.language as tl

from ._attention import chosen_rows, factor, hide, load_rows, load_tile, product


@triton.jit
def _walk(
    start,
    sums,
    total,
    largest,
    q,
    k_base,
    v_base,
    t,
    row_ok,
    padding,
    mask,
    k_t: tl.int64,
    v_t: tl.int64,
    m_t: tl.int64,
    m_s: tl.int64,
    keys,
    width,
    value_width,
    scale,
    WHOLE: tl.constexpr,
    VALUES: tl.constexpr,
    PADDING: tl.constexpr,
    MASK: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    LATE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_E: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One block of keys. WHOLE: all of it exists and lies before every row of the tile."""
    s = start + tl.arange(0, BLOCK_S)
    s_ok = (s < keys) | WHOLE
    k = load_tile(k_base, s, s_ok, k_t, width, BLOCK_D, EVEN_D)
    scores = product(q, tl.trans(k), PRECISION, WIDEN)
    there = row_ok[:, None] & s_ok[None, :]
    causal: tl.constexpr = IS_CAUSAL and not WHOLE
    scores = hide(scores, t[:, None], s[None, :], there, padding, mask, m_t, m_s, scale, PADDING, MASK, causal, LATE)
    if not WHOLE:
        scores = tl.where(s_ok[None, :], scores, float("-inf"))
    times = factor(scale, LATE)
    new = tl.maximum(largest, tl.max(scores, 1) * times)
    shift = tl.where(new == float("-inf"), 0.0, new)
    weights = tl.exp2(scores * times - shift[:, None])
    shrink = tl.exp2(largest - shift)
    total = total * shrink + tl.sum(weights, 1)
    if VALUES:
        v = load_tile(v_base, s, s_ok, v_t, value_width, BLOCK_E, EVEN_E)
        sums = sums * shrink[:, None] + product(weights.to(v.dtype), v, PRECISION, WIDEN)
    return sums, total, new


@triton.jit(
    do_not_specialize=["heads", "groups", "length", "chosen", "keys", "width", "value_width", "chunk", "chunks"]
)
def forward_kernel(
    q,
    k,
    v,
    rows,
    padding,
    mask,
    out,
    lse,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    k_b: tl.int64,
    k_h: tl.int64,
    k_t: tl.int64,
    v_b: tl.int64,
    v_h: tl.int64,
    v_t: tl.int64,
    o_b: tl.int64,
    o_h: tl.int64,
    o_t: tl.int64,
    m_b: tl.int64,
    m_h: tl.int64,
    m_t: tl.int64,
    m_s: tl.int64,
    heads,
    groups,
    length,
    chosen,
    keys,
    width,
    value_width,
    chunk,
    chunks,
    pitch,
    scale,
    VALUES: tl.constexpr,
    ROWS: tl.constexpr,
    PADDING: tl.constexpr,
    MASK: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    LATE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_E: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """VALUES: out [B, H, T, E] and lse [B, H, T]. Else lse [B, H, chosen, pitch], one of each chunk, to the base 2 and -inf of no keys."""
    tiles = tl.cdiv(chosen, BLOCK_T)
    place = tl.program_id(0)
    tile = place % tiles
    if IS_CAUSAL:
        tile = tiles - 1 - tile  # the longest first
    part = (place // tiles) % chunks
    h = (place // tiles // chunks) % heads
    b = (place // tiles // chunks // heads).to(tl.int64)
    g = h // (heads // groups)
    i = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    row_ok = i < chosen
    t = i
    if ROWS:
        t, row_ok = chosen_rows(rows, b * chosen + i, row_ok, length)
    q_tile = load_tile(q + b * q_b + h * q_h, t, row_ok, q_t, width, BLOCK_D, EVEN_D)
    k_base = k + b * k_b + g * k_h
    v_base = v + b * v_b + g * v_h
    padding = padding + b * keys
    mask = mask + b * m_b + h * m_h

    first = part * chunk
    last = tl.minimum(first + chunk, keys)
    seen_by_all = last
    if IS_CAUSAL:
        if ROWS:
            seen_by_all = first
        else:
            last = tl.minimum(last, (tile + 1) * BLOCK_T)
            seen_by_all = tl.minimum(last, tile * BLOCK_T)
    whole = first + tl.maximum(seen_by_all - first, 0) // BLOCK_S * BLOCK_S
    sums = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    largest = tl.full([BLOCK_T], float("-inf"), tl.float32)
    for start in range(first, whole, BLOCK_S):
        sums, total, largest = _walk(
            start, sums, total, largest, q_tile, k_base, v_base, t, row_ok, padding, mask, k_t, v_t, m_t, m_s,
            keys, width, value_width, scale, True, VALUES, PADDING, MASK, IS_CAUSAL, LATE,
            BLOCK_S, BLOCK_D, BLOCK_E, EVEN_D, EVEN_E, PRECISION, WIDEN,
        )  # fmt: skip
    for start in range(whole, last, BLOCK_S):
        sums, total, largest = _walk(
            start, sums, total, largest, q_tile, k_base, v_base, t, row_ok, padding, mask, k_t, v_t, m_t, m_s,
            keys, width, value_width, scale, False, VALUES, PADDING, MASK, IS_CAUSAL, LATE,
            BLOCK_S, BLOCK_D, BLOCK_E, EVEN_D, EVEN_E, PRECISION, WIDEN,
        )  # fmt: skip

    blind = total == 0
    total = tl.where(blind, 1.0, total)
    if VALUES:
        sums = sums / total[:, None]
        e = tl.arange(0, BLOCK_E)
        places = out + b * o_b + h * o_h + i.to(tl.int64)[:, None] * o_t + e[None, :]
        tl.store(places, sums.to(out.dtype.element_ty), mask=row_ok[:, None] & (e < value_width)[None, :])
        found = tl.where(blind, float("inf"), (largest + tl.log2(total)) * 0.6931471805599453)
        tl.store(lse + (b * heads + h) * length + i, found, mask=row_ok)
    else:
        found = tl.where(blind, float("-inf"), largest + tl.log2(total))
        tl.store(lse + ((b * heads + h) * chosen + i) * pitch + part, found, mask=i < chosen)


@triton.jit(do_not_specialize=["heads", "groups", "length", "chosen", "keys", "width"])
def map_kernel(
    q,
    k,
    rows,
    padding,
    mask,
    lse,
    maps,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    k_b: tl.int64,
    k_h: tl.int64,
    k_t: tl.int64,
    m_b: tl.int64,
    m_h: tl.int64,
    m_t: tl.int64,
    m_s: tl.int64,
    heads,
    groups,
    length,
    chosen,
    keys,
    width,
    scale,
    ROWS: tl.constexpr,
    PADDING: tl.constexpr,
    MASK: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    LATE: tl.constexpr,
    STACK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """maps [B, chosen, S]: the mean over heads of exp(score - lse).

    The rows of STACK heads that share their keys stand above one another in a tile, so that keys are loaded once for them.
    """
    tiles, key_tiles = tl.cdiv(chosen, BLOCK_R), tl.cdiv(keys, BLOCK_S)
    place = tl.program_id(0)
    tile = place % tiles
    start = (place // tiles) % key_tiles * BLOCK_S
    b = (place // tiles // key_tiles).to(tl.int64)
    s = start + tl.arange(0, BLOCK_S)
    s_ok = s < keys
    line = tl.arange(0, STACK * BLOCK_R)
    r = tile * BLOCK_R + line % BLOCK_R
    row_ok = r < chosen
    t = r
    if ROWS:
        t, row_ok = chosen_rows(rows, b * chosen + r, row_ok, length)
    shared = heads // groups
    stacks = tl.cdiv(shared, STACK)
    steps = groups * stacks
    if IS_CAUSAL and not ROWS:  # a tile above the diagonal is zero
        steps = tl.where(start < (tile + 1) * BLOCK_R, steps, 0)
    times = factor(scale, LATE)
    sums = tl.zeros([STACK * BLOCK_R, BLOCK_S], tl.float32)
    for step in range(steps):
        g = step // stacks
        k_tile = load_tile(k + b * k_b + g * k_h, s, s_ok, k_t, width, BLOCK_D, EVEN_D)
        if STACK == 1:
            h = (g * shared + step % stacks).to(tl.int64)
            ok = row_ok
            q_tile = load_tile(q + b * q_b + h * q_h, t, ok, q_t, width, BLOCK_D, EVEN_D)
            head_mask = mask + b * m_b + h * m_h
        else:
            of_group = step % stacks * STACK + line // BLOCK_R
            h = (g * shared + of_group).to(tl.int64)
            ok = row_ok & (of_group < shared)
            q_tile = load_rows(q + b * q_b + h * q_h + t.to(tl.int64) * q_t, ok, width, BLOCK_D, EVEN_D)
            head_mask = (mask + b * m_b + h * m_h)[:, None]
        scores = product(q_tile, tl.trans(k_tile), PRECISION, WIDEN)
        there = ok[:, None] & s_ok[None, :]
        scores = hide(
            scores, t[:, None], s[None, :], there, padding + b * keys, head_mask, m_t, m_s, scale,
            PADDING, MASK, IS_CAUSAL, LATE,
        )  # fmt: skip
        logs = tl.load(lse + (b * heads + h) * length + t, mask=ok, other=float("inf")) * 1.4426950408889634
        sums += tl.exp2(scores * times - logs[:, None])
    if STACK > 1:
        sums = tl.sum(tl.reshape(sums, [STACK, BLOCK_R, BLOCK_S]), 0)
    r = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    places = maps + (b * chosen + r[:, None]) * keys + s[None, :]
    tl.store(places, sums / heads, mask=(r < chosen)[:, None] & s_ok[None, :])


@triton.jit(do_not_specialize=["heads", "groups", "length", "chosen", "keys", "width"])
def scores_kernel(
    q,
    k,
    rows,
    padding,
    mask,
    scratch,
    peaks,
    partial,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    k_b: tl.int64,
    k_h: tl.int64,
    k_t: tl.int64,
    m_b: tl.int64,
    m_h: tl.int64,
    m_t: tl.int64,
    m_s: tl.int64,
    heads,
    groups,
    length,
    chosen,
    keys,
    width,
    row_pitch,
    pitch,
    scale,
    ROWS: tl.constexpr,
    PADDING: tl.constexpr,
    MASK: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    LATE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One block of keys against the chosen rows of all heads that share it.

    scratch [B, H, chosen, row_pitch]: exp(score - peak). peaks and partial [B, H, chosen, pitch]: each block's largest
    score and the logarithm of its sum, both to the base 2, -inf where no key takes part.
    """
    blocks = tl.cdiv(keys, BLOCK_S)
    place = tl.program_id(0)
    block = place % blocks
    g = (place // blocks) % groups
    b = (place // blocks // groups).to(tl.int64)
    s = block * BLOCK_S + tl.arange(0, BLOCK_S)
    s_ok = s < keys
    k_tile = load_tile(k + b * k_b + g * k_h, s, s_ok, k_t, width, BLOCK_D, EVEN_D)
    shared = heads // groups
    times = factor(scale, LATE)
    for first in range(0, shared * chosen, BLOCK_R):
        line = first + tl.arange(0, BLOCK_R)
        h = (g * shared + line // chosen).to(tl.int64)
        r = line % chosen
        exists = line < shared * chosen
        ok = exists
        t = r
        if ROWS:
            t, ok = chosen_rows(rows, b * chosen + r, ok, length)
        q_tile = load_rows(q + b * q_b + h * q_h + t.to(tl.int64) * q_t, ok, width, BLOCK_D, EVEN_D)
        scores = product(q_tile, tl.trans(k_tile), PRECISION, WIDEN)
        there = ok[:, None] & s_ok[None, :]
        head_mask = (mask + b * m_b + h * m_h)[:, None]
        scores = hide(
            scores, t[:, None], s[None, :], there, padding + b * keys, head_mask, m_t, m_s, scale,
            PADDING, MASK, IS_CAUSAL, LATE,
        )  # fmt: skip
        scores = tl.where(there, scores, float("-inf")) * times
        peak = tl.max(scores, 1)
        shift = tl.where(peak == float("-inf"), 0.0, peak)
        weights = tl.exp2(scores - shift[:, None])
        total = tl.sum(weights, 1)
        log = tl.where(total == 0, float("-inf"), peak + tl.log2(tl.where(total == 0, 1.0, total)))
        of_row = (b * heads + h) * chosen + r
        tl.store(peaks + of_row * pitch + block, peak, mask=exists)
        tl.store(partial + of_row * pitch + block, log, mask=exists)
        kept = weights.to(scratch.dtype.element_ty)
        tl.store(scratch + of_row[:, None] * row_pitch + s[None, :], kept, mask=exists[:, None] & s_ok[None, :])


@triton.jit(do_not_specialize=["heads", "length", "chosen", "blocks"])
def sums_kernel(
    rows,
    partial,
    lse,
    heads,
    length,
    chosen,
    blocks,
    pitch,
    ROWS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """lse [B, H, T], natural and +inf of no keys, at the chosen rows, from `blocks` of partial [B, H, chosen, pitch]."""
    tiles = tl.cdiv(chosen, BLOCK_R)
    r = tl.program_id(0) % tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    of_head = (tl.program_id(0) // tiles).to(tl.int64)
    ok = r < chosen
    largest = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, blocks, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        places = partial + (of_head * chosen + r[:, None]) * pitch + c[None, :]
        # A mask by the pitch, a multiple of 16, leaves vectors whole.
        logs = tl.load(places, mask=ok[:, None] & (c < pitch)[None, :], other=float("-inf"))
        logs = tl.where((c < blocks)[None, :], logs, float("-inf"))
        new = tl.maximum(largest, tl.max(logs, 1))
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp2(largest - shift) + tl.sum(tl.exp2(logs - shift[:, None]), 1)
        largest = new
    blind = total == 0
    found = tl.where(blind, float("inf"), (largest + tl.log2(tl.where(blind, 1.0, total))) * 0.6931471805599453)
    t = r
    if ROWS:
        t, ok = chosen_rows(rows, of_head // heads * chosen + r, ok, length)
    tl.store(lse + of_head * length + t, found, mask=ok)


@triton.jit(do_not_specialize=["heads", "length", "chosen", "keys"])
def mean_kernel(
    rows,
    scratch,
    peaks,
    lse,
    maps,
    heads,
    length,
    chosen,
    keys,
    row_pitch,
    pitch,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """maps [B, chosen, S] from what `scores_kernel` kept of blocks of BLOCK keys."""
    tiles = tl.cdiv(keys, BLOCK_S)
    place = tl.program_id(0)
    s = place % tiles * BLOCK_S + tl.arange(0, BLOCK_S)
    s_ok = s < keys
    r = (place // tiles) % chosen
    b = (place // tiles // chosen).to(tl.int64)
    t = r + tl.zeros([BLOCK_H], tl.int32)
    row_ok = t < length
    if ROWS:
        t, row_ok = chosen_rows(rows, b * chosen + t, t >= 0, length)
    sums = tl.zeros([BLOCK_S], tl.float32)
    for first in range(0, heads, BLOCK_H):
        h = first + tl.arange(0, BLOCK_H)
        ok = (h < heads) & row_ok
        logs = tl.load(lse + (b * heads + h) * length + t, mask=ok, other=float("inf")) * 1.4426950408889634
        of_row = (b * heads + h) * chosen + r
        there = ok[:, None] & s_ok[None, :]
        peak = tl.load(peaks + of_row[:, None] * pitch + (s // BLOCK)[None, :], mask=there, other=float("-inf"))
        kept = tl.load(
            scratch + of_row[:, None] * row_pitch + s[None, :], mask=ok[:, None] & (s < row_pitch)[None, :], other=0.0
        ).to(tl.float32)
        sums += tl.sum(kept * tl.exp2(peak - logs[:, None]), 0)
    tl.store(maps + (b * chosen + r) * keys + s, sums / heads, mask=s_ok)
