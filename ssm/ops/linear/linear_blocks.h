// How a product y = x W^T is cut into pieces for the threads and tiles for the registers.
//
// Weights are read as they lie in the mapped file, which is the only copy. A few rows of x use them straight
// from memory; for more, a thread packs the rows of W under its tile into its own cache. An output's partial
// sums run along K in an order that neither the tile nor the number of rows changes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ssm/core/parallel.h"

// Before a loop over the registers of a tile: an index that GCC 12 still sees as one at run time when it
// assigns registers keeps the accumulators in memory, or writes them there at every step.
#define SSM_UNROLL _Pragma("GCC unroll 16")

namespace ssm::cpu {

inline constexpr int64_t kFewRowsPiece = 8;  // rows of W
inline constexpr int64_t kPieceColumns = 32;
inline constexpr int64_t kBlockBytes = 512 << 10;  // of x, kept in a core's L2 while the weights stream past
inline constexpr int64_t kRowsOfSum = 512;         // of W, in the sums of dx

// Calls panel(row_begin, row_end, column_begin, column_end) for pieces that cover [0, T) x [0, N).
template <int64_t kPieceColumns = cpu::kPieceColumns, class Panel>
void for_each_panel(int64_t T, int64_t N, int64_t row_bytes, Panel&& panel) {
  const int64_t fit = std::max<int64_t>(8, kBlockBytes / std::max<int64_t>(1, row_bytes));
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

}  // namespace ssm::cpu
