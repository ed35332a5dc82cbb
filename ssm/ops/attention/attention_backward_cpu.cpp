// One task takes a head of keys of one sequence: for each block of its keys all queries that see any of it,
// so that every sum has one order.
#include <algorithm>
#include <cmath>
#include <vector>

#include "ssm/core/parallel.h"
#include "ssm/ops/attention/attention_cpu.h"
#include "ssm/ops/simd/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/attention/attention_backward_cpu.cpp"
#include <hwy/foreach_target.h>
// after foreach_target.h
#include "ssm/ops/simd/math-inl.h"
#include "ssm/ops/simd/matmul-inl.h"

#ifndef SSM_ATTENTION_BACKWARD_ROWS
#define SSM_ATTENTION_BACKWARD_ROWS
namespace ssm {

inline constexpr int64_t kBlock = KvCache::kPageTokens;  // keys, and queries, at a time

// The queries of a sequence that share a head of keys, filled up with zeros to a multiple of 4 rows; rows of
// `stride` floats, zeros after D.
struct AttentionBackwardRows {
  const KvCache* kv;
  int64_t slot, head, rows, filled, group, first, D, stride;
  const float *q, *dy;       // [filled, stride]; q rotated and scaled
  const float *lse, *along;  // [filled]: along = dy . y
  float* dq;                 // [filled, stride], added to
  float *keys, *values;      // [kBlock, stride], [D, kBlock]: of one block, each the other way round
  float *p, *ds;             // [kBlock queries, kBlock keys]
  float *dk, *dv;            // [kBlock, stride], added to
};

}  // namespace ssm
#endif

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

// c [rows, columns] (+)= a b with a[r, k] at a + r a_row + k a_step; rows a multiple of 4, columns of a
// vector.
HWY_INLINE void block_product(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_row,
                              int64_t K, int64_t rows, int64_t columns, bool adds, float* c, int64_t c_row) {
  for (int64_t r = 0; r < rows; r += kTileRows) {
    for_each_tile(columns, [&](auto tile, int64_t i) HWY_ATTR {
      adds ? tile.load(c + r * c_row + i, c_row) : tile.zero();
      tile.add_product(a + r * a_row, a_row, a_step, b + i, b_row, K);
      tile.store(c + r * c_row + i, c_row);
    });
  }
}

// p = exp(s - lse) where the key is seen, ds = p (dp - along); both overwrite s and dp.
HWY_INLINE void weigh_back(const AttentionBackwardRows& a, int64_t row, int64_t count, int64_t key) {
  const hn::ScalableTag<float> d;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t at = row + r;
    const int64_t n = at < a.rows ? std::clamp<int64_t>(a.first + at / a.group + 1 - key, 0, kBlock) : 0;
    const auto lse = hn::Set(d, a.lse[at]), along = hn::Set(d, a.along[at]);
    float *const p = a.p + r * kBlock, *const ds = a.ds + r * kBlock;
    for (int64_t i = 0; i < n; i += lanes()) {
      const auto weight = exp_f32(d, hn::Sub(hn::LoadU(d, p + i), lse));
      hn::StoreU(weight, d, p + i);
      hn::StoreU(hn::Mul(weight, hn::Sub(hn::LoadU(d, ds + i), along)), d, ds + i);
    }
    std::fill(p + n, p + kBlock, 0.0f);
    std::fill(ds + n, ds + kBlock, 0.0f);
  }
}

