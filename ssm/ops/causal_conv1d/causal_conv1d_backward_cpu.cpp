// A sequence is cut into segments of rows, a segment's work into vectors of channels: each takes its inputs
// and then ds into the L1 cache, over the segment and the K - 1 rows after it, which dx needs. Segments lie
// in runs that depend on the batch alone; a run sums its weights' gradients, and the runs' sums are added in
// their order.
#include <algorithm>
#include <vector>

#include "ssm/core/parallel.h"
#include "ssm/ops/causal_conv1d/causal_conv1d_cpu.h"
#include "ssm/ops/simd/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/causal_conv1d/causal_conv1d_backward_cpu.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
// after foreach_target.h
#include "ssm/ops/simd/math-inl.h"

#ifndef SSM_CAUSAL_CONV1D_BACKWARD_TILE
#define SSM_CAUSAL_CONV1D_BACKWARD_TILE
namespace ssm {

// Some rows of one sequence by some channels. Of the rows after the last of the sequence there are none.
struct ConvBackwardTile {
  const float* const* x;  // rows + after + K - 1 inputs, from the K - 1 before the first row on
  const float* dy;        // [rows + after, channels]
  float* dx;              // [rows, channels], or null
  const float* weight;    // [K, channels]
  const float* bias;      // [channels], or null
  float* sums;            // [K + 1, channels]: of dweight and dbias, added to
  int64_t dy_stride, dx_stride, weight_stride, sums_stride;
  int64_t rows, after, channels, K;  // after: up to K - 1 rows that follow in the sequence
  bool silu;
};

}  // namespace ssm
#endif

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {
namespace {

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

HWY_INLINE int64_t lanes() { return static_cast<int64_t>(hn::Lanes(D())); }

struct Column {
  float *x, *ds, *weight;  // [rows + 2 (K - 1)], [rows + K - 1], [K] vectors
};

// kK: K where it is small, or 0.
template <int kK>
HWY_INLINE void load_column(const ConvBackwardTile& a, const Column& column, int64_t c, size_t n) {
  const D d;
  const int64_t K = kK ? kK : a.K, rows = a.rows + a.after;
  for (int64_t j = 0; j < rows + K - 1; ++j) {
    hwy::Prefetch(a.x[j] + c + lanes());
    hn::Store(load_n_f32(d, a.x[j] + c, n), d, column.x + j * lanes());
  }
  for (int64_t k = 0; k < K; ++k)
    hn::Store(load_n_f32(d, a.weight + k * a.weight_stride + c, n), d, column.weight + k * lanes());
  const V bias = a.bias ? load_n_f32(d, a.bias + c, n) : hn::Zero(d);
  for (int64_t i = 0; i < rows; ++i) {
    const float* const dy = a.dy + i * a.dy_stride + c;
    hwy::Prefetch(dy + lanes());
    V ds = load_n_f32(d, dy, n);
    if (a.silu) {
      V sum = bias;
      for (int64_t k = 0; k < K; ++k) {
        sum = hn::MulAdd(hn::Load(d, column.weight + k * lanes()), hn::Load(d, column.x + (i + k) * lanes()),
                         sum);
      }
      ds = hn::Mul(ds, silu_slope_f32(d, sum));
    }
    hn::Store(ds, d, column.ds + i * lanes());
  }
  std::fill_n(column.ds + rows * lanes(), (K - 1 - a.after) * lanes(), 0.0f);
}

template <int kK>
HWY_INLINE void input_gradients(const ConvBackwardTile& a, const Column& column, int64_t c, size_t n) {
  const D d;
  const int64_t K = kK ? kK : a.K;
  for (int64_t i = 0; i < a.rows; ++i) {
    V sum = hn::Zero(d);
    for (int64_t k = 0; k < K; ++k) {
      sum = hn::MulAdd(hn::Load(d, column.weight + k * lanes()),
                       hn::Load(d, column.ds + (i + K - 1 - k) * lanes()), sum);
    }
    store_n_f32(d, sum, a.dx + i * a.dx_stride + c, n);
  }
}

// sums[k] += sum_i ds[i] x[i + k] for kCount k from `first` on.
template <int kCount>
HWY_INLINE void weight_gradients(const ConvBackwardTile& a, const Column& column, int64_t first, int64_t c,
                                 size_t n) {
  const D d;
  V sum[kCount];
  float* const to = a.sums + first * a.sums_stride + c;
  for (int k = 0; k < kCount; ++k) sum[k] = load_n_f32(d, to + k * a.sums_stride, n);
  for (int64_t i = 0; i < a.rows; ++i) {
    const V ds = hn::Load(d, column.ds + i * lanes());
    for (int k = 0; k < kCount; ++k)
      sum[k] = hn::MulAdd(ds, hn::Load(d, column.x + (i + first + k) * lanes()), sum[k]);
  }
  for (int k = 0; k < kCount; ++k) store_n_f32(d, sum[k], to + k * a.sums_stride, n);
}

template <int kK>
HWY_INLINE void tile_backward(const ConvBackwardTile& a) {
  const D d;
  const int64_t K = kK ? kK : a.K;
  const int64_t x_rows = a.rows + 2 * (K - 1), ds_rows = a.rows + K - 1;
  float* const scratch = cpu::thread_scratch((x_rows + ds_rows + K) * lanes());
  const Column column{scratch, scratch + x_rows * lanes(), scratch + (x_rows + ds_rows) * lanes()};
  for (int64_t c = 0; c < a.channels; c += lanes()) {
    const auto n = static_cast<size_t>(std::min(lanes(), a.channels - c));
    load_column<kK>(a, column, c, n);
    if (a.dx) input_gradients<kK>(a, column, c, n);
    if (!a.sums) continue;
    if constexpr (kK != 0) {
      weight_gradients<kK>(a, column, 0, c, n);
    } else {
      for (int64_t k = 0; k < K; ++k) weight_gradients<1>(a, column, k, c, n);
    }
    float* const to = a.sums + K * a.sums_stride + c;
    V sum = load_n_f32(d, to, n);
    for (int64_t i = 0; i < a.rows; ++i) sum = hn::Add(sum, hn::Load(d, column.ds + i * lanes()));
    store_n_f32(d, sum, to, n);
  }
}

void causal_conv1d_backward_kernel(const ConvBackwardTile& a) {
  switch (a.K) {
    case 2:
      return tile_backward<2>(a);
    case 3:
      return tile_backward<3>(a);
    case 4:
      return tile_backward<4>(a);
    default:
      return tile_backward<0>(a);
  }
}

}  // namespace
}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(causal_conv1d_backward_kernel);

