#include "ssm/load/adapter.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "ssm/core/rng.h"
#include "ssm/load/save_model.h"
#include "ssm/ops/elementwise/elementwise.h"

namespace ssm {
namespace {

using nn::Lora;

class LoraVisitor : public nn::Visitor {
 protected:
  void on_weight(const std::string&, Weight&, const Shape&) override {}
  void on_tensor(const std::string&, Tensor&, const Shape&, nn::Storage) override {}
};

class Attacher final : public nn::Visitor {
 public:
  Attacher(const io::Adapter& adapter, const Placement& placement)
      : source_(*adapter.weights), config_(adapter.config), placement_(placement) {}
  std::set<std::string, std::less<>> used;

 protected:
  void on_target(const std::string& module, const nn::LoraTarget& target) override {
    const std::string name = module + (target.embedding ? ".lora_embedding_A" : ".lora_A.weight");
    const std::optional<Tensor> A = source_.find(name);
    if (!A) return;
    SSM_CHECK(A->rank() == 2 && A->size(0) >= 1, "{}: has shape {}, expected [rank, {}]",
              source_.describe(name), A->shape(), target.in);
    SSM_CHECK(!target.lora, "{}: the module has an adapter already", source_.describe(name));
    target.lora = Lora{.rank = A->size(0),
                       .scale = static_cast<float>(config_.scale_of(module, A->size(0))),
                       .dropout = static_cast<float>(config_.dropout)};
  }

  void on_weight(const std::string& name, Weight& weight, const Shape& shape) override {
    if (takes(name)) weight = place_weight(need_tensor(source_, name, shape), placement_);
  }

  void on_tensor(const std::string& name, Tensor& tensor, const Shape& shape, nn::Storage storage) override {
    if (takes(name)) {
      tensor = nn::stored_as(need_tensor(source_, name, shape), storage).to(placement_.device);
    }
  }

 private:
  // A Lora's own must be there; others only where the adapter has them.
  bool takes(const std::string& name) {
    if (!is_lora_name(name) && !source_.find(name)) return false;
    used.insert(name);
    return true;
  }

  const io::WeightSource& source_;
  const io::AdapterConfig& config_;
  Placement placement_;
};

class Adder final : public nn::Visitor {
 public:
  Adder(const io::AdapterConfig& config, uint64_t seed) : config_(config), seed_(seed) {}
  std::set<std::string, std::less<>> used, known;

 protected:
  void on_target(const std::string& module, const nn::LoraTarget& target) override {
    known.insert(module.substr(module.rfind('.') + 1));
    bool wanted = false;
    for (const std::string& name : config_.target_modules) {
      if (module != name && !module.ends_with("." + name)) continue;
      used.insert(name);
      wanted = true;
    }
    if (!wanted) return;
    SSM_CHECK(!target.lora, "{} has an adapter already", module);
    target.lora = Lora{.rank = config_.r,
                       .scale = static_cast<float>(config_.scale_of(module, config_.r)),
                       .dropout = static_cast<float>(config_.dropout)};
  }

  void on_weight(const std::string& name, Weight& weight, const Shape& shape) override {
    if (is_lora_name(name)) weight = initial(name, shape);
  }
  void on_tensor(const std::string& name, Tensor& tensor, const Shape& shape, nn::Storage storage) override {
    if (is_lora_name(name)) tensor = nn::stored_as(initial(name, shape), storage);
  }

 private:
  // torch's kaiming_uniform_ with a = sqrt(5) is uniform within 1 / sqrt(in).
  Tensor initial(const std::string& name, const Shape& shape) const {
    Tensor t = Tensor::zeros(shape);
    Rng rng(seed_, stream_of(name));
    const float bound = 1.0f / std::sqrt(static_cast<float>(shape[1]));
    for (float& x : t.values<float>()) {
      if (name.ends_with("lora_A.weight")) x = bound * (2.0f * rng.uniform() - 1.0f);
      if (name.ends_with("lora_embedding_B")) x = rng.normal();
    }
    return t;
  }

  const io::AdapterConfig& config_;
  uint64_t seed_;
};

class Finder final : public LoraVisitor {
 public:
  std::map<std::string, Lora> found;

 protected:
  void on_target(const std::string& module, const nn::LoraTarget& target) override {
    if (target.lora) found.emplace(module, *target.lora);
  }
};

class DropoutFinder final : public LoraVisitor {
 public:
  std::vector<std::pair<Lora*, uint64_t>> found;

 protected:
  void on_target(const std::string& module, const nn::LoraTarget& target) override {
    if (target.lora && target.lora->dropout > 0) found.emplace_back(&*target.lora, stream_of(module));
  }
};

std::map<std::string, Lora> loras_of(CausalLm& model) {
  Finder finder;
  model.visit(finder);
  return std::move(finder.found);
}

// W + scale B A, of a W in f32.
Tensor merged(const Tensor& weight, const Lora& lora, DType dtype) {
  return add_scaled(lora.product(), weight, 1.0f).to(dtype);
}

}  // namespace

bool is_lora_name(std::string_view name) {
  return name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight") ||
         name.ends_with(".lora_embedding_A") || name.ends_with(".lora_embedding_B");
}

bool has_lora(CausalLm& model) { return !loras_of(model).empty(); }

void attach_adapter(CausalLm& model, const io::Adapter& adapter, const Placement& placement) {
  const io::WeightSource& source = *adapter.weights;
  for (const std::string& module : {model.names().embeddings, model.names().head}) {
    if (source.find(module + ".weight")) model.untie();
  }
  Attacher attacher(adapter, placement);
  model.visit(attacher);
  model.prepare();
  const std::vector<std::string> names = source.names();
  SSM_CHECK(!names.empty(), "{}: holds no tensor", adapter.folder.string());
  for (const std::string& name : names) {
    SSM_CHECK(attacher.used.contains(name), "{}: the model has no such module or parameter",
              source.describe(name));
  }
}

void add_lora(CausalLm& model, const io::AdapterConfig& config, uint64_t seed) {
  Adder adder(config, seed);
  model.visit(adder);
  for (const std::string& name : config.target_modules) {
    SSM_CHECK(adder.used.contains(name), "target module {}: the model has none of that name; it has {}", name,
              fmt::join(adder.known, ", "));
  }
}

Dropout::Dropout(CausalLm& model) {
  DropoutFinder finder;
  model.visit(finder);
  loras_ = std::move(finder.found);
}

void Dropout::set(std::optional<uint64_t> seed) const {
  for (const auto& [lora, stream] : loras_) {
    lora->drops = seed.has_value();
    lora->seed = seed.value_or(0) ^ stream;
  }
}

std::vector<io::LazyTensor> merged_parameters(CausalLm& model, DType stored) {
  const std::map<std::string, Lora> loras = loras_of(model);
  if (loras.contains(model.names().embeddings) || loras.contains(model.names().head)) model.untie();
  std::vector<io::LazyTensor> all = lazy_parameters(model, stored),
                              exact = lazy_parameters(model, DType::f32);
  for (size_t i = 0; i < all.size(); ++i) {
    if (!all[i].name.ends_with(".weight")) continue;
    const auto found = loras.find(all[i].name.substr(0, all[i].name.rfind('.')));
    if (found == loras.end()) continue;
    all[i].make = [weight = exact[i].make, lora = found->second, stored] {
      return merged(weight(), lora, stored);
    };
  }
  std::erase_if(all, [](const io::LazyTensor& t) { return is_lora_name(t.name); });
  return all;
}

}  // namespace ssm
