// Every tiny model of tests/goldens, loaded as a user would: logits, greedy tokens and states against what
// Transformers (or, where it is wrong, the f64 reference) computes. Its README says which is which.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "ssm/io/checkpoint.h"
#include "ssm/io/safetensors.h"
#include "ssm/load/load_model.h"
#include "ssm/models/registry.h"
#include "ssm/ops/cuda/test_cuda.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

const fs::path kGoldens = fs::path(SSM_SOURCE_DIR) / "tests/goldens/models";

// Options that change the function and that no published model uses: refused by name.
const std::vector<std::pair<std::string, std::string>> kRefused{
    {"original-mamba2-no-norm", "rmsnorm"},
    {"original-mamba2-norm-first", "norm_before_gate"},
    {"original-mamba2-mlp", "d_ssm"}};

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kGoldens)) {
    const std::string name = entry.path().filename().string();
    if (std::none_of(kRefused.begin(), kRefused.end(), [&](const auto& r) { return r.first == name; })) {
      names.push_back(name);
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<int32_t> ids_of(const Tensor& t) {
  const auto values = t.values<int64_t>();
  return {values.begin(), values.end()};
}

Tensor run(const CausalLm& model, std::span<const int32_t> ids, const ModelState& state) {
  const auto T = static_cast<int64_t>(ids.size());
  const Tensor on_device = Tensor::from_values<int32_t>(ids, {T}).to(model.device());
  return model.logits(model.hidden(on_device, SequenceBatch::single(T), state)).to(kCpu);
}

// Transformers keeps K conv columns [C, K] where we keep the K - 1 that matter [K - 1, C], and the SSM
// state's last two dimensions the other way round. Keys and values are [tokens, heads, D] in both.
void expect_state(const ModelState& state, const io::SafetensorsFile& golden, const std::string& prefix,
                  double bound) {
  for (size_t layer = 0; layer < state.size(); ++layer) {
    const std::string name = fmt::format("{}.layer.{}", prefix, layer);
    const auto conv = golden.find(name + ".conv"), ssm = golden.find(name + ".ssm"),
               keys = golden.find(name + ".keys"), values = golden.find(name + ".values");
    EXPECT_EQ(state[layer].conv.defined(), conv.has_value()) << name;
    EXPECT_EQ(state[layer].ssm.defined(), ssm.has_value()) << name;
    ASSERT_EQ(state[layer].kv != nullptr, keys.has_value()) << name;
    if (conv) {
      const Tensor recent = conv->slice(1, 1, conv->size(1)).transpose(0, 1);
      EXPECT_LT(test::relative_error(state[layer].conv.select(0, 0).to(kCpu), test::to_doubles(recent)),
                bound)
          << name;
    }
    if (ssm) {
      const Tensor h = ssm->transpose(ssm->rank() - 2, ssm->rank() - 1);
      EXPECT_LT(test::relative_error(state[layer].ssm.select(0, 0).to(kCpu), test::to_doubles(h)), bound)
          << name;
    }
    if (!keys) continue;
    ASSERT_EQ(state[layer].kv->tokens(0), keys->size(0)) << name;
    const Tensor k = Tensor::empty(keys->shape()), v = Tensor::empty(keys->shape());
    state[layer].kv->read(0, k.data<float>(), v.data<float>());
    EXPECT_LT(test::relative_error(k, test::to_doubles(*keys)), bound) << name;
    EXPECT_LT(test::relative_error(v, test::to_doubles(*values)), bound) << name;
  }
}

void expect_golden(const std::string& name, Device device) {
  const double state_bound = device.is_cuda() ? 4e-5 : 2e-5;  // the card's exp is good to 2 ulp
  const fs::path folder = kGoldens / name;
  const LoadedModel loaded = load_model(folder, {.compute = DType::f32, .device = device});
  const auto golden = io::SafetensorsFile::open(folder / "golden.safetensors");
  const std::vector<int32_t> tokens = ids_of(golden->find("tokens").value());
  const std::vector<int32_t> greedy = ids_of(golden->find("greedy").value());
  ModelState state = loaded.model->make_state(1);
  Tensor logits = run(*loaded.model, tokens, state);
  const Tensor expected = golden->find("logits").value();
  EXPECT_LT(test::relative_error(logits, test::to_doubles(expected)), 5e-5);
  expect_state(state, *golden, "state.0", state_bound);

  std::vector<int32_t> generated;
  for (size_t step = 0; step < greedy.size(); ++step) {
    const Tensor last = logits.select(0, logits.size(0) - 1);
    const float* row = last.data<float>();
    generated.push_back(static_cast<int32_t>(std::max_element(row, row + last.size(0)) - row));
    logits = run(*loaded.model, std::span(&generated.back(), 1), state);
    const std::string after =
        fmt::format("state.{}", step + 1);  // to stay small, not every case has each step's
    if (golden->find(after + ".layer.0.ssm") || golden->find(after + ".layer.0.keys"))
      expect_state(state, *golden, after, state_bound);
  }
  EXPECT_EQ(generated, greedy);
}

std::string test_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

class Golden : public testing::TestWithParam<std::string> {};
TEST_P(Golden, LogitsGreedyTokensAndStates) { expect_golden(GetParam(), kCpu); }
INSTANTIATE_TEST_SUITE_P(Models, Golden, testing::ValuesIn(case_names()), test_name);

#ifdef SSM_CUDA
class GoldenCuda : public testing::TestWithParam<std::string> {};
TEST_P(GoldenCuda, LogitsGreedyTokensAndStates) {
  SSM_NEED_CUDA();
  expect_golden(GetParam(), kCuda);
}
INSTANTIATE_TEST_SUITE_P(Models, GoldenCuda, testing::ValuesIn(case_names()), test_name);
#endif

TEST(GoldenRefused, OptionsThatNoModelUsesAreNamed) {
  for (const auto& [name, field] : kRefused) {
    try {
      load_model(kGoldens / name);
      ADD_FAILURE() << name << " was loaded";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(field), std::string::npos) << e.what();
    }
  }
}

}  // namespace
}  // namespace ssm