namespace cpu {
namespace {

constexpr int64_t kSegmentRows = 128;
constexpr int64_t kRuns = 32;  // at most
constexpr int64_t kChannels = 256;
alignas(64) constexpr float kZeros[kChannels + 64] = {};  // the row's end is prefetched

struct Segment {
  int64_t b, row, rows;
};

struct ConvBackward {
  const Tensor &x, &bias, &initial, &dy, &dx;
  Tensor weight;   // [K, C]
  Tensor partial;  // [runs, K + 1, C], or undefined: no sums are wanted
  const SequenceBatch& batch;
  bool silu;

  // Input j of sequence b, from channel c on; j < 0 lies before it.
  const float* input(int64_t b, int64_t j, int64_t c) const {
    const int64_t C = weight.size(1), K = weight.size(0);
    if (j >= 0) return x.data<float>() + (batch.offset(b) + j) * x.stride(0) + c;
    return initial.defined() ? initial.data<float>() + (b * (K - 1) + K - 1 + j) * C + c : kZeros;
  }

  void run(const Segment& segment, int64_t c, float* sums, std::vector<const float*>& inputs) const {
    const int64_t C = weight.size(1), K = weight.size(0), t = batch.offset(segment.b) + segment.row;
    ConvBackwardTile tile{};
    tile.rows = segment.rows, tile.K = K, tile.silu = silu;
    tile.after = std::min(K - 1, batch.length(segment.b) - segment.row - segment.rows);
    tile.channels = std::min(kChannels, C - c);
    inputs.clear();
    for (int64_t j = 0; j < tile.rows + tile.after + K - 1; ++j)
      inputs.push_back(input(segment.b, segment.row + j - (K - 1), c));
    tile.x = inputs.data();
    tile.dy = dy.data<float>() + t * dy.stride(0) + c, tile.dy_stride = dy.stride(0);
    if (dx.defined()) tile.dx = dx.data<float>() + t * dx.stride(0) + c, tile.dx_stride = dx.stride(0);
    tile.weight = weight.data<float>() + c, tile.weight_stride = weight.stride(0);
    if (bias.defined()) tile.bias = bias.data<float>() + c;
    if (sums) tile.sums = sums + c, tile.sums_stride = C;
    HWY_DYNAMIC_DISPATCH(causal_conv1d_backward_kernel)(tile);
  }
};

// partial [runs, K + 1, C] onto dweight and dbias.
void add_partial(const Tensor& partial, const CausalConv1dGrads& grads) {
  const int64_t K = partial.size(1) - 1, C = partial.size(2);
  for (int64_t k = 0; k <= K; ++k) {
    const Tensor to = k == K ? grads.dbias : grads.dweight.defined() ? grads.dweight.select(1, k) : Tensor();
    for (int64_t c = 0; to.defined() && c < C; ++c) {
      float sum = 0;
      for (int64_t run = 0; run < partial.size(0); ++run)
        sum += partial.data<float>()[(run * (K + 1) + k) * C + c];
      to.data<float>()[c * to.stride(0)] += sum;
    }
  }
}

}  // namespace

void causal_conv1d_backward(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
                            const SequenceBatch& batch, const Tensor& initial, const Tensor& dy,
                            const CausalConv1dGrads& grads) {
  const int64_t C = weight.size(0), K = weight.size(1);
  std::vector<Segment> segments;
  for (int64_t b = 0; b < batch.size(); ++b) {
    for (int64_t row = 0; row < batch.length(b); row += kSegmentRows)
      segments.push_back({b, row, std::min(kSegmentRows, batch.length(b) - row)});
  }
  const int64_t count = std::ssize(segments), per_run = (count + kRuns - 1) / kRuns;
  const int64_t runs = (count + per_run - 1) / per_run, blocks = (C + kChannels - 1) / kChannels;
  const bool sums = grads.dweight.defined() || grads.dbias.defined();
  const ConvBackward conv{x,
                          bias,
                          initial,
                          dy,
                          grads.dx,
                          conv_weight_over_channels(weight),
                          sums ? Tensor::zeros({runs, K + 1, C}) : Tensor(),
                          batch,
                          activation == Activation::silu};
  parallel_for(runs * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<const float*> inputs;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t run = i / blocks, c = i % blocks * kChannels;
      float* const to = sums ? conv.partial.data<float>() + run * (K + 1) * C : nullptr;
      for (int64_t j = run * per_run; j < std::min(count, (run + 1) * per_run); ++j)
        conv.run(segments[static_cast<size_t>(j)], c, to, inputs);
    }
  });
  if (sums) add_partial(conv.partial, grads);
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
