// The model and its states as Python holds them.
#pragma once

#include <nanobind/stl/shared_ptr.h>

#include <memory>

#include "python/src/arrays.h"
#include "ssm/load/load_model.h"
#include "ssm/runtime/state_pool.h"

namespace ssm::python {

struct Model : LoadedModel {
  explicit Model(LoadedModel loaded) : LoadedModel(std::move(loaded)) {}
  mutable Arena arena;  // of activations: warm from one call to the next
};
using ModelPtr = std::shared_ptr<Model>;

// The states of a batch of sequences, one slot each, all in use.
class State {
 public:
  State(ModelPtr model, int64_t slots);

  int64_t slots() const { return pool_.capacity(); }
  int64_t layers() const { return std::ssize(pool_.state()); }
  // Of a layer: conv [B, K - 1, C] and ssm [B, N, E] or [B, H, N, P], the memory itself; None in one that
  // keeps none, as attention.
  nb::object conv(size_t layer) const { return array_or_none(pool_.state().at(layer).conv); }
  nb::object ssm(size_t layer) const { return array_or_none(pool_.state().at(layer).ssm); }
  void reset();
  // New states that begin as these rows, each as often as it is named.
  std::unique_ptr<State> select(const std::vector<int32_t>& rows) const;
  // Rows of `from` into these slots.
  void assign(const std::vector<int32_t>& slots, const State& from, const std::vector<int32_t>& rows);

  void check_slot(int64_t slot) const;  // throws Error where there is no such one
  StatePool& pool() { return pool_; }
  const ModelPtr& model() const { return model_; }

 private:
  static nb::object array_or_none(const Tensor& t) { return t.defined() ? array_of(t) : nb::none(); }

  ModelPtr model_;
  StatePool pool_;
};

}  // namespace ssm::python
