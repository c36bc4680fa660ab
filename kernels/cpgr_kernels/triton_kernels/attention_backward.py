"""Attention, backward: weights are computed again from the saved sums, and no gradient is added up in memory.

With P the weights of a head, gradients dO of the output and dM of the map's rows, and dP = dO V^T + dM / H at those rows:

    delta = rowsum(P dP) = rowsum(dO O) + rowsum(P dM) / H        `delta_kernel`
    dS = P (dP - delta),  dQ = scale dS K                         `query_kernel`: a program owns rows of a head
    dK = scale dS^T Q,    dV = P^T dO                             `key_kernel`: a program owns keys of a shared head

A line of the tiles is a query row: all T of them, or, where the map's gradient is all there is, the chosen rows alone
(`rows` says which, -1 is none). `slots` says which row of dM belongs to a line (-1: none).
"""

import triton
import triton.language as tl

from ._attention import chosen_rows, factor, hide, load_tile, product


@triton.jit
def _lines(i, rows, slots, b, lines, length, ROWS: tl.constexpr, SLOTS: tl.constexpr):
    """Row, whether it exists, and its row of the map's gradient, of the lines i."""
    ok = i < lines
    t = i
    if ROWS:
        t, ok = chosen_rows(rows, b * lines + i, ok, length)
    slot = i
    if SLOTS:
        slot = tl.load(slots + b * lines + i, mask=ok, other=-1)
    return t, ok, slot


@triton.jit
def _map_tile(grad_map, slot, s, there, keys):
    return tl.load(grad_map + slot.to(tl.int64) * keys + s, mask=there & (slot >= 0), other=0.0)


