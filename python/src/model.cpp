#include "python/src/model.h"

#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "python/src/bindings.h"
#include "python/src/tokenizer.h"
#include "ssm/io/config.h"
#include "ssm/load/adapter.h"
#include "ssm/load/parameters.h"
#include "ssm/load/save_model.h"
#include "ssm/models/registry.h"
#include "ssm/ops/cross_entropy/cross_entropy.h"
#include "ssm/ops/elementwise/elementwise.h"
#include "ssm/runtime/sequence_runner.h"
#include "ssm/train/init.h"

namespace ssm::python {
namespace {

// Of the head at a time: where only their scores are wanted, and where they are.
constexpr int64_t kLogitRows = 64, kWholeRows = 512;

LoadOptions options_of(const std::string& dtype, const std::string& device) {
  LoadOptions options;
  if (dtype != "auto") {
    options.compute = dtype_from_name(dtype);
    SSM_CHECK(options.compute, "dtype {}: expected auto, f32, bf16 or f16", dtype);
  }
  SSM_CHECK(device == "cpu" || device == "cuda" || device == "auto", "device {}: expected auto, cpu or cuda",
            device);
  if (device == "cuda" || (device == "auto" && why_unavailable(kCuda).empty())) options.device = kCuda;
  return options;
}

ModelPtr load(const std::string& folder, const std::string& dtype, const std::string& device,
              const std::string& tokenizer, const std::string& adapter, const std::string& quantization,
              int64_t group, bool training) {
  LoadOptions options = options_of(dtype, device);
  if (training) {  // parameters in f32; on a card the trainer takes them there
    options.parameters_stay = true;
    if (!options.compute) options.compute = options.device.is_cuda() ? DType::bf16 : DType::f32;
    SSM_CHECK(options.device.is_cuda() || *options.compute == DType::f32,
              "dtype {}: on a CPU training is in f32", dtype);
  }
  if (!quantization.empty()) {
    const std::optional<QuantFormat> format = quant_format(quantization, group);
    SSM_CHECK(format, "quantization {} with groups of {}: expected one of {}", quantization, group,
              fmt::join(quantization_types(), ", "));
    options.quantization = Quantization{.format = *format};
  }
  options.tokenizer = tokenizer;
  options.adapter = adapter;
  const nb::gil_scoped_release unlocked;
  return std::make_shared<Model>(load_model(folder, options));
}

ModelPtr create(const std::string& config, const std::string& scheme, uint64_t seed) {
  SSM_CHECK(scheme == "reference" || scheme == "huggingface", "init {}: expected reference or huggingface",
            scheme);
  const nb::gil_scoped_release unlocked;
  LoadedModel loaded;
  loaded.config = io::read_config(config, "config");
  loaded.layout = "random";
  set_execution(loaded, {});
  loaded.model = make_causal_lm(loaded.config, precision_of(loaded));
  train::initialise(*loaded.model, loaded.config,
                    scheme == "reference" ? train::InitScheme::reference : train::InitScheme::huggingface,
                    seed);
  const ParameterCount count = count_parameters(*loaded.model);
  loaded.parameters = count.parameters;
  loaded.weight_bytes = count.bytes;
  const nlohmann::json& eos = loaded.config.at("eos_token_id");
  if (eos.is_number_integer()) loaded.eos = {eos.get<int32_t>()};
  if (eos.is_array()) loaded.eos = eos.get<std::vector<int32_t>>();
  return std::make_shared<Model>(std::move(loaded));
}

class ParameterReader final : public nn::Visitor {
 public:
  nb::dict parameters;

