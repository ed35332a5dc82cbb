// Training runs of the library with Python's callbacks: a LoRA adapter of a model, or all of it.
#include <nlohmann/json.hpp>

#include "python/src/bindings.h"
#include "python/src/model.h"
#include "ssm/io/adapter.h"
#include "ssm/load/adapter.h"
#include "ssm/load/save_model.h"
#include "ssm/train/adapter.h"
#include "ssm/train/dataset.h"
#include "ssm/train/run.h"

namespace ssm::python {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

train::BatchMode mode_of(const std::string& name) {
  if (name == "packed") return train::BatchMode::packed;
  SSM_CHECK(name == "documents", "a batch of {}: expected packed or documents", name);
  return train::BatchMode::documents;
}

train::RunOptions run_of(const json& o) {
  train::RunOptions run;
  run.out = o.at("out").get<std::string>();
  run.events = o.at("events").get<std::string>();
  run.batches.mode = mode_of(o.at("mode"));
  run.batches.rows = o.at("rows");
  run.batches.length = o.at("length");
  run.batches.seed = o.at("seed");
  run.accumulate = o.at("accumulate");
  run.log_every = o.at("log_every");
  run.validate_every = o.at("validate_every");
  run.save_every = o.at("save_every");
  run.keep = o.at("keep");
  return run;
}

train::TrainerOptions trainer_of(const json& o, int64_t steps) {
  train::TrainerOptions options;
  const int64_t warmup = o.at("warmup");
  options.schedule = {.kind = train::schedule_kind(o.at("schedule").get<std::string>()),
                      .lr = o.at("lr"),
                      .min_lr = o.at("min_lr"),
                      .warmup = warmup >= 0 ? warmup
                                            : static_cast<int64_t>(o.at("warmup_ratio").get<double>() *
                                                                   static_cast<double>(steps)),
                      .steps = steps};
  options.beta1 = o.at("beta1");
  options.beta2 = o.at("beta2");
  options.eps = o.at("eps");
  options.weight_decay = o.at("weight_decay");
  options.clip = o.at("clip");
  options.recompute_layers = o.at("recompute");
  options.seed = o.at("seed");
  return options;
}

std::shared_ptr<const train::TokenFile> open_data(LoadedModel& loaded,
                                                  const std::vector<std::string>& sources, const json& o) {
  train::DatasetOptions options;
  options.tokenizer = o.at("tokenizer").get<std::string>();
  if (options.tokenizer.empty()) options.tokenizer = loaded.folder;
  options.records.column = o.at("column");
  train::set_chat_template(options.records, loaded, "", o.at("chat_template"));
  options.eos = loaded.eos.empty() ? loaded.need_tokenizer().eos() : loaded.eos.front();
  options.cache = o.at("cache").get<std::string>();
  options.progress = [](double) { check_interrupt(); };
  return train::open_dataset({sources.begin(), sources.end()}, options);
}

nb::dict dict_of(const train::Metrics& metrics) {
  nb::dict out;
  const nlohmann::ordered_json fields = metrics.to_json();
  for (const auto& [name, value] : fields.items()) {
    if (value.is_number_integer()) out[name.c_str()] = value.get<int64_t>();
    if (value.is_number_float()) out[name.c_str()] = value.get<double>();
  }
  return out;
}

class Training {
 public:
  // `options` as JSON with every field, `adapter` as PEFT's adapter_config.json; without an adapter the whole
  // model is trained. The model changes in place.
  Training(ModelPtr model, const std::vector<std::string>& data, const std::vector<std::string>& held_out,
           const std::string& options, const std::optional<std::string>& adapter)
      : model_(std::move(model)) {
    const nb::gil_scoped_release unlocked;
    const json o = json::parse(options);
    const auto tokens = open_data(*model_, data, o);
    const double fraction = o.at("held_out_fraction");
    if (!held_out.empty()) {
      documents_.emplace(tokens);
      held_out_.emplace(open_data(*model_, held_out, o));
    } else if (fraction > 0) {
      auto [train, valid] = train::hold_out(tokens, fraction, o.at("seed"));
      documents_.emplace(std::move(train));
      held_out_.emplace(std::move(valid));
    } else {
      documents_.emplace(tokens);
    }
    run_ = run_of(o);
    const int64_t steps = o.at("steps");
    run_.steps = steps > 0
                     ? steps
                     : train::steps_of_epochs(*documents_, run_.batches, run_.accumulate, o.at("epochs"));
    for (int64_t* every : {&run_.validate_every, &run_.save_every}) {
      if (*every < 0) *every = steps_per_epoch();
    }
    train::TrainerOptions trainer = trainer_of(o, run_.steps);
    if (adapter) {
      SSM_CHECK(!has_lora(*model_->model),
                "the model has an adapter already: merge it, or train from its base");
      run_.adapter = io::parse_adapter_config(json::parse(*adapter), "LoraConfig");
      train::begin_adapter(*model_->model, *run_.adapter, trainer.seed);
      trainer.trained = train::trained_by(*run_.adapter);
    }
    run_.about = o.at("about");
    trainer_.emplace(*model_->model, model_->usable_vocab(), model_->device, model_->compute, trainer);
    run_.about["parameters"] = trainer_->parameters().count();
    run_.about["steps"] = run_.steps;
  }

