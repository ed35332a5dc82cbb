// What a call of attention does on a card, and the kernel that rotates queries and brings new keys and values
// to their pages.
#include "ssm/ops/attention/attention_cuda.h"

#include <cmath>
#include <numbers>
#include <vector>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/attention/attention_cuda.cuh"

namespace ssm::cuda {
namespace {

constexpr std::string_view kOp = "attention";
constexpr int kThreads = 256;

// A block has a token; its key and value are written where `append`.
template <class T>
__global__ void __launch_bounds__(kThreads)
    rotate_kernel(const AttentionOperands a, const __grid_constant__ Rotary rotary, bool append) {
  __shared__ float2 turns[kMaxHeadDim / 2];
  grid_dependency_wait();
  let_next_start();
  const int64_t t = blockIdx.x;
  const int64_t b = sequence_of(a.batch, t);
  const int64_t slot = a.batch.slots[b], position = a.begins[b] + t - a.batch.offsets[b];
  for (int i = threadIdx.x; i < rotary.half; i += kThreads) turns[i] = cosine_and_sine(rotary, position, i);
  __syncthreads();
  const T* const row = static_cast<const T*>(a.qkv) + t * a.qkv_stride;
  T* const queries = static_cast<T*>(a.q) + t * a.heads * a.stride;
  for (int i = threadIdx.x; i < a.heads * a.stride; i += kThreads) {
    const int head = i / a.stride, d = i % a.stride;
    queries[i] = from_f32<T>(d < a.D ? rotated(row + a.query_column(head), d, rotary.half, turns) : 0.0f);
  }
  for (int i = threadIdx.x; append && i < a.kv_heads * a.D; i += kThreads) {
    const int head = i / a.D, d = i % a.D;
    T* const page = a.page<T>(slot, position / kPageTokens, head);
    if (!page) continue;
    T* const key = page + position % kPageTokens * a.stride + d;
    *key = from_f32<T>(rotated(row + a.key_column(head), d, rotary.half, turns));
    key[kPageTokens * a.stride] = row[a.value_column(head) + d];
  }
}

__global__ void advance_kernel(int64_t* positions, int64_t n) {
  grid_dependency_wait();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n && positions[i] >= 0) ++positions[i];
}

Rotary rotary_of(const AttentionHeads& heads) {
  Rotary rotary{.half = static_cast<int>(heads.rotary_dim / 2), .turns = {}};
  for (int i = 0; i < rotary.half; ++i)
    rotary.turns[i] = std::pow(heads.rotary_base, -2.0 * i / static_cast<double>(heads.rotary_dim)) /
                      (2 * std::numbers::pi);
  return rotary;
}

// Without q, y, lse and begins.
AttentionOperands operands(const Tensor& qkv, const AttentionHeads& heads, const SequenceBatch& batch,
                           const KvCache& kv) {
  SSM_CHECK(heads.head_dim <= kMaxHeadDim, "{}: heads of {} elements, at most {} on a card", kOp,
            heads.head_dim, kMaxHeadDim);
  const KvStorage expected{qkv.device(), qkv.dtype()};
  SSM_CHECK(kv.storage() == expected, "{}: the cache keeps {} on {}, qkv is {} on {}", kOp,
            name_of(kv.storage().dtype), name_of(kv.storage().device), name_of(qkv.dtype()),
            name_of(qkv.device()));
  return {.qkv = qkv.raw(),
          .qkv_stride = qkv.stride(0),
          .q = nullptr,
          .y = nullptr,
          .y_stride = 0,
          .lse = nullptr,
          .begins = nullptr,
          .batch = view_of(batch, qkv.device()),
          .table = kv.table(),
          .heads = static_cast<int>(heads.heads),
          .kv_heads = static_cast<int>(heads.kv_heads),
          .D = static_cast<int>(heads.head_dim),
          .stride = static_cast<int>(kv.row_stride()),
          .by_head = heads.by_head,
          .scale = kLog2e / std::sqrt(static_cast<float>(heads.head_dim))};
}

Tensor rotated_queries(const Tensor& qkv, const AttentionHeads& heads, const SequenceBatch& batch,
                       const KvCache& kv) {
  return Tensor::empty({batch.total(), heads.heads, kv.row_stride()}, qkv.dtype(), qkv.device());
}

void rotate(const AttentionOperands& a, const Rotary& rotary, DType type, bool append) {
  dispatch(type, kOp, [&](auto zero) {
    launch({.grid = dim3(static_cast<unsigned>(a.batch.total)),
            .block = dim3(kThreads),
            .overlaps_previous = true},
           rotate_kernel<decltype(zero)>, a, rotary, append);
  });
}

}  // namespace

void attention(const Tensor& qkv, const AttentionHeads& heads, const SequenceBatch& batch, KvCache& kv,
               const Tensor& y, const Tensor& lse) {
  const bool steps = batch.is_step() && !lse.defined();
  const Tensor q = steps ? Tensor() : rotated_queries(qkv, heads, batch, kv),
               begins = kv.begins_on_device(batch);
  AttentionOperands a = operands(qkv, heads, batch, kv);
  a.q = q.defined() ? q.raw() : nullptr;
  a.y = y.raw();
  a.y_stride = y.stride(0);
  a.lse = lse.defined() ? lse.data<float>() : nullptr;
  a.begins = begins.data<int64_t>();
  const Rotary rotary = rotary_of(heads);
  if (steps) return attention_step(a, rotary, qkv.dtype(), kv);
  rotate(a, rotary, qkv.dtype(), true);
  if (qkv.dtype() == DType::f32) return attention_rows(a);
  attention_matrix(a, qkv.dtype());
}

void attention_backward(const Tensor& qkv, const AttentionHeads& heads, const SequenceBatch& batch,
                        const AttentionSaved& saved, const Tensor& dy, const Tensor& dqkv) {
  std::vector<int64_t> before;
  for (int64_t b = 0; b < batch.size(); ++b) before.push_back(saved.kv->tokens(b) - batch.length(b));
  const Tensor q = rotated_queries(qkv, heads, batch, *saved.kv);
  const Tensor begins = Tensor::from_values<int64_t>(before, {batch.size()}).to(qkv.device());
  AttentionOperands a = operands(qkv, heads, batch, *saved.kv);
  a.q = q.raw();
  a.y = saved.y.raw();
  a.y_stride = saved.y.stride(0);
  a.lse = saved.lse.data<float>();
  a.begins = begins.data<int64_t>();
  const Rotary rotary = rotary_of(heads);
  rotate(a, rotary, qkv.dtype(), false);
  attention_gradients(a, rotary, dy, dqkv);
}

void advance(const Tensor& positions) {
  constexpr unsigned kBlock = 128;
  const auto n = static_cast<unsigned>(positions.numel());
  launch({.grid = dim3((n + kBlock - 1) / kBlock), .block = dim3(kBlock), .overlaps_previous = true},
         advance_kernel, positions.data<int64_t>(), positions.numel());
}

}  // namespace ssm::cuda
