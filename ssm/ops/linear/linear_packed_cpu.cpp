#include <algorithm>
#include <bit>
#include <cstring>

#include "ssm/ops/linear/linear_blocks.h"
#include "ssm/ops/linear/linear_cpu.h"
#include "ssm/ops/linear/linear_packed.h"
#include "ssm/ops/simd/scratch.h"

#ifndef SSM_OPS_LINEAR_PACKED_CPU_ARGS_
#define SSM_OPS_LINEAR_PACKED_CPU_ARGS_
namespace ssm::cpu {

struct PackedProduct {
  const QuantizedTensor* w = nullptr;
  PackedLayout layout{};
  const float* x = nullptr;  // [T, K]
  int64_t x_stride = 0, T = 0, N = 0;
  const float* bias = nullptr;
  float* y = nullptr;  // [T, N]
};

}  // namespace ssm::cpu
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/linear/linear_packed_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/linear/linear_packed_formats-inl.h"
#include "ssm/ops/linear/linear_panel-inl.h"
#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

using cpu::kChunk;
using cpu::kChunkRuns;
using cpu::kRun;
using cpu::PackedLayout;
using cpu::PackedProduct;

struct PackedScratch {};  // of a call: the rounded rows of x
struct ColumnScratch {};  // of a thread: unpacked rows of W
struct ChunkScratch {};   // of a thread: the last chunk of a row

// n <= 32 numbers as integers with one step. `sums` are those of the integers 0-15 and 16-31. A number that
// is not finite makes the step NaN, and so every output of the row; runs without a number of 1e-30 are zero.
HWY_INLINE float round_run(const float* x, int64_t n, int16_t* HWY_RESTRICT q, int32_t (&sums)[2]) {
  const D d;
  const hn::RebindToSigned<D> di;
  const hn::Rebind<int16_t, D> d16;
  constexpr int kVectors = kRun / kLanes;
  V v[kVectors];
  V most = hn::Zero(d), bad = hn::Zero(d);
  SSM_UNROLL for (int i = 0; i < kVectors; ++i) {
    const int64_t rest = n - i * kLanes;
    v[i] = rest > 0 ? load_n_f32(d, x + i * kLanes, static_cast<size_t>(rest)) : hn::Zero(d);
    most = hn::Max(most, hn::Abs(v[i]));
    bad = hn::MulAdd(v[i], hn::Zero(d), bad);
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(d, most)), nan = hn::GetLane(hn::SumOfLanes(d, bad));
  const bool counts = largest > 1e-30f;  // below, 1 / step overflows
  const V inverse = hn::Set(d, counts ? 32767.0f / largest : 0.0f);
  SSM_UNROLL for (int half = 0; half < 2; ++half) {
    auto sum = hn::Zero(di);
    SSM_UNROLL for (int i = half * kVectors / 2; i < (half + 1) * kVectors / 2; ++i) {
      const auto rounded = hn::NearestInt(hn::Mul(v[i], inverse));
      sum = hn::Add(sum, rounded);
      hn::StoreU(hn::DemoteTo(d16, rounded), d16, q + i * kLanes);
    }
    sums[half] = hn::GetLane(hn::SumOfLanes(di, sum));
  }
  return nan + (counts ? largest / 32767.0f : 0.0f);
}

// ---- few rows of x: a thread reads its rows of W in the order of memory ----

template <int kScales>
struct RowsOfX {  // every array [T, chunks, ...]
  int16_t* q;     // [256]
  float* step;    // [8]
  int32_t* sum;   // [kScales, 8] of the integers
  float* total;   // [kScales, 8] of what they stand for
};

template <int kScales>
RowsOfX<kScales> round_rows(const PackedProduct& p) {
  const int64_t chunks = p.T * p.layout.chunks, runs = chunks * kChunkRuns;
  float* const memory = cpu::thread_scratch<PackedScratch>(chunks * kChunk / 2 + runs * (1 + 2 * kScales));
  RowsOfX<kScales> x{};
  x.q = reinterpret_cast<int16_t*>(memory);
  x.step = memory + chunks * kChunk / 2;
  x.total = x.step + runs;
  x.sum = reinterpret_cast<int32_t*>(x.total + runs * kScales);
  for (int64_t i = 0; i < runs; ++i) {
    const int64_t t = i / (p.layout.chunks * kChunkRuns), run = i % (p.layout.chunks * kChunkRuns);
    const int64_t chunk = i / kChunkRuns, j = i % kChunkRuns, n = std::min(kRun, p.layout.K - run * kRun);
    int32_t sums[2];
    x.step[i] = round_run(p.x + t * p.x_stride + run * kRun, n, x.q + i * kRun, sums);
    if (kScales == 1) sums[0] += sums[1];
    for (int s = 0; s < kScales; ++s) {
      const int64_t at = (chunk * kScales + s) * kChunkRuns + j;
      x.sum[at] = sums[s];
      x.total[at] = x.step[i] * static_cast<float>(sums[s]);
    }
  }
  return x;
}

