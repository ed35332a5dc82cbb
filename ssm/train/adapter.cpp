#include "ssm/train/adapter.h"

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
    if (part == "embeddings" || part == "lm_head") model.untie();
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
