// Both products of the backward sum over rows of a matrix that lies row after row: dx = dy W over the rows of
// W, dW = dy^T x over the rows of x. So one product serves, C (+)= A B, whose panels are columns of B: packed
// a block of rows at a time, transposed four by four on the way, into a thread's own cache.
#include <algorithm>

#include "ssm/ops/linear/linear_blocks.h"
#include "ssm/ops/linear/linear_cpu.h"
#include "ssm/ops/simd/scratch.h"
#include "ssm/quant/dequantize.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/linear/linear_backward_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/linear/linear_panel-inl.h"
#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

struct BackwardPanel {};  // scratch
struct BackwardRows {};

constexpr int64_t kSum = cpu::kRowsOfSum;  // terms added in registers before they are added to C
constexpr int64_t kRows = 256;             // of A under a panel; kRows x kSum stay in a core's L2
constexpr int64_t kRowPad = 16;  // floats between rows of a packed A: a power of two would share cache sets
constexpr int64_t kLeastColumns = 64;  // of a piece: less pays too much for its A

// C [M, N] (+)= A B. A [M, R], or where `transposed` lying as [R, M]; B [R, N].
template <class TB>
struct Product {
  const float* a;
  int64_t a_stride;
  bool transposed;
  const TB* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t M, N, R;
  bool adds;
};

template <class T>
HWY_INLINE V load_columns(const T* p, int64_t n) {
  if (HWY_LIKELY(n >= kLanes)) return load_f32(D(), p);
  T padded[kLanes] = {};
  std::copy_n(p, n, padded);
  return load_f32(D(), padded);
}

// Four rows of a matrix from p on, kLanes columns (zeros beyond `rows` and `columns`), transposed in blocks
// of four: lane j of block b of out[v] is row j, column 4 b + v.
template <class T>
HWY_INLINE void transpose4(const T* p, int64_t stride, int64_t rows, int64_t columns, V (&out)[4]) {
  const D d;
  const hn::Repartition<double, D> d64;
  V r[4];
  SSM_UNROLL for (int64_t j = 0; j < 4; ++j) {
    r[j] = HWY_LIKELY(j < rows) ? load_columns(p + j * stride, columns) : hn::Zero(d);
  }
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, r[0], r[1]));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, r[0], r[1]));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, r[2], r[3]));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, r[2], r[3]));
  out[0] = hn::BitCast(d, hn::InterleaveLower(d64, low01, low23));
  out[1] = hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23));
  out[2] = hn::BitCast(d, hn::InterleaveLower(d64, high01, high23));
  out[3] = hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23));
}

// R rows of `columns` columns as a panel (linear_panel-inl.h).
template <class TB>
HWY_NOINLINE void pack_rows(const TB* b, int64_t stride, int64_t R, int64_t columns,
                            float* HWY_RESTRICT panel) {
  const D d;
  V out[4];
  for (int64_t r = 0; r < R; r += 4) {
    transpose4(b + r * stride, stride, R - r, columns, out);
    SSM_UNROLL for (int64_t v = 0; v < 4; ++v) hn::Store(out[v], d, panel + (r + v) * kLanes);
  }
}

// to[m] = column m of R rows, as a row of to_stride floats.
HWY_NOINLINE void pack_transposed(const float* a, int64_t stride, int64_t R, int64_t M,
                                  float* HWY_RESTRICT to, int64_t to_stride) {
  const D d;
  const D4 d4;
  V out[4];
  for (int64_t m = 0; m < M; m += kLanes) {
    const int64_t columns = std::min(kLanes, M - m);
    for (int64_t r = 0; r < R; r += 4) {
      HWY_ALIGN float lanes[4 * kLanes];
      transpose4(a + r * stride + m, stride, R - r, columns, out);
      SSM_UNROLL for (int64_t v = 0; v < 4; ++v) hn::Store(out[v], d, lanes + v * kLanes);
      float* HWY_RESTRICT row = to + m * to_stride + r;
      for (int64_t c = 0; c < columns; ++c, row += to_stride) {
        hn::Store(hn::Load(d4, lanes + c % 4 * kLanes + c / 4 * 4), d4, row);
      }
    }
  }
}

// Rows [row0, row1) x columns [column0, column1) of C.
template <class TB>
void product_piece(const Product<TB>& p, int64_t row0, int64_t row1, int64_t column0, int64_t column1) {
  const int64_t rows = row1 - row0;
  float* const panel = cpu::thread_scratch<BackwardPanel>(panel_floats(kSum));
  for (int64_t r0 = 0; r0 < p.R; r0 += kSum) {
    const int64_t R = std::min(kSum, p.R - r0);
    const float* a = p.a + row0 * p.a_stride + r0;
    int64_t a_stride = p.a_stride;
    if (p.transposed) {
      a_stride = (R + 3) / 4 * 4 + kRowPad;
      float* const packed = cpu::thread_scratch<BackwardRows>(rows * a_stride);
      pack_transposed(p.a + r0 * p.a_stride + row0, p.a_stride, R, rows, packed, a_stride);
      a = packed;
    }
    const bool adds = p.adds || r0 > 0;
    for (int64_t column = column0; column < column1; column += kLanes) {
      const int64_t columns = std::min(kLanes, column1 - column);
      const TB* const b = p.b + r0 * p.b_stride + column;
      pack_rows(b, p.b_stride, R, columns, panel);
      // The next panel lies beside this one: its lines are fetched, each once.
      const int64_t step = p.b_stride * static_cast<int64_t>(sizeof(TB));
      const char* next = reinterpret_cast<const char*>(b + kLanes);
      const char* const next_end = next + (R - 1) * step;
      cpu::for_each_row_tile<kPanelRows>(0, rows, [&](int64_t row, int tile) {
        const bool fetch = column + kLanes < column1 && next < next_end;
        const char* const from = fetch ? next : reinterpret_cast<const char*>(panel);
        cpu::with_constant<kPanelRows>(tile, [&](auto mr) {
          constexpr int MR = decltype(mr)::value;
          const auto kernel = adds ? panel_tile<MR, true> : panel_tile<MR, false>;
          kernel(a + row * a_stride, a_stride, panel, R, columns, nullptr, from, fetch ? step : 0,
                 p.c + (row0 + row) * p.c_stride + column, p.c_stride);
        });
        next += R / 4 * step;
      });
    }
  }
}