// Lane sums of four vectors to one number each: vector f of the result has block b of all four, so that with
// 256-bit vectors the two blocks are still to be added.
HWY_INLINE void add_lanes(const VRI (&f)[2], VRI (&out)[kRunVectors]) {
  if constexpr (kRunVectors == 1) {
    out[0] = hn::Add(hn::ConcatLowerLower(DRI(), f[1], f[0]), hn::ConcatUpperUpper(DRI(), f[1], f[0]));
  } else {
    out[0] = f[0];
    out[kRunVectors - 1] = f[1];
  }
}

// acc += the product of a chunk of a row of W with MR rows of x.
template <class F, int MR>
HWY_INLINE void few_rows_chunk(const PackedLayout& layout, Bytes chunk, const RowsOfX<F::kScales>& x,
                               int64_t c, VR (&acc)[MR][kRunVectors]) {
  constexpr int kScales = F::kScales, kVectors = kCodeVectors / kScales;
  const DRI di;
  VR scale[kScales][kRunVectors], low[kScales][kRunVectors];
  F::scales(layout, chunk, scale, low);
  VRI folded[MR][kScales][2];
  const auto half = [&](auto h) HWY_ATTR {
    constexpr int kFirst = decltype(h)::value * 4;
    VC codes[4][kCodeVectors];
    F::template codes<kFirst>(layout, chunk, codes[0]);
    F::template codes<kFirst + 1>(layout, chunk, codes[1]);
    F::template codes<kFirst + 2>(layout, chunk, codes[2]);
    F::template codes<kFirst + 3>(layout, chunk, codes[3]);
    SSM_UNROLL for (int r = 0; r < MR; ++r) {
      const int16_t* const q = x.q + (r * layout.chunks + c) * kChunk + kFirst * kRun;
      SSM_UNROLL for (int s = 0; s < kScales; ++s) {
        VRI dot[4];
        SSM_UNROLL for (int j = 0; j < 4; ++j) {
          VRI sum0 = hn::Zero(di), sum1 = hn::Zero(di);
          SSM_UNROLL for (int v = s * kVectors; v < (s + 1) * kVectors; ++v) {
            const VC xs = hn::LoadU(DC(), q + j * kRun + v * kCodeLanes);
            sum0 = hn::ReorderWidenMulAccumulate(di, codes[j][v], xs, sum0, sum1);
          }
          dot[j] = HWY_ARCH_X86 ? sum0 : hn::Add(sum0, sum1);
        }
        folded[r][s][decltype(h)::value] = fold4(di, dot[0], dot[1], dot[2], dot[3]);
      }
    }
  };
  half(std::integral_constant<int, 0>());
  half(std::integral_constant<int, 1>());
  SSM_UNROLL for (int r = 0; r < MR; ++r) {
    const int64_t at = (r * layout.chunks + c) * kChunkRuns;
    SSM_UNROLL for (int s = 0; s < kScales; ++s) {
      VRI sums[kRunVectors];
      add_lanes(folded[r][s], sums);
      SSM_UNROLL for (int v = 0; v < kRunVectors; ++v) {
        const int64_t of_scale = at * kScales + s * kChunkRuns + v * kRunLanes;
        if constexpr (F::kOffset != 0) {
          const VRI offset = hn::Set(di, F::kOffset);
          sums[v] = hn::Sub(sums[v], hn::Mul(offset, hn::LoadU(di, x.sum + of_scale)));
        }
        const VR step = hn::LoadU(DR(), x.step + at + v * kRunLanes);
        acc[r][v] = hn::MulAdd(scale[s][v], hn::Mul(step, hn::ConvertTo(DR(), sums[v])), acc[r][v]);
        if constexpr (F::kLow) {
          acc[r][v] = hn::MulAdd(low[s][v], hn::LoadU(DR(), x.total + of_scale), acc[r][v]);
        }
      }
    }
  }
}