  // on_step(metrics, seconds left) -> False ends the run. Ctrl-C does too, with a checkpoint.
  nb::dict run(const std::optional<nb::callable>& on_step, bool resume) {
    run_.resume = resume;
    std::optional<nb::python_error> interrupted;
    bool stop = false;
    train::RunResult result;
    const train::RunEvents events{.step =
                                      [&](const train::Metrics& metrics, double left) {
                                        const nb::gil_scoped_acquire gil;
                                        if (on_step)
                                          stop = (*on_step)(dict_of(metrics), left).is(nb::bool_(false));
                                      },
                                  .stop =
                                      [&] {
                                        const nb::gil_scoped_acquire gil;
                                        if (!interrupted && PyErr_CheckSignals() != 0) interrupted.emplace();
                                        return stop || interrupted;
                                      }};
    {
      const nb::gil_scoped_release unlocked;
      try {
        result = train::run_training(*model_, *trainer_, *documents_, held_out_, run_, events);
      } catch (...) {
        settle();
        throw;
      }
      settle();
    }
    if (interrupted) throw nb::python_error(*interrupted);
    nb::dict out;
    out["steps"] = result.steps;
    out["finished"] = result.finished;
    out["loss"] = result.loss;
    out["validation_loss"] = result.validation_loss;
    return out;
  }

  std::optional<double> evaluate() {
    if (!held_out_) return std::nullopt;
    const nb::gil_scoped_release unlocked;
    const double loss = train::validation_loss(*trainer_, *held_out_, run_.batches, run_.validate_tokens);
    settle();
    return loss;
  }

  // (ids, targets) of each sequence that evaluate() reads; a target is the next id, -1 where none is learned.
  nb::list held_out() const {
    std::vector<std::pair<Tensor, Tensor>> sequences;
    if (held_out_) {
      const nb::gil_scoped_release unlocked;
      train::for_each_held_out(
          *held_out_, run_.batches, run_.validate_tokens, [&](const train::Batch& batch) {
            size_t begin = 0;
            for (const int64_t length : batch.lengths) {
              const auto piece = [&](const std::vector<int32_t>& all) {
                return Tensor::from_values(std::span(all).subspan(begin, static_cast<size_t>(length)),
                                           {length});
              };
              sequences.emplace_back(piece(batch.ids), piece(batch.targets));
              begin += static_cast<size_t>(length);
            }
          });
    }
    nb::list out;
    for (const auto& [ids, targets] : sequences) out.append(nb::make_tuple(array_of(ids), array_of(targets)));
    return out;
  }

  // The adapter, or the model, as it is now.
  void save(const std::string& folder) {
    const nb::gil_scoped_release unlocked;
    fs::create_directories(folder);
    if (run_.adapter) {
      io::write_adapter(folder, *run_.adapter, train::adapter_tensors(*trainer_, run_.stored));
    } else {
      save_model(folder, *model_->model, model_->config, run_.stored, model_->folder,
                 [&](const std::string& name) { return trainer_->parameters().value_of(name); });
    }
  }

  int64_t steps() const { return run_.steps; }
  int64_t parameters() const { return trainer_->parameters().count(); }
  int64_t steps_per_epoch() const {
    return train::steps_of_epochs(*documents_, run_.batches, run_.accumulate, 1);
  }

