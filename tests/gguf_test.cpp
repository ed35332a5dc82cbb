// Models as llama.cpp's converter and quantizer write them (scripts/make_gguf_goldens.py), and the ways
// between the layouts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "ssm/core/test_error.h"
#include "ssm/core/test_folder.h"
#include "ssm/io/safetensors.h"
#include "ssm/load/chat.h"
#include "ssm/load/convert.h"
#include "ssm/load/load_model.h"
#include "ssm/ops/cuda/test_cuda.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;
using test::expect_error;

const fs::path kModels = fs::path(SSM_SOURCE_DIR) / "tests/goldens/models";
const fs::path kGguf = fs::path(SSM_SOURCE_DIR) / "tests/goldens/gguf";
const fs::path kBundled = fs::path(SSM_SOURCE_DIR) / "models/tale-8m";
const std::vector<std::string> kDense{"mamba-default",  "mamba-untied",   "mamba-f16",    "falcon-default",
                                      "mamba2-default", "mamba2-groups2", "mamba2-head12"};

std::vector<int32_t> ids_of(const Tensor& t) {
  const auto values = t.values<int64_t>();
  return {values.begin(), values.end()};
}

Tensor run(const CausalLm& model, std::span<const int32_t> ids, const ModelState& state) {
  const auto T = static_cast<int64_t>(ids.size());
  return model.logits(model.hidden(Tensor::from_values<int32_t>(ids, {T}), SequenceBatch::single(T), state));
}

// Logits of the prompt and the greedy tokens after it.
void expect_golden(const fs::path& path, const fs::path& golden_file, double bound = 5e-5) {
  SCOPED_TRACE(path.string());
  const LoadedModel loaded = load_model(path, {.compute = DType::f32});
  const auto golden = io::SafetensorsFile::open(golden_file);
  const std::vector<int32_t> greedy = ids_of(golden->find("greedy").value());
  ModelState state = loaded.model->make_state(1);
  Tensor logits = run(*loaded.model, ids_of(golden->find("tokens").value()), state);
  EXPECT_LT(test::relative_error(logits, test::to_doubles(golden->find("logits").value())), bound);
  std::vector<int32_t> generated;
  while (generated.size() < greedy.size()) {
    const Tensor last = logits.select(0, logits.size(0) - 1);
    const float* row = last.data<float>();
    generated.push_back(static_cast<int32_t>(std::max_element(row, row + last.size(0)) - row));
    logits = run(*loaded.model, std::span(&generated.back(), 1), state);
  }
  EXPECT_EQ(generated, greedy);
}

Tensor value_of(const io::LazyWeight& weight) {
  const Weight made = weight.make();
  const auto* packed = std::get_if<QuantizedTensor>(&made);
  return packed ? packed->bytes : std::get<Tensor>(made);
}

// Every parameter the same: to the bit, packed ones as bytes; A_log to the bit too or, where GGUF keeps only
// its exponential, to what that tells.
void expect_same(const fs::path& a, const fs::path& b, bool through_gguf, float a_log_bound = 2.5e-7f) {
  SCOPED_TRACE(a.string() + " and " + b.string());
  const io::Checkpoint left = io::open_checkpoint(a), right = io::open_checkpoint(b);
  const auto weights = stored_weights(left), others = stored_weights(right);
  ASSERT_EQ(weights.size(), others.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    ASSERT_EQ(weights[i].name, others[i].name);
    const Tensor x = value_of(weights[i]), y = value_of(others[i]);
    const bool small_in_gguf = through_gguf && x.dtype() != y.dtype();  // f32 there
    if (x.dtype() == DType::u8 || !(small_in_gguf || weights[i].name.ends_with("A_log"))) {
      ASSERT_EQ(x.dtype(), y.dtype()) << weights[i].name;
      EXPECT_EQ(std::memcmp(x.raw(), y.raw(), x.bytes()), 0) << weights[i].name;
      continue;
    }
    EXPECT_FALSE(weights[i].name.ends_with("proj.weight")) << "the type of a matrix is kept";
    const Tensor wide = x.to(DType::f32), other = y.to(DType::f32);
    for (int64_t k = 0; k < wide.numel(); ++k) {
      const float bound = through_gguf && weights[i].name.ends_with("A_log") ? a_log_bound : 0.0f;
      ASSERT_NEAR(wide.data<float>()[k], other.data<float>()[k], bound) << weights[i].name;
    }
  }
}

TEST(Gguf, WhatTheConverterWrites) {
  for (const std::string& name : kDense) {
    // The converter takes the exponential of an f16 A_log in f16.
    const bool is_f16 = name == "mamba-f16";
    expect_golden(kGguf / (name + ".gguf"), kModels / name / "golden.safetensors", is_f16 ? 2e-3 : 5e-5);
    expect_same(kModels / name, kGguf / (name + ".gguf"), true, is_f16 ? 5e-4f : 2.5e-7f);
  }
}

TEST(Gguf, WhatTheQuantizerWrites) {
  const test::TempFolder folder;
  for (const std::string name : {"packed-mamba", "packed-mamba2"}) {
    const fs::path file = kGguf / (name + ".gguf"), golden = kGguf / (name + ".safetensors");
    expect_golden(file, golden, 2e-3);  // packed weights meet activations of 16 bits (docs/numerics.md)
    convert_model(file, folder / name, ModelFormat::transformers, {.dtype = DType::f32});
    expect_golden(folder / name, golden);
    convert_model(file, folder / (name + ".gguf"), ModelFormat::gguf);
    expect_same(file, folder / (name + ".gguf"), false);
  }
}

