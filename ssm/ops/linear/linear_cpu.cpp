#include "ssm/ops/linear/linear_cpu.h"

#include <algorithm>

#include "ssm/ops/linear/linear_blocks.h"
#include "ssm/ops/simd/extensions.h"
#include "ssm/ops/simd/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/linear/linear_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/linear/linear_panel-inl.h"
#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

struct Panel {};  // scratch

// The last n < 4 of a row, zeros after them.
template <class T>
HWY_INLINE hn::Vec<D4> load_last(const T* p, int64_t n) {
  T padded[4] = {};
  std::copy_n(p, n, padded);
  return load_f32(D4(), padded);
}

// out[q] = the steps of four at k + 4 q of kBlocks rows, one row a block.
template <class TW>
HWY_INLINE void load_blocks(const TW* const* rows, int64_t k, V* out) {
  const D d;
  if constexpr (kBlocks == 1) {
    out[0] = load_f32(d, rows[0] + k);
  } else if constexpr (kBlocks == 2) {
    const V a = load_f32(d, rows[0] + k), b = load_f32(d, rows[1] + k);
    out[0] = hn::ConcatLowerLower(d, b, a);
    out[1] = hn::ConcatUpperUpper(d, b, a);
  } else {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
    const V a = load_f32(d, rows[0] + k), b = load_f32(d, rows[1] + k);
    const V c = load_f32(d, rows[2] + k), e = load_f32(d, rows[3] + k);
    const __m512 ab0 = _mm512_shuffle_f32x4(a.raw, b.raw, 0x44),
                 ab1 = _mm512_shuffle_f32x4(a.raw, b.raw, 0xEE);
    const __m512 ce0 = _mm512_shuffle_f32x4(c.raw, e.raw, 0x44),
                 ce1 = _mm512_shuffle_f32x4(c.raw, e.raw, 0xEE);
    out[0] = V{_mm512_shuffle_f32x4(ab0, ce0, 0x88)};
    out[1] = V{_mm512_shuffle_f32x4(ab0, ce0, 0xDD)};
    out[2] = V{_mm512_shuffle_f32x4(ab1, ce1, 0x88)};
    out[3] = V{_mm512_shuffle_f32x4(ab1, ce1, 0xDD)};
#endif
  }
}

// The last steps, fewer than kBlocks: n elements in all. Returns how many.
template <class TW>
HWY_INLINE int64_t load_last_blocks(const TW* const* rows, int64_t k, int64_t n, V* out) {
  const D4 d4;
  int64_t steps = 0;
  for (; n > 0; k += 4, n -= 4, ++steps) {
    HWY_ALIGN float lanes[kLanes];
    for (int64_t b = 0; b < kBlocks; ++b) {
      hn::Store(n >= 4 ? load_f32(d4, rows[b] + k) : load_last(rows[b] + k, n), d4, lanes + 4 * b);
    }
    out[steps] = hn::Load(D(), lanes);
  }
  return steps;
}

// The same of a row of x, for all blocks.
HWY_INLINE V load_x(const float* p, int64_t n) {
  if (HWY_LIKELY(n >= 4)) return hn::LoadDup128(D(), p);
  HWY_ALIGN float padded[4] = {};
  std::copy_n(p, n, padded);
  return hn::LoadDup128(D(), padded);
}

// Few rows of x: a thread reads its columns [begin, end) as four streams of W in the order of memory, which
// the hardware's prefetcher follows, kDepth rows of each at a time: one, until the products count.
constexpr int kFewRows = kManyRegisters ? 8 : 4;
template <int MR, class TW>
HWY_NOINLINE void few_rows(const float* HWY_RESTRICT x, int64_t x_stride, const TW* w, int64_t w_stride,
                           int64_t K, int64_t N, int64_t begin, int64_t end, const float* bias, float* y) {
  const D d;
  constexpr int64_t kDepth = kBlocks == 4 && MR > 5 ? 2 : 1, kColumns = 4 * kDepth,
                    kGroups = kColumns / kBlocks;
  const int64_t stream = (end - begin + 3) / 4;
  for (int64_t i = 0; i < stream; i += kDepth) {
    const TW* row[kColumns];
    for (int64_t j = 0; j < kColumns; ++j) {
      row[j] = w + std::min(begin + j % 4 * stream + i + j / 4, end - 1) * w_stride;
    }
    V acc[MR][kGroups], wv[kGroups][kBlocks];
    SSM_UNROLL for (int r = 0; r < MR; ++r) {
      SSM_UNROLL for (int64_t g = 0; g < kGroups; ++g) acc[r][g] = hn::Zero(d);
    }
    int64_t k = 0;
    for (; k + kLanes <= K; k += kLanes) {
      SSM_UNROLL for (int64_t g = 0; g < kGroups; ++g) load_blocks(row + g * kBlocks, k, wv[g]);
      SSM_UNROLL for (int64_t q = 0; q < kBlocks; ++q) {
        SSM_UNROLL for (int r = 0; r < MR; ++r) {
          const V xs = hn::LoadDup128(d, x + r * x_stride + k + 4 * q);
          SSM_UNROLL for (int64_t g = 0; g < kGroups; ++g) acc[r][g] = hn::MulAdd(xs, wv[g][q], acc[r][g]);
        }
      }
    }
    if (k < K) {
      SSM_UNROLL for (int64_t g = 0; g < kGroups; ++g) {
        V last[kBlocks];
        const int64_t steps = load_last_blocks(row + g * kBlocks, k, K - k, last);
        for (int64_t q = 0; q < steps; ++q) {
          SSM_UNROLL for (int r = 0; r < MR; ++r) {
            const V xs = load_x(x + r * x_stride + k + 4 * q, K - k - 4 * q);
            acc[r][g] = hn::MulAdd(xs, last[q], acc[r][g]);
          }
        }
      }
    }
    SSM_UNROLL for (int r = 0; r < MR; ++r) {
      HWY_ALIGN float lanes[4 * kColumns], out[kColumns];
      SSM_UNROLL for (int64_t g = 0; g < kGroups; ++g) hn::Store(acc[r][g], d, lanes + g * kLanes);
      const auto part = [&](int64_t j) HWY_ATTR { return hn::Load(D4(), lanes + 4 * j); };
      for (int64_t j = 0; j < kColumns; j += 4) {
        hn::Store(fold4(D4(), part(j), part(j + 1), part(j + 2), part(j + 3)), D4(), out + j);
      }
      for (int64_t j = 0; j < kColumns; ++j) {
        const int64_t row_of_stream = i + j / 4, column = begin + j % 4 * stream + row_of_stream;
        if (row_of_stream >= stream || column >= end) continue;
        y[r * N + column] = bias ? out[j] + bias[column] : out[j];
      }
    }
  }
}

