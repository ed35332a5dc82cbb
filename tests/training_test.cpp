// Training of whole tiny models against PyTorch (tests/goldens/training): every parameter's gradient, and the
// losses of ten AdamW steps. And the promises that need no oracle: recomputed layers, accumulated and split
// batches.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <limits>

#include "ssm/autograd/tape.h"
#include "ssm/core/test_error.h"
#include "ssm/load/load_model.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "tests/golden_batch.h"

namespace ssm::train {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kGoldens / "training")) {
    names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

struct TinyRun {
  LoadedModel loaded;
  Trainer trainer;
  TinyRun(const std::string& name, Device device, const TrainerOptions& options)
      : loaded(load_model(kGoldens / "models" / name,
                          {.compute = DType::f32, .device = device, .parameters_stay = true})),
        trainer(*loaded.model, loaded.model->vocab_size(), device, DType::f32, options) {}
};

void expect_torch(const std::string& name, Device device) {
  const auto golden = io::SafetensorsFile::open(kGoldens / "training" / (name + ".safetensors"));
  const Tensor losses = golden->find("losses").value(), norms = golden->find("norms").value();
  // What PyTorch's own f32 loses on this model, which may be badly conditioned, and room for another order of
  // sums.
  const double bound = std::max(5e-5, 4.0 * golden->find("float32_error").value().data<float>()[0]);
  TinyRun run(name, device, torch_options());
  const Batch batch = batch_of(golden_documents(name));
  for (int64_t step = 0; step < losses.size(0) - 1; ++step) {
    const StepResult result = run.trainer.step(std::span(&batch, 1));
    const double loss = losses.data<float>()[step], norm = norms.data<float>()[step];
    EXPECT_NEAR(result.loss, loss, 1e-4 * loss) << name << " step " << step;
    // AdamW's first steps divide small gradients by themselves: what one loses grows from step to step.
    EXPECT_NEAR(result.grad_norm, norm, std::max(1e-3, 10 * bound) * norm) << name << " step " << step;
    if (step > 0) continue;
    for (const TrainedParameter& p : run.trainer.parameters().all()) {
      const Tensor expected = golden->find("gradient." + p.name).value();
      EXPECT_LT(test::relative_error(gradient_of(p.used).to(kCpu), test::to_doubles(expected)), bound)
          << p.name;
    }
  }
  EXPECT_NEAR(run.trainer.evaluate(batch) / static_cast<double>(batch.learned),
              losses.data<float>()[losses.size(0) - 1], 1e-3)
      << name;
}

std::string test_name(const testing::TestParamInfo<std::string>& test) {
  std::string name = test.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

class Training : public testing::TestWithParam<std::string> {};
TEST_P(Training, EqualsPyTorch) { expect_torch(GetParam(), kCpu); }
INSTANTIATE_TEST_SUITE_P(Models, Training, testing::ValuesIn(case_names()), test_name);

class TrainingCuda : public testing::TestWithParam<std::string> {};
TEST_P(TrainingCuda, EqualsPyTorch) {
  SSM_NEED_CUDA();
  expect_torch(GetParam(), kCuda);
}
INSTANTIATE_TEST_SUITE_P(Models, TrainingCuda, testing::ValuesIn(case_names()), test_name);

// Of the first step's gradients, by name.
std::vector<std::pair<std::string, Tensor>> first_gradients(const std::string& name,
                                                            const TrainerOptions& options,
                                                            std::span<const Batch> batches) {
  TinyRun run(name, kCpu, options);
  const Gradients g = run.trainer.gradients(batches);
  std::vector<std::pair<std::string, Tensor>> gradients;
  for (size_t i = 0; i < g.parameters.size(); ++i) {
    gradients.emplace_back(g.parameters[i]->name, g.gradients[i].clone());
  }
  return gradients;
}

const std::vector<std::string> kFamilies{"mamba-bias",   "mamba2-groups2", "falcon-default",
                                         "neox-default", "hybrid-attn",    "hybrid-mlp"};

TEST(TrainerContract, RecomputedLayersAndThreadsChangeNoBit) {
  for (const std::string& name : kFamilies) {
    const Batch batch = batch_of(golden_documents(name));
    const auto expected = first_gradients(name, torch_options(), std::span(&batch, 1));
    TrainerOptions again = torch_options();
    again.recompute_layers = true;
    for (const int threads : {1, 2, 3}) {
      const test::ThreadScope scope(threads);
      const auto gradients = first_gradients(name, again, std::span(&batch, 1));
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_TRUE(test::same_bits(gradients[i].second, expected[i].second))
            << name << " " << expected[i].first;
      }
    }
  }
}

TEST(TrainerContract, AccumulatedBatchesAreOneBatch) {
  for (const std::string& name : kFamilies) {
    const auto documents = golden_documents(name);
    const Batch whole = batch_of(documents);
    const std::vector<Batch> parts{batch_of({documents[0]}), batch_of({documents[1]})};
    const auto expected = first_gradients(name, torch_options(), std::span(&whole, 1));
    const auto gradients = first_gradients(name, torch_options(), parts);
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_LT(test::relative_error(gradients[i].second, test::to_doubles(expected[i].second)), 2e-4)
          << name << " " << expected[i].first;
    }
  }
}

