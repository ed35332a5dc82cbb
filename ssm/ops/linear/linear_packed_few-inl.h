// Few rows of x and a packed W: what counts is the weights' way from memory. A thread reads its rows of W as
// four streams, each in the order of memory. A vector is two runs of four rows: run k of a chunk below, run k
// + 4 above.
#if defined(SSM_OPS_LINEAR_PACKED_FEW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SSM_OPS_LINEAR_PACKED_FEW_INL_H_
#undef SSM_OPS_LINEAR_PACKED_FEW_INL_H_
#else
#define SSM_OPS_LINEAR_PACKED_FEW_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "ssm/ops/linear/linear_blocks.h"
#include "ssm/ops/linear/linear_packed.h"
#include "ssm/ops/linear/linear_packed_few_vnni-inl.h"
#include "ssm/ops/linear/linear_packed_formats-inl.h"
#include "ssm/ops/linear/linear_packed_rounding-inl.h"
#include "ssm/ops/linear/linear_panel-inl.h"
#include "ssm/ops/simd/extensions.h"
#include "ssm/ops/simd/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

using cpu::PackedLayout;
using cpu::PackedProduct;

struct FewRowsScratch {};  // of a call: the rounded rows of x
struct FewLastScratch {};  // of a thread: the last chunks of four rows

template <int kScales>
RowsOfX round_rows(const PackedProduct& p) {
  const int64_t chunks = p.T * p.layout.chunks, lanes = chunks * kLanesOfChunk;
  float* const memory = cpu::thread_scratch<FewRowsScratch>(chunks * kChunk / 2 + lanes * (1 + 2 * kScales));
  RowsOfX x{};
  x.q = reinterpret_cast<int16_t*>(memory);
  x.step = memory + chunks * kChunk / 2;
  x.total = x.step + lanes;
  x.sum = reinterpret_cast<int32_t*>(x.total + lanes * kScales);
  for (int64_t c = 0; c < chunks; ++c) {
    const float* const row = p.x + c / p.layout.chunks * p.x_stride;
    for (int64_t j = 0; j < kChunkRuns; ++j) {
      const int64_t k = c % p.layout.chunks * kChunk + j * kRun;
      int32_t sums[2];
      const float step =
          round_run(row + k, std::min(kRun, p.layout.K - k), x.q + c * kChunk + j * kRun, sums);
      if (kScales == 1) sums[0] += sums[1];
      const int64_t lane = j % 4 * 8 + j / 4 * 4;
      std::fill_n(x.step + c * kLanesOfChunk + lane, kStreams, step);
      for (int s = 0; s < kScales; ++s) {
        const int64_t at = (c * kScales + s) * kLanesOfChunk + lane;
        std::fill_n(x.sum + at, kStreams, sums[s]);
        std::fill_n(x.total + at, kStreams, step * static_cast<float>(sums[s]));
      }
    }
  }
  return x;
}

// rows[i]: the numbers of the eight runs of row i -> out[k]: those of runs k and k + 4 of four rows.
HWY_INLINE void to_lanes(const VR (&rows)[kStreams][kRunVectors], VR (&out)[4][kRunVectors]) {
  const DR d;
  const hn::Repartition<double, DR> d64;
  SSM_UNROLL for (int v = 0; v < kRunVectors; ++v) {
    const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, rows[0][v], rows[1][v]));
    const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, rows[0][v], rows[1][v]));
    const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, rows[2][v], rows[3][v]));
    const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, rows[2][v], rows[3][v]));
    out[0][v] = hn::BitCast(d, hn::InterleaveLower(d64, low01, low23));
    out[1][v] = hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23));
    out[2][v] = hn::BitCast(d, hn::InterleaveLower(d64, high01, high23));
    out[3][v] = hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23));
  }
}