// How C is cut depends on the number of threads; how an element is summed does not.
template <class TB>
void product(const Product<TB>& p) {
  if (p.M == 0 || p.N == 0) return;
  if (p.R == 0) {
    for (int64_t m = 0; m < p.M && !p.adds; ++m) std::fill_n(p.c + m * p.c_stride, p.N, 0.0f);
    return;
  }
  const int64_t row_blocks = (p.M + kRows - 1) / kRows;
  const int64_t wanted = num_threads() == 1 ? 1 : 4 * num_threads();
  const int64_t cuts = std::clamp<int64_t>((wanted + row_blocks - 1) / row_blocks, 1,
                                           std::max<int64_t>(1, p.N / kLeastColumns));
  const int64_t width = ((p.N + cuts - 1) / cuts + kLanes - 1) / kLanes * kLanes;
  const int64_t column_blocks = (p.N + width - 1) / width;
  parallel_for(row_blocks * column_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t row = piece / column_blocks, column = piece % column_blocks * width;
      product_piece(p, p.M * row / row_blocks, p.M * (row + 1) / row_blocks, column,
                    std::min(p.N, column + width));
    }
  });
}

void linear_dx(const Tensor& dy, const Tensor& w, const Tensor& dx, bool adds) {
  dispatch_float(w.dtype(), "linear_backward", [&](auto zero) {
    using TW = decltype(zero);
    product<TW>({dy.data<float>(), dy.stride(0), false, w.data<TW>(), w.stride(0), dx.data<float>(),
                 dx.stride(0), dy.size(0), w.size(1), w.size(0), adds});
  });
}

void linear_dweight(const Tensor& x, const Tensor& dy, const Tensor& dweight) {
  product<float>({dy.data<float>(), dy.stride(0), true, x.data<float>(), x.stride(0), dweight.data<float>(),
                  dweight.stride(0), dy.size(1), x.size(1), x.size(0), true});
}

// The columns of dy in runs of kSum rows, each in order.
void linear_dbias(const Tensor& dy, const Tensor& dbias) {
  const D d;
  const int64_t T = dy.size(0), N = dy.size(1), stride = dy.stride(0);
  constexpr int64_t kTogether = 4 * kLanes;
  parallel_for((N + kTogether - 1) / kTogether, std::max<int64_t>(1, 1024 / (T + 1)),
               [&](int64_t begin, int64_t end) HWY_ATTR {
                 for (int64_t n = begin * kTogether; n < std::min(N, end * kTogether); n += kLanes) {
                   const auto columns = static_cast<size_t>(std::min(kLanes, N - n));
                   const float* const from = dy.data<float>() + n;
                   V total = load_n_f32(d, dbias.data<float>() + n, columns);
                   for (int64_t t0 = 0; t0 < T; t0 += kSum) {
                     V sum = hn::Zero(d);
                     for (int64_t t = t0; t < std::min(T, t0 + kSum); ++t) {
                       sum = hn::Add(sum, load_n_f32(d, from + t * stride, columns));
                     }
                     total = hn::Add(total, sum);
                   }
                   store_n_f32(d, total, dbias.data<float>() + n, columns);
                 }
               });
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {
HWY_EXPORT(linear_dx);
HWY_EXPORT(linear_dweight);
HWY_EXPORT(linear_dbias);

void cpu::linear_backward(const Tensor& x, const Tensor& w, const Tensor& dy, const LinearGrads& grads) {
  if (grads.dx.defined()) HWY_DYNAMIC_DISPATCH(linear_dx)(dy, w, grads.dx, grads.dx_adds);
  if (grads.dweight.defined()) HWY_DYNAMIC_DISPATCH(linear_dweight)(x, dy, grads.dweight);
  if (grads.dbias.defined()) HWY_DYNAMIC_DISPATCH(linear_dbias)(dy, grads.dbias);
}

// A packed W in blocks of rows, dequantized: the dense matrix's sums, to the bit.
void cpu::linear_dx(const QuantizedTensor& w, const Tensor& dy, const Tensor& dx, bool adds) {
  const int64_t N = w.shape[0], K = w.shape[1], stride = row_bytes(w.format, K);
  if (N == 0) return HWY_DYNAMIC_DISPATCH(linear_dx)(dy, Tensor::empty(w.shape), dx, adds);
  const Tensor block = Tensor::empty({std::min(N, kRowsOfSum), K});
  for (int64_t first = 0; first < N; first += kRowsOfSum) {
    const int64_t rows = std::min(kRowsOfSum, N - first);
    parallel_for(rows, std::max<int64_t>(1, 16384 / K), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        dequantize_row(w.format, w.bytes.raw() + (first + n) * stride, K, block.data<float>() + n * K);
      }
    });
    HWY_DYNAMIC_DISPATCH(linear_dx)
    (dy.slice(1, first, first + rows), block.slice(0, 0, rows), dx, adds || first > 0);
  }
}

}  // namespace ssm
#endif  // HWY_ONCE