 protected:
  void on_weight(const std::string& name, Weight& weight, const Shape&) override {
    if (const Tensor* t = std::get_if<Tensor>(&weight)) parameters[name.c_str()] = array_of(*t);
  }
  void on_tensor(const std::string& name, Tensor& tensor, const Shape&, nn::Storage) override {
    parameters[name.c_str()] = array_of(tensor);
  }
};

nb::dict parameters_of(Model& model) {
  ParameterReader reader;
  model.model->visit(reader);
  return reader.parameters;
}

// Rows of hidden states as they come, piece by piece, put in their places.
class Rows {
 public:
  Rows(const CausalLm& model, std::span<const int64_t> lengths) {
    offsets_.push_back(0);
    for (const int64_t n : lengths) offsets_.push_back(offsets_.back() + n);
    width_ = model.hidden_size();
  }
  void put(std::span<const SequenceRunner::Piece> pieces, const Tensor& from) {
    if (!out_.defined()) {
      const ArenaScope heap(nullptr);  // it outlives the call
      out_ = Tensor::empty({offsets_.back(), width_}, from.dtype(), from.device());
    }
    int64_t row = 0;
    for (const SequenceRunner::Piece& piece : pieces) {
      const int64_t begin = offsets_[piece.input] + piece.begin;
      const Tensor to = out_.slice(0, begin, begin + piece.length);
      copy_bytes(to.raw(), to.device(), from.slice(0, row, row + piece.length).raw(), from.device(),
                 to.bytes());
      row += piece.length;
    }
  }
  const Tensor& tensor() const { return out_; }

 private:
  std::vector<int64_t> offsets_;
  int64_t width_ = 0;
  Tensor out_;  // of the rows' type
};

std::vector<SequenceRunner::Input> inputs_of(std::span<const int32_t> ids, const Tensor& embeddings,
                                             const std::vector<int64_t>& lengths,
                                             const std::vector<int32_t>& slots) {
  SSM_CHECK(lengths.size() == slots.size(), "{} lengths for {} slots", lengths.size(), slots.size());
  std::vector<SequenceRunner::Input> inputs;
  int64_t begin = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int64_t end = begin + lengths[i];
    SSM_CHECK(lengths[i] > 0 && end <= std::ssize(ids), "lengths sum up to more than {} tokens", ids.size());
    inputs.push_back({slots[i], ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(lengths[i])),
                      embeddings.defined() ? embeddings.slice(0, begin, end) : Tensor()});
    begin = end;
  }
  SSM_CHECK(begin == std::ssize(ids), "lengths sum up to {}, there are {} tokens", begin, ids.size());
  return inputs;
}

// Calls f(first row, rows of logits) with some rows at a time.
template <class F>
void for_each_logits(const LoadedModel& loaded, const Tensor& given, int64_t rows, F&& f) {
  const CausalLm& model = *loaded.model;
  const Tensor hidden = given.to(model.device().is_cuda() ? loaded.compute : DType::f32).to(model.device());
  SSM_CHECK(hidden.rank() == 2 && hidden.size(1) == model.hidden_size(), "hidden states {}, expected [T, {}]",
            hidden.shape(), model.hidden_size());
  for (int64_t row = 0; row < hidden.size(0); row += rows) {
    f(row, model.logits(hidden.slice(0, row, std::min(row + rows, hidden.size(0)))));
    check_interrupt();
  }
}

// Without the GIL.
Tensor logits_of(const Model& loaded, const Tensor& rows) {
  const int64_t V = loaded.model->vocab_size();
  Tensor out = rows.size(0) > 0 ? Tensor() : Tensor::empty({0, V});
  for_each_logits(loaded, rows, kWholeRows, [&](int64_t row, const Tensor& some) {
    if (some.size(0) == rows.size(0)) {
      out = some;
      return;
    }
    if (!out.defined()) out = Tensor::empty({rows.size(0), V}, some.dtype(), some.device());
    const Tensor to = out.slice(0, row, row + some.size(0));
    copy_bytes(to.raw(), to.device(), some.raw(), some.device(), some.bytes());
  });
  return out;
}

nb::object logits(const Model& loaded, const InArray& hidden) {
  const Tensor rows = tensor_of(hidden, "hidden");
  return array_of(unlocked([&] { return logits_of(loaded, rows); }));
}

