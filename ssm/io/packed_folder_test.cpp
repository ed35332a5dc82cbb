#include "ssm/io/packed_folder.h"

#include "ssm/io/checkpoint.h"
#include "ssm/io/checkpoint_writer.h"
#include "ssm/io/config.h"
#include "ssm/io/json.h"
#include "ssm/io/test_files.h"
#include "ssm/quant/quantize.h"

namespace ssm::io {
namespace {

using nlohmann::json;

const std::string kName = "backbone.layers.0.mixer.in_proj.weight";

json with_entry(const json& entry) {
  return {
      {"quantization_config", {{"quant_method", "ssm.cpp"}, {"version", 1}, {"tensors", {{kName, entry}}}}}};
}

TEST(PackedFolder, EntriesReadBackAsTheyWere) {
  PackedEntries entries;
  entries[kName] = {*quant_format("int4", 128), {1418, 320}};
  entries["lm_head.weight"] = {*quant_format("q6_k"), {6144, 512}};
  const json config{{"quantization_config", quantization_config(entries)}};
  const PackedEntries again = packed_entries(config, "config.json");
  ASSERT_EQ(again.size(), 2u);
  for (const auto& [name, entry] : entries) {
    EXPECT_EQ(again.at(name).format, entry.format);
    EXPECT_EQ(again.at(name).shape, entry.shape);
  }
  EXPECT_TRUE(packed_entries(json{{"model_type", "mamba"}}, "config.json").empty());
}

TEST(PackedFolder, RefusesWhatMakesNoSense) {
  const auto refused = [](const json& config, const std::vector<std::string>& parts) {
    expect_error([&] { packed_entries(config, "config.json"); }, parts);
  };
  const std::string file = "config.json: quantization_config";
  refused({{"quantization_config", 3}}, {file});
  refused({{"quantization_config", {{"quant_method", "awq"}}}}, {file, "awq"});
  refused({{"quantization_config", {{"quant_method", "ssm.cpp"}, {"version", 2}}}}, {file, "version", "2"});
  refused({{"quantization_config", {{"quant_method", "ssm.cpp"}, {"version", 1}, {"tensors", {1}}}}},
          {"tensors"});
  refused(with_entry(1), {kName});
  refused(with_entry({{"shape", {4, 64}}}), {kName, "type"});
  refused(with_entry({{"type", "q9_0"}, {"shape", {4, 64}}}), {kName, "q9_0"});
  refused(with_entry({{"type", 4}, {"shape", {4, 64}}}), {kName, "type"});
  refused(with_entry({{"type", "int4"}, {"shape", {4, 64}}}), {kName, "int4"});
  refused(with_entry({{"type", "int4"}, {"group", 48}, {"shape", {4, 64}}}), {kName, "48"});
  refused(with_entry({{"type", "int4"}, {"group", -1}, {"shape", {4, 64}}}), {kName, "group"});
  refused(with_entry({{"type", "int4"}, {"group", 6e1}, {"shape", {4, 64}}}), {kName, "group"});
  refused(with_entry({{"type", "q4_0"}}), {kName, "shape"});
  for (const json& shape : std::vector<json>{
           {4}, {4, 0}, {-4, 64}, {4, 64, 1}, {4, 64.0}, {4, uint64_t{1} << 63}, {4, int64_t{1} << 40}})
    refused(with_entry({{"type", "q4_0"}, {"shape", shape}}), {kName, "shape"});
  refused(with_entry({{"type", "q4_0"}, {"shape", {4, 48}}}), {kName, "48"});
}

class PackedFolderOf : public testing::Test {
 protected:
  // A folder whose only tensor is packed; what config.json says of it is `entry`.
  void write(const QuantizedTensor& packed, const json& entry) {
    const json config = read_config(R"({"model_type":"mamba","vocab_size":3,"hidden_size":16})", "c");
    const std::vector<LazyWeight> weights{
        {kName, packed.shape, packed.format, [&] { return Weight(packed); }}};
    write_checkpoint(folder_ / "model", config, weights);
    json written = parse_json(read_text(folder_ / "model/config.json"), "c", SpecialFloats::allow);
    if (!entry.is_null()) written["quantization_config"]["tensors"] = entry;
    write_text(folder_ / "model/config.json", written.dump());
  }
  Checkpoint open() { return open_checkpoint(folder_ / "model"); }

  const test::TempFolder folder_;
  const QuantizedTensor packed_ = quantize(Tensor::zeros({5, 72}), *quant_format("int4", 64));
};

TEST_F(PackedFolderOf, GivesTheMatrixBack) {
  write(packed_, nullptr);
  const Checkpoint checkpoint = open();
  EXPECT_FALSE(checkpoint.weights->find(kName));
  const std::optional<QuantizedTensor> again = checkpoint.weights->find_packed(kName);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->format, packed_.format);
  EXPECT_EQ(again->shape, packed_.shape);
  EXPECT_TRUE(std::equal(again->bytes.raw(), again->bytes.raw() + again->bytes.bytes(), packed_.bytes.raw()));
  EXPECT_FALSE(checkpoint.weights->find_packed("lm_head.weight"));
}

TEST_F(PackedFolderOf, RefusesBytesThatAreNotThatMatrix) {
  write(packed_, {{kName, {{"type", "int4"}, {"group", 64}, {"shape", {5, 73}}}}});
  expect_error([&] { open().weights->find_packed(kName); }, {"model.safetensors", kName, "int4 group 64"});
  write(packed_, {{"lm_head.weight", {{"type", "q8_0"}, {"shape", {5, 64}}}}});
  expect_error([&] { open(); }, {"model.safetensors", "lm_head.weight", "missing"});
}

TEST_F(PackedFolderOf, WhateverIsDoneToTheConfigNothingButErrorsComeOut) {
  write(packed_, nullptr);
  const std::string valid = read_text(folder_ / "model/config.json");
  damage(valid, [&](const std::string& text) {
    packed_entries(parse_json(text, "config.json", SpecialFloats::allow), "config.json");
  });
}

}  // namespace
}  // namespace ssm::io
