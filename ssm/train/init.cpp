#include "ssm/train/init.h"

#include <algorithm>
#include <cmath>

#include "ssm/core/rng.h"
#include "ssm/load/parameters.h"

namespace ssm::train {
namespace {

constexpr float kStepMin = 1e-3f, kStepMax = 1e-1f, kStepFloor = 1e-4f;
constexpr float kReferenceEmbedding = 0.02f, kHuggingFaceRange = 0.1f, kNeoxRange = 0.02f;

bool is(const std::string& name, std::string_view parameter) { return name.ends_with(parameter); }

class Initialiser final : public nn::Visitor {
 public:
  Initialiser(const nlohmann::json& config, InitScheme scheme, uint64_t seed)
      : config_(config), reference_(scheme == InitScheme::reference), seed_(seed) {}

 protected:
  void on_weight(const std::string& name, Weight& weight, const Shape& shape) override {
    weight = filled(name, shape);
  }
  void on_tensor(const std::string& name, Tensor& tensor, const Shape& shape, nn::Storage storage) override {
    tensor = nn::stored_as(filled(name, shape), storage);
  }

 private:
  Tensor filled(const std::string& name, const Shape& shape) {
    Tensor t = Tensor::empty(shape);
    Rng rng(seed_, stream_of(name));
    int64_t i = 0;
    for (float& x : t.values<float>()) x = value(name, shape, i++, rng);
    return t;
  }

  float value(const std::string& name, const Shape& shape, int64_t i, Rng& rng) const {
    if (is(name, "A_log")) return A_log(shape, i, rng);
    if (begins_as_one(name)) return 1.0f;
    if (is(name, "dt_bias") || is(name, "dt_proj.bias")) return step_bias(rng);
    if (is(name, "conv1d.weight")) return uniform(rng, 1.0f / std::sqrt(static_cast<float>(shape[2])));
    if (is(name, "conv1d.bias")) {
      const float K = config_.at("conv_kernel");
      return reference_ ? uniform(rng, 1.0f / std::sqrt(K)) : 0.0f;
    }
    if (is(name, ".bias")) return 0.0f;
    return matrix(name, shape, rng);
  }

  // Mamba-1 counts the states up ("S4D-real"); Mamba-2's heads are spread over [1, 16].
  float A_log(const Shape& shape, int64_t i, Rng& rng) const {
    if (shape.rank() == 2) return std::log(static_cast<float>(i % shape[1] + 1));
    return reference_ ? std::log(1.0f + 15.0f * rng.uniform()) : std::log(static_cast<float>(i + 1));
  }

  // The inverse softplus of a log-uniform time step.
  static float step_bias(Rng& rng) {
    const float low = std::log(kStepMin), high = std::log(kStepMax);
    const float dt = std::max(std::exp(low + (high - low) * rng.uniform()), kStepFloor);
    return dt + std::log(-std::expm1(-dt));
  }

  float matrix(const std::string& name, const Shape& shape, Rng& rng) const {
    const float fan_in = 1.0f / std::sqrt(static_cast<float>(shape[1]));
    if (config_.at("model_type") == "gpt_neox") return kNeoxRange * rng.normal();
    if (is(name, "dt_proj.weight")) return uniform(rng, fan_in);
    if (is(name, "out_proj.weight") || is(name, "fc2.weight")) {
      const float residuals = config_.value("d_intermediate", 0) > 0 ? 2.0f : 1.0f;  // added by a layer
      const float layers = config_.at("num_hidden_layers");
      return uniform(rng, reference_ ? fan_in / std::sqrt(residuals * layers) : fan_in);
    }
    if (!reference_) return kHuggingFaceRange * rng.normal();
    return is(name, "embeddings.weight") ? kReferenceEmbedding * rng.normal() : uniform(rng, fan_in);
  }

  static float uniform(Rng& rng, float bound) { return bound * (2.0f * rng.uniform() - 1.0f); }

  const nlohmann::json& config_;
  bool reference_;
  uint64_t seed_;
};

}  // namespace

void initialise(CausalLm& model, const nlohmann::json& config, InitScheme scheme, uint64_t seed) {
  Initialiser initialiser(config, scheme, seed);
  model.visit(initialiser);
  model.prepare();
}

}  // namespace ssm::train
