// Many rows of x and a packed W: a row of x is a lane, a weight is broadcast. A thread unpacks a few rows of
// W into its own cache.
//
// Both operands hold the runs in the order in which they are summed: the first four of every chunk, then the
// last four. A step is two along K.
#include <algorithm>
#include <cstring>

#include "ssm/ops/linear/linear_blocks.h"
#include "ssm/ops/linear/linear_packed.h"
#include "ssm/ops/simd/extensions.h"
#include "ssm/ops/simd/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/linear/linear_packed_many_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/linear/linear_packed_formats-inl.h"
#include "ssm/ops/linear/linear_packed_rounding-inl.h"
#include "ssm/ops/linear/linear_panel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

using cpu::PackedLayout;
using cpu::PackedProduct;

struct ManyRowsScratch {};  // of a call: the rounded rows of x
struct ColumnScratch {};    // of a thread: unpacked rows of W
struct ManyLastScratch {};  // of a thread: the last chunk of a row

constexpr int64_t kColumns = kManyRegisters ? 6 : 4;  // rows of W under a tile
constexpr int kGroups = kManyRegisters ? 2 : 1;       // of kLanes rows of x
constexpr int64_t kPairs = kRun / 2;
using DI = hn::RebindToSigned<D>;
using VI = hn::Vec<DI>;
using DPairs = hn::Repartition<int16_t, D>;

struct Memory {
  const char *at, *end;
};
struct GroupsOfX {  // every array [groups, runs, ...]
  int32_t* q;       // [16, lanes]: pairs of integers
  float* step;      // [lanes]
  float* total;     // [kScales, lanes]
};
struct ColumnsOfW {    // every array [columns, runs, ...]
  int32_t* codes;      // [16]: pairs of integers
  float *scale, *low;  // [kScales]
};

// Where run j of chunk c stands; `first_half` runs stand before those of the second.
HWY_INLINE int64_t place_of(int64_t c, int64_t j, int64_t first_half) {
  return j < 4 ? c * 4 + j : first_half + c * 4 + j - 4;
}
HWY_INLINE int64_t first_half(const PackedLayout& layout) {
  return layout.runs / kChunkRuns * 4 + std::min<int64_t>(4, layout.runs % kChunkRuns);
}

template <int kScales>
void round_group(const PackedProduct& p, const GroupsOfX& x, int64_t group) {
  const int64_t rows = std::min(kLanes, p.T - group * kLanes);
  const int64_t half = first_half(p.layout);
  for (int64_t run = 0; run < p.layout.runs; ++run) {
    const int64_t at = group * p.layout.runs + place_of(run / kChunkRuns, run % kChunkRuns, half);
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
  }
}

