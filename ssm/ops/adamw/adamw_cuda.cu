#include <algorithm>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/adamw/adamw_cuda.h"
#include "ssm/ops/adamw/adamw_factors.h"
#include "ssm/ops/cuda/types.cuh"

namespace ssm::cuda {
namespace {

constexpr int kTogether = 48;  // parameters of a launch: what its 4 KB of arguments hold
constexpr int kThreads = 256;
constexpr int kPerThread = 16;
constexpr int64_t kPiece = int64_t{kThreads} * kPerThread;  // elements of a block

struct Table {
  float *p[kTogether], *m[kTogether], *v[kTogether];
  const float* g[kTogether];
  void* narrow[kTogether];  // or null
  int64_t size[kTogether];
  unsigned end[kTogether];  // of the blocks up to here
  uint8_t narrow_is_f16[kTogether];
  int count;
  const float* grad_scale;  // or null
};

template <int V>
__device__ __forceinline__ void step(const AdamWFactors& f, float scale, float* p_at, const float* g_at,
                                     float* m_at, float* v_at, float (&p)[V]) {
  float g[V], m[V], v[V];
  load<V>(p, p_at), load<V>(g, g_at), load<V>(m, m_at), load<V>(v, v_at);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float gradient = g[i] * scale;
    m[i] = fmaf(f.rest1, gradient, f.beta1 * m[i]);
    v[i] = fmaf(f.rest2 * gradient, gradient, f.beta2 * v[i]);
    p[i] = p[i] * f.decay - f.rate * m[i] / fmaf(sqrtf(v[i]), f.correction, f.eps);
  }
  store<V>(p_at, p), store<V>(m_at, m), store<V>(v_at, v);
}

template <int V>
__device__ __forceinline__ void store_narrow(const Table& t, int k, int64_t i, const float (&p)[V]) {
  if (!t.narrow[k]) return;
  if (t.narrow_is_f16[k])
    store<V>(static_cast<__half*>(t.narrow[k]) + i, p);
  else
    store<V>(static_cast<__nv_bfloat16*>(t.narrow[k]) + i, p);
}

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const AdamWFactors f, const __grid_constant__ Table t) {
  // The next kernel does not start before the end: it may be a product, which reads weights without waiting.
  grid_dependency_wait();
  const float scale = t.grad_scale ? *t.grad_scale : 1.0f;
  if (!isfinite(scale)) return;
  int k = 0;
  while (blockIdx.x >= t.end[k]) ++k;
  const int64_t begin = (blockIdx.x - (k > 0 ? t.end[k - 1] : 0)) * kPiece,
                end = min(t.size[k], begin + kPiece);
  float *const p = t.p[k], *const m = t.m[k], *const v = t.v[k];
  const float* const g = t.g[k];
  const auto aligned = [](const void* at, int bytes) { return reinterpret_cast<uintptr_t>(at) % bytes == 0; };
  const bool vectors =
      aligned(p, 16) && aligned(g, 16) && aligned(m, 16) && aligned(v, 16) && aligned(t.narrow[k], 8);
  const int64_t whole = vectors ? begin + (end - begin) / 4 * 4 : begin;
#pragma unroll
  for (int n = 0; n < kPerThread / 4; ++n) {
    const int64_t i = begin + (n * kThreads + threadIdx.x) * 4;
    if (i < whole) {
      float now[4];
      step<4>(f, scale, p + i, g + i, m + i, v + i, now);
      store_narrow<4>(t, k, i, now);
    }
  }
  for (int64_t i = whole + threadIdx.x; i < end; i += kThreads) {
    float now[1];
    step<1>(f, scale, p + i, g + i, m + i, v + i, now);
    store_narrow<1>(t, k, i, now);
  }
}

}  // namespace

void adamw(const AdamW& options, std::span<const AdamWParameter> parameters, const Tensor& grad_scale) {
  const AdamWFactors factors = factors_of(options);
  for (size_t first = 0; first < parameters.size(); first += kTogether) {
    Table t{};
    t.grad_scale = grad_scale.defined() ? grad_scale.data<float>() : nullptr;
    t.count = static_cast<int>(std::min<size_t>(kTogether, parameters.size() - first));
    unsigned blocks = 0;
    for (int k = 0; k < t.count; ++k) {
      const auto& [p, g, m, v, narrow] = parameters[first + static_cast<size_t>(k)];
      t.p[k] = p.data<float>(), t.g[k] = g.data<float>(), t.m[k] = m.data<float>(), t.v[k] = v.data<float>();
      t.narrow[k] = narrow.defined() ? narrow.raw() : nullptr;
      t.narrow_is_f16[k] = narrow.defined() && narrow.dtype() == DType::f16;
      t.size[k] = p.numel();
      blocks += static_cast<unsigned>((p.numel() + kPiece - 1) / kPiece);
      t.end[k] = blocks;
    }
    if (blocks == 0) continue;
    launch({.grid = dim3(blocks), .block = dim3(kThreads), .overlaps_previous = true}, adamw_kernel, factors,
           t);
  }
}

}  // namespace ssm::cuda
