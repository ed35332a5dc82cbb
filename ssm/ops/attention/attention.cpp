#include "ssm/ops/attention/attention.h"

#include <numeric>

#include "ssm/ops/attention/attention_cpu.h"
#include "ssm/ops/check.h"
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
  SSM_CHECK(!qkv.defined() || !qkv.device().is_cuda(), "{}: it does not run on a card yet", kOp);
  check_first(kOp, "qkv", qkv, {batch.total(), h.width()});
}

void check_cache(const AttentionHeads& h, const SequenceBatch& batch, const KvCache& kv) {
  SSM_CHECK(kv.slots() > batch.max_slot() && kv.heads() == h.kv_heads && kv.head_dim() == h.head_dim,
            "{}: a cache of {} slots, {} heads of {} elements, expected more than {}, {} of {}", kOp,
            kv.slots(), kv.heads(), kv.head_dim(), batch.max_slot(), h.kv_heads, h.head_dim);
}

std::vector<int32_t> slots_of(const SequenceBatch& batch, bool in_order) {
  std::vector<int32_t> slots(static_cast<size_t>(batch.size()));
  std::iota(slots.begin(), slots.end(), 0);
  for (size_t b = 0; !in_order && b < slots.size(); ++b) slots[b] = batch.slot(static_cast<int64_t>(b));
  return slots;
}

}  // namespace

Tensor attention(const Tensor& qkv, const AttentionHeads& heads, const SequenceBatch& batch, KvCache* kv) {
  check_operands(qkv, heads, batch);
  if (kv) check_cache(heads, batch, *kv);
  std::shared_ptr<KvCache> own;  // in the order of the batch
  if (!kv) own = std::make_shared<KvCache>(batch.size(), heads.kv_heads, heads.head_dim);
  KvCache& used = kv ? *kv : *own;
  const std::vector<int32_t> slots = slots_of(batch, kv == nullptr);
  for (int64_t b = 0; b < batch.size(); ++b) used.reserve(slots[static_cast<size_t>(b)], batch.length(b));
  Tensor y = Tensor::empty({batch.total(), heads.heads * heads.head_dim});
  if (!records(qkv)) {
    cpu::attention(qkv, heads, batch, used, slots, y, {});
    return y;
  }
  const Tensor lse = Tensor::empty({batch.total(), heads.heads});
  cpu::attention(qkv, heads, batch, used, slots, y, lse);
  if (kv) {  // a copy shares pages, which never change
    own = std::make_shared<KvCache>(batch.size(), heads.kv_heads, heads.head_dim);
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
  check_activation(kOp, "lse", saved.lse, {batch.total(), heads.heads}, qkv);
  check_activation(kOp, "dqkv", dqkv, qkv.shape(), qkv);
  SSM_CHECK(saved.kv && saved.kv->slots() == batch.size() && saved.kv->heads() == heads.kv_heads &&
                saved.kv->head_dim() == heads.head_dim,
            "{}: the cache is not that of this batch", kOp);
  for (int64_t b = 0; b < batch.size(); ++b) {
    SSM_CHECK(saved.kv->tokens(b) >= batch.length(b), "{}: a cache of {} tokens for a sequence of {}", kOp,
              saved.kv->tokens(b), batch.length(b));
  }
  cpu::attention_backward(qkv, heads, batch, saved, dy, dqkv);
}

}  // namespace ssm