// Columns past `columns` repeat the last one.
template <class TW>
HWY_NOINLINE void pack_panel(const TW* w, int64_t w_stride, int64_t columns, int64_t K,
                             float* HWY_RESTRICT panel) {
  const D d;
  const TW* row[4][kBlocks];
  SSM_UNROLL for (int64_t v = 0; v < 4; ++v) {
    for (int64_t b = 0; b < kBlocks; ++b) row[v][b] = w + std::min(4 * b + v, columns - 1) * w_stride;
  }
  V steps[kBlocks];
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes) {
    SSM_UNROLL for (int64_t v = 0; v < 4; ++v) {
      load_blocks(row[v], k, steps);
      SSM_UNROLL for (int64_t q = 0; q < kBlocks; ++q)
          hn::Store(steps[q], d, panel + (k + 4 * q + v) * kLanes);
    }
  }
  for (int64_t v = 0; k < K && v < 4; ++v) {
    const int64_t n = load_last_blocks(row[v], k, K - k, steps);
    for (int64_t q = 0; q < n; ++q) hn::Store(steps[q], d, panel + (k + 4 * q + v) * kLanes);
  }
}

template <class TW>
void linear_rows(const float* x, int64_t x_stride, const TW* w, int64_t w_stride, int64_t K, int64_t T,
                 int64_t N, const float* bias, float* y) {
  if (T <= kFewRows) {
    return parallel_for(N, cpu::kFewRowsPiece, [&](int64_t begin, int64_t end) {
      cpu::with_constant<kFewRows>(static_cast<int>(T), [&](auto mr) {
        constexpr int MR = decltype(mr)::value;
        few_rows<MR>(x, x_stride, w, w_stride, K, N, begin, end, bias, y);
      });
    });
  }
  cpu::for_each_panel(T, N, K * 4, [&](int64_t row0, int64_t row1, int64_t column0, int64_t column1) {
    float* const panel = cpu::thread_scratch<Panel>(panel_floats(K));
    for (int64_t column = column0; column < column1; column += kLanes) {
      const int64_t columns = std::min(kLanes, column1 - column);
      const TW* const from = w + column * w_stride;
      pack_panel(from, w_stride, columns, K, panel);
      // The next panel's weights, as far as the tiles' steps reach.
      const char* next = reinterpret_cast<const char*>(from + kLanes * w_stride);
      const char* const next_end = next + kLanes * K * static_cast<int64_t>(sizeof(TW));
      cpu::for_each_row_tile<kPanelRows>(row0, row1, [&](int64_t row, int rows) {
        cpu::with_constant<kPanelRows>(rows, [&](auto mr) {
          panel_tile<decltype(mr)::value, false>(x + row * x_stride, x_stride, panel, K, columns,
                                                 bias ? bias + column : nullptr, next, 64,
                                                 y + row * N + column, N);
        });
        next = next + K * 16 < next_end ? next + K * 16 : reinterpret_cast<const char*>(panel);
      });
    }
  });
}

void linear_f32(const float* x, int64_t x_stride, const Tensor& w, const float* bias, const Tensor& y) {
  dispatch_float(w.dtype(), "linear", [&](auto zero) {
    using TW = decltype(zero);
    linear_rows<TW>(x, x_stride, w.data<TW>(), w.stride(0), w.size(1), y.size(0), w.size(0), bias,
                    y.data<float>());
  });
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {
HWY_EXPORT(linear_f32);

namespace cpu {

bool multiplies_natively(DType dtype) {
  return dtype == DType::f32 || (dtype == DType::bf16 && extensions().bf16);
}

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& /*rounded_bias*/,
            DType compute, const Tensor& y) {
  const float* b = bias.defined() ? bias.data<float>() : nullptr;
  if (x.size(0) == 0 || w.size(0) == 0) return;
  if (compute == DType::f32) return HWY_DYNAMIC_DISPATCH(linear_f32)(x.data<float>(), x.stride(0), w, b, y);
  if constexpr (HWY_ARCH_X86) {
    if (compute == DType::bf16 && w.dtype() == DType::bf16 && extensions().bf16) {
      return linear_bf16_dot(x, w, b, y);
    }
  }
  const Tensor rounded = x.to(compute).to(DType::f32);
  HWY_DYNAMIC_DISPATCH(linear_f32)(rounded.data<float>(), rounded.stride(0), w, b, y);
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
