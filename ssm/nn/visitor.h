// visit: a module names each of its parameters once; loading, saving, initialising, counting and quantizing
// are visitors. Names are Transformers' ("backbone.layers.0.mixer.in_proj.weight"), put together from the
// path.
#pragma once

#include <string>
#include <string_view>

#include "ssm/core/tensor.h"
#include "ssm/nn/lora.h"
#include "ssm/quant/weight.h"

namespace ssm::nn {

struct Linear;

// How a small tensor lies in memory: kernels walk channels (dimension 0 of A_log [E, N] and conv1d.weight [C,
// 1, K]) in vectors, so those are kept with a stride of 1 over dimension 0.
enum class Storage { row_major, channels_contiguous };

class Visitor {
 public:
  virtual ~Visitor() = default;

  // Calls module.visit(*this) with `name` added to the path.
  template <class Module>
  void child(std::string_view name, Module& module) {
    const size_t length = path_.size();
    path_.append(name).push_back('.');
    module.visit(*this);
    path_.resize(length);
  }

  // A matrix that is multiplied by: kept as stored (f32, bf16, f16, packed).
  void weight(std::string_view name, Weight& weight, const Shape& shape) {
    on_weight(full(name), weight, shape);
  }
  // Anything else (A_log, D, dt_bias, norms, biases, convolutions): kept in f32.
  void tensor(std::string_view name, Tensor& tensor, const Shape& shape,
              Storage storage = Storage::row_major) {
    on_tensor(full(name), tensor, shape, storage);
  }
  // A module that may have a Lora; one that is set here is visited with it.
  void target(const LoraTarget& target) { on_target(module_name(), target); }
  // A Linear itself, for who watches or replaces what it computes with.
  void linear(Linear& module) { on_linear(module_name(), module); }

 protected:
  virtual void on_linear(const std::string& /*module*/, Linear& /*linear*/) {}
  virtual void on_target(const std::string& /*module*/, const LoraTarget& /*target*/) {}
  virtual void on_weight(const std::string& name, Weight& weight, const Shape& shape) = 0;
  virtual void on_tensor(const std::string& name, Tensor& tensor, const Shape& shape, Storage storage) = 0;

 private:
  std::string module_name() const { return path_.substr(0, path_.empty() ? 0 : path_.size() - 1); }
  std::string full(std::string_view name) const { return path_ + std::string(name); }

  std::string path_;
};

// An f32 copy of `tensor` that lies as `storage` says.
Tensor stored_as(const Tensor& tensor, Storage storage);

}  // namespace ssm::nn