// Of a run of four rows with MR rows of x: in each block of four lanes, the parts of the rows' dot products.
template <class F, int j, int MR>
HWY_INLINE void run_products(const PackedLayout& layout, const Bytes (&chunk)[kStreams], const RowsOfX& x,
                             int64_t c, VRI (&out)[MR][F::kScales]) {
  constexpr int kVectors = kCodeVectors / F::kScales;
  const DRI di;
  VC codes[kStreams][kCodeVectors];
  SSM_UNROLL for (int i = 0; i < kStreams; ++i) F::template codes<j>(chunk[i], codes[i]);
  SSM_UNROLL for (int r = 0; r < MR; ++r) {
    const int16_t* const q = x.q + (r * layout.chunks + c) * kChunk + j * kRun;
    SSM_UNROLL for (int s = 0; s < F::kScales; ++s) {
      VRI dot[kStreams];
      SSM_UNROLL for (int i = 0; i < kStreams; ++i) {
        VRI sum0 = hn::Zero(di), sum1 = hn::Zero(di);
        SSM_UNROLL for (int v = s * kVectors; v < (s + 1) * kVectors; ++v) {
          const VC xs = hn::LoadU(DC(), q + v * kCodeLanes);
          sum0 = hn::ReorderWidenMulAccumulate(di, codes[i][v], xs, sum0, sum1);
        }
        dot[i] = HWY_ARCH_X86 ? sum0 : hn::Add(sum0, sum1);
      }
      out[r][s] = fold4(di, dot[0], dot[1], dot[2], dot[3]);
    }
  }
}

HWY_INLINE void join_blocks(VRI run, VRI fourth_after, VRI (&out)[kRunVectors]) {
  if constexpr (kRunVectors == 1) {
    out[0] = hn::Add(hn::ConcatLowerLower(DRI(), fourth_after, run),
                     hn::ConcatUpperUpper(DRI(), fourth_after, run));
  } else {
    out[0] = run;
    out[kRunVectors - 1] = fourth_after;
  }
}

// acc += the product of a chunk of four rows of W with MR rows of x.
template <class F, int MR>
HWY_INLINE void few_rows_chunk(const PackedLayout& layout, const Bytes (&chunk)[kStreams], const RowsOfX& x,
                               int64_t c, VR (&acc)[MR][kRunVectors]) {
  constexpr int kScales = F::kScales;
  const DRI di;
  VR scale[kScales][4][kRunVectors], low[kScales][4][kRunVectors];
  {
    VR scales[kStreams][kScales][kRunVectors], lows[kStreams][kScales][kRunVectors];
    SSM_UNROLL for (int i = 0; i < kStreams; ++i) F::scales(chunk[i], scales[i], lows[i]);
    SSM_UNROLL for (int s = 0; s < kScales; ++s) {
      VR of_scale[kStreams][kRunVectors];
      const auto transpose = [&](const auto& from, auto& to) HWY_ATTR {
        SSM_UNROLL for (int i = 0; i < kStreams; ++i) {
          SSM_UNROLL for (int v = 0; v < kRunVectors; ++v) of_scale[i][v] = from[i][s][v];
        }
        to_lanes(of_scale, to[s]);
      };
      transpose(scales, scale);
      if constexpr (F::kLow) transpose(lows, low);
    }
  }
  const auto two_runs = [&](auto run) HWY_ATTR {
    constexpr int k = decltype(run)::value;
    VRI below[MR][kScales], above[MR][kScales];
    run_products<F, k, MR>(layout, chunk, x, c, below);
    run_products<F, k + 4, MR>(layout, chunk, x, c, above);
    SSM_UNROLL for (int r = 0; r < MR; ++r) {
      const int64_t at = r * layout.chunks + c;
      SSM_UNROLL for (int s = 0; s < kScales; ++s) {
        VRI sums[kRunVectors];
        join_blocks(below[r][s], above[r][s], sums);
        SSM_UNROLL for (int v = 0; v < kRunVectors; ++v) {
          const int64_t lane = k * 8 + v * kRunLanes, of_scale = (at * kScales + s) * kLanesOfChunk + lane;
          if constexpr (F::kOffset != 0) {
            const VRI offset = hn::Set(di, F::kOffset);
            sums[v] = hn::Sub(sums[v], hn::Mul(offset, hn::LoadU(di, x.sum + of_scale)));
          }
          const VR step = hn::LoadU(DR(), x.step + at * kLanesOfChunk + lane);
          acc[r][v] = hn::MulAdd(scale[s][k][v], hn::Mul(step, hn::ConvertTo(DR(), sums[v])), acc[r][v]);
          if constexpr (F::kLow) {
            acc[r][v] = hn::MulAdd(low[s][k][v], hn::LoadU(DR(), x.total + of_scale), acc[r][v]);
          }
        }
      }
    }
  };
  two_runs(std::integral_constant<int, 0>());
  two_runs(std::integral_constant<int, 1>());
  two_runs(std::integral_constant<int, 2>());
  two_runs(std::integral_constant<int, 3>());
}

