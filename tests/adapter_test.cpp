// LoRA adapters on whole tiny models (tests/goldens/adapters, of scripts/make_adapter_goldens.py): what PEFT
// wrote is read, computes what PyTorch computes, has PyTorch's gradients, and merges; and what PEFT refuses,
// too.
#include <gtest/gtest.h>

#include <algorithm>

#include "ssm/autograd/tape.h"
#include "ssm/core/test_folder.h"
#include "ssm/io/checkpoint_writer.h"
#include "ssm/load/adapter.h"
#include "ssm/load/load_model.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/train/adapter.h"
#include "tests/golden_batch.h"

namespace ssm::train {
namespace {

namespace fs = std::filesystem;
using test::TempFolder;

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kGoldens / "adapters")) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string test_name(const testing::TestParamInfo<std::string>& test) {
  std::string name = test.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

struct Case {
  fs::path folder, base;
  std::unique_ptr<io::SafetensorsFile> golden;
  explicit Case(const std::string& name)
      : folder(kGoldens / "adapters" / name),
        base(kGoldens / "models" / io::open_adapter(folder).config.base_model),
        golden(io::SafetensorsFile::open(folder / "golden.safetensors")) {}

  LoadedModel load(Device device = kCpu, bool parameters_stay = false) const {
    LoadOptions options;
    options.compute = DType::f32;
    options.adapter = folder;
    options.device = device;
    options.parameters_stay = parameters_stay;
    return load_model(base, options);
  }
};

LoadedModel load_f32(const fs::path& folder, const fs::path& adapter = {}) {
  LoadOptions options;
  options.compute = DType::f32;
  options.adapter = adapter;
  return load_model(folder, options);
}

std::vector<int32_t> prompt_of(const fs::path& base) {
  const auto golden = io::SafetensorsFile::open(base / "golden.safetensors");
  const Tensor tokens = golden->find("tokens").value();
  return {tokens.values<int64_t>().begin(), tokens.values<int64_t>().end()};
}

// The whole prompt at once, or its first `at_once` tokens and the others one by one on their state.
Tensor logits_of(const CausalLm& model, const std::vector<int32_t>& ids, size_t at_once = SIZE_MAX) {
  const ModelState state = model.make_state(1);
  Tensor all = Tensor::empty({std::ssize(ids), model.vocab_size()});
  for (size_t begin = 0; begin < ids.size();) {
    const size_t end = begin == 0 ? std::min(at_once, ids.size()) : begin + 1;
    const auto T = static_cast<int64_t>(end - begin);
    const Tensor piece = Tensor::from_values<int32_t>(std::span(ids).subspan(begin, end - begin), {T});
    const Tensor logits =
        model.logits(model.hidden(piece.to(model.device()), SequenceBatch::single(T), state)).to(kCpu);
    std::copy_n(logits.data<float>(), logits.numel(),
                all.data<float>() + static_cast<int64_t>(begin) * model.vocab_size());
    begin = end;
  }
  return all;
}

void expect_logits(const CausalLm& model, const Case& c, const std::string& what) {
  const Tensor expected = c.golden->find("logits").value();
  for (const size_t at_once : {size_t{1000}, size_t{7}}) {
    EXPECT_LT(test::relative_error(logits_of(model, prompt_of(c.base), at_once), test::to_doubles(expected)),
              1e-4)
        << what << ", at once " << at_once;
  }
}

void expect_training(const Case& c, Device device) {
  const Tensor losses = c.golden->find("losses").value(), norms = c.golden->find("norms").value();
  const double bound = std::max(5e-5, 4.0 * c.golden->find("float32_error").value().data<float>()[0]);
  LoadedModel loaded = c.load(device, true);
  TrainerOptions options = torch_options();
  options.trained = [&](std::string_view name) {
    return c.golden->find("gradient." + std::string(name)).has_value();
  };
  Trainer trainer(*loaded.model, loaded.model->vocab_size(), device, DType::f32, options);
  const auto gradients = c.golden->names();
  EXPECT_EQ(std::ssize(trainer.parameters().all()),
            std::count_if(gradients.begin(), gradients.end(),
                          [](const std::string& name) { return name.starts_with("gradient."); }));
  const Batch batch = golden_batch(c.base.filename());
  for (int64_t step = 0; step < losses.size(0) - 1; ++step) {
    const StepResult result = trainer.step(std::span(&batch, 1));
    EXPECT_NEAR(result.loss, losses.data<float>()[step], 1e-4 * losses.data<float>()[step]) << step;
    EXPECT_NEAR(result.grad_norm, norms.data<float>()[step], 1e-3 * norms.data<float>()[step]) << step;
    if (step > 0) continue;
    for (const TrainedParameter& p : trainer.parameters().all()) {
      const Tensor expected = c.golden->find("gradient." + p.name).value();
      const Tensor gradient = gradient_of(p.used).to(kCpu);
      ASSERT_TRUE(gradient.defined()) << p.name;
      EXPECT_LT(test::relative_error(gradient, test::to_doubles(expected)), bound) << p.name;
    }
  }
  EXPECT_NEAR(trainer.evaluate(batch) / static_cast<double>(batch.learned),
              losses.data<float>()[losses.size(0) - 1], 1e-3);
}

class Adapters : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Goldens, Adapters, testing::ValuesIn(case_names()), test_name);

