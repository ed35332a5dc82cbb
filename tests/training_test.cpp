// Training of whole tiny models against PyTorch (tests/goldens/training): every parameter's gradient, and the
// losses of ten AdamW steps. And the promises that need no oracle: recomputed layers, accumulated and split
// batches.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "ssm/autograd/tape.h"
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

struct Run {
  LoadedModel loaded;
  Trainer trainer;
  Run(const std::string& name, Device device, const TrainerOptions& options)
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
  Run run(name, device, torch_options());
  const Batch batch = golden_batch(name);
  for (int64_t step = 0; step < losses.size(0) - 1; ++step) {
    const StepResult result = run.trainer.step(std::span(&batch, 1));
    const double loss = losses.data<float>()[step], norm = norms.data<float>()[step];
    EXPECT_NEAR(result.loss, loss, 1e-4 * loss) << name << " step " << step;
    EXPECT_NEAR(result.grad_norm, norm, 1e-3 * norm) << name << " step " << step;
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

}  // namespace
}  // namespace ssm::train
