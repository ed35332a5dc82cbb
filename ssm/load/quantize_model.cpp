#include "ssm/load/quantize_model.h"

#include <cmath>
#include <map>
#include <set>

#include "ssm/core/parallel.h"
#include "ssm/io/atomic_folder.h"
#include "ssm/io/checkpoint_writer.h"
#include "ssm/load/convert.h"
#include "ssm/load/save_gguf.h"
#include "ssm/load/tokenizer.h"
#include "ssm/models/registry.h"
#include "ssm/quant/dequantize.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

class MatrixNames final : public nn::Visitor {
 public:
  std::set<std::string, std::less<>> names;

 protected:
  void on_weight(const std::string& name, Weight&, const Shape&) override { names.insert(name); }
  void on_tensor(const std::string&, Tensor&, const Shape&, nn::Storage) override {}
};

std::string type_of(const std::variant<DType, QuantFormat>& type) {
  const DType* dtype = std::get_if<DType>(&type);
  return dtype ? std::string(name_of(*dtype)) : name_of(std::get<QuantFormat>(type));
}

size_t bytes_as(const std::variant<DType, QuantFormat>& type, const Shape& shape) {
  if (const DType* dtype = std::get_if<DType>(&type))
    return static_cast<size_t>(shape.numel()) * size_of(*dtype);
  return static_cast<size_t>(shape[0] * row_bytes(std::get<QuantFormat>(type), shape[1]));
}

double relative_error(const Tensor& matrix, const QuantizedTensor& packed) {
  const Tensor exact = matrix.to(DType::f32), values = dequantize(packed);
  const float *a = exact.data<float>(), *b = values.data<float>();
  double square = 0, power = 0;
  for (int64_t i = 0; i < exact.numel(); ++i) {
    const double x = a[i], difference = x - static_cast<double>(b[i]);
    square += difference * difference;
    power += x * x;
  }
  return power > 0 ? std::sqrt(square / power) : 0;
}

// What stored_weights gives, its matrices packed when they are made. Each fills in its entry then.
std::vector<io::LazyWeight> planned_weights(const io::Checkpoint& checkpoint,
                                            const Quantization& quantization,
                                            std::map<std::string, QuantizedEntry>& entries) {
  MatrixNames matrices;
  make_causal_lm(checkpoint.config, {})->visit(matrices);
  std::vector<io::LazyWeight> weights = stored_weights(checkpoint);
  for (io::LazyWeight& weight : weights) {
    const auto stored = weight.type;
    if (matrices.names.contains(weight.name)) {
      const DType* dtype = std::get_if<DType>(&stored);
      SSM_CHECK(dtype, "{}: is packed already ({})", checkpoint.weights->describe(weight.name),
                type_of(stored));
      weight.type = planned_type(quantization, weight.name, weight.shape, *dtype);
    }
    QuantizedEntry& entry = entries[weight.name];
    entry = {weight.name,
             weight.shape,
             type_of(stored),
             type_of(weight.type),
             bytes_as(stored, weight.shape),
             bytes_as(weight.type, weight.shape)};
    if (weight.type == stored) continue;
    weight.make = [&entry, &quantization, &checkpoint, name = weight.name, make = weight.make] {
      const Tensor matrix = dense(make(), name).row_major();
      Weight result = quantized(matrix, quantization, name, checkpoint.weights->describe(name));
      if (const auto* packed = std::get_if<QuantizedTensor>(&result))
        entry.error = relative_error(matrix, *packed);
      return result;
    };
  }
  return weights;
}

void write_folder(const fs::path& source, const fs::path& target, const io::Checkpoint& checkpoint,
                  const std::vector<io::LazyWeight>& weights) {
  // Before anything is written, and under the name that the file will have.
  io::transformers_config(checkpoint.config, DType::f32, (target / "config.json").string());
  io::AtomicFolder made(target);
  io::write_checkpoint(made.path(), checkpoint.config, weights);
  copy_tokenizer(source, made.path());
  if (checkpoint.layout == io::Layout::mistral) write_bos_setting(made.path());
  made.commit();
}

}  // namespace

std::vector<QuantizedEntry> quantize_model(const fs::path& source, const fs::path& target,
                                           const Quantization& quantization, const OnProgress& progress) {
  std::error_code error;
  SSM_CHECK(!fs::exists(target, error), "{}: exists already", target.string());
  const bool gguf = target.extension() == ".gguf";
  SSM_CHECK(!gguf || quantization.format.type < QuantType::int8, "{}: GGUF has no type {}", target.string(),
            name_of(quantization.format));
  const io::Checkpoint checkpoint = io::open_checkpoint(source);
  std::map<std::string, QuantizedEntry> entries;
  std::vector<io::LazyWeight> weights = planned_weights(checkpoint, quantization, entries);
  io::report_making(weights, progress);
  if (gguf)
    save_gguf(target, checkpoint.config, name_of_model(source), weights, embedded_tokenizer(source));
  else
    write_folder(source, target, checkpoint, weights);
  std::vector<QuantizedEntry> result;
  for (const io::LazyWeight& weight : weights) result.push_back(entries.at(weight.name));
  return result;
}

}  // namespace ssm
