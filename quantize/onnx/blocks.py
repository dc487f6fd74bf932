"""Rows of weights into the blocks of ONNX Runtime's MatMulNBits: int4 or int8 codes, a scale, maybe a zero point.

A weight is scale * (code - zero_point). Scale and zero point come from a search, not from the extremes of a block:
for each of a few step sizes the codes are rounded, the scale that fits them best is solved for, and the candidate
with the least squared error stays (as ggml's make_qx_quants does for its own types).
Source of the layout: onnxruntime docs/ContribOperators.md, com.microsoft.MatMulNBits and GatherBlockQuantized.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

BLOCKS = (32, 64, 128)  # what MatMulNBits takes on every device; 16 is for the CPU only
CHUNK_WEIGHTS = 1 << 17  # searched together: 512 kB of float32, so that the passes stay in a core's cache

LARGEST_WEIGHT = 4e5  # 7 steps of the largest float16 scale; trained weights are below 1000

# Steps by which the range of codes is stretched or shrunk in search of a better scale. Source: the spacing is that
# of ggml-quants.c, make_qx_quants (0.1 of a code, 19 candidates); every third one loses under 1 % of the gain.
STRETCHES = (-1.2, -0.8, -0.4, 0.0, 0.4, 0.8)


@dataclass(frozen=True)
class BlockFormat:
    """bits: 4 or 8. block: weights that share a scale. symmetric: the zero point is the middle code, not stored."""

    bits: int
    block: int
    symmetric: bool = True

    @property
    def middle(self) -> int:
        """The code of zero where no zero point is stored."""
        return 1 << (self.bits - 1)

    def n_blocks(self, row_length: int) -> int:
        return row_length // self.block

    def code_bytes(self, row_length: int) -> int:
        """Bytes of a row's codes."""
        return row_length * self.bits // 8

    def zero_point_bytes(self, row_length: int) -> int:
        """Bytes of a row's zero points: packed like codes, each row begins a new byte."""
        return 0 if self.symmetric else (self.n_blocks(row_length) * self.bits + 7) // 8


@dataclass(frozen=True)
class Blocks:
    """Encoded rows. codes: (n_rows, code_bytes). scales: (n_rows, n_blocks). zero_points: (n_rows, bytes) or None."""

    codes: Bytes
    scales: NDArray[np.float16]
    zero_points: Bytes | None


def encode_rows(values: Floats, layout: BlockFormat) -> Blocks:
    """`values` (n_rows, row_length) in `layout`; within LARGEST_WEIGHT, row_length a multiple of the block."""
    n_rows, row_length = values.shape
    n_blocks = layout.n_blocks(row_length)
    codes = np.empty((n_rows, layout.code_bytes(row_length)), np.uint8)
    scales = np.empty((n_rows, n_blocks), np.float16)
    zeros = np.empty((n_rows, n_blocks), np.uint8)
    step = max(CHUNK_WEIGHTS // row_length, 1)
    for first in range(0, n_rows, step):
        part = values[first : first + step]
        # One column a block: sums over a block then run down whole rows, many blocks side by side.
        columns = np.ascontiguousarray(part.reshape(-1, layout.block).T)
        found = _nearest(columns, layout) if layout.bits == 8 else _search(columns, layout)
        rows = slice(first, first + len(part))
        codes[rows] = _pack_codes(found.codes, layout).reshape(len(part), -1)
        scales[rows] = found.scales.reshape(len(part), -1)
        zeros[rows] = found.zeros.reshape(len(part), -1)
    return Blocks(codes, scales, None if layout.symmetric else _pack_zeros(zeros, layout.bits))


def decode_rows(blocks: Blocks, layout: BlockFormat, row_length: int) -> Floats:
    """The weights that `blocks` stand for, (n_rows, row_length), as the runtime computes them."""
    codes = _unpack(blocks.codes, layout.bits)[:, :row_length]
    n_blocks = layout.n_blocks(row_length)
    wide = codes.reshape(-1, n_blocks, layout.block).astype(np.float32)
    if blocks.zero_points is None:
        wide -= np.float32(layout.middle)
    else:
        wide -= _unpack(blocks.zero_points, layout.bits)[:, :n_blocks, None].astype(np.float32)
    wide *= blocks.scales.astype(np.float32)[:, :, None]
    return wide.reshape(-1, row_length)


@dataclass(frozen=True)
class _Found:
    """codes: (block, n) unsigned. scales: (n,) float16. zeros: (n,) unsigned."""

    codes: Bytes
    scales: NDArray[np.float16]
    zeros: Bytes


def _inverse(scales: Floats) -> Floats:
    """1 / scales, and 0 where a scale is 0."""
    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)


