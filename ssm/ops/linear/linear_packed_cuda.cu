#include "ssm/ops/linear/linear_packed_cuda.h"

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/packed.cuh"
#include "ssm/ops/cuda/vectors.cuh"
#include "ssm/ops/linear/linear_cuda.h"

namespace ssm::cuda {

template <class X>
void packed_few_rows(const Tensor& x, const QuantizedTensor& w, const Tensor& bias, const Tensor& y);

namespace {

constexpr int kThreads = 256;

unsigned blocks_of(int64_t n, int64_t part) { return static_cast<unsigned>((n + part - 1) / part); }

// A warp unpacks one load: of its lanes' two rows runs of as many weights as are neighbours there.
template <class F, class To>
__global__ void __launch_bounds__(kThreads)
    unpack_rows_kernel(const PackedMatrix w, int64_t first_tile, int64_t rows, To* to) {
  constexpr int kRun = F::kGroup == 16 ? 4 : 8, kRuns = F::kLoadWeights / (4 * kRun);
  grid_dependency_wait();
  let_next_start();
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int load = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  if (load >= w.loads) return;
  for (int64_t tile = blockIdx.y; tile * CardLayout::kTile < rows; tile += gridDim.y) {
    const int64_t source = first_tile + tile;
    const uint4 v =
        *reinterpret_cast<const uint4*>(w.codes + (source * w.loads + load) * CardLayout::kLoad + lane * 16);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    const int64_t k0 = int64_t{load} * F::kLoadWeights;
    const int64_t pair = (source * w.chunks + k0 / CardLayout::kChunk) * CardLayout::kPairs + g;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t row = tile * CardLayout::kTile + g + 8 * h;
#pragma unroll
      for (int run = 0; run < kRuns; ++run) {
        const int64_t k = k0 + run * 4 * kRun + q * kRun;
        if (row >= rows || k >= w.K) continue;
        const int group = static_cast<int>(k % CardLayout::kChunk) / F::kGroup;
        const std::byte* const at =
            w.scales + pair * F::kPairBytes + (2 * group + h) * F::kFormat.scale_bytes();
        GroupScale s;
        if constexpr (F::kIsK) {
          s = k_group_scale(*reinterpret_cast<const uint16_t*>(at),
                            *reinterpret_cast<const uint32_t*>(w.d + pair * 8 + 4 * h));
        } else if constexpr (F::kHasLow) {
          s = f16_scale(*reinterpret_cast<const uint32_t*>(at), true);
        } else {
          s = f16_scale(*reinterpret_cast<const uint16_t*>(at), false);
        }
        float values[kRun];
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          const int step = run * (kRun / 4) + i / 4, j = i % 4 / 2, e = i % 2;
          int code;
          if constexpr (F::kBits == 4) {
            code = static_cast<int>(words[step] >> 4 * (h + 2 * j + 4 * e) & 15) - F::kZero;
          } else {
            code = static_cast<int8_t>(words[2 * step + j] >> 8 * (h + 2 * e) & 0xffu);
          }
          values[i] = packed_value(s, code, F::kHasLow);
        }
        To* const out = to + row * w.K + k;
        if (w.K % kRun == 0) {
          store_wide<kRun>(out, values);
        } else {
#pragma unroll
          for (int i = 0; i < kRun; ++i) {
            if (k + i < w.K) out[i] = from_f32<To>(values[i]);
          }
        }
      }
    }
  }
}

template <class X>
__global__ void __launch_bounds__(kThreads)
    rows_in_packs_kernel(const X* x, int64_t stride, int K, X* to, int width) {
  grid_dependency_wait();
  let_next_start();
  const int64_t t = blockIdx.x;
  for (int k = threadIdx.x; k < width; k += kThreads)
    to[t * width + k] = k < K ? x[t * stride + k] : from_f32<X>(0.0f);
}

// Rows of W that are dequantized at a time.
int64_t slab_rows(const QuantizedTensor& w, DType dtype) {
  const int64_t row = w.shape[1] * static_cast<int64_t>(size_of(dtype));
  return std::max<int64_t>(CardLayout::kTile, kSlabBytes / row / CardLayout::kTile * CardLayout::kTile);
}

