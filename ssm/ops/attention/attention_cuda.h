// Attention on a card: f32, bf16 and f16, heads of up to 256 elements.
#pragma once

#include "ssm/ops/attention/attention.h"

namespace ssm::cuda {

// `kv` has room for the batch's tokens, which are written there. lse may be undefined.
void attention(const Tensor& qkv, const AttentionHeads& heads, const SequenceBatch& batch, KvCache& kv,
               const Tensor& y, const Tensor& lse);
// Sequence b of the batch is slot b of the saved cache.
void attention_backward(const Tensor& qkv, const AttentionHeads& heads, const SequenceBatch& batch,
                        const AttentionSaved& saved, const Tensor& dy, const Tensor& dqkv);
void advance(const Tensor& positions);

}  // namespace ssm::cuda