// Neighbours are added, three times.
template <int kVectors>
HWY_INLINE float add_neighbours(const VR (&v)[kVectors]) {
  const D4 d4;
  hn::Vec<D4> low, high;
  if constexpr (kVectors == 1) {
    low = hn::LowerHalf(d4, v[0]);
    high = hn::UpperHalf(d4, v[0]);
  } else {
    low = v[0];
    high = v[kVectors - 1];
  }
  low = hn::Add(low, hn::Shuffle2301(low));
  high = hn::Add(high, hn::Shuffle2301(high));
  low = hn::Add(low, hn::Shuffle1032(low));
  high = hn::Add(high, hn::Shuffle1032(high));
  return hn::GetLane(hn::Add(low, high));
}

template <class F, int MR>
HWY_NOINLINE void few_rows_columns(const PackedProduct& p, const RowsOfX<F::kScales>& x, int64_t begin,
                                   int64_t end) {
  const PackedLayout& layout = p.layout;
  const int64_t whole = layout.K / kChunk;
  auto* const last =
      reinterpret_cast<uint8_t*>(cpu::thread_scratch<ChunkScratch>(layout.chunk_bytes / 4 + 16));
  for (int64_t n = begin; n < end; ++n) {
    const std::byte* const row = p.w->bytes.raw() + n * layout.row_bytes;
    const auto* chunk = reinterpret_cast<Bytes>(row);
    VR acc[MR][kRunVectors];
    SSM_UNROLL for (auto& a : acc) { SSM_UNROLL for (auto& v : a) v = hn::Zero(DR()); }
    for (int64_t c = 0; c < whole; ++c, chunk += layout.chunk_bytes) {
      few_rows_chunk<F, MR>(layout, chunk, x, c, acc);
    }
    if (whole < layout.chunks) {
      cpu::copy_last_chunk(p.w->format, layout, row, reinterpret_cast<std::byte*>(last));
      few_rows_chunk<F, MR>(layout, last, x, whole, acc);
    }
    SSM_UNROLL for (int r = 0; r < MR; ++r) {
      const float sum = add_neighbours(acc[r]);
      p.y[r * p.N + n] = p.bias ? sum + p.bias[n] : sum;
    }
  }
}

constexpr int kFewPackedRows = 4;

template <class F>
void few_packed_rows(const PackedProduct& p) {
  const RowsOfX<F::kScales> x = round_rows<F::kScales>(p);
  parallel_for(p.N, cpu::kFewRowsPiece, [&](int64_t begin, int64_t end) {
    cpu::with_constant<kFewPackedRows>(
        static_cast<int>(p.T), [&](auto mr) { few_rows_columns<F, decltype(mr)::value>(p, x, begin, end); });
  });
}

// ---- many rows of x: one a lane; a weight is broadcast ----
//
// Both operands hold the runs in the order in which they are summed: run 0 of every chunk, run 1 of every
// chunk, and so on. A step is two along K.

constexpr int64_t kColumns = 4;                  // rows of W under a tile
constexpr int kGroups = kManyRegisters ? 2 : 1;  // of kLanes rows of x
constexpr int64_t kPairs = kRun / 2;
using DI = hn::RebindToSigned<D>;
using VI = hn::Vec<DI>;
using DPairs = hn::Repartition<int16_t, D>;

struct GroupsOfX {  // every array [groups, runs, ...]
  int32_t* q;       // [16, lanes]: pairs of integers
  float* step;      // [lanes]
  float* total;     // [kScales, lanes]
};
struct ColumnsOfW {    // every array [columns, runs, ...]
  int32_t* codes;      // [16]: pairs of integers
  float *scale, *low;  // [kScales]
};

// Calls f(run, place) for the runs in order.
template <class F>
HWY_INLINE void for_each_run(const PackedLayout& layout, F&& f) {
  int64_t place = 0;
  for (int64_t j = 0; j < kChunkRuns; ++j) {
    for (int64_t run = j; run < layout.runs; run += kChunkRuns) f(run, place++);
  }
}

