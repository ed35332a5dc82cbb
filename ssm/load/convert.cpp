#include "ssm/load/convert.h"

#include "ssm/io/atomic_folder.h"
#include "ssm/io/checkpoint_writer.h"
#include "ssm/io/original_writer.h"
#include "ssm/load/parameters.h"
#include "ssm/load/save_gguf.h"
#include "ssm/load/tokenizer.h"
#include "ssm/models/registry.h"
#include "ssm/quant/dequantize.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

// A way to each parameter of a model, none of which is read for it.
class Lister final : public nn::Visitor {
 public:
  Lister(const io::WeightSource& source, std::optional<DType> dtype) : source_(source), dtype_(dtype) {}
  std::vector<io::LazyWeight> weights;

 protected:
  void on_weight(const std::string& name, Weight&, const Shape& shape) override {
    const std::optional<QuantizedTensor> packed = source_.find_packed(name);
    if (!packed) return add_dense(name, shape, dtype_);
    SSM_CHECK(packed->shape == shape, "{}: has shape {}, the config asks for {}", source_.describe(name),
              packed->shape, shape);
    if (dtype_) {
      weights.push_back({name, shape, *dtype_, [this_source = &source_, name, to = *dtype_] {
                           return Weight(dequantize(*this_source->find_packed(name)).to(to));
                         }});
    } else {
      weights.push_back({name, shape, packed->format,
                         [this_source = &source_, name] { return Weight(*this_source->find_packed(name)); }});
    }
  }
  void on_tensor(const std::string& name, Tensor&, const Shape& shape, nn::Storage) override {
    add_dense(name, shape, std::nullopt);
  }

 private:
  void add_dense(const std::string& name, const Shape& shape, std::optional<DType> dtype) {
    const DType to = dtype.value_or(need_tensor(source_, name, shape).dtype());
    weights.push_back({name, shape, to, [this_source = &source_, name, shape, to] {
                         return Weight(need_tensor(*this_source, name, shape).to(to));
                       }});
  }

  const io::WeightSource& source_;
  std::optional<DType> dtype_;
};

std::vector<io::LazyTensor> dense_tensors(const std::vector<io::LazyWeight>& weights,
                                          const std::string& target) {
  std::vector<io::LazyTensor> out;
  for (const io::LazyWeight& weight : weights) {
    const DType* dtype = std::get_if<DType>(&weight.type);
    SSM_CHECK(dtype, "{}: {} is packed ({}), which this layout cannot hold; --dtype unpacks it", target,
              weight.name, name_of(std::get<QuantFormat>(weight.type)));
    out.push_back({weight.name, *dtype, weight.shape,
                   [make = weight.make, name = weight.name] { return dense(make(), name); }});
  }
  return out;
}

}  // namespace

std::string name_of_model(const fs::path& path) {
  const fs::path whole = fs::absolute(path).lexically_normal();
  const fs::path last = whole.has_filename() ? whole.filename() : whole.parent_path().filename();
  return last.extension() == ".gguf" ? last.stem().string() : last.string();
}

std::vector<io::LazyWeight> stored_weights(const io::Checkpoint& checkpoint, std::optional<DType> dtype) {
  const std::unique_ptr<CausalLm> model = make_causal_lm(checkpoint.config, {});
  Lister lister(*checkpoint.weights, dtype);
  model->visit(lister);
  return std::move(lister.weights);
}

void convert_model(const fs::path& source, const fs::path& target, ModelFormat format,
                   const ConvertOptions& options) {
  std::error_code error;
  SSM_CHECK(!fs::exists(target, error), "{}: exists already", target.string());
  SSM_CHECK(options.tokenizer.empty() || open_model_tokenizer(options.tokenizer), "{}: no tokenizer there",
            options.tokenizer.string());
  const io::Checkpoint checkpoint = io::open_checkpoint(source);
  std::vector<io::LazyWeight> weights = stored_weights(checkpoint, options.dtype);
  io::report_making(weights, options.progress);
  const fs::path tokenizer = options.tokenizer.empty() ? source : options.tokenizer;
  if (format == ModelFormat::gguf) {
    EmbeddedTokenizer embedded = embedded_tokenizer(tokenizer);
    if (checkpoint.layout == io::Layout::mistral && embedded.tokenizer) embedded.tokenizer->add_bos = true;
    return save_gguf(target, checkpoint.config, name_of_model(source), weights, embedded);
  }
  // Before anything is written, and under the name that the file will have.
  const std::string config_file = (target / "config.json").string();
  format == ModelFormat::original ? io::original_config(checkpoint.config, config_file)
                                  : io::transformers_config(checkpoint.config, DType::f32, config_file);
  const std::vector<io::LazyTensor> original = format == ModelFormat::original
                                                   ? dense_tensors(weights, target.string())
                                                   : std::vector<io::LazyTensor>();
  io::AtomicFolder made(target);
  if (format == ModelFormat::transformers) {
    io::write_checkpoint(made.path(), checkpoint.config, weights);
  } else {
    io::write_original(made.path(), checkpoint.config, original);
  }
  copy_tokenizer(tokenizer, made.path());
  if (checkpoint.layout == io::Layout::mistral) write_bos_setting(made.path());
  made.commit();
}

}  // namespace ssm
