#include "ssm/train/adapter.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "ssm/load/adapter.h"

namespace ssm::train {
namespace {

// Whether a part of a dotted name is `part`.
bool has_part(std::string_view name, std::string_view part) {
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    if (name.substr(begin, end - begin) == part) return true;
    begin = end + 1;
  }
  return false;
}

bool is_whole(const io::AdapterConfig& config, std::string_view name) {
  const std::vector<std::string>& whole = config.modules_to_save;
  return std::any_of(whole.begin(), whole.end(),
                     [&](const std::string& part) { return has_part(name, part); });
}

bool trains_bias(const io::AdapterConfig& config, std::string_view name) {
  if (config.bias == "all") return name.find("bias") != name.npos;
  return config.bias == "lora_only" && name.ends_with(".bias") &&
         config.targets(name.substr(0, name.rfind('.')));
}

// Checks an adapter that was attached against what its config says is trained.
class ContinuedAdapter final : public nn::Visitor {
 public:
  explicit ContinuedAdapter(const io::Adapter& adapter)
      : adapter_(adapter), trained_(trained_by(adapter.config)), open_(adapter.config.target_modules) {}

  const std::vector<std::string>& targets_without_tensors() const { return open_; }

 protected:
  void on_target(const std::string& module, const nn::LoraTarget& target) override {
    if (!target.lora) return;
    SSM_CHECK(target.lora->rank == adapter_.config.r,
              "{}: {} has rank {} and r is {}: adapters of several ranks cannot be trained further",
              adapter_.folder.string(), module, target.lora->rank, adapter_.config.r);
    std::erase_if(open_,
                  [&](const std::string& name) { return module == name || module.ends_with("." + name); });
  }
  void on_weight(const std::string& name, Weight&, const Shape&) override { check(name); }
  void on_tensor(const std::string& name, Tensor&, const Shape&, nn::Storage) override { check(name); }

 private:
  void check(const std::string& name) const {
    SSM_CHECK(!trained_(name) || adapter_.weights->find(name),
              "{}: {} is to be trained, but is not among its tensors", adapter_.folder.string(), name);
  }

  const io::Adapter& adapter_;
  std::function<bool(std::string_view)> trained_;
  std::vector<std::string> open_;
};

class Names final : public nn::Visitor {
 public:
  std::vector<std::string> names;

 protected:
  void on_weight(const std::string& name, Weight&, const Shape&) override { names.push_back(name); }
  void on_tensor(const std::string& name, Tensor&, const Shape&, nn::Storage) override {
    names.push_back(name);
  }
};

}  // namespace

std::function<bool(std::string_view name)> trained_by(const io::AdapterConfig& config) {
  return [config](std::string_view name) {
    return is_lora_name(name) || trains_bias(config, name) || is_whole(config, name);
  };
}

void begin_adapter(CausalLm& model, const io::AdapterConfig& config, uint64_t seed) {
  for (const std::string& part : config.modules_to_save) {
    SSM_CHECK(std::find(config.target_modules.begin(), config.target_modules.end(), part) ==
                  config.target_modules.end(),
              "{} is to be trained whole and by a low-rank change", part);
    if (model.names().embeddings.ends_with(part) || part == model.names().head) model.untie();
  }
  Names all;
  model.visit(all);
  for (const std::string& part : config.modules_to_save) {
    SSM_CHECK(std::any_of(all.names.begin(), all.names.end(),
                          [&](const std::string& name) { return has_part(name, part); }),
              "{} is to be trained whole: the model has no module or tensor of that name", part);
  }
  add_lora(model, config, seed);
}

io::AdapterConfig continue_adapter(CausalLm& model, const std::filesystem::path& folder,
                                   std::optional<double> dropout) {
  io::Adapter adapter = io::open_adapter(folder);
  if (dropout) adapter.config.dropout = *dropout;
  attach_adapter(model, adapter);
  ContinuedAdapter checker(adapter);
  model.visit(checker);
  SSM_CHECK(checker.targets_without_tensors().empty(),
            "{}: target_modules names {}, of which it has no tensor", folder.string(),
            fmt::join(checker.targets_without_tensors(), ", "));
  return adapter.config;
}

std::vector<io::NamedTensor> adapter_tensors(const Trainer& trainer, DType stored, bool averaged) {
  std::vector<io::NamedTensor> tensors;
  for (const TrainedParameter& p : trainer.parameters().all()) {
    const Tensor rows = (averaged ? p.average : p.value).to(kCpu).row_major();
    const bool matrix = rows.rank() == 2 && p.decays;
    tensors.push_back({p.name, matrix ? rows.to(stored) : rows.clone()});
  }
  return tensors;
}

}  // namespace ssm::train
