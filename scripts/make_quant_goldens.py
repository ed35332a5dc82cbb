#!/usr/bin/env python3
"""Writes tests/goldens/quant: rows packed by ggml's own quantizers, and what packed rows mean.

Needs numpy and a built checkout of llama.cpp: its Python package gguf says what packed bytes mean (in f32, a
multiply and an add each), its libggml-base.so packs.

    python scripts/make_quant_goldens.py LLAMA_CPP LIBGGML_BASE

    rows.f32         [24, 512]  weights, some rows with outliers, one of zeros, one tiny, one huge
    importance.f32   [512]      of the columns
    TYPE.packed      [24, ...]  rows as ggml's reference packs them
    TYPE.weighted    [24, ...]  the same, given the importance (not q8_0, where ggml takes no notice of it)
    TYPE.noise       [2, ...]   random bytes, the f16 among them finite; 512 weights a row, of int types 333
    TYPE.values      [2, 512]   f32, what the noise means
"""

import argparse
import ctypes
import pathlib
import sys

import numpy as np

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "goldens" / "quant"
ROWS, WIDTH, ODD_WIDTH = 24, 512, 333
# The numbers of ggml's enum, and where a block's f16 fields are.
TYPES = {
    "q4_0": (2, [0]),
    "q4_1": (3, [0, 2]),
    "q5_0": (6, [0]),
    "q5_1": (7, [0, 2]),
    "q8_0": (8, [0]),
    "q2_k": (10, [80, 82]),
    "q3_k": (11, [108]),
    "q4_k": (12, [0, 2]),
    "q5_k": (13, [0, 2]),
    "q6_k": (14, [208]),
}


def random_rows(rng):
    rows = rng.normal(0, 0.02, (ROWS, WIDTH))
    rows[1:4] *= rng.uniform(0.2, 3, (3, WIDTH))
    rows[4:7][rng.random((3, WIDTH)) < 0.01] *= 12
    rows[7] = rng.laplace(0, 0.02, WIDTH)
    rows[8] += 0.05
    rows[9] = np.abs(rows[9])
    rows[10] = -np.abs(rows[10])
    rows[11] = 0
    rows[12] *= 1e-6
    rows[13] *= 1e5
    rows[14, 100:400] = 0
    return rows.astype(np.float32)


def finite_f16(rng, count):
    """Scales as real files have them, some negative."""
    return (rng.normal(0, 0.01, count)).astype(np.float16).view(np.uint8).reshape(count, 2)


def noise(rng, block_bytes, blocks, halves):
    raw = rng.integers(0, 256, (blocks, block_bytes), dtype=np.uint8)
    for at in halves:
        raw[:, at : at + 2] = finite_f16(rng, blocks)
    return raw


def int_row(rng, bits, group):
    """A row of ODD_WIDTH weights in random codes: its bytes, and its values."""
    raw, values = [], []
    for start in range(0, ODD_WIDTH, group):
        n = min(group, ODD_WIDTH - start)
        half = finite_f16(rng, 2)
        scale, low = half.reshape(-1).view(np.float16).astype(np.float32)
        if bits == 8:
            codes = rng.integers(-128, 128, n).astype(np.int8)
            raw += [half[0], codes.view(np.uint8)]
            values.append(scale * codes.astype(np.float32))
            continue
        raw += [half[0], half[1]]
        codes = rng.integers(0, 16, n).astype(np.uint8)
        for run in np.split(codes, range(32, n, 32)):
            first = (run.size + 1) // 2
            low_half, high_half = run[:first], np.zeros(first, np.uint8)
            high_half[: run.size - first] = run[first:]
            raw.append(low_half | high_half << 4)
        values.append(low + scale * codes.astype(np.float32))
    return np.concatenate(raw), np.concatenate(values)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=pathlib.Path, help="its source folder")
    parser.add_argument("libggml_base", type=pathlib.Path)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.llama_cpp / "gguf-py"))
    import gguf

    ggml = ctypes.CDLL(str(arguments.libggml_base))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer = ctypes.POINTER(ctypes.c_float)
    ggml.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, pointer, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, pointer,
    ]  # fmt: skip

    rng = np.random.default_rng(1)
    rows = random_rows(rng)
    importance = np.exp(rng.normal(0, 1.5, WIDTH)).astype(np.float32)
    OUT.mkdir(parents=True, exist_ok=True)
    rows.tofile(OUT / "rows.f32")
    importance.tofile(OUT / "importance.f32")
    for name, (number, halves) in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        weights, block_bytes = gguf.GGML_QUANT_SIZES[kind]

        def packed(weighted, number=number, size=ROWS * WIDTH // weights * block_bytes):
            out = np.zeros(size, np.uint8)
            matrix = importance.ctypes.data_as(pointer) if weighted else None
            written = ggml.ggml_quantize_chunk(
                number, rows.ctypes.data_as(pointer), out.ctypes.data, 0, ROWS, WIDTH, matrix
            )
            assert written == size
            return out

        packed(False).tofile(OUT / f"{name}.packed")
        if name != "q8_0":
            packed(True).tofile(OUT / f"{name}.weighted")
        raw = noise(rng, block_bytes, 2 * WIDTH // weights, halves).reshape(2, -1)
        raw.tofile(OUT / f"{name}.noise")
        gguf.dequantize(raw, kind).astype(np.float32).tofile(OUT / f"{name}.values")
    for bits in (8, 4):
        for group in (32, 64, 128):
            made = [int_row(rng, bits, group) for _ in range(2)]
            np.concatenate([raw for raw, _ in made]).tofile(OUT / f"int{bits}_{group}.noise")
            np.concatenate([values for _, values in made]).astype(np.float32).tofile(OUT / f"int{bits}_{group}.values")


if __name__ == "__main__":
    main()
