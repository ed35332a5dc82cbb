// The bf16 product on CPUs with AVX512_BF16 (plain intrinsics: Highway 1.0 has no bf16 dot product).
#include <array>

#include "ssm/ops/linear/linear_blocks.h"
#include "ssm/ops/linear/linear_cpu.h"
#include "ssm/ops/simd/scratch.h"

#ifndef __clang__  // GCC 12 warns of its own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

// By function, not by file: an inline function of a shared header must not be compiled for what only some
// CPUs have.
#define SSM_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

namespace ssm::cpu {
namespace {

constexpr int kTileRows = 6;       // of x
constexpr int kTileColumns = 4;    // rows of W
constexpr int kFewRows = 5;        // up to here the weights' way from memory counts
constexpr int64_t kManyRows = 16;  // from here on repacking them pays

SSM_AVX512_BF16 inline __m512bh load(const BFloat16* p) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p));
}
SSM_AVX512_BF16 inline __m512bh load(const BFloat16* p, __mmask32 mask) {
  return reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, p));
}

// The rows of W under one tile; columns past N repeat the last row and are not stored.
template <int NR>
std::array<const BFloat16*, NR> tile_columns(const BFloat16* w, int64_t stride, int64_t column, int64_t end) {
  std::array<const BFloat16*, NR> rows;
  for (int j = 0; j < NR; ++j)
    rows[static_cast<size_t>(j)] = w + std::min<int64_t>(column + j, end - 1) * stride;
  return rows;
}

// The sum of each 128-bit block of four vectors: block j of the result holds those of a, b, c and d.
SSM_AVX512_BF16 inline __m512 fold_blocks(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

// The sums of four vectors' lanes.
SSM_AVX512_BF16 inline __m128 fold4(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 abcd = fold_blocks(a, b, c, d);
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

template <int MR, int NR>
SSM_AVX512_BF16 __attribute__((noinline)) void tile(const BFloat16* x, int64_t x_stride,
                                                    const std::array<const BFloat16*, NR>& w, int64_t ahead,
                                                    int64_t K, float (*out)[8]) {
  __m512 acc[MR][NR];
  SSM_UNROLL for (int i = 0; i < MR; ++i) {
    SSM_UNROLL for (int j = 0; j < NR; ++j) acc[i][j] = _mm512_setzero_ps();
  }
  int64_t k = 0;
  for (; k + 32 <= K; k += 32) {
    __m512bh xs[MR];
    SSM_UNROLL for (int i = 0; i < MR; ++i) xs[i] = load(x + i * x_stride + k);
    SSM_UNROLL for (int j = 0; j < NR; ++j) {
      const __m512bh wv = load(w[static_cast<size_t>(j)] + k);
      if (ahead != 0) __builtin_prefetch(w[static_cast<size_t>(j)] + k + ahead);
      SSM_UNROLL for (int i = 0; i < MR; ++i) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], xs[i], wv);
    }
  }
  if (k < K) {
    const auto mask = static_cast<__mmask32>((uint64_t{1} << (K - k)) - 1);
    SSM_UNROLL for (int j = 0; j < NR; ++j) {
      const __m512bh wv = load(w[static_cast<size_t>(j)] + k, mask);
      SSM_UNROLL for (int i = 0; i < MR; ++i) acc[i][j] =
          _mm512_dpbf16_ps(acc[i][j], load(x + i * x_stride + k, mask), wv);
    }
  }
  SSM_UNROLL for (int i = 0; i < MR; ++i) {
    SSM_UNROLL for (int j = 0; j < NR; j += 4) {
      _mm_storeu_ps(out[i] + j, fold4(acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3]));
    }
  }
}

