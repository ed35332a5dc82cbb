#include "ssm/ops/causal_conv1d/causal_conv1d_cpu.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "ssm/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/causal_conv1d/causal_conv1d_cpu.cpp"
#include <hwy/foreach_target.h>
// after foreach_target.h
#include "ssm/ops/simd/math-inl.h"

#ifndef SSM_CAUSAL_CONV1D_TILE
#define SSM_CAUSAL_CONV1D_TILE
namespace ssm {

// Some rows of one sequence by some channels.
struct ConvTile {
  const float* const* x;  // rows + K - 1 inputs, from the K - 1 before the first row on
  float* y;               // [rows, channels], row stride y_stride
  const float* weight;    // [K, channels], row stride weight_stride
  const float* bias;      // [channels], or null
  int64_t y_stride, weight_stride;
  int64_t rows, channels, K;
};

}  // namespace ssm
#endif

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

// An output is bias + w[0] x[0] + ... + w[K - 1] x[K - 1], summed in that order by every path.
template <bool kSilu, class D, class V>
HWY_INLINE V activate(D d, V sum) {
  if constexpr (kSilu) return silu_f32(d, sum);
  return sum;
}

// Down the rows of a vector of channels; weights and the last K inputs stay in registers.
template <int K, bool kSilu>
HWY_INLINE void conv_columns(const ConvTile& a, size_t c, size_t n) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  V w[K], x[K];
  for (int k = 0; k < K; ++k) w[k] = load_n_f32(d, a.weight + k * a.weight_stride + c, n);
  for (int k = 0; k < K - 1; ++k) x[k] = load_n_f32(d, a.x[k] + c, n);
  const V bias = a.bias ? load_n_f32(d, a.bias + c, n) : hn::Zero(d);
  for (int64_t t = 0; t < a.rows; ++t) {
    x[K - 1] = load_n_f32(d, a.x[t + K - 1] + c, n);
    V sum = bias;
    for (int k = 0; k < K; ++k) sum = hn::MulAdd(w[k], x[k], sum);
    store_n_f32(d, activate<kSilu>(d, sum), a.y + t * a.y_stride + c, n);
    for (int k = 0; k < K - 1; ++k) x[k] = x[k + 1];
  }
}

// Any K.
template <bool kSilu>
HWY_INLINE void conv_columns_any(const ConvTile& a, size_t c, size_t n) {
  const hn::ScalableTag<float> d;
  const auto bias = a.bias ? load_n_f32(d, a.bias + c, n) : hn::Zero(d);
  for (int64_t t = 0; t < a.rows; ++t) {
    auto sum = bias;
    for (int64_t k = 0; k < a.K; ++k) {
      sum = hn::MulAdd(load_n_f32(d, a.weight + k * a.weight_stride + c, n), load_n_f32(d, a.x[t + k] + c, n),
                       sum);
    }
    store_n_f32(d, activate<kSilu>(d, sum), a.y + t * a.y_stride + c, n);
  }
}

template <bool kSilu>
HWY_INLINE void conv_tile(const ConvTile& a) {
  const size_t N = hn::Lanes(hn::ScalableTag<float>()), C = static_cast<size_t>(a.channels);
  auto columns = [&](auto&& f) HWY_ATTR {
    size_t c = 0;
    for (; c + N <= C; c += N) f(c, N);
    if (c < C) f(c, C - c);
  };
  switch (a.K) {
    case 1:
      return columns([&](size_t c, size_t n) HWY_ATTR { conv_columns<1, kSilu>(a, c, n); });
    case 2:
      return columns([&](size_t c, size_t n) HWY_ATTR { conv_columns<2, kSilu>(a, c, n); });
    case 3:
      return columns([&](size_t c, size_t n) HWY_ATTR { conv_columns<3, kSilu>(a, c, n); });
    case 4:
      return columns([&](size_t c, size_t n) HWY_ATTR { conv_columns<4, kSilu>(a, c, n); });
    default:
      return columns([&](size_t c, size_t n) HWY_ATTR { conv_columns_any<kSilu>(a, c, n); });
  }
}

void causal_conv1d_kernel(const ConvTile& a) { conv_tile<false>(a); }
void causal_conv1d_silu_kernel(const ConvTile& a) { conv_tile<true>(a); }

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(causal_conv1d_kernel);
HWY_EXPORT(causal_conv1d_silu_kernel);