template <int kScales>
GroupsOfX round_groups(const PackedProduct& p) {
  const int64_t groups = (p.T + kLanes - 1) / kLanes, n = groups * p.layout.runs * kLanes;
  GroupsOfX x{};
  float* const memory = cpu::thread_scratch<ManyRowsScratch>(n * (kPairs + 1 + kScales));
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
      reinterpret_cast<uint8_t*>(cpu::thread_scratch<ManyLastScratch>(layout.chunk_bytes / 4 + 16));
  const int64_t half = first_half(layout);
  for (int64_t i = 0; i < kColumns; ++i) {
    const std::byte* const row = p.w->bytes.raw() + std::min(column + i, end - 1) * layout.row_bytes;
    for (int64_t c = 0; c < layout.chunks; ++c) {
      const auto* chunk = reinterpret_cast<Bytes>(row) + c * layout.chunk_bytes;
      if ((c + 1) * kChunk > layout.K) {
        cpu::copy_last_chunk(p.w->format, layout, row, reinterpret_cast<std::byte*>(last));
        chunk = last;
      }
      VR scale[F::kScales][kRunVectors], low[F::kScales][kRunVectors];
      F::scales(chunk, scale, low);
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
        const int64_t at = i * layout.runs + place_of(c, j, half);
        VC codes[kCodeVectors];
        F::template codes<j>(chunk, codes);
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

// sum0 + sum1 + the products of the pairs of a and b, added up.
template <bool kVnni>
HWY_INLINE VI add_products(hn::Vec<DPairs> a, hn::Vec<DPairs> b, VI sum0, VI& sum1) {
#if HWY_ARCH_X86
  if constexpr (kVnni) {  // not in Highway 1.0; the intrinsic would need all of its callers compiled for VNNI
    asm("vpdpwssd %2, %1, %0" : "+v"(sum0.raw) : "v"(a.raw), "v"(b.raw));
    return sum0;
  }
#endif
  return hn::ReorderWidenMulAccumulate(DI(), a, b, sum0, sum1);
}

// A loop that stays one: unrolled, GCC 12 adds up its products in another order and runs out of registers.
#define SSM_ROLLED _Pragma("GCC unroll 1")

// acc += the product of one run.
template <bool kVnni, int kScales, bool kLow, int MG>
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
    const auto pair = [&](int64_t k) HWY_ATTR {
      hn::Vec<DPairs> xs[MG];
      SSM_UNROLL for (int g = 0; g < MG; ++g) {
        xs[g] = hn::BitCast(d16, hn::Load(di, x.q + ((g * runs + place) * kPairs + k) * kLanes));
      }
      SSM_UNROLL for (int64_t i = 0; i < kColumns; ++i) {
        const auto code = hn::BitCast(d16, hn::Set(di, w.codes[(i * runs + place) * kPairs + k]));
        SSM_UNROLL for (int g = 0; g < MG; ++g) {
          sum0[i][g] = add_products<kVnni>(xs[g], code, sum0[i][g], sum1[i][g]);
        }
      }
    };
    constexpr int64_t kPart = kPairs / kScales;
    if constexpr (kVnni) {
      SSM_UNROLL for (int64_t k = s * kPart; k < (s + 1) * kPart; ++k) pair(k);
    } else {
      SSM_ROLLED for (int64_t k = s * kPart; k < (s + 1) * kPart; ++k) pair(k);
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

// Writes the first `columns` of a tile for the first `rows` of kLanes rows of y.
HWY_INLINE void store_tile(const V (&tile)[kColumns], const float* bias, int64_t columns, int64_t rows,
                           float* y, int64_t y_stride) {
  HWY_ALIGN float lanes[(kColumns + 3) / 4][4 * kLanes];
  SSM_UNROLL for (int64_t i = 0; i < kColumns; i += 4) {
    V four[4], out[4];
    SSM_UNROLL for (int64_t j = 0; j < 4; ++j) {
      four[j] = tile[std::min(i + j, kColumns - 1)];
      if (bias) four[j] = hn::Add(four[j], hn::Set(D(), bias[std::min(i + j, columns - 1)]));
    }
    transpose4(four, out);  // of columns: block b of out[v] has those of row 4 b + v
    SSM_UNROLL for (int64_t j = 0; j < 4; ++j) hn::Store(out[j], D(), lanes[i / 4] + j * kLanes);
  }
  for (int64_t row = 0; row < rows; ++row, y += y_stride) {
    const int64_t from = row % 4 * kLanes + row / 4 * 4;
    if (HWY_LIKELY(columns == kColumns)) {
      std::memcpy(y, lanes[0] + from, 4 * sizeof(float));
      if constexpr (kColumns > 4) std::memcpy(y + 4, lanes[1] + from, (kColumns - 4) * sizeof(float));
    } else {
      for (int64_t i = 0; i < columns; ++i) y[i] = lanes[i / 4][from + i % 4];
    }
  }
}

template <bool kVnni, int kScales, bool kLow, int MG>
HWY_NOINLINE void many_rows_tile(const PackedProduct& p, const GroupsOfX& all, const ColumnsOfW& w,
                                 int64_t group, int64_t column, int64_t columns, Memory next) {
  const int64_t runs = p.layout.runs, from = group * runs * kLanes;
  const GroupsOfX x{all.q + from * kPairs, all.step + from, all.total + from * kScales};
  V first[kColumns][MG], acc[kColumns][MG];
  const int64_t fetch = (next.end - next.at + runs - 1) / runs;
  const char* fetched = next.at;
  const auto sum = [&](int64_t begin, int64_t end) HWY_ATTR {
    SSM_UNROLL for (auto& a : acc) { SSM_UNROLL for (auto& v : a) v = hn::Zero(D()); }
    for (int64_t place = begin; place < end; ++place) {
      for (const char* const to = next.at + fetch * (place + 1); fetched < to; fetched += 64) {
        __builtin_prefetch(fetched, 0, 2);
      }
      many_rows_run<kVnni, kScales, kLow, MG>(x, w, runs, place, acc);
    }
  };
  const int64_t half = first_half(p.layout);
  sum(0, half);
  SSM_UNROLL for (int64_t i = 0; i < kColumns; ++i) {
    SSM_UNROLL for (int g = 0; g < MG; ++g) first[i][g] = acc[i][g];
  }
  sum(half, runs);
  for (int g = 0; g < MG; ++g) {
    const int64_t row = (group + g) * kLanes, rows = std::min(kLanes, p.T - row);
    V tile[kColumns];
    SSM_UNROLL for (int64_t i = 0; i < kColumns; ++i) tile[i] = hn::Add(first[i][g], acc[i][g]);
    store_tile(tile, p.bias ? p.bias + column : nullptr, columns, rows, p.y + row * p.N + column, p.N);
  }
}

template <class F, bool kVnni>
void many_packed_rows(const PackedProduct& p) {
  const GroupsOfX x = round_groups<F::kScales>(p);
  const int64_t groups = (p.T + kLanes - 1) / kLanes, runs = p.layout.runs;
  cpu::for_each_panel<8 * kColumns>(
      groups, p.N, runs * kRun * kLanes * 2,
      [&](int64_t group0, int64_t group1, int64_t column0, int64_t column1) {
        float* const memory = cpu::thread_scratch<ColumnScratch>(kColumns * runs * (kPairs + 2 * F::kScales));
        const ColumnsOfW w{reinterpret_cast<int32_t*>(memory), memory + kColumns * runs * kPairs,
                           memory + kColumns * runs * (kPairs + F::kScales)};
        for (int64_t column = column0; column < column1; column += kColumns) {
          unpack_columns<F>(p, column, column1, w);
          const auto row_of = [&](int64_t n) {
            return reinterpret_cast<const char*>(p.w->bytes.raw() + std::min(n, p.N) * p.layout.row_bytes);
          };
          Memory next{row_of(column + kColumns), row_of(column + 2 * kColumns)};
          cpu::for_each_row_tile<kGroups>(group0, group1, [&](int64_t group, int tile) {
            cpu::with_constant<kGroups>(tile, [&](auto mg) {
              many_rows_tile<kVnni, F::kScales, F::kLow, decltype(mg)::value>(
                  p, x, w, group, column, std::min(kColumns, column1 - column), next);
            });
            next.at = next.end;  // the first tile has fetched it
          });
        }
      });
}

void many_packed_rows_any(const PackedProduct& p) {
  with_format(p.w->format, [&](auto format) {
    using F = decltype(format);
    if constexpr (HWY_TARGET == HWY_AVX3) {
      if (cpu::extensions().vnni) return many_packed_rows<F, true>(p);
    }
    many_packed_rows<F, false>(p);
  });
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {
HWY_EXPORT(many_packed_rows_any);

void cpu::linear_packed_many(const PackedProduct& p) { HWY_DYNAMIC_DISPATCH(many_packed_rows_any)(p); }

}  // namespace ssm
#endif  // HWY_ONCE
