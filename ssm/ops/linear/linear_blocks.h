// How a product y = x W^T is cut into pieces for the threads and tiles for the registers.
//
// Both operands are read along K as they lie, row by row, so weights need no packing: the mapped file is the
// only copy, loading costs nothing, and one token reads each weight once, in order. An output is one vector
// accumulator along K, folded at the end: its rounding does not depend on the tile it falls into.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "ssm/core/parallel.h"

namespace ssm::cpu {

inline constexpr int kTileRows = 6;     // rows of x
inline constexpr int kTileColumns = 4;  // rows of W; a single row of x takes twice as many
inline constexpr int64_t kPieceColumns = 32;
inline constexpr int64_t kBlockBytes = 512 << 10;  // of x, kept in a core's L2 while the weights stream past

// Calls panel(row_begin, row_end, column_begin, column_end) for pieces that cover [0, T) x [0, N).
template <class Panel>
void for_each_panel(int64_t T, int64_t N, int64_t row_bytes, Panel&& panel) {
  const int64_t fit = std::max<int64_t>(kTileRows, kBlockBytes / std::max<int64_t>(1, row_bytes));
  const int64_t row_blocks = (T + fit - 1) / fit;
  const int64_t columns = (N + kPieceColumns - 1) / kPieceColumns;
  parallel_for(row_blocks * columns, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t block = piece / columns, column = piece % columns * kPieceColumns;
      panel(T * block / row_blocks, T * (block + 1) / row_blocks, column,
            std::min(N, column + kPieceColumns));
    }
  });
}

// Calls tile(row, rows) for tiles of nearly equal height, at most Max.
template <int Max, class Tile>
void for_each_row_tile(int64_t begin, int64_t end, Tile&& tile) {
  const int64_t n = end - begin, tiles = (n + Max - 1) / Max;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t row = begin + n * i / tiles;
    tile(row, static_cast<int>(begin + n * (i + 1) / tiles - row));
  }
}

// with_constant<Max>(n, f): f(std::integral_constant<int, n>) for n in 1..Max.
template <int Max, class F>
void with_constant(int n, F&& f) {
  if constexpr (Max > 1) {
    if (n < Max) return with_constant<Max - 1>(n, f);
  }
  f(std::integral_constant<int, Max>{});
}

// The rows of W under one tile; columns past N repeat the last row and are not stored.
template <int NR, class T>
std::array<const T*, NR> tile_columns(const T* w, int64_t stride, int64_t column, int64_t end) {
  std::array<const T*, NR> rows;
  for (int j = 0; j < NR; ++j)
    rows[static_cast<size_t>(j)] = w + std::min<int64_t>(column + j, end - 1) * stride;
  return rows;
}

}  // namespace ssm::cpu
