"""The tiles of the attention kernels: as large as registers hold without spilling, as compiled for 8.0 and 9.0 shows.

A head has up to 128, 256 or 512 bytes: 64, 128 or 256 numbers of 16 bits. float32 is multiplied in three parts, and so
takes smaller tiles. Nothing here has been tuned by time.
"""

import triton
from torch import Tensor

from ._attention import widths
from ._common import multiprocessors


def _tile(rows: int, most: int) -> int:
    return min(most, max(16, triton.next_power_of_2(rows)))


def _bytes_of_head(constants: dict, q: Tensor) -> int:
    return max(constants["BLOCK_D"], constants.get("BLOCK_E", 0)) * q.element_size()


def forward_tiles(q: Tensor, rows: int, value_width: int, masked: bool) -> dict:
    """Tiles of `forward_kernel`."""
    found = widths(q.shape[3], value_width)
    head = _bytes_of_head(found, q)
    if q.element_size() == 4:
        most, keys, warps, stages = (64, 32, 4, 2) if head <= 256 else (32, 32, 8, 2)
        most, keys = (32, 16) if masked else (most, keys)
    elif head <= 128:
        most, keys, warps, stages = 128, 64, 8, 3
    elif head <= 256:
        most, keys, warps, stages = (64, 32, 8, 3) if masked else (128, 64, 8, 3)
    else:
        most, keys, warps, stages = (64, 16, 8, 2) if masked else (128, 32, 8, 2)
    tile = _tile(rows, most)
    if tile < most and head <= 256:
        warps = 4
    return found | {"BLOCK_T": tile, "BLOCK_S": keys, "num_warps": warps, "num_stages": stages}


def map_tiles(q: Tensor, rows: int, keys: int, groups: int) -> dict:
    """Tiles of `map_kernel`: as many keys at once as leave a program for every multiprocessor."""
    found = widths(q.shape[3])
    head = _bytes_of_head(found, q)
    if q.element_size() == 4:
        most, most_lines, block = (32, 32, 32) if head <= 256 else (16, 16, 32)
    else:
        most, most_lines, block = (128, 64, 128) if head <= 256 else (64, 64, 32)
    tile = _tile(rows, most)
    stack = max(1, min(triton.next_power_of_2(q.shape[1] // groups), most_lines // tile))
    block = min(block, 64) if tile == 128 else block
    programs = q.shape[0] * triton.cdiv(rows, tile)
    while block > 32 and programs * triton.cdiv(keys, block) < multiprocessors(q):
        block //= 2
    warps = 8 if head > 256 or q.element_size() == 4 or tile * stack * block >= 64 * 128 else 4
    return found | {"BLOCK_R": tile, "STACK": stack, "BLOCK_S": block, "num_warps": warps, "num_stages": 3}


def scores_tiles(q: Tensor, rows: int) -> dict:
    """Tiles of `scores_kernel`."""
    found = widths(q.shape[3])
    head = _bytes_of_head(found, q)
    few = rows <= 16 or head > 256 or q.element_size() == 4
    warps = 4 if few and (head <= 256 or q.element_size() == 2) else 8
    block = 128 if head <= 256 and q.element_size() == 2 else 64
    return found | {"BLOCK_R": 16 if few else 32, "BLOCK_S": block, "num_warps": warps, "num_stages": 1}


def backward_tiles(q: Tensor, rows: int, value_width: int) -> tuple[dict, dict]:
    """Tiles of `delta_kernel` and `query_kernel`, and those of `key_kernel`."""
    found = widths(q.shape[3], value_width)
    head = _bytes_of_head(found, q)
    if q.element_size() == 4:
        of_query, of_key, stages = ((32, 32), (16, 32), 1) if head <= 256 else ((16, 16), (16, 16), 1)
    elif head <= 256:
        of_query, of_key, stages = (64, 64), (32, 64), 2
    else:
        of_query, of_key, stages = (32, 32), (32, 32), 1
    options = {"num_warps": 8, "num_stages": stages}
    return tuple(
        found | {"BLOCK_T": _tile(rows, most), "BLOCK_S": keys, **options} for most, keys in (of_query, of_key)
    )
