#include "ssm/models/mixer.h"

namespace ssm {
namespace {

Tensor clone_of(const Tensor& t) { return t.defined() ? t.clone() : Tensor(); }

}  // namespace

MixerState MixerState::clone() const {
  return {.conv = clone_of(conv), .ssm = clone_of(ssm), .kv = kv ? std::make_shared<KvCache>(*kv) : nullptr};
}

void MixerState::clear(int64_t slot) const {
  for_each([&](std::string_view, const Tensor& t) {
    const Tensor row = t.select(0, slot);
    zero_bytes(row.raw(), row.device(), row.bytes());
  });
  if (kv) kv->clear(slot);
}

void MixerState::copy_slot(int64_t slot, const MixerState& from, int64_t from_slot) const {
  const auto copy = [&](const Tensor& to, const Tensor& source) {
    if (!to.defined() || to.numel() == 0) return;  // a convolution of width 1 keeps nothing
    const Tensor a = source.select(0, from_slot), b = to.select(0, slot);
    copy_bytes(b.raw(), b.device(), a.raw(), a.device(), a.bytes());
  };
  copy(conv, from.conv);
  copy(ssm, from.ssm);
  if (kv) kv->copy(slot, *from.kv, from_slot);
}

}  // namespace ssm