// Few rows: what counts is the weights' way from memory. A thread reads its rows of W as two streams, each in
// the order of memory, which the hardware's prefetcher follows: faster than one stream or four, and than any
// distance of prefetching by hand. out[i] holds the results of rows first, first + 1, second and second + 1.
template <int MR>
SSM_AVX512_BF16 __attribute__((noinline)) void few_rows_tile(const BFloat16* x, int64_t x_stride,
                                                             const std::array<const BFloat16*, 4>& w,
                                                             int64_t K, float (*out)[4]) {
  __m512 sum[MR][4];
  for (size_t j = 0; j < 2; ++j) {
    const BFloat16* const row[2] = {w[j], w[j + 2]};
    __m512 acc[MR][2][2];  // stream, half of a step along K
    SSM_UNROLL for (int i = 0; i < MR; ++i) {
      for (auto& a : acc[i]) a[0] = a[1] = _mm512_setzero_ps();
    }
    int64_t k = 0;
    for (; k + 64 <= K; k += 64) {
      SSM_UNROLL for (int half = 0; half < 2; ++half) {
        const __m512bh w0 = load(row[0] + k + 32 * half), w1 = load(row[1] + k + 32 * half);
        SSM_UNROLL for (int i = 0; i < MR; ++i) {
          const __m512bh xs = load(x + i * x_stride + k + 32 * half);
          acc[i][0][half] = _mm512_dpbf16_ps(acc[i][0][half], xs, w0);
          acc[i][1][half] = _mm512_dpbf16_ps(acc[i][1][half], xs, w1);
        }
      }
    }
    for (; k < K; k += 32) {
      const auto mask = static_cast<__mmask32>(K - k >= 32 ? ~0u : (1u << (K - k)) - 1);
      const __m512bh w0 = load(row[0] + k, mask), w1 = load(row[1] + k, mask);
      SSM_UNROLL for (int i = 0; i < MR; ++i) {
        const __m512bh xs = load(x + i * x_stride + k, mask);
        acc[i][0][0] = _mm512_dpbf16_ps(acc[i][0][0], xs, w0);
        acc[i][1][0] = _mm512_dpbf16_ps(acc[i][1][0], xs, w1);
      }
    }
    SSM_UNROLL for (int i = 0; i < MR; ++i) {
      for (size_t s = 0; s < 2; ++s) sum[i][j + 2 * s] = _mm512_add_ps(acc[i][s][0], acc[i][s][1]);
    }
  }
  SSM_UNROLL for (int i = 0; i < MR; ++i)
      _mm_storeu_ps(out[i], fold4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
}

template <int MR>
void few_rows_columns(const BFloat16* x, const Tensor& w, const float* bias, float* y, int64_t begin,
                      int64_t end) {
  const int64_t N = w.size(0), K = w.size(1), middle = begin + (end - begin + 1) / 2;
  for (int64_t i = 0; i < middle - begin; i += 2) {
    const int64_t column[4] = {begin + i, begin + i + 1, middle + i, middle + i + 1};
    const int64_t limit[4] = {middle, middle, end, end};
    std::array<const BFloat16*, 4> rows;
    for (size_t j = 0; j < 4; ++j) {
      rows[j] = w.data<BFloat16>() + std::min(column[j], limit[j] - 1) * w.stride(0);
    }
    float out[MR][4];
    few_rows_tile<MR>(x, K, rows, K, out);
    for (int r = 0; r < MR; ++r) {
      SSM_UNROLL for (int j = 0; j < 4; ++j) {
        if (column[j] >= limit[j]) continue;
        y[r * N + column[j]] = bias ? out[r][j] + bias[column[j]] : out[r][j];
      }
    }
  }
}

void few_rows(const Tensor& x, const Tensor& w, const float* bias, const Tensor& y) {
  const int64_t N = w.size(0);
  parallel_for(N, kFewRowsPiece, [&](int64_t begin, int64_t end) {
    with_constant<kFewRows>(static_cast<int>(x.size(0)), [&](auto mr) {
      few_rows_columns<decltype(mr)::value>(x.data<BFloat16>(), w, bias, y.data<float>(), begin, end);
    });
  });
}

// Many rows: 16 rows of W as a panel, as linear_cpu.cpp has it in f32. A step is eight along K, four pairs;
// block b of a step's vector v belongs to column 4 b + v.
constexpr int64_t kPanelColumns = 16;
constexpr int kPanelRows = 6;
constexpr int64_t kStep = 8;  // and elements of a block

// Columns past `columns` repeat the last one; elements past K are zero.
SSM_AVX512_BF16 void pack_panel(const BFloat16* w, int64_t stride, int64_t columns, int64_t K,
                                BFloat16* panel) {
  const BFloat16* row[4][4];
  SSM_UNROLL for (int64_t v = 0; v < 4; ++v) {
    for (int64_t b = 0; b < 4; ++b) row[v][b] = w + std::min(4 * b + v, columns - 1) * stride;
  }
  for (int64_t k = 0; k < K; k += 4 * kStep) {
    const auto mask = static_cast<__mmask32>(K - k >= 32 ? ~0u : (1u << (K - k)) - 1);
    SSM_UNROLL for (int64_t v = 0; v < 4; ++v) {
      const auto at = [&](int64_t b)
                          SSM_AVX512_BF16 { return _mm512_maskz_loadu_epi16(mask, row[v][b] + k); };
      const __m512i r0 = at(0), r1 = at(1), r2 = at(2), r3 = at(3);
      const __m512i low01 = _mm512_shuffle_i32x4(r0, r1, 0x44), high01 = _mm512_shuffle_i32x4(r0, r1, 0xEE);
      const __m512i low23 = _mm512_shuffle_i32x4(r2, r3, 0x44), high23 = _mm512_shuffle_i32x4(r2, r3, 0xEE);
      BFloat16* const to = panel + (k / kStep * 4 + v) * 32;
      _mm512_store_si512(to, _mm512_shuffle_i32x4(low01, low23, 0x88));
      _mm512_store_si512(to + 128, _mm512_shuffle_i32x4(low01, low23, 0xDD));
      _mm512_store_si512(to + 256, _mm512_shuffle_i32x4(high01, high23, 0x88));
      _mm512_store_si512(to + 384, _mm512_shuffle_i32x4(high01, high23, 0xDD));
    }
  }
}

template <int MR>
SSM_AVX512_BF16 __attribute__((always_inline)) inline void panel_step(const BFloat16* x, int64_t x_stride,
                                                                      const BFloat16* panel, __mmask8 mask,
                                                                      __m512 (&acc)[MR][4]) {
  __m512bh xs[MR];
  SSM_UNROLL for (int i = 0; i < MR; ++i) {
    const __m128i eight = _mm_maskz_loadu_epi16(mask, x + i * x_stride);
    xs[i] = reinterpret_cast<__m512bh>(_mm512_broadcast_i32x4(eight));
  }
  SSM_UNROLL for (int v = 0; v < 4; ++v) {
    const __m512bh w = load(panel + v * 32);
    SSM_UNROLL for (int i = 0; i < MR; ++i) acc[i][v] = _mm512_dpbf16_ps(acc[i][v], xs[i], w);
  }
}

// `next` is fetched meanwhile, a line a step.
template <int MR>
SSM_AVX512_BF16 __attribute__((noinline)) void panel_tile(const BFloat16* x, const BFloat16* panel, int64_t K,
                                                          int64_t columns, const float* bias,
                                                          const char* next, float* y, int64_t N) {
  __m512 acc[MR][4];
  SSM_UNROLL for (int i = 0; i < MR; ++i) {
    SSM_UNROLL for (int v = 0; v < 4; ++v) acc[i][v] = _mm512_setzero_ps();
  }
  int64_t k = 0;
  for (; k + kStep <= K; k += kStep) {
    __builtin_prefetch(next + k * 8, 0, 2);
    panel_step(x + k, K, panel + k / kStep * 128, 0xFF, acc);
  }
  if (k < K) panel_step(x + k, K, panel + k / kStep * 128, static_cast<__mmask8>((1u << (K - k)) - 1), acc);
  const auto mask = static_cast<__mmask16>((1u << columns) - 1);
  SSM_UNROLL for (int i = 0; i < MR; ++i) {
    __m512 sum = fold_blocks(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    if (bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, bias));
    _mm512_mask_storeu_ps(y + i * N, mask, sum);
  }
}

struct Panel {};  // scratch

void many_rows(const Tensor& x, const Tensor& w, const float* bias, const Tensor& y) {
  const int64_t T = y.size(0), N = w.size(0), K = w.size(1);
  for_each_panel(T, N, K * 2, [&](int64_t row0, int64_t row1, int64_t column0, int64_t column1) {
    auto* const panel =
        reinterpret_cast<BFloat16*>(thread_scratch<Panel>((K + 31) / 32 * 32 * kPanelColumns / 2));
    for (int64_t column = column0; column < column1; column += kPanelColumns) {
      const int64_t columns = std::min<int64_t>(kPanelColumns, column1 - column);
      const BFloat16* const from = w.data<BFloat16>() + column * w.stride(0);
      pack_panel(from, w.stride(0), columns, K, panel);
      // The next panel's weights, as far as the tiles' steps reach.
      const char* next = reinterpret_cast<const char*>(from + kPanelColumns * w.stride(0));
      const char* const next_end = next + kPanelColumns * K * 2;
      for_each_row_tile<kPanelRows>(row0, row1, [&](int64_t row, int rows) {
        with_constant<kPanelRows>(rows, [&](auto mr) {
          panel_tile<decltype(mr)::value>(x.data<BFloat16>() + row * K, panel, K, columns,
                                          bias ? bias + column : nullptr, next,
                                          y.data<float>() + row * N + column, N);
        });
        next = next + K * 8 < next_end ? next + K * 8 : reinterpret_cast<const char*>(panel);
      });
    }
  });
}

SSM_AVX512_BF16 void round_to_bf16(const float* x, int64_t n, BFloat16* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(x + i))));
  }
  for (; i < n; ++i) out[i] = from_float<BFloat16>(x[i]);
}

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