def _nearest(columns: Floats, layout: BlockFormat) -> _Found:
    """Rounded to the nearest code: at 8 bits a search gains nothing that shows (0.02 dB)."""
    if layout.symmetric:
        scales = (np.abs(columns).max(axis=0) / np.float32(layout.middle - 1)).astype(np.float16)
        zeros = np.full(columns.shape[1], layout.middle, np.uint8)
    else:
        low, high = np.minimum(columns.min(axis=0), 0), np.maximum(columns.max(axis=0), 0)
        scales = ((high - low) / np.float32(2 * layout.middle - 1)).astype(np.float16)
        zeros = np.clip(np.rint(-low * _inverse(scales.astype(np.float32))), 0, 2 * layout.middle - 1).astype(np.uint8)
    return _Found(_round(columns, scales, zeros, layout), scales, zeros)


def _round(columns: Floats, scales: NDArray[np.float16], zeros: Bytes, layout: BlockFormat) -> Bytes:
    """The nearest codes under stored scales and zero points."""
    codes = columns * _inverse(scales.astype(np.float32))
    np.rint(codes, out=codes)
    codes += zeros.astype(np.float32)
    np.clip(codes, 0, 2 * layout.middle - 1, out=codes)
    return codes.astype(np.uint8)


def _search(columns: Floats, layout: BlockFormat) -> _Found:
    """The best of STRETCHES, then the codes rounded anew under the stored scale.

    With codes q (zero point taken off) the best scale is sum(xq) / sum(qq), and it removes sum(xq)^2 / sum(qq) of
    the squared weights: the candidate that removes most stays.
    """
    n_codes = 2 * layout.middle - 1
    best_gain = np.full(columns.shape[1], -1, np.float32)
    best_scale = np.zeros(columns.shape[1], np.float32)
    best_zero = np.full(columns.shape[1], layout.middle, np.float32)
    low, high = columns.min(axis=0), columns.max(axis=0)
    q, product = np.empty_like(columns), np.empty_like(columns)
    for stretch in STRETCHES:
        if layout.symmetric:
            # The extreme weight, with its sign, gets the code of largest size, -middle, so the scale may be negative.
            inverse = _inverse(np.where(-low > high, low, high)) * np.float32(-(layout.middle + stretch))
            zero = best_zero
        else:
            inverse = _inverse(np.maximum(high, 0) - np.minimum(low, 0)) * np.float32(n_codes + stretch)
            zero = np.clip(np.rint(-np.minimum(low, 0) * inverse), 0, n_codes)
        np.multiply(columns, inverse, out=q)
        np.rint(q, out=q)
        np.clip(q, -zero, n_codes - zero, out=q)
        np.multiply(columns, q, out=product)
        along = product.sum(axis=0)
        np.multiply(q, q, out=product)
        size = product.sum(axis=0)
        scale = along * _inverse(size)
        gain = along * scale
        better = gain > best_gain
        np.copyto(best_gain, gain, where=better)
        np.copyto(best_scale, scale, where=better)
        if not layout.symmetric:
            np.copyto(best_zero, zero, where=better)
    scales, zeros = best_scale.astype(np.float16), best_zero.astype(np.uint8)
    return _Found(_round(columns, scales, zeros, layout), scales, zeros)


def _pack_codes(codes: Bytes, layout: BlockFormat) -> Bytes:
    """(block, n) codes as n blocks of bytes; of two 4-bit codes the first is the low half."""
    packed = codes if layout.bits == 8 else codes[0::2] | (codes[1::2] << 4)
    return np.ascontiguousarray(packed.T)


def _pack_zeros(zeros: Bytes, bits: int) -> Bytes:
    """(n_rows, n_blocks) zero points, packed along a row; an odd one out is padded with 0."""
    if bits == 8:
        return zeros
    padded = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
    return np.ascontiguousarray(padded[:, 0::2] | (padded[:, 1::2] << 4))


def _unpack(packed: Bytes, bits: int) -> Bytes:
    """The codes of each row."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)