// Windows of a document, each from the state that the one before left: the losses are those of the whole.
TEST(TrainerContract, StatesAreCarriedFromWindowToWindow) {
  for (const char* name : {"mamba-bias", "mamba2-groups2", "falcon-default"}) {
    for (const bool recompute : {false, true}) {
      const auto documents = golden_documents(name);
      std::vector<int32_t> ids = documents[0];
      ids.insert(ids.end(), documents[1].begin(), documents[1].end());
      TrainerOptions still = torch_options();
      still.schedule.lr = 1e-30;
      still.recompute_layers = recompute;
      TinyRun run(name, kCpu, still);
      const double whole = run.trainer.evaluate(batch_of({ids}));
      double sum = 0;
      const int64_t inputs = std::ssize(ids) - 1;
      for (int64_t begin = 0; begin < inputs;) {
        const int64_t end = std::min(begin + 7 + begin % 5, inputs);
        Batch window;
        window.ids.assign(ids.begin() + begin, ids.begin() + end);
        window.targets.assign(ids.begin() + begin + 1, ids.begin() + end + 1);
        window.lengths = {end - begin};
        window.streams = {0};
        window.continues = {begin > 0};
        window.carries_on = {end < inputs};
        window.learned = end - begin;
        sum += run.trainer.step(std::span(&window, 1)).loss * static_cast<double>(window.learned);
        begin = end;
      }
      EXPECT_NEAR(sum, whole, 2e-5 * whole) << name;
    }
  }
}

TEST(TrainerContract, AttentionsStateIsNotCarried) {
  TinyRun run("neox-default", kCpu, torch_options());
  Batch batch = batch_of(golden_documents("neox-default"));
  batch.carries_on.assign(batch.carries_on.size(), 1);
  test::expect_error([&] { run.trainer.step(std::span(&batch, 1)); }, {"state of fixed size", "packed rows"});
}

TEST(TrainerContract, WhatIsNotFiniteIsNamedAndChangesNothing) {
  TinyRun run("mamba-default", kCpu, torch_options());
  const Batch batch = batch_of(golden_documents("mamba-default"));
  const Tensor broken = run.trainer.parameters().value_of("backbone.layers.1.mixer.D");
  const Tensor other = run.trainer.parameters().value_of("backbone.layers.0.mixer.D");
  const std::vector<double> before = test::to_doubles(other);
  broken.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  try {
    run.trainer.step(std::span(&batch, 1));
    FAIL() << "a NaN went unnoticed";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("step 1: the loss is nan"), std::string::npos) << e.what();
  }
  EXPECT_EQ(test::to_doubles(other), before);
  EXPECT_EQ(run.trainer.steps_done(), 0);
}

}  // namespace
}  // namespace ssm::train