template <class F, bool kByteProducts, int MR>
HWY_INLINE void add_chunk(const PackedLayout& layout, const Bytes (&chunk)[kStreams], const RowsOfX& x,
                          int64_t c, VR (&acc)[MR][kRunVectors]) {
  if constexpr (kByteProducts) {
    few_rows_chunk_of_bytes<F>(layout, chunk, x, c, acc);
  } else {
    few_rows_chunk<F>(layout, chunk, x, c, acc);
  }
}

template <int kVectors>
HWY_INLINE hn::Vec<D4> add_halves(const VR (&v)[kVectors]) {
  if constexpr (kVectors == 1) {
    return hn::Add(hn::LowerHalf(D4(), v[0]), hn::UpperHalf(D4(), v[0]));
  } else {
    return hn::Add(v[0], v[kVectors - 1]);
  }
}

template <class F, bool kByteProducts, int MR>
HWY_NOINLINE void few_rows_columns(const PackedProduct& p, const RowsOfX& all, int64_t first_row,
                                   int64_t begin, int64_t end) {
  const PackedLayout& layout = p.layout;
  const int64_t before = first_row * layout.chunks, lanes = before * kLanesOfChunk;
  const RowsOfX x{all.q + before * kChunk, all.step + lanes, all.sum + lanes * F::kScales,
                  all.total + lanes * F::kScales};
  const int64_t whole = layout.K / kChunk, stream = (end - begin + kStreams - 1) / kStreams;
  float* const last = cpu::thread_scratch<FewLastScratch>(kStreams * (layout.chunk_bytes / 4 + 1));
  for (int64_t n = 0; n < stream; ++n) {
    const std::byte* row[kStreams];
    Bytes chunk[kStreams];
    for (int64_t i = 0; i < kStreams; ++i) {
      row[i] = p.w->bytes.raw() + std::min(begin + i * stream + n, end - 1) * layout.row_bytes;
      chunk[i] = reinterpret_cast<Bytes>(row[i]);
    }
    VR acc[MR][kRunVectors];
    SSM_UNROLL for (auto& a : acc) { SSM_UNROLL for (auto& v : a) v = hn::Zero(DR()); }
    for (int64_t c = 0; c < whole; ++c) {
      add_chunk<F, kByteProducts>(layout, chunk, x, c, acc);
      SSM_UNROLL for (auto& at : chunk) at += layout.chunk_bytes;
    }
    if (whole < layout.chunks) {
      for (int64_t i = 0; i < kStreams; ++i) {
        auto* const to = reinterpret_cast<std::byte*>(last) + i * layout.chunk_bytes;
        cpu::copy_last_chunk(p.w->format, layout, row[i], to);
        chunk[i] = reinterpret_cast<Bytes>(to);
      }
      add_chunk<F, kByteProducts>(layout, chunk, x, whole, acc);
    }
    SSM_UNROLL for (int r = 0; r < MR; ++r) {
      HWY_ALIGN float out[kStreams];
      hn::Store(add_halves(acc[r]), D4(), out);
      for (int64_t i = 0; i < kStreams; ++i) {
        const int64_t column = begin + i * stream + n;
        if (column < end) p.y[(first_row + r) * p.N + column] = p.bias ? out[i] + p.bias[column] : out[i];
      }
    }
  }
}

constexpr int kTileRows = 4;           // of x, whose sums stay in registers
constexpr int64_t kTileColumns = 128;  // of W, which stay in a core's L2 for the next tile

template <class F, bool kByteProducts>
void few_packed_rows(const PackedProduct& p) {
  const RowsOfX x = round_rows<F::kScales>(p);
  if constexpr (kByteProducts) {
    for (int64_t c = 0; c < p.T * p.layout.chunks; ++c) split_bytes(x.q + c * kChunk);
  }
  parallel_for(p.N, cpu::kFewRowsPiece, [&](int64_t begin, int64_t end) {
    const int64_t columns = p.T <= kTileRows ? end - begin : kTileColumns;
    for (int64_t column = begin; column < end; column += columns) {
      cpu::for_each_row_tile<kTileRows>(0, p.T, [&](int64_t row, int rows) {
        cpu::with_constant<kTileRows>(rows, [&](auto mr) {
          few_rows_columns<F, kByteProducts, decltype(mr)::value>(p, x, row, column,
                                                                  std::min(end, column + columns));
        });
      });
    }
  });
}

template <class F>
void few_packed_rows_of(const PackedProduct& p) {
  if constexpr (kHasByteProducts<F>) {
    if (cpu::extensions().vnni) return few_packed_rows<F, true>(p);
  }
  few_packed_rows<F, false>(p);
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
