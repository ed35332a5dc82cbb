#include "ssm/ops/attention/attention_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ssm/core/parallel.h"
#include "ssm/ops/simd/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/attention/attention_cpu.cpp"
#include <hwy/foreach_target.h>
// after foreach_target.h
#include "ssm/ops/simd/math-inl.h"
#include "ssm/ops/simd/matmul-inl.h"

#ifndef SSM_ATTENTION_ROWS
#define SSM_ATTENTION_ROWS
namespace ssm {

inline constexpr int64_t kKeys = KvCache::kPageTokens;

// Queries of one sequence that share a head of keys, in the order of their positions.
struct AttentionRows {
  const KvCache* kv;
  int64_t slot, head;   // of keys
  int64_t rows, group;  // row r stands at position first + r / group
  int64_t first;
  int64_t D, stride;    // of q; of values and sums
  const float* q;       // [rows, D], rotated and scaled
  float* sums;          // [rows, stride]: of weights times values
  float* scores;        // [rows, kKeys]
  float *most, *total;  // [rows]: the greatest score, the sum of exponentials
  float* factor;        // [rows]

  // How many keys of the block from `key` on a row sees.
  int64_t sees(int64_t row, int64_t key) const {
    return std::clamp<int64_t>(first + row / group + 1 - key, 0, kKeys);
  }
};

}  // namespace ssm
#endif

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

// c [R rows, n columns up to whole vectors] = a [R, K] b [K, n], or added to c times `factor` of its row.
template <int R, int W>
HWY_INLINE void product_tile(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t K,
                             const float* factor, bool adds, float* c, int64_t c_row) {
  Tile<W, R> tile;
  if (adds) {
    tile.load(c, c_row);
    if (factor) tile.scale_rows(factor);
  } else {
    tile.zero();
  }
  tile.add_product(a, a_row, 1, b, b_row, K);
  tile.store(c, c_row);
}

template <int R>
HWY_INLINE void product(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t K, int64_t n,
                        const float* factor, bool adds, float* c, int64_t c_row) {
  int64_t i = 0;
  for (; i + kTileVectors * lanes() <= n; i += kTileVectors * lanes())
    product_tile<R, kTileVectors>(a, a_row, b + i, b_row, K, factor, adds, c + i, c_row);
  for (; i < n; i += lanes()) product_tile<R, 1>(a, a_row, b + i, b_row, K, factor, adds, c + i, c_row);
}

// Scores to exponentials: what a row sees of a block are its first n scores; zeros after them up to whole
// vectors.
HWY_INLINE void weigh(const AttentionRows& a, int64_t row, int64_t n) {
  const hn::ScalableTag<float> d;
  float* const s = a.scores + row * kKeys;
  const int64_t all = (n + lanes() - 1) / lanes() * lanes();
  for (int64_t i = n; i < all; ++i) s[i] = -std::numeric_limits<float>::infinity();
  auto greatest = hn::LoadU(d, s);
  for (int64_t i = lanes(); i < all; i += lanes()) greatest = hn::Max(greatest, hn::LoadU(d, s + i));
  const float most = std::max(a.most[row], hn::GetLane(hn::MaxOfLanes(d, greatest)));
  const auto top = hn::Set(d, most);
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < all; i += lanes()) {
    const auto p = exp_f32(d, hn::Sub(hn::LoadU(d, s + i), top));
    hn::StoreU(p, d, s + i);
    sum = hn::Add(sum, p);
  }
  const float factor = hn::GetLane(exp_f32(d, hn::Set(d, a.most[row] - most)));
  a.total[row] = a.total[row] * factor + hn::GetLane(hn::SumOfLanes(d, sum));
  a.most[row] = most;
  a.factor[row] = factor;
}

// R rows from `row` on and the keys from `key` on. What the last row sees and the first does not is added row
// by row: nothing that a row does not see may touch it.
template <int R>
HWY_INLINE void attend(const AttentionRows& a, int64_t row, int64_t key) {
  const int64_t least = a.sees(row, key), most = a.sees(row + R - 1, key);
  if (most == 0) return;
  const float* const keys = a.kv->page(a.slot, key / kKeys, a.head);
  const float* const values = keys + a.D * kKeys;
  float* const scores = a.scores + row * kKeys;
  float* const sums = a.sums + row * a.stride;
  product<R>(a.q + row * a.D, a.D, keys, kKeys, a.D, most, nullptr, false, scores, kKeys);
  for (int r = 0; r < R; ++r) {
    const int64_t n = a.sees(row + r, key);
    if (n > 0)
      weigh(a, row + r, n);
    else
      a.factor[row + r] = 1.0f;
  }
  product<R>(scores, kKeys, values, a.stride, least, a.stride, a.factor + row, true, sums, a.stride);
  for (int r = 0; r < R; ++r) {
    const int64_t n = a.sees(row + r, key);
    if (n > least)
      product<1>(scores + r * kKeys + least, kKeys, values + least * a.stride, a.stride, n - least, a.stride,
                 nullptr, true, sums + r * a.stride, a.stride);
  }
}

