#pragma once

#include <span>

#include "ssm/ops/attention/attention.h"

namespace ssm::cpu {

// Cosines, then sines, [T, rotary_dim / 2] each, of the positions of a batch's tokens; sequence b begins at
// `begins[b]`. In the calling thread's SharedScratch.
const float* rotary_table(const AttentionHeads& heads, const SequenceBatch& batch,
                          std::span<const int64_t> begins);
// x [D] turned by the angles of one token, times `scale`; `back` turns the other way. to may be x.
void rotate(const float* x, const float* cosines, const float* sines, const AttentionHeads& heads,
            float scale, bool back, float* to);
// The column of qkv at which a head's query, key or value begins.
int64_t query_column(const AttentionHeads& heads, int64_t head);
int64_t key_column(const AttentionHeads& heads, int64_t head);
int64_t value_column(const AttentionHeads& heads, int64_t head);

// The cache has room for the batch's tokens, which are written there. lse may be undefined.
void attention(const Tensor& qkv, const AttentionHeads& heads, const SequenceBatch& batch, KvCache& kv,
               const Tensor& y, const Tensor& lse);
// Sequence b of the batch is slot b of the saved cache.
void attention_backward(const Tensor& qkv, const AttentionHeads& heads, const SequenceBatch& batch,
                        const AttentionSaved& saved, const Tensor& dy, const Tensor& dqkv);
void advance(const Tensor& positions);

}  // namespace ssm::cpu
