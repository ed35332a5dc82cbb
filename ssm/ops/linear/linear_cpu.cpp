#include "ssm/ops/linear/linear_cpu.h"

#include <algorithm>
#include <vector>

#include "ssm/ops/linear/linear_blocks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/linear/linear_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

// The sums of four vectors' lanes, as one 128-bit vector.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::Full128<float>> fold4(D d, V a, V b, V c, V e) {
  const hn::Repartition<double, D> d64;
  const V ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const V ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto x = hn::BitCast(d64, ab), y = hn::BitCast(d64, ce);
  const V abce =
      hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, x, y)), hn::BitCast(d, hn::InterleaveUpper(d64, x, y)));
  if constexpr (hn::MaxLanes(D()) == 4) {
    return abce;
  } else {
    const hn::Half<D> dh;
    const auto half = hn::Add(hn::LowerHalf(dh, abce), hn::UpperHalf(dh, abce));
    if constexpr (hn::MaxLanes(D()) == 8) {
      return half;
    } else {
      const hn::Half<decltype(dh)> dq;
      return hn::Add(hn::LowerHalf(dq, half), hn::UpperHalf(dq, half));
    }
  }
}

// Lanes past the end are zero.
template <class D, class T>
HWY_INLINE hn::Vec<D> load_tail(D d, const T* p, int64_t n) {
  T padded[hn::MaxLanes(D())] = {};
  for (int64_t i = 0; i < n; ++i) padded[i] = p[i];
  return load_f32(d, padded);
}

// out[i][j] = sum_k x[i, k] w[j][k]. The weights `ahead` elements further on are fetched meanwhile: rows are
// too short for the hardware's prefetcher to get going.
template <int MR, int NR, class TW>
HWY_NOINLINE void tile(const float* HWY_RESTRICT x, int64_t x_stride, const std::array<const TW*, NR>& w,
                       int64_t ahead, int64_t K, float (*HWY_RESTRICT out)[8]) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  constexpr int64_t kLanes = hn::MaxLanes(decltype(d)());
  V acc[MR][NR];
  for (int i = 0; i < MR; ++i) {
    for (int j = 0; j < NR; ++j) acc[i][j] = hn::Zero(d);
  }
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes) {
    V xs[MR];
    for (int i = 0; i < MR; ++i) xs[i] = hn::LoadU(d, x + i * x_stride + k);
    for (int j = 0; j < NR; ++j) {
      const V wv = load_f32(d, w[j] + k);
      if (ahead != 0) __builtin_prefetch(w[j] + k + ahead);
      for (int i = 0; i < MR; ++i) acc[i][j] = hn::MulAdd(xs[i], wv, acc[i][j]);
    }
  }
  if (k < K) {
    for (int j = 0; j < NR; ++j) {
      const V wv = load_tail(d, w[j] + k, K - k);
      for (int i = 0; i < MR; ++i)
        acc[i][j] = hn::MulAdd(load_tail(d, x + i * x_stride + k, K - k), wv, acc[i][j]);
    }
  }
  const hn::Full128<float> d4;
  for (int i = 0; i < MR; ++i) {
    for (int j = 0; j < NR; j += 4) {
      hn::StoreU(fold4(d, acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3]), d4, out[i] + j);
    }
  }
}

inline void store_tile(const float (*out)[8], int rows, int64_t columns, const float* bias, float* y,
                       int64_t stride) {
  for (int i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) y[i * stride + j] = bias ? out[i][j] + bias[j] : out[i][j];
  }
}

template <class TW>
void linear_rows(const float* x, int64_t x_stride, const TW* w, int64_t w_stride, int64_t K, int64_t T,
                 int64_t N, const float* bias, float* y) {
  cpu::for_each_panel(T, N, K * 4, [&](int64_t row0, int64_t row1, int64_t column0, int64_t column1) {
    // Many rows: 16-bit weights are widened once for all of them, into L1.
    thread_local std::vector<float> widened;
    const bool widen = !std::is_same_v<TW, float> && row1 - row0 > 2 * cpu::kTileRows;
    const int64_t step = row1 - row0 == 1 ? 8 : 4;
    for (int64_t column = column0; column < column1; column += step) {
      const int64_t columns = std::min(step, column1 - column);
      if (widen) {
        widened.resize(static_cast<size_t>(4 * K));
        for (int64_t j = 0; j < columns; ++j) {
          const TW* from = w + (column + j) * w_stride;
          float* to = widened.data() + j * K;
          const hn::ScalableTag<float> d;
          const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
          int64_t k = 0;
          for (; k + lanes <= K; k += lanes) hn::StoreU(load_f32(d, from + k), d, to + k);
          for (; k < K; ++k) to[k] = to_float(from[k]);
        }
      }
      cpu::for_each_row_tile<cpu::kTileRows>(row0, row1, [&](int64_t row, int rows) {
        float out[cpu::kTileRows][8];
        cpu::with_constant<cpu::kTileRows>(rows, [&](auto mr) {
          constexpr int MR = decltype(mr)::value, NR = MR == 1 ? 8 : 4;
          const float* tile_x = x + row * x_stride;
          if (widen) {
            if constexpr (MR > 1) {
              tile<MR, NR>(tile_x, x_stride, cpu::tile_columns<NR>(widened.data(), K, 0, columns), 0, K, out);
            }
          } else if (MR > 1 || step == 8) {
            tile<MR, NR>(tile_x, x_stride, cpu::tile_columns<NR>(w, w_stride, column, column1),
                         row == row0 ? NR * w_stride : 0, K, out);
          }
        });
        store_tile(out, rows, columns, bias ? bias + column : nullptr, y + row * N + column, N);
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
namespace {

// The rows of x one after another, rounded to bf16.
Tensor bf16_rows(const Tensor& x) {
  const int64_t rows = x.size(0), K = x.size(1);
  const Tensor out = Tensor::empty({rows, K}, DType::bf16);
  parallel_for(rows, std::max<int64_t>(1, 32768 / std::max<int64_t>(1, K)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      round_to_bf16(x.data<float>() + t * x.stride(0), K, out.data<BFloat16>() + t * K);
    }
  });
  return out;
}

}  // namespace

bool multiplies_natively(DType dtype) {
  return dtype == DType::f32 || (dtype == DType::bf16 && has_bf16_dot());
}

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, DType compute, const Tensor& y) {
  const float* b = bias.defined() ? bias.data<float>() : nullptr;
  if (x.size(0) == 0 || w.size(0) == 0) return;
  if (compute == DType::f32) return HWY_DYNAMIC_DISPATCH(linear_f32)(x.data<float>(), x.stride(0), w, b, y);
  if (compute == DType::bf16 && w.dtype() == DType::bf16 && has_bf16_dot()) {
    return linear_bf16_dot(bf16_rows(x), w, b, y);
  }
  const Tensor rounded = x.to(compute).to(DType::f32);
  HWY_DYNAMIC_DISPATCH(linear_f32)(rounded.data<float>(), rounded.stride(0), w, b, y);
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