namespace cpu {
namespace {

constexpr int64_t kRows = 8;  // of a tile: enough that the weights' loads do not count
constexpr int64_t kChannels = 1024;
alignas(64) constexpr float kZeros[kChannels] = {};

// The work is cut into tiles of rows and channels that depend on the shapes alone. A sequence's first tile
// has at least K - 1 rows, so no other reads its state, and it may write the new one when its rows are done.
struct Conv {
  const float *x, *weight, *bias;
  float *y, *state;
  int64_t x_stride, weight_stride, C, K;
  int64_t rows, blocks;             // rows of a tile, blocks of channels
  std::vector<int64_t> first_tile;  // B + 1
  const SequenceBatch& batch;
  Activation activation;

  // Input j of sequence b, from channel c on; j < 0 lies in the state.
  const float* input(int64_t b, int64_t j, int64_t c) const {
    if (j >= 0) return x + (batch.offset(b) + j) * x_stride + c;
    return state ? state + (batch.slot(b) * (K - 1) + K - 1 + j) * C + c : kZeros;
  }

  void run(int64_t b, int64_t row, int64_t c, std::vector<const float*>& inputs) const {
    ConvTile tile;
    tile.rows = std::min(rows, batch.length(b) - row);
    tile.channels = std::min(kChannels, C - c);
    for (int64_t j = 0; j < tile.rows + K - 1; ++j) {
      inputs[static_cast<size_t>(j)] = input(b, row + j - (K - 1), c);
    }
    tile.x = inputs.data();
    tile.y = y + (batch.offset(b) + row) * C + c;
    tile.y_stride = C;
    tile.weight = weight + c;
    tile.weight_stride = weight_stride;
    tile.bias = bias ? bias + c : nullptr;
    tile.K = K;
    if (activation == Activation::silu)
      HWY_DYNAMIC_DISPATCH(causal_conv1d_silu_kernel)(tile);
    else
      HWY_DYNAMIC_DISPATCH(causal_conv1d_kernel)(tile);
    if (row == 0 && state) update_state(b, c, tile.channels);
  }

  // The last K - 1 inputs, oldest first; those of a short sequence come from further on in the old state.
  void update_state(int64_t b, int64_t c, int64_t channels) const {
    for (int64_t k = 0; k < K - 1; ++k) {
      float* to = state + (batch.slot(b) * (K - 1) + k) * C + c;
      std::memcpy(to, input(b, batch.length(b) - (K - 1) + k, c),
                  static_cast<size_t>(channels) * sizeof(float));
    }
  }
};

}  // namespace

Tensor conv_weight_over_channels(const Tensor& weight) {
  const int64_t C = weight.size(0), K = weight.size(1);
  if (C == 1 || weight.stride(0) == 1) return weight.transpose(0, 1);
  const Tensor copy = Tensor::empty({K, C});
  const float* from = weight.data<float>();
  for (int64_t k = 0; k < K; ++k) {
    float* to = copy.data<float>() + k * C;
    for (int64_t c = 0; c < C; ++c) to[c] = from[c * weight.stride(0) + k * weight.stride(1)];
  }
  return copy;
}

void causal_conv1d(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
                   const SequenceBatch& batch, const Tensor& state, const Tensor& y) {
  const Tensor w = conv_weight_over_channels(weight);
  const int64_t C = w.size(1), K = w.size(0), B = batch.size();
  const int64_t rows = std::max(kRows, K - 1), blocks = (C + kChannels - 1) / kChannels;
  std::vector<int64_t> first_tile{0};
  first_tile.reserve(static_cast<size_t>(B) + 1);
  for (int64_t b = 0; b < B; ++b)
    first_tile.push_back(first_tile.back() + (batch.length(b) + rows - 1) / rows);
  const Conv conv{x.data<float>(),
                  w.data<float>(),
                  bias.defined() ? bias.data<float>() : nullptr,
                  y.data<float>(),
                  state.defined() ? state.data<float>() : nullptr,
                  x.stride(0),
                  w.stride(0),
                  C,
                  K,
                  rows,
                  blocks,
                  std::move(first_tile),
                  batch,
                  activation};
  const int64_t items = conv.first_tile.back() * blocks;
  const int64_t per_item = std::max<int64_t>(1, batch.total() * C / items);
  // A piece is some ten microseconds, as waking a thread may take as long.
  parallel_for(items, std::max<int64_t>(1, 32768 / per_item), [&](int64_t begin, int64_t end) {
    std::vector<const float*> inputs(static_cast<size_t>(rows + K - 1));
    const auto& first = conv.first_tile;
    int64_t b = std::upper_bound(first.begin(), first.end(), begin / blocks) - first.begin() - 1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t tile = item / blocks;
      while (tile >= first[static_cast<size_t>(b) + 1]) ++b;
      conv.run(b, (tile - first[static_cast<size_t>(b)]) * rows, item % blocks * kChannels, inputs);
    }
  });
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