TEST_P(Adapters, ComputesWhatPyTorchDoes) {
  const Case c(GetParam());
  expect_logits(*c.load().model, c, "attached");
}

TEST_P(Adapters, HasPyTorchsGradients) { expect_training(Case(GetParam()), kCpu); }

TEST_P(Adapters, MergesToTheSameFunction) {
  const Case c(GetParam());
  LoadedModel loaded = c.load();
  const std::vector<io::LazyTensor> tensors = merged_parameters(*loaded.model, DType::f32);
  loaded.config["tie_word_embeddings"] = loaded.model->tied();
  const TempFolder out;
  io::write_checkpoint(out.path(), loaded.config, DType::f32, tensors);
  const LoadedModel merged = load_f32(out.path());
  expect_logits(*merged.model, c, "merged");
  // An adapter on one side of a tied matrix unties it.
  const std::vector<std::string> names = io::open_adapter(c.folder).weights->names();
  const bool one_side = std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return name.starts_with("backbone.embeddings.") || name.starts_with("lm_head.");
  });
  EXPECT_EQ(merged.model->tied(), !one_side && load_f32(c.base).model->tied());
}

class AdaptersCuda : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Goldens, AdaptersCuda, testing::ValuesIn(case_names()), test_name);

TEST_P(AdaptersCuda, ComputesAndTrainsAsPyTorch) {
  SSM_NEED_CUDA();
  const Case c(GetParam());
  expect_logits(*c.load(kCuda).model, c, "attached");
  expect_training(c, kCuda);
}

io::AdapterConfig every_target() {
  io::AdapterConfig config;
  config.r = 3;
  config.alpha = 6;
  config.target_modules = {"in_proj", "x_proj", "dt_proj", "out_proj", "embeddings", "lm_head"};
  return config;
}

TEST(AddLora, ChangesNothingAtFirst) {
  const fs::path base = kGoldens / "models/mamba-default";
  const LoadedModel plain = load_f32(base), adapted = load_f32(base);
  add_lora(*adapted.model, every_target(), 5);
  EXPECT_TRUE(has_lora(*adapted.model));
  EXPECT_FALSE(has_lora(*plain.model));
  const Tensor a = logits_of(*plain.model, prompt_of(base)), b = logits_of(*adapted.model, prompt_of(base));
  EXPECT_TRUE(std::ranges::equal(a.values<float>(), b.values<float>()));
  io::AdapterConfig unknown = every_target();
  unknown.target_modules = {"in_proj", "q_proj"};
  const LoadedModel other = load_f32(base);
  EXPECT_THROW(add_lora(*other.model, unknown, 5), Error);
}

// Trains every kind of Lora with dropout, with and without recomputed layers.
std::vector<double> losses_with_dropout(bool recompute, uint64_t seed, float dropout = 0.3f) {
  LoadOptions options;
  options.parameters_stay = true;
  const LoadedModel loaded = load_model(kGoldens / "models/mamba-default", options);
  io::AdapterConfig config = every_target();
  config.dropout = dropout;
  add_lora(*loaded.model, config, 1);
  TrainerOptions trainer_options = torch_options();
  trainer_options.schedule.lr = 2e-2;
  trainer_options.seed = seed;
  trainer_options.recompute_layers = recompute;
  trainer_options.trained = is_lora_name;
  Trainer trainer(*loaded.model, loaded.model->vocab_size(), kCpu, DType::f32, trainer_options);
  const Batch batch = golden_batch("mamba-default");
  std::vector<double> losses;
  for (int step = 0; step < 4; ++step) losses.push_back(trainer.step(std::span(&batch, 1)).loss);
  const double plain = trainer.evaluate(batch);
  EXPECT_EQ(plain, trainer.evaluate(batch));
  losses.push_back(plain);
  return losses;
}