nb::tuple forward(const ModelPtr& loaded, const OptionalIn& ids, const OptionalIn& embeddings,
                  const std::vector<int64_t>& lengths, State* state, const std::vector<int32_t>& slots,
                  bool layers, bool wants_logits) {
  const CausalLm& model = *loaded->model;
  SSM_CHECK(ids.has_value() != embeddings.has_value(), "exactly one of ids and embeddings is needed");
  const Tensor id_tensor = tensor_of(ids, "ids"), rows = tensor_of(embeddings, "embeddings");
  SSM_CHECK(!state || state->model() == loaded, "the state is another model's");
  std::vector<Rows> by_layer;
  Tensor scores;
  const Tensor hidden = unlocked([&] {
    const std::vector<int32_t> none(rows.defined() ? static_cast<size_t>(rows.size(0)) : 0);
    const auto inputs =
        inputs_of(ids ? ids_of(id_tensor, "ids") : std::span<const int32_t>(none),
                  rows.defined() ? rows.to(model.device()).row_major() : rows, lengths, slots);
    std::optional<State> own;
    if (!state) own.emplace(loaded, std::ssize(slots));
    if (layers) by_layer.assign(static_cast<size_t>(model.num_layers()), Rows(model, lengths));
    Rows out(model, lengths);
    std::vector<Tensor> seen;  // of this piece, layer by layer
    SequenceRunner runner(model, state ? state->pool() : own->pool(), &loaded->arena);
    runner.read_pieces(
        inputs,
        [&](std::span<const SequenceRunner::Piece> pieces, const Tensor& h) {
          out.put(pieces, h);
          for (size_t i = 0; i < by_layer.size(); ++i) by_layer[i].put(pieces, seen[i]);
          seen.clear();
          check_interrupt();
        },
        layers ? CausalLm::OnLayer([&](const Tensor& residual) { seen.push_back(residual.clone()); })
               : CausalLm::OnLayer());
    if (wants_logits) scores = logits_of(*loaded, out.tensor());
    return out.tensor();
  });
  nb::list hidden_states;
  for (const Rows& r : by_layer) hidden_states.append(array_of(r.tensor()));
  return nb::make_tuple(nb::cast(DlpackArray(hidden)), hidden_states, array_of(scores));
}

nb::tuple nll(const Model& loaded, const InArray& hidden, const InArray& targets, int64_t vocab,
              const OptionalIn& places) {
  const CausalLm& model = *loaded.model;
  const Tensor all = tensor_of(hidden, "hidden"), ids = tensor_of(targets, "targets");
  const Tensor taken = tensor_of(places, "rows");
  const CrossEntropy whole = unlocked([&] {
    Tensor rows = all;
    if (taken.defined()) {
      for (const int32_t row : ids_of(taken, "rows")) {
        SSM_CHECK(row >= 0 && row < all.size(0), "row {} of hidden states {}", row, all.shape());
      }
      rows = take_rows(all, taken.to(all.device()));
    }
    SSM_CHECK(ids.rank() == 1 && ids.dtype() == DType::i32 && ids.size(0) == rows.size(0),
              "targets {} of {} for {} rows", ids.shape(), name_of(ids.dtype()), rows.size(0));
    CrossEntropy out{.nll = Tensor::empty({rows.size(0)}),
                     .argmax = Tensor::empty({rows.size(0)}, DType::i32)};
    for_each_logits(loaded, rows, kLogitRows, [&](int64_t row, const Tensor& some) {
      const int64_t end = row + some.size(0);
      const CrossEntropy result = cross_entropy(some, ids.slice(0, row, end).to(model.device()),
                                                vocab > 0 ? vocab : model.vocab_size());
      const Tensor nlls = result.nll.to(kCpu), argmax = result.argmax.to(kCpu);
      copy_bytes(out.nll.slice(0, row, end).raw(), kCpu, nlls.raw(), kCpu, nlls.bytes());
      copy_bytes(out.argmax.slice(0, row, end).raw(), kCpu, argmax.raw(), kCpu, argmax.bytes());
    });
    return out;
  });
  return nb::make_tuple(array_of(whole.nll), array_of(whole.argmax));
}

