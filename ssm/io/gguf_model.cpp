#include "ssm/io/gguf_model.h"

#include <cmath>

#include "ssm/quant/dequantize.h"

namespace ssm::io {
namespace {

template <class Stored>
float as_stored(float x) {
  return to_float(from_float<Stored>(x));
}

// The A_log with A = -exp(A_log), of all that give this A in f32 the one with the fewest digits: what a model
// stored in 16 bits had comes back as it was.
float log_of_minus(float a) {
  const auto log = static_cast<float>(std::log(-static_cast<double>(a)));
  const auto gives_a = [&](float x) { return static_cast<float>(-std::exp(static_cast<double>(x))) == a; };
  for (const float x : {as_stored<BFloat16>(log), as_stored<Float16>(log), log,
                        std::nextafter(log, HUGE_VALF), std::nextafter(log, -HUGE_VALF)}) {
    if (gives_a(x)) return x;
  }
  return log;
}

class GgufWeights final : public WeightSource {
 public:
  GgufWeights(std::shared_ptr<const GgufFile> file, const nlohmann::json& config)
      : file_(std::move(file)), is_mamba2_(config.at("model_type") == "mamba2") {
    for (const std::string& name : file_->names()) {
      const std::string ours = transformers_name(name, is_mamba2_).value_or(name);
      const auto [at, is_new] = file_name_.emplace(ours, name);
      SSM_CHECK(is_new, "{}: and {} are the same tensor", file_->describe(name), printable(at->second));
    }
  }

  std::optional<Tensor> find(std::string_view name) const override {
    const auto found = file_name_.find(name);
    if (found == file_name_.end()) return std::nullopt;
    std::optional<Tensor> stored = file_->find(found->second);
    if (!stored && is_gguf_matrix(name)) return std::nullopt;
    if (!stored) stored = unpacked(found->second);
    return name.ends_with(".A_log") ? a_log(*stored, name) : shaped(*stored, name);
  }

  std::optional<QuantizedTensor> find_packed(std::string_view name) const override {
    const auto found = file_name_.find(name);
    return found == file_name_.end() || !is_gguf_matrix(name) ? std::nullopt
                                                              : file_->find_packed(found->second);
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    result.reserve(file_name_.size());
    for (const auto& [name, in_file] : file_name_) result.push_back(name);
    return result;
  }

  std::string describe(std::string_view name) const override {
    const auto found = file_name_.find(name);
    return file_->describe(found == file_name_.end() ? gguf_name(name).value_or(std::string(name))
                                                     : found->second);
  }

 private:
  // A vector or a convolution: who asks for those computes with f32.
  Tensor unpacked(const std::string& in_file) const {
    const ArenaScope heap(nullptr);  // a weight outlives the step that happens to be running
    return dequantize(file_->find_packed(in_file).value()).view(file_->entry(in_file)->shape);
  }

  // GGUF drops the convolution's middle dimension and gives some vectors of Mamba-2 one more.
  Tensor shaped(const Tensor& t, std::string_view name) const {
    if (name.ends_with(".conv1d.weight") && t.rank() == 2) return t.view({t.size(0), 1, t.size(1)});
    const bool flat = is_mamba2_ && (name.ends_with(".mixer.A_log") || name.ends_with(".mixer.D") ||
                                     name.ends_with(".mixer.norm.weight"));
    return flat ? t.view({t.numel()}) : t;
  }

  Tensor a_log(const Tensor& stored, std::string_view name) const {
    const ArenaScope heap(nullptr);  // a weight outlives the step that happens to be running
    const Tensor a = shaped(stored, name).to(DType::f32);
    const Tensor result = Tensor::empty(a.shape());
    for (int64_t i = 0; i < a.numel(); ++i) {
      const float value = a.data<float>()[i];
      SSM_CHECK(value < 0 && std::isfinite(value), "{}: element {} is {}, not a negative number",
                describe(name), i, value);
      result.data<float>()[i] = log_of_minus(value);
    }
    return result;
  }

  std::shared_ptr<const GgufFile> file_;
  bool is_mamba2_;
  std::map<std::string, std::string, std::less<>> file_name_;
};

}  // namespace

std::unique_ptr<WeightSource> gguf_weights(std::shared_ptr<const GgufFile> file,
                                           const nlohmann::json& config) {
  return std::make_unique<GgufWeights>(std::move(file), config);
}

}  // namespace ssm::io