@triton.jit(do_not_specialize=["heads", "groups", "length", "lines", "chosen", "keys", "width", "value_width"])
def delta_kernel(
    q,
    k,
    out,
    grad_out,
    grad_map,
    rows,
    slots,
    padding,
    mask,
    lse,
    delta,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    k_b: tl.int64,
    k_h: tl.int64,
    k_t: tl.int64,
    o_b: tl.int64,
    o_h: tl.int64,
    o_t: tl.int64,
    do_b: tl.int64,
    do_h: tl.int64,
    do_t: tl.int64,
    m_b: tl.int64,
    m_h: tl.int64,
    m_t: tl.int64,
    m_s: tl.int64,
    heads,
    groups,
    length,
    lines,
    chosen,
    keys,
    width,
    value_width,
    scale,
    VALUES: tl.constexpr,
    MAP: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
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
    """delta [B, H, lines]."""
    tiles = tl.cdiv(lines, BLOCK_T)
    tile = tl.program_id(0) % tiles
    h = (tl.program_id(0) // tiles) % heads
    b = (tl.program_id(0) // tiles // heads).to(tl.int64)
    i = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    t, ok, slot = _lines(i, rows, slots, b, lines, length, ROWS, SLOTS)
    found = tl.zeros([BLOCK_T], tl.float32)
    if VALUES:
        o = load_tile(out + b * o_b + h * o_h, t, ok, o_t, value_width, BLOCK_E, EVEN_E)
        do = load_tile(grad_out + b * do_b + h * do_h, t, ok, do_t, value_width, BLOCK_E, EVEN_E)
        found += tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    if MAP:
        last = keys
        if IS_CAUSAL and not ROWS:
            last = tl.minimum(keys, (tile + 1) * BLOCK_T)
        if SLOTS:  # most tiles have no row of the map
            last = tl.where(tl.max(tl.where(ok, slot, -1), 0) >= 0, last, 0)
        q_tile = load_tile(q + b * q_b + h * q_h, t, ok, q_t, width, BLOCK_D, EVEN_D)
        k_base = k + b * k_b + (h // (heads // groups)) * k_h
        map_base = grad_map + b * chosen * keys
        head_mask = mask + b * m_b + h * m_h
        log = tl.load(lse + (b * heads + h) * length + t, mask=ok, other=float("inf")) * 1.4426950408889634
        times = factor(scale, LATE)
        of_map = tl.zeros([BLOCK_T], tl.float32)
        for start in range(0, last, BLOCK_S):
            s = start + tl.arange(0, BLOCK_S)
            k_tile = load_tile(k_base, s, s < keys, k_t, width, BLOCK_D, EVEN_D)
            there = ok[:, None] & (s < keys)[None, :]
            scores = product(q_tile, tl.trans(k_tile), PRECISION, WIDEN)
            scores = hide(
                scores, t[:, None], s[None, :], there, padding + b * keys, head_mask, m_t, m_s, scale,
                PADDING, MASK, IS_CAUSAL, LATE,
            )  # fmt: skip
            weights = tl.exp2(scores * times - log[:, None])
            of_map += tl.sum(weights * _map_tile(map_base, slot[:, None], s[None, :], there, keys), 1)
        found += of_map / heads
    tl.store(delta + (b * heads + h) * lines + i, found, mask=i < lines)


@triton.jit(do_not_specialize=["heads", "groups", "length", "lines", "chosen", "keys", "width", "value_width"])
def query_kernel(
    q,
    k,
    v,
    grad_out,
    grad_map,
    rows,
    slots,
    padding,
    mask,
    lse,
    delta,
    grad_q,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    k_b: tl.int64,
    k_h: tl.int64,
    k_t: tl.int64,
    v_b: tl.int64,
    v_h: tl.int64,
    v_t: tl.int64,
    do_b: tl.int64,
    do_h: tl.int64,
    do_t: tl.int64,
    dq_b: tl.int64,
    dq_h: tl.int64,
    dq_t: tl.int64,
    m_b: tl.int64,
    m_h: tl.int64,
    m_t: tl.int64,
    m_s: tl.int64,
    heads,
    groups,
    length,
    lines,
    chosen,
    keys,
    width,
    value_width,
    scale,
    grad_scale,
    VALUES: tl.constexpr,
    MAP: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
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
    """grad_q of the lines."""
    tiles = tl.cdiv(lines, BLOCK_T)
    tile = tl.program_id(0) % tiles
    h = (tl.program_id(0) // tiles) % heads
    b = (tl.program_id(0) // tiles // heads).to(tl.int64)
    g = h // (heads // groups)
    i = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    t, ok, slot = _lines(i, rows, slots, b, lines, length, ROWS, SLOTS)
    q_tile = load_tile(q + b * q_b + h * q_h, t, ok, q_t, width, BLOCK_D, EVEN_D)
    k_base, v_base = k + b * k_b + g * k_h, v + b * v_b + g * v_h
    map_base = grad_map + b * chosen * keys
    head_mask = mask + b * m_b + h * m_h
    if VALUES:
        do = load_tile(grad_out + b * do_b + h * do_h, t, ok, do_t, value_width, BLOCK_E, EVEN_E)
    log = tl.load(lse + (b * heads + h) * length + t, mask=ok, other=float("inf")) * 1.4426950408889634
    line_delta = tl.load(delta + (b * heads + h) * lines + i, mask=ok, other=0.0)
    times = factor(scale, LATE)
    share = 1.0 / heads
    last = keys
    if IS_CAUSAL and not ROWS:
        last = tl.minimum(keys, (tile + 1) * BLOCK_T)
    found = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for start in range(0, last, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        s_ok = s < keys
        k_tile = load_tile(k_base, s, s_ok, k_t, width, BLOCK_D, EVEN_D)
        there = ok[:, None] & s_ok[None, :]
        scores = product(q_tile, tl.trans(k_tile), PRECISION, WIDEN)
        scores = hide(
            scores, t[:, None], s[None, :], there, padding + b * keys, head_mask, m_t, m_s, scale,
            PADDING, MASK, IS_CAUSAL, LATE,
        )  # fmt: skip
        weights = tl.exp2(scores * times - log[:, None])
        if VALUES:
            v_tile = load_tile(v_base, s, s_ok, v_t, value_width, BLOCK_E, EVEN_E)
            grads = product(do, tl.trans(v_tile), PRECISION, WIDEN)
        else:
            grads = tl.zeros([BLOCK_T, BLOCK_S], tl.float32)
        if MAP:
            grads += _map_tile(map_base, slot[:, None], s[None, :], there, keys) * share
        grads = weights * (grads - line_delta[:, None])
        found += product(grads.to(k_tile.dtype), k_tile, PRECISION, WIDEN)
    d = tl.arange(0, BLOCK_D)
    places = grad_q + b * dq_b + h * dq_h + t.to(tl.int64)[:, None] * dq_t + d[None, :]
    tl.store(places, (found * grad_scale).to(grad_q.dtype.element_ty), mask=ok[:, None] & (d < width)[None, :])


@triton.jit(do_not_specialize=["heads", "groups", "length", "lines", "chosen", "keys", "width", "value_width"])
def key_kernel(
    q,
    k,
    v,
    grad_out,
    grad_map,
    rows,
    slots,
    padding,
    mask,
    lse,
    delta,
    grad_k,
    grad_v,
    q_b: tl.int64,
    q_h: tl.int64,
    q_t: tl.int64,
    k_b: tl.int64,
    k_h: tl.int64,
    k_t: tl.int64,
    v_b: tl.int64,
    v_h: tl.int64,
    v_t: tl.int64,
    do_b: tl.int64,
    do_h: tl.int64,
    do_t: tl.int64,
    dk_b: tl.int64,
    dk_h: tl.int64,
    dk_t: tl.int64,
    dv_b: tl.int64,
    dv_h: tl.int64,
    dv_t: tl.int64,
    m_b: tl.int64,
    m_h: tl.int64,
    m_t: tl.int64,
    m_s: tl.int64,
    heads,
    groups,
    length,
    lines,
    chosen,
    keys,
    width,
    value_width,
    scale,
    grad_scale,
    VALUES: tl.constexpr,
    MAP: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
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
    """grad_k and, with VALUES, grad_v of a block of keys: the heads that share it are walked, and all lines of each."""
    tiles = tl.cdiv(keys, BLOCK_S)
    start = tl.program_id(0) % tiles * BLOCK_S
    g = (tl.program_id(0) // tiles) % groups
    b = (tl.program_id(0) // tiles // groups).to(tl.int64)
    s = start + tl.arange(0, BLOCK_S)
    s_ok = s < keys
    k_tile = load_tile(k + b * k_b + g * k_h, s, s_ok, k_t, width, BLOCK_D, EVEN_D)
    if VALUES:
        v_tile = load_tile(v + b * v_b + g * v_h, s, s_ok, v_t, value_width, BLOCK_E, EVEN_E)
    map_base = grad_map + b * chosen * keys
    times = factor(scale, LATE)
    share = 1.0 / heads
    shared = heads // groups
    first = 0
    if IS_CAUSAL and not ROWS:
        first = start // BLOCK_T * BLOCK_T
    of_key = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    of_value = tl.zeros([BLOCK_S, BLOCK_E], tl.float32)
    for head in range(shared):
        h = g * shared + head
        head_mask = mask + b * m_b + h * m_h
        for line in range(first, lines, BLOCK_T):
            i = line + tl.arange(0, BLOCK_T)
            t, ok, slot = _lines(i, rows, slots, b, lines, length, ROWS, SLOTS)
            there = s_ok[:, None] & ok[None, :]
            q_tile = load_tile(q + b * q_b + h * q_h, t, ok, q_t, width, BLOCK_D, EVEN_D)
            log = tl.load(lse + (b * heads + h) * length + t, mask=ok, other=float("inf")) * 1.4426950408889634
            scores = product(k_tile, tl.trans(q_tile), PRECISION, WIDEN)
            scores = hide(
                scores, t[None, :], s[:, None], there, padding + b * keys, head_mask, m_t, m_s, scale,
                PADDING, MASK, IS_CAUSAL, LATE,
            )  # fmt: skip
            weights = tl.exp2(scores * times - log[None, :])
            if VALUES:
                do = load_tile(grad_out + b * do_b + h * do_h, t, ok, do_t, value_width, BLOCK_E, EVEN_E)
                of_value += product(weights.to(do.dtype), do, PRECISION, WIDEN)
                grads = product(v_tile, tl.trans(do), PRECISION, WIDEN)
            else:
                grads = tl.zeros([BLOCK_S, BLOCK_T], tl.float32)
            if MAP:
                grads += _map_tile(map_base, slot[None, :], s[:, None], there, keys) * share
            line_delta = tl.load(delta + (b * heads + h) * lines + i, mask=ok, other=0.0)
            grads = weights * (grads - line_delta[None, :])
            of_key += product(grads.to(q_tile.dtype), q_tile, PRECISION, WIDEN)
    d = tl.arange(0, BLOCK_D)
    places = grad_k + b * dk_b + g * dk_h + s.to(tl.int64)[:, None] * dk_t + d[None, :]
    tl.store(places, (of_key * grad_scale).to(grad_k.dtype.element_ty), mask=s_ok[:, None] & (d < width)[None, :])
    if VALUES:
        e = tl.arange(0, BLOCK_E)
        places = grad_v + b * dv_b + g * dv_h + s.to(tl.int64)[:, None] * dv_t + e[None, :]
        tl.store(places, of_value.to(grad_v.dtype.element_ty), mask=s_ok[:, None] & (e < value_width)[None, :])
