#include "ssm/train/parameters.h"

#include <algorithm>
#include <array>

#include "ssm/autograd/tape.h"
#include "ssm/load/parameters.h"

namespace ssm::train {
namespace {

// A copy that lies as `t` does (a transposed one stays transposed).
Tensor own_copy(const Tensor& t, Device device) {
  SSM_CHECK(t.dense(), "a parameter {} has gaps", t.shape());
  const Tensor copy = Tensor::empty_like(t, t.dtype(), device);
  copy_bytes(copy.raw(), device, t.raw(), t.device(), t.bytes());
  return copy;
}

class Collector final : public nn::Visitor {
 public:
  Collector(Device device, DType compute, const std::function<bool(std::string_view)>& trained, bool averages)
      : placement_{device, compute}, trained_(trained), averages_(averages) {}

  std::vector<TrainedParameter> parameters;

 protected:
  void on_weight(const std::string& name, Weight& weight, const Shape&) override {
    const Tensor stored = dense(weight, "training");
    if (!trained_(name)) {
      weight = place_weight(stored, placement_);
      return;
    }
    const bool narrow = placement_.device.is_cuda() && placement_.compute != DType::f32;
    const Tensor value = own_copy(stored.to(DType::f32), placement_.device);
    Tensor used = narrow ? stored.to(placement_.compute).to(placement_.device) : value;
    watch(used);
    weight = used;
    add(name, value, used);
  }

  void on_tensor(const std::string& name, Tensor& tensor, const Shape&, nn::Storage) override {
    if (!trained_(name)) {
      tensor = tensor.to(placement_.device);
      return;
    }
    tensor = own_copy(tensor, placement_.device);
    const Tensor value = tensor;
    watch(tensor);
    add(name, value, tensor);
  }

 private:
  void add(const std::string& name, const Tensor& value, const Tensor& used) {
    parameters.push_back({.name = name,
                          .value = value,
                          .used = used,
                          .m = Tensor::zeros_like(value, DType::f32),
                          .v = Tensor::zeros_like(value, DType::f32),
                          .average = averages_ ? own_copy(value, value.device()) : Tensor(),
                          .decays = decays(name)});
  }

  Placement placement_;
  const std::function<bool(std::string_view)>& trained_;
  bool averages_;
};

}  // namespace

bool decays(std::string_view name) {
  constexpr std::array kFixed{"A_log", ".D", "dt_bias", ".bias", "norm.weight", "norm_f.weight"};
  return std::none_of(kFixed.begin(), kFixed.end(),
                      [&](std::string_view end) { return name.ends_with(end); });
}

ParameterSet::ParameterSet(CausalLm& model, Device device, DType compute,
                           const std::function<bool(std::string_view name)>& trained, bool averages) {
  Collector collector(device, compute, trained, averages);
  model.visit(collector);
  model.prepare();
  parameters_ = std::move(collector.parameters);
}

Tensor ParameterSet::value_of(std::string_view name, bool averaged) const {
  const auto found = std::find_if(parameters_.begin(), parameters_.end(),
                                  [&](const TrainedParameter& p) { return p.name == name; });
  if (found == parameters_.end()) return {};
  return averaged ? found->average : found->value;
}

int64_t ParameterSet::count() const {
  int64_t count = 0;
  for (const TrainedParameter& p : parameters_) count += p.value.numel();
  return count;
}

void ParameterSet::clear_gradients() {
  for (const TrainedParameter& p : parameters_) clear_gradient(p.used);
}

void ParameterSet::refresh_copies() {
  for (const TrainedParameter& p : parameters_) {
    if (p.used.raw() == p.value.raw()) continue;
    const Tensor narrow = p.value.to(kCpu).to(p.used.dtype());
    copy_bytes(p.used.raw(), p.used.device(), narrow.raw(), kCpu, p.used.bytes());
  }
}

}  // namespace ssm::train