// f(first, slab) for all rows of w in turn; the slab is overwritten by the next.
template <class F>
void for_each_slab(const QuantizedTensor& w, DType dtype, F&& f) {
  const int64_t N = w.shape[0], rows = std::min(N, slab_rows(w, dtype));
  const Tensor slab = Tensor::empty({rows, w.shape[1]}, dtype, w.device());
  for (int64_t n = 0; n < N; n += rows) {
    const Tensor part = slab.slice(0, 0, std::min(rows, N - n));
    unpack_rows(w, n, part);
    f(n, part);
  }
}

}  // namespace

Tensor rows_in_packs(const Tensor& x) {
  const int64_t T = x.size(0), K = x.size(1), bytes = static_cast<int64_t>(size_of(x.dtype()));
  if (K % 8 == 0 && is_aligned(x.raw()) && (T <= 1 || is_multiple(x.stride(0) * bytes, 16))) return x;
  const Tensor to = Tensor::empty({T, (K + 7) / 8 * 8}, x.dtype(), x.device());
  dispatch(x.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    launch({.grid = dim3(static_cast<unsigned>(T)), .block = dim3(kThreads), .overlaps_previous = true},
           rows_in_packs_kernel<X>, reinterpret_cast<const X*>(x.raw()), x.stride(0), static_cast<int>(K),
           reinterpret_cast<X*>(to.raw()), static_cast<int>(to.size(1)));
  });
  return to;
}

void unpack_rows(const QuantizedTensor& w, int64_t first, const Tensor& to) {
  SSM_CHECK(first % CardLayout::kTile == 0 && to.contiguous() && to.size(1) == w.shape[1] &&
                first + to.size(0) <= w.shape[0],
            "unpack_rows: rows from {} of {} into {}", first, w.shape, to.shape());
  if (to.numel() == 0) return;
  const PackedMatrix matrix = matrix_of(w);
  const Launch how{.grid = dim3(blocks_of(matrix.loads, kThreads / 32),
                                std::min(65535u, blocks_of(to.size(0), CardLayout::kTile))),
                   .block = dim3(kThreads),
                   .overlaps_previous = true};
  dispatch(to.dtype(), "linear", [&](auto zero) {
    using To = decltype(zero);
    const auto unpack = [&](auto as) {
      launch(how, unpack_rows_kernel<decltype(as), To>, matrix, first / CardLayout::kTile, to.size(0),
             reinterpret_cast<To*>(to.raw()));
    };
    const CardFormat format = card_format(w.format);
    if (!dispatch_common_format(format, unpack) && !dispatch_other_format(format, unpack))
      fail("linear: no kernel for {}", name_of(w.format));
  });
}

void linear_packed_few_rows(const Tensor& x, const QuantizedTensor& w, const Tensor& bias, const Tensor& y) {
  SSM_CHECK(w.shape[1] <= kMostPackedColumns, "linear: rows of {} packed weights", w.shape[1]);
  const Tensor rows = rows_in_packs(x);
  dispatch(x.dtype(), "linear", [&](auto zero) { packed_few_rows<decltype(zero)>(rows, w, bias, y); });
}

void linear_packed_many_rows(const Tensor& x, const QuantizedTensor& w, const Tensor& bias, const Tensor& y) {
  for_each_slab(w, x.dtype(), [&](int64_t first, const Tensor& slab) {
    const int64_t end = first + slab.size(0);
    const Tensor part = y.slice(1, first, end), b = bias.defined() ? bias.slice(0, first, end) : bias;
    // Not linear_few_rows: it reads weights before the kernel ahead has ended, which here writes them.
    if (!linear_library(x, slab, b, part)) linear_any(x, slab, b, part);
  });
}

void linear(const Tensor& x, const QuantizedTensor& w, const Tensor& bias, const Tensor& /*rounded_bias*/,
            DType /*compute: x's type*/, const Tensor& y) {
  if (y.numel() == 0) return;
  const bool few = x.size(0) <= kMostPackedRows && w.shape[1] <= kMostPackedColumns;
  few ? linear_packed_few_rows(x, w, bias, y) : linear_packed_many_rows(x, w, bias, y);
}

void linear_dx(const QuantizedTensor& w, const Tensor& dy, const Tensor& dx, bool adds) {
  if (dx.numel() == 0) return;
  for_each_slab(w, dy.dtype(), [&](int64_t first, const Tensor& slab) {
    linear_backward({}, slab, dy.slice(1, first, first + slab.size(0)),
                    {.dx = dx, .dx_adds = adds || first > 0});
  });
}

}  // namespace ssm::cuda
