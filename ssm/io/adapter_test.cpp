#include "ssm/io/adapter.h"

#include <cmath>

#include "ssm/io/json.h"
#include "ssm/io/test_files.h"

namespace ssm::io {
namespace {

using nlohmann::json;

Tensor filled(const Shape& shape, float first) {
  Tensor t = Tensor::empty(shape);
  for (float& x : t.values<float>()) x = first++;
  return t;
}

// A folder with one valid adapter; its config with `changes` on top.
void write_folder(const TempFolder& folder, const json& changes) {
  AdapterConfig config;
  config.target_modules = {"in_proj", "dt_proj"};
  const std::vector<NamedTensor> tensors{
      {"backbone.layers.0.mixer.in_proj.lora_A.weight", filled({2, 4}, 0)}};
  write_adapter(folder.path(), config, tensors);
  json written = parse_json(read_text(folder / "adapter_config.json"), "adapter_config.json");
  written.merge_patch(changes);
  write_text(folder / "adapter_config.json", written.dump());
}

TEST(Adapter, IsWrittenUnderPeftsNamesAndReadBack) {
  const TempFolder folder;
  AdapterConfig config;
  config.r = 4;
  config.alpha = 16;
  config.dropout = 0.05;
  config.use_rslora = true;
  config.bias = "lora_only";
  config.target_modules = {"dt_proj", "embeddings"};
  config.modules_to_save = {"conv1d"};
  config.base_model = "owner/name";
  const std::vector<NamedTensor> tensors{{"backbone.layers.0.mixer.dt_proj.lora_A.weight", filled({4, 1}, 1)},
                                         {"backbone.layers.0.mixer.dt_proj.lora_B.weight", filled({8, 4}, 2)},
                                         {"backbone.layers.0.mixer.dt_proj.bias", filled({8}, 3)},
                                         {"backbone.layers.0.mixer.conv1d.bias", filled({8}, 4)},
                                         {"backbone.embeddings.lora_embedding_A", filled({4, 5}, 5)}};
  write_adapter(folder.path(), config, tensors);
  const auto file = SafetensorsFile::open(folder / "adapter_model.safetensors");
  for (const char* name : {"base_model.model.backbone.layers.0.mixer.dt_proj.lora_A.weight",
                           "base_model.model.backbone.layers.0.mixer.dt_proj.base_layer.bias",
                           "base_model.model.backbone.layers.0.mixer.conv1d.bias",
                           "base_model.model.backbone.embeddings.lora_embedding_A"}) {
    EXPECT_TRUE(file->find(name)) << name;
  }
  const Adapter adapter = open_adapter(folder.path());
  EXPECT_EQ(adapter.config.r, 4);
  EXPECT_EQ(adapter.config.dropout, 0.05);
  EXPECT_EQ(adapter.config.bias, "lora_only");
  EXPECT_EQ(adapter.config.target_modules, config.target_modules);
  EXPECT_EQ(adapter.config.modules_to_save, config.modules_to_save);
  EXPECT_EQ(adapter.config.base_model, "owner/name");
  EXPECT_EQ(adapter.config.scale_of("backbone.layers.0.mixer.dt_proj", 4), 8);  // 16 / sqrt(4)
  for (const NamedTensor& t : tensors) {
    const std::optional<Tensor> found = adapter.weights->find(t.name);
    ASSERT_TRUE(found) << t.name;
    EXPECT_TRUE(std::ranges::equal(found->values<float>(), t.tensor.values<float>())) << t.name;
  }
}

TEST(Adapter, AlphaOfSingleModules) {
  const TempFolder folder;
  write_folder(folder, {{"alpha_pattern", {{"in_proj", 32}, {"layers.1.mixer.out_proj", 2}}}});
  const AdapterConfig config = open_adapter(folder.path()).config;
  EXPECT_EQ(config.scale_of("backbone.layers.0.mixer.in_proj", 8), 4);
  EXPECT_EQ(config.scale_of("backbone.layers.1.mixer.out_proj", 2), 1);
  EXPECT_EQ(config.scale_of("backbone.layers.11.mixer.out_proj", 8), 1);
}

TEST(Adapter, RefusesByName) {
  const std::vector<std::pair<json, std::string>> cases{
      {{{"peft_type", "IA3"}}, "peft_type"},
      {{{"use_dora", true}}, "use_dora"},
      {{{"fan_in_fan_out", true}}, "fan_in_fan_out"},
      {{{"layer_replication", {{0, 1}}}}, "layer_replication"},
      {{{"r", 0}}, "r"},
      {{{"r", 1 << 20}}, "r"},
      {{{"lora_alpha", "8"}}, "lora_alpha"},
      {{{"bias", "some"}}, "bias"},
      {{{"target_modules", 3}}, "target_modules"},
      {{{"alpha_pattern", {{".*proj", 3}}}}, "alpha_pattern"}};
  for (const auto& [changes, field] : cases) {
    const TempFolder folder;
    write_folder(folder, changes);
    expect_error([&] { open_adapter(folder.path()); }, {"adapter_config.json", field});
  }
  const TempFolder empty;
  expect_error([&] { open_adapter(empty.path()); }, {"adapter_config.json"});
}

}  // namespace
}  // namespace ssm::io