nb::object embed(const Model& loaded, const InArray& ids) {
  const Tensor rows = tensor_of(ids, "ids");
  return array_of(loaded.model->embed(rows.to(loaded.model->device())));
}

void save(Model& loaded, const std::string& folder, const std::string& dtype) {
  const DType stored = dtype == "auto" ? loaded.stored : dtype_from_name(dtype).value_or(DType::u8);
  SSM_CHECK(stored == DType::f32 || stored == DType::bf16 || stored == DType::f16,
            "dtype {}: expected auto, f32, bf16 or f16", dtype);
  SSM_CHECK(!has_lora(*loaded.model),
            "the model has an adapter: save that (a trainer's save_model), or merge it");
  const nb::gil_scoped_release unlocked;
  save_model(folder, *loaded.model, loaded.config, stored,
             loaded.tokenizer ? loaded.folder : std::filesystem::path());
}

TokenizerPtr tokenizer_of(const ModelPtr& model) { return {model, model->tokenizer.get()}; }

}  // namespace

void bind_model(nb::module_& m) {
  using nb::arg;
  nb::class_<Model>(m, "Model")
      .def_static("load", &load, arg("folder"), arg("dtype") = "auto", arg("device") = "cpu",
                  arg("tokenizer") = "", arg("adapter") = "", arg("quantization") = "", arg("group") = 64,
                  arg("training") = false)
      .def_static("create", &create, arg("config"), arg("init") = "huggingface", arg("seed") = 0,
                  "With new weights, of a config.json's text.")
      .def("forward", &forward, arg("ids").none(), arg("embeddings").none(), arg("lengths"),
           arg("state").none(), arg("slots"), arg("layers") = false, arg("logits") = false,
           "(final hidden states [T, M] as a DlpackArray, on a card in the compute type; those after each "
           "layer; logits [T, V] or None) of sequences laid one after another.")
      .def("logits", &logits, arg("hidden"), "[T, V] of hidden states [T, M]")
      .def("nll", &nll, arg("hidden"), arg("targets"), arg("vocab") = 0, arg("rows") = nb::none(),
           "(nll [T], argmax [T]) without the logits in memory; target -1: none. `rows` [T] i32: those of "
           "`hidden` that are meant")
      .def("embed", &embed, arg("ids"), "[T, M] of ids [T] i32")
      .def("parameters", &parameters_of, "By Transformers' names, the memory itself; packed ones left out.")
      .def("save", &save, arg("folder"), arg("dtype") = "auto")
      .def_prop_ro("tokenizer", &tokenizer_of, "None where the folder has none")
      .def_prop_ro("config", [](const Model& l) { return l.config.dump(); })
      .def_prop_ro("folder", [](const Model& l) { return l.folder.string(); })
      .def_prop_ro("layout", [](const Model& l) { return l.layout; })
      .def_prop_ro("dtype", [](const Model& l) { return std::string(name_of(l.compute)); })
      .def_prop_ro("stored", [](const Model& l) { return std::string(name_of(l.stored)); })
      .def_prop_ro("device", [](const Model& l) { return std::string(name_of(l.device)); })
      .def_prop_ro(
          "dense", [](const Model& l) { return !l.packed; }, "no matrix is packed")
      .def_prop_ro("eos", [](const Model& l) { return l.eos; })
      .def_prop_ro("num_parameters", [](const Model& l) { return l.parameters; })
      .def_prop_ro("weight_bytes", [](const Model& l) { return l.weight_bytes; })
      .def_prop_ro("vocab_size", [](const Model& l) { return l.model->vocab_size(); })
      .def_prop_ro("usable_vocab", [](const Model& l) { return l.usable_vocab(); })
      .def_prop_ro("hidden_size", [](const Model& l) { return l.model->hidden_size(); })
      .def_prop_ro("num_layers", [](const Model& l) { return l.model->num_layers(); });
}

}  // namespace ssm::python