void attention_kernel(const AttentionRows& a) {
  const int64_t end = a.first + (a.rows - 1) / a.group + 1;
  for (int64_t key = 0; key < end; key += kKeys) {
    int64_t row = 0;
    for (; row + kTileRows <= a.rows; row += kTileRows) attend<kTileRows>(a, row, key);
    for (; row < a.rows; ++row) attend<1>(a, row, key);
  }
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(attention_kernel);

namespace cpu {
namespace {

constexpr int64_t kRows = 64;                // queries of a task: a block of keys serves them from the cache
constexpr int64_t kPieceProducts = 1 << 18;  // of a piece of work: some ten microseconds

// What a call works on, and its tasks: some tokens of a sequence, one head of keys, all its queries.
struct Call {
  const Tensor &qkv, &y, &lse;
  const AttentionHeads& h;
  const SequenceBatch& batch;
  KvCache& kv;
  std::vector<int64_t> begins;      // position of each sequence's first token
  std::vector<int64_t> first_task;  // B + 1
  int64_t tokens;                   // of a task
  const float* table;

  const float* row(int64_t t) const { return qkv.data<float>() + t * qkv.stride(0); }
  const float* cosines(int64_t t) const { return table + t * (h.rotary_dim / 2); }
  const float* sines(int64_t t) const { return cosines(batch.total() + t); }

  void keep(int64_t b, int64_t i) const;  // the keys and values of token i of sequence b
  void run(int64_t b, int64_t i, int64_t head) const;
  void finish(const AttentionRows& a, int64_t t) const;
};

void Call::keep(int64_t b, int64_t i) const {
  const int64_t t = batch.offset(b) + i, position = begins[static_cast<size_t>(b)] + i, D = h.head_dim;
  float* const key = thread_scratch(D);
  for (int64_t head = 0; head < h.kv_heads; ++head) {
    float* const page = kv.page(batch.slot(b), position / kKeys, head) + position % kKeys;
    rotate(row(t) + key_column(h, head), cosines(t), sines(t), h, 1.0f, false, key);
    for (int64_t d = 0; d < D; ++d) page[d * kKeys] = key[d];
    std::copy_n(row(t) + value_column(h, head), D,
                page - position % kKeys + D * kKeys + position % kKeys * kv.row_stride());
  }
}

void Call::run(int64_t b, int64_t i, int64_t head) const {
  const int64_t D = h.head_dim, group = h.heads / h.kv_heads, t = batch.offset(b) + i;
  AttentionRows a{};
  a.kv = &kv;
  a.slot = batch.slot(b);
  a.head = head;
  a.rows = std::min(tokens, batch.length(b) - i) * group;
  a.group = group;
  a.first = begins[static_cast<size_t>(b)] + i;
  a.D = D;
  a.stride = kv.row_stride();
  const int64_t aligned = (a.rows * D + 15) / 16 * 16;
  float* const q = thread_scratch(aligned + a.rows * (a.stride + kKeys + 3));
  a.q = q;
  a.sums = q + aligned;
  a.scores = a.sums + a.rows * a.stride;
  a.most = a.scores + a.rows * kKeys;
  a.total = a.most + a.rows;
  a.factor = a.total + a.rows;
  const float scale = 1.0f / std::sqrt(static_cast<float>(D));
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t at = t + r / group;
    rotate(row(at) + query_column(h, head * group + r % group), cosines(at), sines(at), h, scale, false,
           q + r * D);
  }
  std::fill_n(a.sums, a.rows * a.stride, 0.0f);
  std::fill_n(a.most, a.rows, -std::numeric_limits<float>::infinity());
  std::fill_n(a.total, a.rows, 0.0f);
  HWY_DYNAMIC_DISPATCH(attention_kernel)(a);
  finish(a, t);
}

void Call::finish(const AttentionRows& a, int64_t t) const {
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t at = t + r / a.group, head = a.head * a.group + r % a.group;
    float* const to = y.data<float>() + at * y.stride(0) + head * a.D;
    const float* const from = a.sums + r * a.stride;
    const float factor = 1.0f / a.total[r];
    for (int64_t d = 0; d < a.D; ++d) to[d] = from[d] * factor;
    if (lse.defined()) lse.data<float>()[at * h.heads + head] = a.most[r] + std::log(a.total[r]);
  }
}

int64_t sequence_of(const std::vector<int64_t>& first, int64_t item) {
  return std::upper_bound(first.begin(), first.end(), item) - first.begin() - 1;
}

}  // namespace

void attention(const Tensor& qkv, const AttentionHeads& h, const SequenceBatch& batch, KvCache& kv,
               const Tensor& y, const Tensor& lse) {
  Call call{qkv, y, lse, h, batch, kv, {}, {0}, std::max<int64_t>(1, kRows * h.kv_heads / h.heads), nullptr};
  int64_t products = 0;
  for (int64_t b = 0; b < batch.size(); ++b) {
    const int64_t begin = kv.tokens(batch.slot(b)), length = batch.length(b);
    call.begins.push_back(begin);
    call.first_task.push_back(call.first_task.back() + (length + call.tokens - 1) / call.tokens * h.kv_heads);
    products += length * (begin + length / 2 + 1) * 2 * h.head_dim * h.heads;
  }
  call.table = rotary_table(h, batch, call.begins);
  parallel_for(batch.total(), std::max<int64_t>(1, 16384 / h.width()), [&](int64_t begin, int64_t end) {
    int64_t b = 0;
    for (int64_t t = begin; t < end; ++t) {
      while (t >= batch.offset(b + 1)) ++b;
      call.keep(b, t - batch.offset(b));
    }
  });
  const int64_t tasks = call.first_task.back();
  const int64_t grain = std::max<int64_t>(1, kPieceProducts / std::max<int64_t>(1, products / tasks));
  parallel_for(tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      // The latest tokens first: they see most, and should not be the last to be done.
      const int64_t b = sequence_of(call.first_task, task);
      const int64_t from_last = call.first_task[static_cast<size_t>(b) + 1] - 1 - task;
      call.run(b, from_last / h.kv_heads * call.tokens, from_last % h.kv_heads);
    }
  });
}

void advance(const Tensor& positions) {
  for (int64_t& position : positions.values<int64_t>()) position += position >= 0 ? 1 : 0;
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
