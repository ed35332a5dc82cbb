// Random attention for tests.
#pragma once

#include "ssm/autograd/tape.h"
#include "ssm/ops/attention/attention_reference.h"
#include "ssm/ops/test_util.h"

namespace ssm::test {

inline AttentionHeads random_heads(Rng& rng) {
  AttentionHeads h{};
  h.by_head = rng.below(3) == 0;
  h.kv_heads = 1 + rng.below(3);
  h.heads = h.by_head ? h.kv_heads : h.kv_heads * (1 + rng.below(3));
  h.head_dim = 1 + rng.below(rng.below(4) ? 40 : 140);
  h.rotary_dim = rng.below(3) ? rng.below(h.head_dim / 2 + 1) * 2 : 0;
  if (rng.below(2)) h.rotary_base = 100 + static_cast<double>(rng.below(100000));
  return h;
}

// A ragged batch over permuted slots, of texts of which some begin before it.
struct AttentionCase {
  AttentionHeads h;
  int64_t slots, T = 0;
  std::vector<int64_t> lengths, before;
  std::vector<int32_t> slot;
  std::vector<Tensor> past;  // qkv rows that were read before
  Tensor qkv;

  explicit AttentionCase(Rng& rng, int64_t longest = 150) : h(random_heads(rng)) {
    const int64_t B = 1 + rng.below(4);
    slots = B + rng.below(3);
    slot = slots_in_any_order(B, slots, rng);
    for (int64_t b = 0; b < B; ++b) {
      lengths.push_back(1 + rng.below(rng.below(2) ? 4 : longest));
      before.push_back(rng.below(2) ? rng.below(longest) : 0);
      T += lengths.back();
      past.push_back(before.back() ? random_normal({before.back(), h.width()}, rng, 1.5f) : Tensor());
    }
    const int64_t left = rng.below(2) ? rng.below(9) : 0;
    qkv = random_normal({T, left + h.width()}, rng, 1.5f).slice(1, left, left + h.width());
  }

  SequenceBatch batch() const { return SequenceBatch(lengths, slot); }
  Tensor rows(const Tensor& t, size_t b) const {
    const SequenceBatch all = batch();
    return t.slice(0, all.offset(static_cast<int64_t>(b)), all.offset(static_cast<int64_t>(b) + 1));
  }
  // A cache that has read the past, rounded to `storage`'s type.
  KvCache cache(KvStorage storage = {}) const {
    KvCache kv(slots, h.kv_heads, h.head_dim, nullptr, storage);
    for (size_t b = 0; b < past.size(); ++b) {
      if (!before[b]) continue;
      attention(past[b].to(storage.dtype).to(storage.device), h, SequenceBatch::single(before[b], slot[b]),
                &kv);
    }
    return kv;
  }
  reference::KeysAndValues<double> reference_past(size_t b, DType dtype = DType::f32) const {
    reference::KeysAndValues<double> kv;
    if (before[b]) reference::attention(to_doubles(past[b].to(dtype).to(DType::f32)), h, kv);
    return kv;
  }
  std::string name() const {
    return fmt::format("H {} Hk {} D {} R {} by head {} lengths {} before {}", h.heads, h.kv_heads,
                       h.head_dim, h.rotary_dim, h.by_head, fmt::join(lengths, ","), fmt::join(before, ","));
  }
};

// Keys, then values of a slot.
inline std::vector<float> contents(const KvCache& kv, int64_t slot) {
  const auto each = static_cast<size_t>(kv.tokens(slot) * kv.heads() * kv.head_dim());
  std::vector<float> all(2 * each);
  kv.read(slot, all.data(), all.data() + each);
  return all;
}

// The gradient that the tape gives, over a batch whose texts begin with `past`.
inline Tensor attention_gradient(const AttentionHeads& h, const Tensor& qkv,
                                 const std::vector<int64_t>& lengths, const std::vector<Tensor>& past,
                                 const Tensor& dy) {
  KvCache kv(std::ssize(lengths), h.kv_heads, h.head_dim, nullptr, {qkv.device(), qkv.dtype()});
  bool kept = false;
  for (size_t b = 0; b < past.size(); ++b) {
    if (!past[b].defined()) continue;
    attention(past[b], h, SequenceBatch::single(past[b].size(0), static_cast<int32_t>(b)), &kv);
    kept = true;
  }
  Tensor x = qkv;
  watch(x, x.dtype());
  Tape tape;
  Tensor y;
  {
    const RecordScope recording(&tape);
    y = attention(x, h, SequenceBatch::in_order(lengths), kept ? &kv : nullptr);
  }
  for (int64_t b = 0; b < kv.slots(); ++b) kv.clear(b);  // the tape has its own
  tape.backward(y, dy);
  return gradient_of(x);
}

}  // namespace ssm::test
