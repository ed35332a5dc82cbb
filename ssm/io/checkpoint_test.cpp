#include "ssm/io/checkpoint.h"

#include "ssm/io/safetensors.h"
#include "ssm/io/sharded.h"
#include "ssm/io/test_files.h"

namespace ssm::io {
namespace {

namespace fs = std::filesystem;

void write_weights(const fs::path& path, const std::vector<std::string>& names) {
  std::vector<NamedTensor> tensors;
  for (const std::string& name : names) tensors.push_back({name, Tensor::zeros({2})});
  write_safetensors(path, tensors);
}

TEST(Checkpoint, OpensTheOriginalLayout) {
  const Checkpoint c = open_checkpoint(golden("original"));
  EXPECT_EQ(c.layout, Layout::original);
  EXPECT_EQ(name_of(c.layout), "original");
  EXPECT_EQ(c.config["vocab_size"], 16);
  EXPECT_EQ(c.weights->find("backbone.embeddings.weight")->shape(), (Shape{16, 8}));
  EXPECT_EQ(c.weights->find("backbone.layers.0.mixer.conv1d.weight")->shape(), (Shape{16, 1, 4}));
  EXPECT_EQ(c.weights->find("lm_head.weight")->raw(), c.weights->find("backbone.embeddings.weight")->raw());
  EXPECT_FALSE(c.weights->find("backbone.embedding.weight"));
  const std::string where = c.weights->describe("backbone.embeddings.weight");
  EXPECT_NE(where.find("pytorch_model.bin: tensor backbone.embedding.weight"), where.npos) << where;
}

TEST(Checkpoint, OpensTransformersShards) {
  const Checkpoint c = open_checkpoint(golden("sharded"));
  EXPECT_EQ(c.layout, Layout::transformers);
  EXPECT_TRUE(fs::exists(golden("sharded") / "model.safetensors.index.json"));
  EXPECT_EQ(c.config["model_type"], "mamba2");
  EXPECT_EQ(c.weights->find("backbone.embeddings.weight")->shape(), (Shape{16, 8}));
  EXPECT_EQ(c.weights->find("backbone.layers.0.mixer.in_proj.weight")->shape(), (Shape{42, 8}));
  EXPECT_EQ(c.weights->find("lm_head.weight")->dtype(), DType::f16);
  const Checkpoint falcon = open_checkpoint(golden("falcon"));
  EXPECT_EQ(falcon.config["model_type"], "falcon_mamba");
  EXPECT_FALSE(falcon.weights->find("lm_head.weight"));  // tied
}

TEST(Checkpoint, OpensTheBundledModel) {
  const Checkpoint c = open_checkpoint(fs::path(SSM_SOURCE_DIR) / "models" / "tale-10m");
  EXPECT_EQ(c.config["num_heads"], 16);
  EXPECT_EQ(c.weights->find("backbone.embeddings.weight")->shape(), (Shape{6144, 512}));
}

TEST(Checkpoint, OpensTheMistralLayout) {
  for (const char* config : {"params.json", "config.json"}) {
    const TempFolder folder;
    write_text(folder / config,
               R"({"dim":64,"n_layers":1,"vocab_size":8,"n_groups":1,"tie_embeddings":false})");
    write_weights(folder / "consolidated.safetensors",
                  {"model.backbone.embedding.weight", "model.lm_head.weight", "backbone.norm_f.weight"});
    const Checkpoint c = open_checkpoint(folder.path());
    EXPECT_EQ(c.layout, Layout::mistral);
    EXPECT_EQ(c.weights->names(), (std::vector<std::string>{"backbone.embeddings.weight",
                                                            "backbone.norm_f.weight", "lm_head.weight"}));
    for (const std::string& name : c.weights->names()) EXPECT_TRUE(c.weights->find(name)) << name;
  }
}

TEST(Checkpoint, OpensMixtures) {
  const TempFolder folder;
  write_text(folder / "config.json", R"({"model_type":"mamba","hidden_size":8})");
  write_weights(folder / "model.safetensors", {"backbone.embedding.weight", "backbone.norm_f.weight"});
  EXPECT_TRUE(open_checkpoint(folder.path()).weights->find("backbone.embeddings.weight"));
  write_weights(folder / "model.safetensors", {"embeddings.weight", "layers.0.norm.weight", "norm_f.weight"});
  const Checkpoint bare = open_checkpoint(folder.path());
  EXPECT_TRUE(bare.weights->find("backbone.layers.0.norm.weight"));
  EXPECT_TRUE(bare.weights->find("backbone.norm_f.weight"));
  write_text(folder / "config.json", R"({"d_model":8,"n_layer":1})");
  write_weights(folder / "model.safetensors", {"backbone.embedding.weight"});
  EXPECT_EQ(open_checkpoint(folder.path()).layout, Layout::original);
  write_weights(folder / "model.safetensors", {"backbone.embedding.weight", "backbone.embeddings.weight"});
  expect_error([&] { open_checkpoint(folder.path()); },
               {"model.safetensors", "backbone.embedding.weight", "the same tensor"});
}

TEST(Checkpoint, SaysWhatIsMissing) {
  const TempFolder folder;
  expect_error([&] { open_checkpoint(folder / "absent"); }, {"absent", "no such folder"});
  expect_error([&] { open_checkpoint(folder.path()); }, {folder.path().string(), "empty"});
  write_text(folder / "notes.txt", "x");
  expect_error([&] { open_checkpoint(folder / "notes.txt"); }, {"notes.txt", "is a file"});
  expect_error([&] { open_checkpoint(folder.path()); },
               {folder.path().string(), "config.json", "params.json"});
  write_text(folder / "adapter_config.json", "{}");
  expect_error([&] { open_checkpoint(folder.path()); }, {folder.path().string(), "LoRA adapter"});
  write_text(folder / "config.json", R"({"model_type":"mamba"})");
  expect_error([&] { open_checkpoint(folder.path()); }, {folder.path().string(), "model.safetensors",
                                                         "pytorch_model.bin", "consolidated.safetensors"});
  write_text(folder / "config.json", "{");
  expect_error([&] { open_checkpoint(folder.path()); }, {"config.json", "not valid JSON"});
  write_text(folder / "config.json", "{}");
  expect_error([&] { open_checkpoint(folder.path()); }, {"config.json", "model_type"});
  write_text(folder / "config.json", "");
  expect_error([&] { open_checkpoint(folder.path()); }, {"config.json", "empty"});
}

class Sharded : public ::testing::Test {
 protected:
  void open(const std::string& index) {
    write_text(folder_ / "model.safetensors.index.json", index);
    (void)open_sharded(folder_ / "model.safetensors.index.json");
  }
  void refused(const std::string& index, std::vector<std::string> parts) {
    parts.push_back("model.safetensors.index.json");
    expect_error([&] { open(index); }, parts);
  }
  TempFolder folder_;
};

TEST_F(Sharded, EntriesArePlainFileNames) {
  write_weights(folder_ / "a.safetensors", {"x"});
  EXPECT_NO_THROW(open(R"({"metadata":{},"weight_map":{"x":"a.safetensors"}})"));
  for (const char* bad :
       {"../a.safetensors", "/etc/passwd", "b/a.safetensors", "..", ".", "", "b\\\\a", "a\\u0000b"}) {
    refused(R"({"weight_map":{"x":")" + std::string(bad) + "\"}}", {"weight_map: x", "plain name"});
  }
  refused(R"({"weight_map":{"x":7}})", {"weight_map: x", "7"});
}

TEST_F(Sharded, NamesWhatIsMissing) {
  write_weights(folder_ / "a.safetensors", {"x"});
  refused(R"({"weight_map":{"x":"b.safetensors"}})", {"b.safetensors is missing"});
  refused(R"({"weight_map":{"y":"a.safetensors"}})", {"tensor y is not in a.safetensors"});
  refused(R"({"weight_map":{"x":"a.safetensors","x":"a.safetensors"}})", {"\"x\" appears twice"});
  refused(R"({"weight_map":{}})", {"weight_map"});
  refused(R"({"weight_map":[]})", {"weight_map"});
  refused(R"({})", {"weight_map is missing"});
  refused(R"([])", {"weight_map is missing"});
}

TEST_F(Sharded, TorchShards) {
  fs::copy_file(golden("state_dict.bin"), folder_ / "a.bin");
  fs::copy_file(golden("mixed.bin"), folder_ / "b.bin");
  write_text(folder_ / "pytorch_model.bin.index.json",
             R"({"weight_map":{"head.weight":"a.bin","f32":"b.bin"}})");
  const auto source = open_sharded(folder_ / "pytorch_model.bin.index.json");
  EXPECT_EQ(source->names(), (std::vector<std::string>{"f32", "head.weight"}));
  EXPECT_EQ(source->find("head.weight")->values<float>()[11], 11);
  EXPECT_FALSE(source->find("bf16"));  // held by a shard, not listed
  EXPECT_NE(source->describe("f32").find("b.bin: tensor f32"), std::string::npos);
}

}  // namespace
}  // namespace ssm::io
