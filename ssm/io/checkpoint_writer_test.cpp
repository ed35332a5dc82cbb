#include "ssm/io/checkpoint_writer.h"

#include <cmath>

#include "ssm/io/atomic_folder.h"
#include "ssm/io/checkpoint.h"
#include "ssm/io/config.h"
#include "ssm/io/test_files.h"

namespace ssm::io {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

TEST(CheckpointWriter, ConfigsReadBackAsTheyWere) {
  for (
      const char* text :
      {R"({"model_type":"mamba","vocab_size":50,"hidden_size":16,"eos_token_id":[1,2]})",
       R"({"model_type":"falcon_mamba","hidden_size":32,"mixer_rms_eps":1e-5})",
       R"({"model_type":"mamba2","hidden_size":64,"num_heads":8,"head_dim":16,"n_groups":2})",
       R"({"model_type":"mamba2","hidden_size":64,"num_heads":8,"head_dim":16,"time_step_limit":[0.01,0.5]})"}) {
    const json config = read_config(text, "config.json");
    const std::string written = transformers_config(config, DType::bf16, "config.json");
    EXPECT_EQ(read_config(written, "config.json"), config) << written;
    EXPECT_NE(written.find("\"torch_dtype\": \"bfloat16\""), std::string::npos);
  }
}

TEST(CheckpointWriter, InfinityStandsBare) {
  const json config =
      read_config(R"({"model_type":"mamba2","hidden_size":64,"num_heads":8,"head_dim":16})", "c");
  EXPECT_NE(transformers_config(config, DType::f32, "c").find("Infinity"), std::string::npos);
  json hdim = config;
  hdim["D_has_hdim"] = true;
  expect_error([&] { transformers_config(hdim, DType::f32, "c"); }, {"c", "D_has_hdim"});
}

TEST(CheckpointWriter, AFolderOpensAgain) {
  const TempFolder folder;
  const json config = read_config(R"({"model_type":"mamba","vocab_size":3,"hidden_size":16})", "c");
  const std::vector<LazyTensor> tensors{
      {"backbone.norm_f.weight", DType::f32, {16}, [] { return Tensor::zeros({16}); }}};
  write_checkpoint(folder / "model", config, DType::f32, tensors);
  write_text(folder / "tokenizer_config.json", "{}");
  copy_tokenizer_settings(folder.path(), folder / "model");
  const Checkpoint checkpoint = open_checkpoint(folder / "model");
  EXPECT_EQ(checkpoint.config, config);
  EXPECT_TRUE(checkpoint.weights->find("backbone.norm_f.weight"));
  EXPECT_EQ(read_text(folder / "model/tokenizer_config.json"), "{}");
  EXPECT_FALSE(fs::exists(folder / "model/chat_template.jinja"));
}

TEST(AtomicFolder, AppearsWholeOrNotAtAll) {
  const TempFolder folder;
  const fs::path target = folder / "step";
  {
    const AtomicFolder dropped(target);
    write_text(dropped.path() / "a", "1");
  }
  EXPECT_TRUE(fs::is_empty(folder.path()));
  AtomicFolder kept(target);
  write_text(kept.path() / "a", "1");
  EXPECT_FALSE(fs::exists(target));
  kept.commit();
  EXPECT_EQ(read_text(target / "a"), "1");
  expect_error([&] { AtomicFolder again(target); }, {"step", "exists"});
}

}  // namespace
}  // namespace ssm::io