void some_rows(const Tensor& x, const Tensor& w, const float* bias, const Tensor& y) {
  const int64_t T = y.size(0), N = w.size(0), K = w.size(1), w_stride = w.stride(0);
  const BFloat16* weights = w.data<BFloat16>();
  for_each_panel(T, N, K * 2, [&](int64_t row0, int64_t row1, int64_t column0, int64_t column1) {
    constexpr int64_t step = kTileColumns;
    for (int64_t column = column0; column < column1; column += step) {
      const int64_t columns = std::min(step, column1 - column);
      const auto w_rows = tile_columns<kTileColumns>(weights, w_stride, column, column1);
      for_each_row_tile<kTileRows>(row0, row1, [&](int64_t row, int rows) {
        float out[kTileRows][8];
        with_constant<kTileRows>(rows, [&](auto mr) {
          constexpr int MR = decltype(mr)::value;
          const BFloat16* tile_x = x.data<BFloat16>() + row * K;
          tile<MR, kTileColumns>(tile_x, K, w_rows, row == row0 ? step * w_stride : 0, K, out);
        });
        float* to = y.data<float>() + row * N + column;
        for (int i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < columns; ++j) to[i * N + j] = out[i][j] + (bias ? bias[column + j] : 0.0f);
        }
      });
    }
  });
}

}  // namespace

void linear_bf16_dot(const Tensor& x, const Tensor& w, const float* bias, const Tensor& y) {
  const Tensor rounded = bf16_rows(x);
  if (x.size(0) >= kManyRows) return many_rows(rounded, w, bias, y);
  if (x.size(0) <= kFewRows) return few_rows(rounded, w, bias, y);
  some_rows(rounded, w, bias, y);
}

}  // namespace ssm::cpu