template <int kScales>
void round_group(const PackedProduct& p, const GroupsOfX& x, int64_t group) {
  const int64_t rows = std::min(kLanes, p.T - group * kLanes);
  for_each_run(p.layout, [&](int64_t run, int64_t place) HWY_ATTR {
    const int64_t at = group * p.layout.runs + place;
    int32_t* const q = x.q + at * kPairs * kLanes;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      HWY_ALIGN int16_t rounded[kRun] = {};
      int32_t sums[2] = {};
      float step = 0;
      if (lane < rows) {
        const float* const from = p.x + (group * kLanes + lane) * p.x_stride + run * kRun;
        step = round_run(from, std::min(kRun, p.layout.K - run * kRun), rounded, sums);
      }
      int32_t pairs[kPairs];
      std::memcpy(pairs, rounded, sizeof(pairs));
      for (int64_t i = 0; i < kPairs; ++i) q[i * kLanes + lane] = pairs[i];
      x.step[at * kLanes + lane] = step;
      if (kScales == 1) sums[0] += sums[1];
      for (int s = 0; s < kScales; ++s) {
        x.total[(at * kScales + s) * kLanes + lane] = step * static_cast<float>(sums[s]);
      }
    }
  });
}

template <int kScales>
GroupsOfX round_groups(const PackedProduct& p) {
  const int64_t groups = (p.T + kLanes - 1) / kLanes, n = groups * p.layout.runs * kLanes;
  GroupsOfX x{};
  float* const memory = cpu::thread_scratch<PackedScratch>(n * (kPairs + 1 + kScales));
  x.q = reinterpret_cast<int32_t*>(memory);
  x.step = memory + n * kPairs;
  x.total = x.step + n;
  parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) round_group<kScales>(p, x, g);
  });
  return x;
}

// Columns past `end` repeat the last one.
template <class F>
HWY_NOINLINE void unpack_columns(const PackedProduct& p, int64_t column, int64_t end, const ColumnsOfW& to) {
  const PackedLayout& layout = p.layout;
  const VC offset = hn::Set(DC(), F::kOffset);
  auto* const last =
      reinterpret_cast<uint8_t*>(cpu::thread_scratch<ChunkScratch>(layout.chunk_bytes / 4 + 16));
  int64_t first[kChunkRuns + 1] = {};  // places of the first chunk's runs
  for (int64_t j = 0; j < kChunkRuns; ++j) {
    first[j + 1] = first[j] + (layout.runs - j + kChunkRuns - 1) / kChunkRuns;
  }
  for (int64_t i = 0; i < kColumns; ++i) {
    const std::byte* const row = p.w->bytes.raw() + std::min(column + i, end - 1) * layout.row_bytes;
    for (int64_t c = 0; c < layout.chunks; ++c) {
      const auto* chunk = reinterpret_cast<Bytes>(row) + c * layout.chunk_bytes;
      if ((c + 1) * kChunk > layout.K) {
        cpu::copy_last_chunk(p.w->format, layout, row, reinterpret_cast<std::byte*>(last));
        chunk = last;
      }
      VR scale[F::kScales][kRunVectors], low[F::kScales][kRunVectors];
      F::scales(layout, chunk, scale, low);
      float scales[F::kScales][kChunkRuns], lows[F::kScales][kChunkRuns];
      for (int s = 0; s < F::kScales; ++s) {
        SSM_UNROLL for (int v = 0; v < kRunVectors; ++v) {
          hn::StoreU(scale[s][v], DR(), scales[s] + v * kRunLanes);
          if constexpr (F::kLow) hn::StoreU(low[s][v], DR(), lows[s] + v * kRunLanes);
        }
      }
      const auto store = [&](auto run) HWY_ATTR {
        constexpr int j = decltype(run)::value;
        if (c * kChunkRuns + j >= layout.runs) return;
        const int64_t at = i * layout.runs + first[j] + c;
        VC codes[kCodeVectors];
        F::template codes<j>(layout, chunk, codes);
        auto* const out = reinterpret_cast<int16_t*>(to.codes + at * kPairs);
        SSM_UNROLL for (int v = 0; v < kCodeVectors; ++v) {
          hn::StoreU(F::kOffset != 0 ? hn::Sub(codes[v], offset) : codes[v], DC(), out + v * kCodeLanes);
        }
        for (int s = 0; s < F::kScales; ++s) {
          to.scale[at * F::kScales + s] = scales[s][j];
          if constexpr (F::kLow) to.low[at * F::kScales + s] = lows[s][j];
        }
      };
      store(std::integral_constant<int, 0>());
      store(std::integral_constant<int, 1>());
      store(std::integral_constant<int, 2>());
      store(std::integral_constant<int, 3>());
      store(std::integral_constant<int, 4>());
      store(std::integral_constant<int, 5>());
      store(std::integral_constant<int, 6>());
      store(std::integral_constant<int, 7>());
    }
  }
}