TEST(Gguf, WhatWeWriteIsWhatTheConverterWrites) {
  const test::TempFolder folder;
  for (const std::string& name : kDense) {
    convert_model(kModels / name, folder / (name + ".gguf"), ModelFormat::gguf);
    const auto ours = io::GgufFile::open(folder / (name + ".gguf"));
    const auto theirs = io::GgufFile::open(kGguf / (name + ".gguf"));
    std::vector<std::string> names = ours->names(), expected = theirs->names();
    std::sort(names.begin(), names.end());
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(names, expected) << name;
    for (const std::string& tensor : expected) {
      EXPECT_EQ(ours->entry(tensor)->type, theirs->entry(tensor)->type) << tensor;
      EXPECT_EQ(ours->entry(tensor)->shape, theirs->entry(tensor)->shape) << tensor;
    }
    for (const char* key : {"embedding_length", "block_count", "ssm.conv_kernel", "ssm.inner_size",
                            "ssm.state_size", "ssm.time_step_rank", "ssm.group_count", "context_length",
                            "feed_forward_length", "attention.head_count"}) {
      const std::string full = std::string(theirs->text("general.architecture").value()) + "." + key;
      EXPECT_EQ(ours->integer(full), theirs->integer(full)) << full;
    }
    EXPECT_EQ(ours->integer("general.file_type"), theirs->integer("general.file_type")) << name;
    EXPECT_EQ(ours->flag("mamba.ssm.dt_b_c_rms"), theirs->flag("mamba.ssm.dt_b_c_rms")) << name;
  }
}

TEST(Convert, BetweenAllLayouts) {
  const test::TempFolder folder;
  for (const std::string name :
       {"mamba-default", "mamba-inner", "mamba-untied", "mamba-sharded", "mamba2-bin", "mamba2-f16",
        "original-mamba", "original-mamba-views", "mistral-tiny"}) {
    const fs::path source = kModels / name;
    const fs::path hf = folder / (name + "-hf"), original = folder / (name + "-original"),
                   gguf = folder / (name + ".gguf"), back = folder / (name + "-back");
    convert_model(source, hf, ModelFormat::transformers);
    convert_model(source, original, ModelFormat::original);
    convert_model(original, gguf, ModelFormat::gguf);
    convert_model(gguf, back, ModelFormat::transformers);
    expect_same(source, hf, false);
    expect_same(source, original, false);
    expect_same(source, gguf, true);
    expect_same(source, back, true);
    for (const fs::path& made : {hf, original, gguf, back})
      expect_golden(made, source / "golden.safetensors");
  }
}

TEST(Convert, TheTokenizerComesAlong) {
  const test::TempFolder folder;
  const std::string chat = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
  fs::copy(kBundled, folder / "source");
  std::ofstream(folder / "source/chat_template.jinja") << chat;
  convert_model(folder / "source", folder / "tale.gguf", ModelFormat::gguf);
  convert_model(folder / "tale.gguf", folder / "tale", ModelFormat::transformers);
  const std::string text = "Once upon a time, caf\xC3\xA9 <|endoftext|>\n\n  don't";
  const std::vector<int32_t> ids = load_model(kBundled).tokenizer->encode(text);
  for (const char* made : {"tale.gguf", "tale"}) {
    const LoadedModel loaded = load_model(folder / made);
    EXPECT_EQ(loaded.tokenizer->encode(text), ids);
    EXPECT_EQ(loaded.eos, (std::vector<int32_t>{0}));
    EXPECT_EQ(loaded.usable_vocab(), 6144);
    EXPECT_EQ(loaded.stored, DType::bf16);
    ASSERT_TRUE(has_chat_template(loaded));
    EXPECT_EQ(open_chat_template(loaded).render({{{"role", "user"}, {"content", "Hi"}}}),
              "<|endoftext|><user>Hi");
  }
}

TEST(Convert, NamesWhatALayoutCannotSay) {
  const test::TempFolder folder;
  const auto refuse = [&](const char* name, ModelFormat format, const std::string& part) {
    expect_error([&] { convert_model(kModels / name, folder / "x", format); }, {part});
    EXPECT_FALSE(fs::exists(folder / "x"));
  };
  refuse("mamba-bias", ModelFormat::gguf, "use_bias is true");
  refuse("mamba2-state9", ModelFormat::gguf, "use_conv_bias is false");
  refuse("mamba2-limit", ModelFormat::gguf, "time_step_limit is [0.01, 0.1]");
  refuse("falcon-eps", ModelFormat::gguf, "mixer_rms_eps is 0.001");
  refuse("original-mamba2-hdim", ModelFormat::transformers, "D_has_hdim");
  refuse("mamba-eps", ModelFormat::original, "layer_norm_epsilon is 0.001");
  refuse("falcon-default", ModelFormat::original, "FalconMamba");
  expect_error([&] { convert_model(kBundled, folder.path(), ModelFormat::gguf); }, {"exists already"});
  expect_error([&] { convert_model(kGguf / "packed-mamba.gguf", folder / "x", ModelFormat::original); },
               {"is packed"});
}

}  // namespace
}  // namespace ssm
