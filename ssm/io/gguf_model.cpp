#include "ssm/io/gguf_model.h"

#include <cmath>
#include <cstring>

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
  GgufWeights(std::shared_ptr<const GgufFile> file, const nlohmann::json& config)
      : RenamedSource(file,
                      [type = config.at("model_type").get<std::string>()](std::string_view name) {
                        return transformers_name(name, type).value_or(std::string(name));
                      }),
        file_(std::move(file)),
        is_mamba2_(config.at("model_type") == "mamba2"),
        heads_(config.value("num_attention_heads", int64_t{0})) {}

  std::optional<Tensor> find(std::string_view name) const override {
    const std::string* in_file = name_in_file(name);
    if (!in_file) return std::nullopt;
    std::optional<Tensor> stored = file_->find(*in_file);
    if (!stored && is_gguf_matrix(name)) return std::nullopt;
    if (!stored) stored = unpacked(*in_file);
    if (is_fused_qkv(name) && fits_heads(stored->shape())) {
      const ArenaScope heap(nullptr);  // a weight outlives the step that happens to be running
      return reordered_qkv(*stored, heads_, QkvOrder::transformers);
    }
    return name.ends_with(".A_log") ? a_log(*stored, name) : shaped(*stored, name);
  }

  std::optional<QuantizedTensor> find_packed(std::string_view name) const override {
    if (!is_gguf_matrix(name)) return std::nullopt;
    std::optional<QuantizedTensor> packed = RenamedSource::find_packed(name);
    if (!packed || !is_fused_qkv(name) || !fits_heads(packed->shape)) return packed;
    const ArenaScope heap(nullptr);
    packed->bytes = reordered_qkv(packed->bytes, heads_, QkvOrder::transformers);
    return packed;
  }

  std::string describe(std::string_view name) const override {
    return name_in_file(name) ? RenamedSource::describe(name)
                              : file_->describe(gguf_name(name).value_or(std::string(name)));
  }

 private:
  bool fits_heads(const Shape& shape) const { return heads_ > 0 && shape[0] % (3 * heads_) == 0; }

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
  int64_t heads_;
};

}  // namespace

std::unique_ptr<WeightSource> gguf_weights(std::shared_ptr<const GgufFile> file,
                                           const nlohmann::json& config) {
  return std::make_unique<GgufWeights>(std::move(file), config);
}

bool is_fused_qkv(std::string_view name) {
  return name.ends_with(".query_key_value.weight") || name.ends_with(".query_key_value.bias");
}

Tensor reordered_qkv(const Tensor& rows, int64_t heads, QkvOrder to) {
  const Tensor from = rows.row_major(), result = Tensor::empty(rows.shape(), rows.dtype());
  const int64_t D = rows.size(0) / (3 * heads);
  const size_t bytes = rows.bytes() / static_cast<size_t>(3 * heads);  // of the rows of one head's query, say
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t part = 0; part < 3; ++part) {
      const int64_t by_head = (3 * head + part) * D, by_part = (part * heads + head) * D;
      const bool back = to == QkvOrder::transformers;
      std::memcpy(result.slice(0, back ? by_head : by_part, rows.size(0)).raw(),
                  from.slice(0, back ? by_part : by_head, rows.size(0)).raw(), bytes);
    }
  }
  return result;
}

}  // namespace ssm::io