// acc += the product of one run.
template <int kScales, bool kLow, int MG>
HWY_INLINE void many_rows_run(const GroupsOfX& x, const ColumnsOfW& w, int64_t runs, int64_t place,
                              V (&acc)[kColumns][MG]) {
  const D d;
  const DI di;
  const DPairs d16;
  SSM_UNROLL for (int s = 0; s < kScales; ++s) {
    VI sum0[kColumns][MG], sum1[kColumns][MG];
    SSM_UNROLL for (int64_t i = 0; i < kColumns; ++i) {
      SSM_UNROLL for (int g = 0; g < MG; ++g) sum0[i][g] = sum1[i][g] = hn::Zero(di);
    }
    SSM_UNROLL for (int64_t k = s * kPairs / kScales; k < (s + 1) * kPairs / kScales; ++k) {
      hn::Vec<DPairs> xs[MG];
      SSM_UNROLL for (int g = 0; g < MG; ++g) {
        xs[g] = hn::BitCast(d16, hn::Load(di, x.q + ((g * runs + place) * kPairs + k) * kLanes));
      }
      SSM_UNROLL for (int64_t i = 0; i < kColumns; ++i) {
        const auto code = hn::BitCast(d16, hn::Set(di, w.codes[(i * runs + place) * kPairs + k]));
        SSM_UNROLL for (int g = 0; g < MG; ++g) {
          sum0[i][g] = hn::ReorderWidenMulAccumulate(di, xs[g], code, sum0[i][g], sum1[i][g]);
        }
      }
    }
    SSM_UNROLL for (int g = 0; g < MG; ++g) {
      const V step = hn::Load(d, x.step + (g * runs + place) * kLanes);
      const V total = hn::Load(d, x.total + ((g * runs + place) * kScales + s) * kLanes);
      SSM_UNROLL for (int64_t i = 0; i < kColumns; ++i) {
        const int64_t at = (i * runs + place) * kScales + s;
        const VI sum = hn::RearrangeToOddPlusEven(sum0[i][g], sum1[i][g]);
        acc[i][g] = hn::MulAdd(hn::Set(d, w.scale[at]), hn::Mul(step, hn::ConvertTo(d, sum)), acc[i][g]);
        if constexpr (kLow) acc[i][g] = hn::MulAdd(hn::Set(d, w.low[at]), total, acc[i][g]);
      }
    }
  }
}

// Writes `columns` <= 4 of kLanes rows of y, the first `rows` of them.
HWY_INLINE void store_columns(const V (&acc)[kColumns], const float* bias, int64_t columns, int64_t rows,
                              float* y, int64_t y_stride) {
  const D d;
  const D4 d4;
  const hn::Repartition<double, D> d64;
  V v[kColumns];
  SSM_UNROLL for (int64_t i = 0; i < kColumns; ++i) {
    v[i] = bias ? hn::Add(acc[i], hn::Set(d, bias[std::min(i, columns - 1)])) : acc[i];
  }
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, v[0], v[1]));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, v[0], v[1]));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, v[2], v[3]));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, v[2], v[3]));
  HWY_ALIGN float lanes[4 * kLanes];
  hn::Store(hn::BitCast(d, hn::InterleaveLower(d64, low01, low23)), d, lanes);
  hn::Store(hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23)), d, lanes + kLanes);
  hn::Store(hn::BitCast(d, hn::InterleaveLower(d64, high01, high23)), d, lanes + 2 * kLanes);
  hn::Store(hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23)), d, lanes + 3 * kLanes);
  for (int64_t row = 0; row < rows; ++row) {
    const float* const from = lanes + row % 4 * kLanes + row / 4 * 4;
    if (HWY_LIKELY(columns == kColumns)) {
      hn::StoreU(hn::Load(d4, from), d4, y + row * y_stride);
    } else {
      std::copy_n(from, columns, y + row * y_stride);
    }
  }
}