 private:
  // The model is one to run again: no dropout, no gradients, what is derived from parameters made anew.
  void settle() {
    trainer_->parameters().clear_gradients();
    Dropout(*model_->model).set(std::nullopt);
    model_->model->prepare();
  }

  ModelPtr model_;
  std::optional<train::DocumentSet> documents_, held_out_;
  train::RunOptions run_;
  std::optional<train::Trainer> trainer_;
};

// Holds a model's parameters while a trainer has put copies in their place.
class Originals final : public nn::Visitor {
 public:
  explicit Originals(CausalLm& model) : model_(model) { model_.visit(*this); }
  ~Originals() override {
    restoring_ = true;
    model_.visit(*this);
    model_.prepare();
  }

 protected:
  void on_weight(const std::string&, Weight& weight, const Shape&) override {
    if (restoring_) {
      weight = weights_[weight_++];
    } else {
      weights_.push_back(weight);
    }
  }
  void on_tensor(const std::string&, Tensor& tensor, const Shape&, nn::Storage) override {
    if (restoring_) {
      tensor = tensors_[tensor_++];
    } else {
      tensors_.push_back(tensor);
    }
  }

 private:
  CausalLm& model_;
  std::vector<Weight> weights_;
  std::vector<Tensor> tensors_;
  size_t weight_ = 0, tensor_ = 0;
  bool restoring_ = false;
};

// The mean loss over targets that are not -1, and its gradient by every parameter's name.
nb::tuple gradients(const ModelPtr& model, const InArray& ids, const InArray& targets,
                    const std::vector<int64_t>& lengths) {
  const Tensor id_rows = tensor_of(ids, "ids"), target_rows = tensor_of(targets, "targets");
  const auto id_values = ids_of(id_rows, "ids"), target_values = ids_of(target_rows, "targets");
  SSM_CHECK(id_values.size() == target_values.size(), "{} ids, {} targets", id_values.size(),
            target_values.size());
  train::Batch batch{.ids = {id_values.begin(), id_values.end()},
                     .targets = {target_values.begin(), target_values.end()},
                     .lengths = lengths,
                     .streams = std::vector<int32_t>(lengths.size()),
                     .continues = std::vector<uint8_t>(lengths.size()),
                     .carries_on = std::vector<uint8_t>(lengths.size())};
  batch.learned = std::count_if(batch.targets.begin(), batch.targets.end(), [](int32_t t) { return t >= 0; });
  double loss = 0;
  std::vector<std::pair<std::string, Tensor>> found;
  {
    const nb::gil_scoped_release unlocked;
    const Originals kept(*model->model);
    train::Trainer trainer(*model->model, model->model->vocab_size(), model->device, model->compute, {});
    const train::Gradients g = trainer.gradients(std::span(&batch, 1));
    loss = g.loss;
    for (size_t i = 0; i < g.parameters.size(); ++i) {
      found.emplace_back(g.parameters[i]->name, g.gradients[i].to(kCpu).to(DType::f32).clone());
    }
    Dropout(*model->model).set(std::nullopt);
  }
  nb::dict out;
  for (const auto& [name, gradient] : found) out[name.c_str()] = array_of(gradient);
  return nb::make_tuple(loss, out);
}

}  // namespace

void bind_train(nb::module_& m) {
  using nb::arg;
  nb::class_<Training>(m, "Training")
      .def(nb::init<ModelPtr, const std::vector<std::string>&, const std::vector<std::string>&,
                    const std::string&, const std::optional<std::string>&>(),
           arg("model"), arg("data"), arg("held_out"), arg("options"), arg("adapter").none())
      .def("run", &Training::run, arg("on_step") = nb::none(), arg("resume") = false,
           "on_step(metrics, seconds left) -> False ends it. {steps, finished, loss, validation_loss}")
      .def("evaluate", &Training::evaluate, "The held-out loss, or None without such data.")
      .def("held_out", &Training::held_out, "[(ids, targets)] of each sequence that evaluate() reads.")
      .def("save", &Training::save, arg("folder"))
      .def_prop_ro("steps", &Training::steps)
      .def_prop_ro("steps_per_epoch", &Training::steps_per_epoch)
      .def_prop_ro("parameters", &Training::parameters, "that are trained");
  m.def("gradients", &gradients, arg("model"), arg("ids"), arg("targets"), arg("lengths"),
        "(mean loss over targets that are not -1, {parameter: gradient}); the model stays as it is.");
}

}  // namespace ssm::python