TEST(Dropout, HasTheSameMaskWhenALayerIsRecomputed) {
  const std::vector<double> losses = losses_with_dropout(false, 1);
  EXPECT_EQ(losses, losses_with_dropout(true, 1));
  EXPECT_NE(losses, losses_with_dropout(false, 2));
  EXPECT_NE(losses, losses_with_dropout(false, 1, 0.0f));
  EXPECT_LT(losses[3], losses[0]);
}

// A written adapter is the trained model again, and a bit more: what it says of itself.
TEST(Adapter, RoundTrip) {
  const fs::path base = kGoldens / "models/mamba2-groups2";
  const LoadedModel loaded = load_f32(base);
  io::AdapterConfig config;
  config.r = 5;
  config.alpha = 7;
  config.use_rslora = true;
  config.target_modules = {"in_proj", "out_proj", "embeddings"};
  config.modules_to_save = {"conv1d", "A_log"};
  begin_adapter(*loaded.model, config, 3);
  TrainerOptions options = torch_options();
  options.trained = trained_by(config);
  Trainer trainer(*loaded.model, loaded.model->vocab_size(), kCpu, DType::f32, options);
  const Batch batch = golden_batch("mamba2-groups2");
  for (int step = 0; step < 3; ++step) trainer.step(std::span(&batch, 1));
  Dropout(*loaded.model).set(std::nullopt);
  loaded.model->prepare();
  const TempFolder folder;
  io::write_adapter(folder.path(), config, adapter_tensors(trainer, DType::f32));
  const LoadedModel again = load_f32(base, folder.path());
  const std::vector<int32_t> ids = prompt_of(base);
  const Tensor a = logits_of(*loaded.model, ids), b = logits_of(*again.model, ids);
  EXPECT_TRUE(std::ranges::equal(a.values<float>(), b.values<float>()));
  const Tensor before = logits_of(*load_f32(base).model, ids);
  EXPECT_GT(test::relative_error(a, test::to_doubles(before)), 1e-3);
}

void expect_refused(const std::vector<io::NamedTensor>& tensors, const std::vector<std::string>& parts) {
  const TempFolder folder;
  io::AdapterConfig config;
  config.target_modules = {"in_proj"};
  io::write_adapter(folder.path(), config, tensors);
  try {
    load_f32(kGoldens / "models/mamba-default", folder.path());
    ADD_FAILURE() << "was loaded";
  } catch (const Error& e) {
    for (const std::string& part : parts)
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
  }
}

TEST(Adapter, RefusesByFileAndTensor) {
  const std::string module = "backbone.layers.0.mixer.in_proj", A = module + ".lora_A.weight",
                    B = module + ".lora_B.weight", file = "adapter_model.safetensors";
  const Tensor a = Tensor::zeros({2, 16}), b = Tensor::zeros({64, 2});
  expect_refused({{A, a}}, {file, B, "missing"});
  expect_refused({{B, b}}, {file, B, "no such module"});
  expect_refused({{A, Tensor::zeros({2, 15})}, {B, b}}, {file, A, "[2, 15]", "[2, 16]"});
  expect_refused({{A, a}, {B, Tensor::zeros({64, 3})}}, {file, B, "[64, 3]", "[64, 2]"});
  expect_refused({{A, Tensor::zeros({16})}, {B, b}}, {file, A, "[16]"});
  expect_refused({{A, Tensor::zeros({2, 16}, DType::i32)}, {B, b}}, {file, A, "i32"});
  expect_refused({{"backbone.layers.9.mixer.in_proj.lora_A.weight", a}},
                 {file, "layers.9", "no such module"});
  expect_refused({{"backbone.layers.0.mixer.conv1d.weight", a}}, {file, "conv1d.weight", "[32, 1, 4]"});
  expect_refused({}, {"holds no tensor"});
}

}  // namespace
}  // namespace ssm::train