template <int kScales, bool kLow, int MG>
HWY_NOINLINE void many_rows_tile(const PackedProduct& p, const GroupsOfX& all, const ColumnsOfW& w,
                                 int64_t group, int64_t column, int64_t columns) {
  const int64_t runs = p.layout.runs, from = group * runs * kLanes;
  const GroupsOfX x{all.q + from * kPairs, all.step + from, all.total + from * kScales};
  V pending[4][kColumns][MG];
  V acc[kColumns][MG];
  int64_t place = 0;
  for (int64_t j = 0; j < kChunkRuns; ++j) {
    SSM_UNROLL for (auto& a : acc) { SSM_UNROLL for (auto& v : a) v = hn::Zero(D()); }
    for (int64_t run = j; run < runs; run += kChunkRuns) {
      many_rows_run<kScales, kLow, MG>(x, w, runs, place++, acc);
    }
    int level = 0;
    for (; j >> level & 1; ++level) {
      SSM_UNROLL for (int64_t i = 0; i < kColumns; ++i) {
        SSM_UNROLL for (int g = 0; g < MG; ++g) acc[i][g] = hn::Add(pending[level][i][g], acc[i][g]);
      }
    }
    SSM_UNROLL for (int64_t i = 0; i < kColumns; ++i) {
      SSM_UNROLL for (int g = 0; g < MG; ++g) pending[level][i][g] = acc[i][g];
    }
  }
  for (int g = 0; g < MG; ++g) {
    V of_group[kColumns];
    SSM_UNROLL for (int64_t i = 0; i < kColumns; ++i) of_group[i] = acc[i][g];
    const int64_t row = (group + g) * kLanes;
    store_columns(of_group, p.bias ? p.bias + column : nullptr, columns, std::min(kLanes, p.T - row),
                  p.y + row * p.N + column, p.N);
  }
}

template <class F>
void many_packed_rows(const PackedProduct& p) {
  const GroupsOfX x = round_groups<F::kScales>(p);
  const int64_t groups = (p.T + kLanes - 1) / kLanes, runs = p.layout.runs;
  cpu::for_each_panel(
      groups, p.N, runs * kRun * kLanes * 2,
      [&](int64_t group0, int64_t group1, int64_t column0, int64_t column1) {
        float* const memory = cpu::thread_scratch<ColumnScratch>(kColumns * runs * (kPairs + 2 * F::kScales));
        const ColumnsOfW w{reinterpret_cast<int32_t*>(memory), memory + kColumns * runs * kPairs,
                           memory + kColumns * runs * (kPairs + F::kScales)};
        for (int64_t column = column0; column < column1; column += kColumns) {
          unpack_columns<F>(p, column, column1, w);
          cpu::for_each_row_tile<kGroups>(group0, group1, [&](int64_t group, int tile) {
            cpu::with_constant<kGroups>(tile, [&](auto mg) {
              many_rows_tile<F::kScales, F::kLow, decltype(mg)::value>(p, x, w, group, column,
                                                                       std::min(kColumns, column1 - column));
            });
          });
        }
      });
}

void linear_packed(const PackedProduct& p) {
  with_format(p.w->format.type, [&](auto format) {
    using F = decltype(format);
    if (p.T <= kFewPackedRows) {
      few_packed_rows<F>(p);
    } else {
      many_packed_rows<F>(p);
    }
  });
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {
HWY_EXPORT(linear_packed);

void cpu::linear(const Tensor& x, const QuantizedTensor& w, const Tensor& bias, DType compute,
                 const Tensor& y) {
  if (y.numel() == 0) return;
  const Tensor rounded = compute == DType::f32 ? x : x.to(compute).to(DType::f32);
  HWY_DYNAMIC_DISPATCH(linear_packed)
  ({.w = &w,
    .layout = packed_layout(w.format, w.shape[1]),
    .x = rounded.data<float>(),
    .x_stride = rounded.stride(0),
    .T = y.size(0),
    .N = y.size(1),
    .bias = bias.defined() ? bias.data<float>() : nullptr,
    .y = y.data<float>()});
}

}  // namespace ssm
#endif  // HWY_ONCE
