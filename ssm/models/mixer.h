// Mixer: the part of a layer that looks along time. A model family is a config and a list of mixers.
#pragma once

#include <memory>
#include <string_view>
#include <utility>

#include "ssm/nn/modules.h"
#include "ssm/nn/visitor.h"
#include "ssm/ops/attention/kv_cache.h"
#include "ssm/ops/sequence_batch.h"

namespace ssm {

// One layer's state: what a mixer has no use for is undefined. Dimension 0 of every tensor is the slot.
struct MixerState {
  // [S, K - 1, C] f32: the last inputs of the convolution, newest last.
  Tensor conv = {};
  // Mamba-1: [S, N, E]; Mamba-2: [S, H, N, P]; f32, or 16 bits where StateOptions ask for it.
  Tensor ssm = {};
  std::shared_ptr<KvCache> kv = nullptr;  // attention's keys and values: what alone grows with a text

  template <class F>
  void for_each(F&& f) const {  // f(name, tensor), of those there are
    if (conv.defined()) f(std::string_view("conv"), conv);
    if (ssm.defined()) f(std::string_view("ssm"), ssm);
  }
  MixerState clone() const;
  void clear(int64_t slot) const;  // as before a text
  // A slot of another of the same model on the same device.
  void copy_slot(int64_t slot, const MixerState& from, int64_t from_slot) const;
};

struct StateOptions {
  Device device = kCpu;
  DType ssm = DType::f32;                         // how the SSM state is stored
  std::shared_ptr<KvBudget> kv_budget = nullptr;  // of attention's keys and values; null: no bound
};

class Mixer {
 public:
  virtual ~Mixer() = default;

  // x [T, M] -> [T, M]; `state` is read and updated in place at the batch's slots. An empty state: every
  // sequence starts from zeros and nothing is kept. Decode is the same call with sequences of one token.
  // A caller that moves x in has its memory back as soon as x was read.
  Tensor forward(Tensor x, const SequenceBatch& batch, const MixerState& state) const {
    Tensor projected = in_proj()(x);
    x = {};
    return out_proj()(mix(std::move(projected), batch, state));
  }
  // Its parts: what the in-projection gives becomes what the out-projection reads.
  virtual const nn::Linear& in_proj() const = 0;
  virtual Tensor mix(Tensor projected, const SequenceBatch& batch, const MixerState& state) const = 0;
  virtual const nn::Linear& out_proj() const = 0;
  // A decode step of the whole layer in a few kernels: residual [T, M] f32 += forward(norm(residual)). Where
  // there is no such way, nothing happens and the answer is false.
  virtual bool step(const Tensor& /*residual*/, const nn::RmsNorm& /*norm*/, const SequenceBatch& /*batch*/,
                    const MixerState& /*state*/) const {
    return false;
  }
  virtual MixerState make_state(int64_t slots, StateOptions options) const = 0;  // zeros
  virtual bool attends() const { return false; }
  virtual void visit(nn::Visitor& v) = 0;
  virtual void prepare() = 0;  // after the parameters were set: what is derived from them
};

}  // namespace ssm
