#include "ssm/load/parameters.h"

#include <set>

#include "ssm/core/log.h"
#include "ssm/quant/card_layout.h"

namespace ssm {
namespace {

// Also notes which tensors were asked for.
class Filler final : public nn::Visitor {
 public:
  Filler(const io::WeightSource& source, const Placement& placement, const Quantization* quantization,
         const OnProgress& progress)
      : source_(source),
        placement_(placement),
        quantization_(quantization),
        progress_(progress),
        tensors_(std::ssize(source.names())) {}
  const std::set<std::string, std::less<>>& used() const { return used_; }

 protected:
  void on_weight(const std::string& name, Weight& weight, const Shape& shape) override {
    if (progress_) progress_(std::min(std::ssize(used_), tensors_), tensors_);
    const std::optional<QuantizedTensor> packed = source_.find_packed(name);
    if (!packed && !quantization_) {
      weight = place_weight(find(name, shape), placement_);
    } else if (!packed) {
      weight = place_weight(
          quantized(find(name, shape).row_major(), *quantization_, name, source_.describe(name)), placement_);
    } else {
      used_.insert(name);
      const std::string described = source_.describe(name);
      SSM_CHECK(packed->shape == shape, "{}: has shape {}, the config asks for {}", described, packed->shape,
                shape);
      SSM_CHECK(!quantization_, "{}: is packed already ({})", described, name_of(packed->format));
      weight = place_weight(*packed, placement_);
    }
  }

  void on_tensor(const std::string& name, Tensor& tensor, const Shape& shape, nn::Storage storage) override {
    tensor = nn::stored_as(find(name, shape), storage).to(placement_.device);
  }

 private:
  Tensor find(const std::string& name, const Shape& shape) {
    used_.insert(name);
    return need_tensor(source_, name, shape);
  }

  const io::WeightSource& source_;
  Placement placement_;
  const Quantization* quantization_;
  const OnProgress& progress_;
  const int64_t tensors_;
  std::set<std::string, std::less<>> used_;
};

// What Transformers once stored beside GPT-NeoX's parameters.
bool is_buffer(std::string_view name) {
  return name.ends_with(".attention.bias") || name.ends_with(".attention.masked_bias") ||
         name.ends_with(".rotary_emb.inv_freq");
}

class Counter final : public nn::Visitor {
 public:
  ParameterCount count;

 protected:
  void on_weight(const std::string&, Weight& weight, const Shape& shape) override {
    count.parameters += shape.numel();
    count.bytes += bytes_of(weight);
  }
  void on_tensor(const std::string&, Tensor& tensor, const Shape& shape, nn::Storage) override {
    count.parameters += shape.numel();
    count.bytes += tensor.bytes();
  }
};

}  // namespace

Tensor need_tensor(const io::WeightSource& source, const std::string& name, const Shape& shape) {
  const std::optional<Tensor> t = source.find(name);
  SSM_CHECK(t.has_value(), "{}: missing, expected shape {}", source.describe(name), shape);
  SSM_CHECK(t->shape() == shape, "{}: has shape {}, the config asks for {}", source.describe(name),
            t->shape(), shape);
  SSM_CHECK(t->dtype() == DType::f32 || t->dtype() == DType::bf16 || t->dtype() == DType::f16,
            "{}: is {}, expected f32, bf16 or f16", source.describe(name), name_of(t->dtype()));
  return *t;
}

Tensor place_weight(const Tensor& weight, const Placement& placement) {
  const Tensor typed = placement.device.is_cuda() ? weight.to(placement.compute) : weight;
  return typed.row_major().to(placement.device);
}

Weight place_weight(const Weight& weight, const Placement& placement) {
  if (const auto* packed = std::get_if<QuantizedTensor>(&weight))
    return placement.device.is_cuda() ? to_card(*packed, placement.device) : *packed;
  return place_weight(std::get<Tensor>(weight), placement);
}

bool begins_as_one(std::string_view name) {
  return name.ends_with(".D") || name.ends_with("norm.weight") || name.ends_with("norm_f.weight") ||
         name.ends_with("norm2.weight");
}

void fill_parameters(CausalLm& model, const io::WeightSource& source, const Placement& placement,
                     const Quantization* quantization, const OnProgress& progress) {
  Filler filler(source, placement, quantization, progress);
  model.visit(filler);
  model.prepare();
  for (const std::string& name : source.names()) {
    if (filler.used().contains(name) || (name == model.names().head + ".weight" && model.tied()) ||
        is_buffer(name))
      continue;
    log(LogLevel::warning, fmt::format("{}: the model that the config describes has no such tensor; ignored",
                                       source.describe(name)));
  }
}

ParameterCount count_parameters(CausalLm& model) {
  Counter counter;
  model.visit(counter);
  return counter.count;
}

}  // namespace ssm
