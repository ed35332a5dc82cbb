#include "ssm/ops/attention/attention.h"

#include <vector>

#include "ssm/ops/attention/attention_cpu.h"
#include "ssm/ops/attention/attention_cuda.h"
#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/gradient.h"

namespace ssm {
namespace {

constexpr std::string_view kOp = "attention";

void check_operands(const Tensor& qkv, const AttentionHeads& h, const SequenceBatch& batch) {
  SSM_CHECK(h.kv_heads >= 1 && h.heads >= 1 && h.heads % h.kv_heads == 0 && h.head_dim >= 1,
            "{}: {} heads of {} elements with {} of keys", kOp, h.heads, h.head_dim, h.kv_heads);
  SSM_CHECK(!h.by_head || h.heads == h.kv_heads, "{}: {} heads and {} of keys lie head by head", kOp, h.heads,
            h.kv_heads);
  SSM_CHECK(h.rotary_dim >= 0 && h.rotary_dim <= h.head_dim && h.rotary_dim % 2 == 0 && h.rotary_base > 0,
            "{}: {} of {} elements are rotated, base {}", kOp, h.rotary_dim, h.head_dim, h.rotary_base);
  check_first(kOp, "qkv", qkv, {batch.total(), h.width()});
}

void check_cache(const AttentionHeads& h, const SequenceBatch& batch, const KvCache& kv) {
  SSM_CHECK(kv.slots() > batch.max_slot() && kv.heads() == h.kv_heads && kv.head_dim() == h.head_dim,
            "{}: a cache of {} slots, {} heads of {} elements, expected more than {}, {} of {}", kOp,
            kv.slots(), kv.heads(), kv.head_dim(), batch.max_slot(), h.kv_heads, h.head_dim);
}

// The same lengths in slots 0, 1, 2, ...
SequenceBatch in_order(const SequenceBatch& batch) {
  std::vector<int64_t> lengths;
  for (int64_t b = 0; b < batch.size(); ++b) lengths.push_back(batch.length(b));
  return SequenceBatch::in_order(lengths);
}

}  // namespace

Tensor attention(const Tensor& qkv, const AttentionHeads& heads, const SequenceBatch& batch, KvCache* kv) {
  check_operands(qkv, heads, batch);
  if (kv) check_cache(heads, batch, *kv);
  const KvStorage storage{qkv.device(), qkv.dtype()};
  const auto cache_of_batch = [&] {
    return std::make_shared<KvCache>(batch.size(), heads.kv_heads, heads.head_dim, nullptr, storage);
  };
  std::shared_ptr<KvCache> own;  // in the order of the batch
  if (!kv) own = cache_of_batch();
  KvCache& used = kv ? *kv : *own;
  const SequenceBatch sequences = kv ? batch : in_order(batch);
  const bool counted = !batch.positions().defined();
  for (int64_t b = 0; counted && b < batch.size(); ++b) used.reserve(sequences.slot(b), batch.length(b));
  Tensor y = Tensor::empty({batch.total(), heads.heads * heads.head_dim}, qkv.dtype(), qkv.device());
  const bool recorded = records(qkv);
  const Tensor lse =
      recorded ? Tensor::empty({batch.total(), heads.heads}, DType::f32, qkv.device()) : Tensor();
  SSM_DISPATCH(qkv.device(), attention(qkv, heads, sequences, used, y, lse));
  for (int64_t b = 0; counted && b < batch.size(); ++b) used.added(sequences.slot(b), batch.length(b));
  if (!recorded) return y;
  if (kv) {  // a copy shares pages, which never change
    own = cache_of_batch();
    for (int64_t b = 0; b < batch.size(); ++b) own->copy(b, *kv, batch.slot(b));
  }
  return record(y, [qkv, heads, batch, saved = AttentionSaved{y, lse, own}](const Tensor& dy) {
    const OverwrittenGradient dqkv(qkv);
    attention_backward(qkv, heads, batch, saved, dy, dqkv.tensor());
  });
}

void attention_backward(const Tensor& qkv, const AttentionHeads& heads, const SequenceBatch& batch,
                        const AttentionSaved& saved, const Tensor& dy, const Tensor& dqkv) {
  check_operands(qkv, heads, batch);
  const Shape rows{batch.total(), heads.heads * heads.head_dim};
  check_activation(kOp, "y", saved.y, rows, qkv);
  check_activation(kOp, "dy", dy, rows, qkv);
  check_parameter(kOp, "lse", saved.lse, {batch.total(), heads.heads}, qkv);
  check_activation(kOp, "dqkv", dqkv, qkv.shape(), qkv);
  SSM_CHECK(saved.kv && saved.kv->slots() == batch.size() && saved.kv->heads() == heads.kv_heads &&
                saved.kv->head_dim() == heads.head_dim,
            "{}: the cache is not that of this batch", kOp);
  for (int64_t b = 0; b < batch.size(); ++b) {
    SSM_CHECK(saved.kv->tokens(b) >= batch.length(b), "{}: a cache of {} tokens for a sequence of {}", kOp,
              saved.kv->tokens(b), batch.length(b));
  }
  SSM_DISPATCH(qkv.device(), attention_backward(qkv, heads, in_order(batch), saved, dy, dqkv));
}

void advance(const Tensor& positions) {
  SSM_CHECK(positions.defined() && positions.rank() == 1 && positions.dtype() == DType::i64,
            "advance: positions have shape {}, expected i64 [B]", positions.shape());
  SSM_DISPATCH(positions.device(), advance(positions));
}

}  // namespace ssm
