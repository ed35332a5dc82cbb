#include <algorithm>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/reduce.cuh"
#include "ssm/ops/cuda/types.cuh"
#include "ssm/ops/gradient_norm/gradient_norm_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int kTogether = 128;  // tensors of a launch: what its 4 KB of arguments hold
constexpr int kThreads = 256;
constexpr int64_t kPiece = int64_t{kThreads} * 32;  // elements of a block

struct Table {
  const float* g[kTogether];
  int64_t size[kTogether];
  unsigned end[kTogether];  // of the blocks up to here
  double* sums;             // one a block
};

// Squares are added in f64 from the start: an f32 square of a gradient below 1e-19 would be none.
__device__ __forceinline__ double block_sum_f64(double x, double* scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) sum += scratch[warp];
  return sum;
}

__global__ void __launch_bounds__(kThreads) gradient_norm_squares_kernel(const __grid_constant__ Table t) {
  __shared__ double scratch[32];
  let_next_start();
  grid_dependency_wait();
  int k = 0;
  while (blockIdx.x >= t.end[k]) ++k;
  const int64_t begin = (blockIdx.x - (k > 0 ? t.end[k - 1] : 0)) * kPiece,
                end = min(t.size[k], begin + kPiece);
  const float* const g = t.g[k];
  const bool vectors = reinterpret_cast<uintptr_t>(g) % 16 == 0;
  const int64_t whole = vectors ? begin + (end - begin) / 4 * 4 : begin;
  float x[8][4];
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int64_t i = begin + (n * kThreads + threadIdx.x) * 4;
    if (i < whole) {
      load<4>(x[n], g + i);
    } else {
#pragma unroll
      for (float& v : x[n]) v = 0;
    }
  }
  double sum = 0;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (const float v : x[n]) sum += static_cast<double>(v) * static_cast<double>(v);
  }
  for (int64_t i = whole + threadIdx.x; i < end; i += kThreads) {
    sum += static_cast<double>(g[i]) * static_cast<double>(g[i]);
  }
  sum = block_sum_f64(sum, scratch);
  if (threadIdx.x == 0) t.sums[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(1024)
    gradient_norm_total_kernel(const double* sums, int64_t n, float max_norm, float* norm, float* scale) {
  __shared__ double scratch[32];
  let_next_start();
  grid_dependency_wait();
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
  sum = block_sum_f64(sum, scratch);
  if (threadIdx.x != 0) return;
  const double total = sqrt(sum), clip = max_norm / (total + 1e-6);
  *norm = static_cast<float>(total);
  *scale = !isfinite(total) ? NAN : max_norm == 0 || clip > 1 ? 1.0f : static_cast<float>(clip);
}

unsigned blocks_of(const Tensor& t) { return static_cast<unsigned>((t.numel() + kPiece - 1) / kPiece); }

}  // namespace

void gradient_norm(std::span<const Tensor> gradients, float max_norm, const GradientNorm& result) {
  int64_t blocks = 0;
  for (const Tensor& g : gradients) blocks += blocks_of(g);
  const Tensor sums = Tensor::empty({std::max<int64_t>(1, blocks)}, DType::f64, kCuda);
  int64_t done = 0;
  for (size_t first = 0; first < gradients.size(); first += kTogether) {
    Table t{};
    t.sums = sums.data<double>() + done;
    unsigned now = 0;
    for (size_t k = 0; k < std::min<size_t>(kTogether, gradients.size() - first); ++k) {
      const Tensor& g = gradients[first + k];
      t.g[k] = g.data<float>(), t.size[k] = g.numel(), t.end[k] = now += blocks_of(g);
    }
    if (now == 0) continue;
    launch({.grid = dim3(now), .block = dim3(kThreads), .overlaps_previous = true},
           gradient_norm_squares_kernel, t);
    done += now;
  }
  launch({.grid = dim3(1), .block = dim3(1024), .overlaps_previous = true}, gradient_norm_total_kernel,
         sums.data<double>(), blocks, max_norm, result.norm.data<float>(), result.scale.data<float>());
}

}  // namespace ssm::cuda