// The block of keys from `key` on.
void attention_backward_kernel(const AttentionBackwardRows& a, int64_t key) {
  const float* const page = a.kv->page(a.slot, key / kBlock, a.head);
  const float* const values = page + a.D * kBlock;
  for (int64_t d = 0; d < a.D; ++d) {
    for (int64_t k = 0; k < kBlock; ++k) {
      a.keys[k * a.stride + d] = page[d * kBlock + k];
      a.values[d * kBlock + k] = values[k * a.stride + d];
    }
  }
  const int64_t earliest = std::max<int64_t>(0, key - a.first) * a.group;  // row that sees any of it
  for (int64_t row = earliest / kTileRows * kTileRows; row < a.filled; row += kBlock) {
    const int64_t count = std::min(kBlock, a.filled - row);
    const float *const q = a.q + row * a.stride, *const dy = a.dy + row * a.stride;
    block_product(q, a.stride, 1, page, kBlock, a.D, count, kBlock, false, a.p, kBlock);
    block_product(dy, a.stride, 1, a.values, kBlock, a.D, count, kBlock, false, a.ds, kBlock);
    weigh_back(a, row, count, key);
    block_product(a.ds, kBlock, 1, a.keys, a.stride, kBlock, count, a.stride, true, a.dq + row * a.stride,
                  a.stride);
    block_product(a.p, 1, kBlock, dy, a.stride, count, kBlock, a.stride, true, a.dv, a.stride);
    block_product(a.ds, 1, kBlock, q, a.stride, count, kBlock, a.stride, true, a.dk, a.stride);
  }
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(attention_backward_kernel);

namespace cpu {
namespace {

struct BackwardCall {
  const Tensor& qkv;
  const AttentionHeads& h;
  const SequenceBatch& batch;
  const AttentionSaved& saved;
  const Tensor &dy, &dqkv;
  const float* table;

  const float* cosines(int64_t t) const { return table + t * (h.rotary_dim / 2); }
  const float* sines(int64_t t) const { return cosines(batch.total() + t); }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(h.head_dim)); }

  void run(int64_t b, int64_t head) const;
  void fill_rows(AttentionBackwardRows& a, int64_t offset, float* q, float* dys, float* lse,
                 float* along) const;
  void write_keys(const AttentionBackwardRows& a, int64_t b, int64_t key) const;
  void write_queries(const AttentionBackwardRows& a, int64_t offset) const;
};

void BackwardCall::fill_rows(AttentionBackwardRows& a, int64_t offset, float* q, float* dys, float* lse,
                             float* along) const {
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t t = offset + r / a.group, head = a.head * a.group + r % a.group;
    rotate(qkv.data<float>() + t * qkv.stride(0) + query_column(h, head), cosines(t), sines(t), h, scale(),
           false, q + r * a.stride);
    const float* const g = dy.data<float>() + t * dy.stride(0) + head * a.D;
    const float* const y = saved.y.data<float>() + t * saved.y.stride(0) + head * a.D;
    std::copy_n(g, a.D, dys + r * a.stride);
    double sum = 0;
    for (int64_t d = 0; d < a.D; ++d) sum += static_cast<double>(g[d]) * static_cast<double>(y[d]);
    along[r] = static_cast<float>(sum);
    lse[r] = saved.lse.data<float>()[t * saved.lse.stride(0) + head];
  }
}

// Of those keys and values of a block that are the batch's own.
void BackwardCall::write_keys(const AttentionBackwardRows& a, int64_t b, int64_t key) const {
  for (int64_t k = 0; k < kBlock; ++k) {
    const int64_t i = key + k - a.first;
    if (i < 0 || i >= batch.length(b)) continue;
    const int64_t t = batch.offset(b) + i;
    float* const row = dqkv.data<float>() + t * dqkv.stride(0);
    rotate(a.dk + k * a.stride, cosines(t), sines(t), h, 1.0f, true, row + key_column(h, a.head));
    std::copy_n(a.dv + k * a.stride, a.D, row + value_column(h, a.head));
  }
}

void BackwardCall::write_queries(const AttentionBackwardRows& a, int64_t offset) const {
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t t = offset + r / a.group;
    rotate(a.dq + r * a.stride, cosines(t), sines(t), h, scale(), true,
           dqkv.data<float>() + t * dqkv.stride(0) + query_column(h, a.head * a.group + r % a.group));
  }
}

void BackwardCall::run(int64_t b, int64_t head) const {
  const KvCache& kv = *saved.kv;
  AttentionBackwardRows a{};
  a.kv = &kv;
  a.slot = b;
  a.head = head;
  a.group = h.heads / h.kv_heads;
  a.rows = batch.length(b) * a.group;
  a.filled = (a.rows + 3) / 4 * 4;
  a.first = kv.tokens(b) - batch.length(b);
  a.D = h.head_dim;
  a.stride = kv.row_stride();
  const int64_t big = a.filled * a.stride, block = kBlock * a.stride;
  const int64_t floats = 3 * big + 2 * a.filled + 4 * block + 2 * kBlock * kBlock;
  float* next = thread_scratch(floats);
  std::fill_n(next, floats, 0.0f);
  const auto take = [&](int64_t n) { return std::exchange(next, next + n); };
  float *const q = take(big), *const dys = take(big), *const dq = take(big);
  a.keys = take(block), a.values = take(block), a.dk = take(block), a.dv = take(block);
  a.p = take(kBlock * kBlock), a.ds = take(kBlock * kBlock);
  float *const lse = take(a.filled), *const along = take(a.filled);
  a.q = q, a.dy = dys, a.dq = dq, a.lse = lse, a.along = along;
  fill_rows(a, batch.offset(b), q, dys, lse, along);
  for (int64_t key = 0; key < kv.tokens(b); key += kBlock) {
    std::fill_n(a.dk, 2 * block, 0.0f);  // and dv, which lies behind it
    HWY_DYNAMIC_DISPATCH(attention_backward_kernel)(a, key);
    write_keys(a, b, key);
  }
  write_queries(a, batch.offset(b));
}

}  // namespace

void attention_backward(const Tensor& qkv, const AttentionHeads& h, const SequenceBatch& batch,
                        const AttentionSaved& saved, const Tensor& dy, const Tensor& dqkv) {
  std::vector<int64_t> begins;
  for (int64_t b = 0; b < batch.size(); ++b) begins.push_back(saved.kv->tokens(b) - batch.length(b));
  const BackwardCall call{qkv, h, batch, saved, dy, dqkv, rotary_table(h, batch, begins)};
  parallel_for(batch.size() * h.kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) call.run(task / h.kv_heads, task % h.kv_heads);
  });
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
