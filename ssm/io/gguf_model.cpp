#include "ssm/io/gguf_model.h"

#include <cmath>

#include "ssm/io/renamed.h"
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

class GgufWeights final : public RenamedSource {
 public:
  GgufWeights(std::shared_ptr<const GgufFile> file, bool is_mamba2)
      : RenamedSource(file,
                      [&](std::string_view name) {
                        return transformers_name(name, is_mamba2).value_or(std::string(name));
                      }),
        file_(std::move(file)),
        is_mamba2_(is_mamba2) {}

  std::optional<Tensor> find(std::string_view name) const override {
    const std::string* in_file = name_in_file(name);
    if (!in_file) return std::nullopt;
    std::optional<Tensor> stored = file_->find(*in_file);
    if (!stored && is_gguf_matrix(name)) return std::nullopt;
    if (!stored) stored = unpacked(*in_file);
    return name.ends_with(".A_log") ? a_log(*stored, name) : shaped(*stored, name);
  }

  std::optional<QuantizedTensor> find_packed(std::string_view name) const override {
    return is_gguf_matrix(name) ? RenamedSource::find_packed(name) : std::nullopt;
  }

  std::string describe(std::string_view name) const override {
    return name_in_file(name) ? RenamedSource::describe(name)
                              : file_->describe(gguf_name(name).value_or(std::string(name)));
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
};

}  // namespace

std::unique_ptr<WeightSource> gguf_weights(std::shared_ptr<const GgufFile> file,
                                           const nlohmann::json& config) {
  return std::make_unique<GgufWeights>(std::move(file), config.at("model_type") == "mamba2");
}

}  // namespace ssm::io
