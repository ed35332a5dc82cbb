// Mixer: the part of a layer that looks along time. A model family is a config and a list of mixers.
#pragma once

#include <string_view>

#include "ssm/nn/modules.h"
#include "ssm/nn/visitor.h"
#include "ssm/ops/sequence_batch.h"

namespace ssm {

// One layer's recurrent state; dimension 0 of every tensor is the slot.
struct MixerState {
  Tensor conv;  // [S, K - 1, C] f32: the last inputs of the convolution, newest last
  Tensor ssm;   // Mamba-1: [S, N, E]; Mamba-2: [S, H, N, P]; f32, or 16 bits where StateOptions ask for it

  template <class F>
  void for_each(F&& f) const {  // f(name, tensor)
    f(std::string_view("conv"), conv);
    f(std::string_view("ssm"), ssm);
  }
  template <class F>
  void for_each_with(const MixerState& other, F&& f) const {  // f(tensor, other's)
    f(conv, other.conv);
    f(ssm, other.ssm);
  }
  MixerState clone() const {
    return conv.defined() ? MixerState{.conv = conv.clone(), .ssm = ssm.clone()} : MixerState{};
  }
};

struct StateOptions {
  Device device = kCpu;
  DType ssm = DType::f32;  // how the SSM state is stored
};

class Mixer {
 public:
  virtual ~Mixer() = default;

  // x [T, M] -> [T, M]; `state` is read and updated in place at the batch's slots. An empty state: every
  // sequence starts from zeros and nothing is kept. Decode is the same call with sequences of one token.
  // A caller that moves x in has its memory back as soon as x was read.
  virtual Tensor forward(Tensor x, const SequenceBatch& batch, const MixerState& state) const = 0;
  // A decode step of the whole layer in a few kernels: residual [T, M] f32 += forward(norm(residual)). Where
  // there is no such way, nothing happens and the answer is false.
  virtual bool step(const Tensor& /*residual*/, const nn::RmsNorm& /*norm*/, const SequenceBatch& /*batch*/,
                    const MixerState& /*state*/) const {
    return false;
  }
  virtual MixerState make_state(int64_t slots, StateOptions options) const = 0;  // zeros
  virtual void visit(nn::Visitor& v) = 0;
  virtual void prepare() = 0;  // after the parameters were set: what is derived from them
};

}  // namespace ssm
