// attention: causal attention with grouped queries and rotary positions (Vaswani et al. 2017; Shazeer 2019;
// Su et al. 2021). A token at position p of its text sees the keys of positions 0 .. p:
//
//   y[p, h] = sum_j w[j] v[j, h / G],  w = softmax_j(k[j, h / G] . q[p, h] / sqrt(D)),  G = H / Hk
//
// q and k are rotated first: of their D elements the first `rotary_dim` R, in pairs (i, i + R / 2) by the
// angle p base^(-2 i / R) (GPT-NeoX's halves).
//
//   qkv [T, (H + 2 Hk) D]  f32, on a card also bf16 or f16, rows contiguous (a row stride is allowed): the H
//                          queries, then the Hk keys, then the Hk values; or where `by_head` (H == Hk) query,
//                          key and value of each head in turn
//   kv                     what was read of each slot's text before: it goes on at position
//                          kv->tokens(slot), and its new keys and values are added. Null: every sequence
//                          starts at 0 and nothing is kept
//   y   [T, H D]           of qkv's type
//
// On a CPU a row's result does not depend on the batch, the threads or how a text is split over calls, bit
// for bit: keys are taken in blocks of KvCache::kPageTokens from the text's beginning, with a running maximum
// and sum. On a card (docs/numerics.md) keys and values are kept in qkv's type, and D is at most 256. Of
// steps whose batch has positions() the caller reserves and counts the tokens.
//
// Errors: a shape that does not fit, by name; a cache of other heads or of another type; past the cache's
// budget, before anything has changed.
#pragma once

#include <memory>

#include "ssm/core/tensor.h"
#include "ssm/ops/attention/kv_cache.h"
#include "ssm/ops/sequence_batch.h"

namespace ssm {

struct AttentionHeads {
  int64_t heads, kv_heads, head_dim;  // H, Hk, D
  int64_t rotary_dim = 0;             // even, at most D; 0: no positions
  double rotary_base = 10000;
  bool by_head = false;

  int64_t width() const { return (heads + 2 * kv_heads) * head_dim; }  // of a row of qkv
};

Tensor attention(const Tensor& qkv, const AttentionHeads& heads, const SequenceBatch& batch, KvCache* kv);

// The gradient of qkv for dy [T, H D], from y and `lse` [T, H] f32 (the logarithm of each row's sum of
// exponentials). With P the weights and s = q . k / sqrt(D) (Dao et al. 2022, "FlashAttention", appendix
// B.2):
//
//   dv[j] = sum P[., j] dy      ds = P (dy . v - dy . y)      dq = sum_j ds k[j] / sqrt(D)
//   dk[j] = sum ds q / sqrt(D)
//
// turned back by the rotation. `kv` holds in slot b all of what sequence b of the batch saw, its own tokens
// last; nothing flows to what came before them. dqkv [T, (H + 2 Hk) D] is overwritten. Its bits do not depend
// on the threads or on the other sequences.
struct AttentionSaved {
  Tensor y, lse;
  std::shared_ptr<const KvCache> kv;
};
void attention_backward(const Tensor& qkv, const AttentionHeads& heads, const SequenceBatch& batch,
                        const AttentionSaved& saved, const Tensor& dy, const Tensor& dqkv);

// One more for each position of steps that a card replays (SequenceBatch::positions); negative ones stay.
void advance(const Tensor& positions);

}  // namespace ssm
