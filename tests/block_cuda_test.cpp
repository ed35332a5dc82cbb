// Layers with an MLP on a card against the CPU's, forward and backward: layer norms and GELU with the MLP
// beside the mixer or after it, RMS norms and a gate after it.
#include <map>
#include <nlohmann/json.hpp>

#include "ssm/autograd/tape.h"
#include "ssm/models/causal_lm.h"
#include "ssm/models/mamba1.h"
#include "ssm/ops/cuda/test_cuda.h"

namespace ssm {
namespace {

constexpr int64_t kM = 64, kF = 168;

// Values that are the same wherever the model is: of its type, drawn in the order of the visit.
class Filler final : public nn::Visitor {
 public:
  Filler(DType dtype, DType stored, Device device) : dtype_(dtype), stored_(stored), device_(device) {}

 private:
  void on_weight(const std::string&, Weight& weight, const Shape& shape) override {
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape[1]));
    Tensor t = rounded(test::random_normal(shape, rng_, scale), dtype_).to(stored_).to(device_);
    watch(t);
    weight = t;
  }
  void on_tensor(const std::string& name, Tensor& tensor, const Shape& shape, nn::Storage storage) override {
    const bool one = name.find("norm") != std::string::npos && name.ends_with("weight");
    tensor = nn::stored_as(test::random_normal(shape, rng_, 0.3f, one ? 1.0f : 0.0f), storage).to(device_);
    watch(tensor);
  }

  DType dtype_, stored_;
  Device device_;
  Rng rng_{5};
};

class Gradients final : public nn::Visitor {
 public:
  std::map<std::string, std::vector<double>> of;

 private:
  void on_weight(const std::string& name, Weight& weight, const Shape&) override {
    add(name, std::get<Tensor>(weight));
  }
  void on_tensor(const std::string& name, Tensor& tensor, const Shape&, nn::Storage) override {
    add(name, tensor);
  }
  void add(const std::string& name, const Tensor& t) {
    if (const Tensor g = gradient_of(t); g.defined()) of[name] = to_doubles(g.to(kCpu));
  }
};

struct Kind {
  const char* name;
  bool layer_norm, parallel;
};
constexpr Kind kKinds[] = {{"layer norms, beside", true, true},
                           {"layer norms, after", true, false},
                           {"RMS norms, gated", false, false}};

struct Result {
  std::vector<double> hidden, again;  // while a tape records, and not
  std::map<std::string, std::vector<double>> gradients;
};

Result run(const Kind& kind, Device device, DType dtype, const Tensor& ids, const Tensor& dy) {
  const nlohmann::json config{{"vocab_size", 50},
                              {"hidden_size", kM},
                              {"num_hidden_layers", 3},
                              {"intermediate_size", 2 * kM},
                              {"conv_kernel", 4},
                              {"use_bias", false},
                              {"use_conv_bias", true},
                              {"layer_norm_epsilon", 1e-5},
                              {"mixer_rms_eps", 1e-6},
                              {"model_type", "mamba"},
                              {"tie_word_embeddings", true},
                              {"state_size", 16},
                              {"time_step_rank", 4}};
  const DType type = device.is_cuda() ? dtype : DType::f32;
  nn::Mlp mlp{.up = {.in = kM, .out = kind.layer_norm ? kF : 2 * kF, .has_bias = kind.layer_norm},
              .down = {.in = kF, .out = kM, .has_bias = kind.layer_norm},
              .gated = !kind.layer_norm,
              .up_name = "up",
              .down_name = "down"};
  mlp.up.compute = mlp.down.compute = type;
  const Blueprint blueprint{.layer_norm = kind.layer_norm,
                            .mixer = [&](int64_t) { return make_mamba1(config, type); },
                            .mlp = mlp,
                            .parallel = kind.parallel};
  CausalLm model(config, {.compute = type, .activations = type}, blueprint);
  Filler filler(dtype, type, device);
  model.visit(filler);
  const SequenceBatch batch = SequenceBatch::single(ids.size(0));
  Tape tape;
  Tensor hidden;
  {
    const RecordScope recording(&tape);
    model.prepare();
    hidden = model.hidden(ids.to(device), batch, {});
  }
  tape.backward(hidden, dy.to(type).to(device));
  Gradients gradients;
  model.visit(gradients);
  const Tensor again = model.hidden(ids.to(device), batch, {});
  return {to_doubles(hidden.to(kCpu)), to_doubles(again.to(kCpu)), gradients.of};
}

// |a - b| / |b|, Euclidean.
double norm_error(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, square = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (a.at(i) - b[i]) * (a.at(i) - b[i]);
    square += b[i] * b[i];
  }
  return std::sqrt(difference / (square + 1e-30));
}

TEST(BlockCuda, LayersWithAnMlpAreTheCpus) {
  SSM_NEED_CUDA();
  Rng rng(1);
  std::vector<int32_t> ids;
  for (int t = 0; t < 70; ++t) ids.push_back(static_cast<int32_t>(rng.below(50)));
  const Tensor tokens = Tensor::from_values<int32_t>(ids, {70}), dy = test::random_normal({70, kM}, rng);
  for (const Kind& kind : kKinds) {
    for (const auto& [dtype, bound] :
         {std::pair(DType::f32, 1e-4), std::pair(DType::f16, 2e-2), std::pair(DType::bf16, 1e-1)}) {
      const Result cpu = run(kind, kCpu, dtype, tokens, dy), card = run(kind, kCuda, dtype, tokens, dy);
      const std::string name = fmt::format("{} in {}", kind.name, name_of(dtype));
      EXPECT_LT(norm_error(card.hidden, cpu.hidden), bound) << name;
      EXPECT_LT(norm_error(card.again, card.hidden), bound) << name;
      EXPECT_EQ(card.gradients.size(), cpu.gradients.size());
      double worst = 0;
      for (const auto& [parameter, gradient] : cpu.gradients) {
        const double error = norm_error(card.gradients.at(parameter), gradient);
        EXPECT_LT(error, bound) << name << ": " << parameter;
        worst = std::max(worst, error);
      }
      std::printf("  %s: off by %.2e, gradients by %.2e at most\n", name.c_str(),
                  norm_error(card.hidden, cpu.hidden), worst);
    }
  }
}

}  // namespace
}  // namespace ssm
