#include "ssm/io/gguf.h"

#include <limits>

#include "ssm/io/checkpoint.h"
#include "ssm/io/gguf_model.h"
#include "ssm/io/test_files.h"
#include "ssm/io/test_gguf.h"

namespace ssm::io {
namespace {

using Type = GgufValueType;

GgufFile opened(const GgufBuilder& builder) { return GgufFile(bytes_of(builder.bytes(), "a.gguf")); }

void expect_refused(const std::string& file, const std::vector<std::string>& parts) {
  expect_error([&] { GgufFile(bytes_of(file, "a.gguf")); }, parts);
}

TEST(Gguf, ReadsValuesOfEveryType) {
  GgufBuilder b;
  b.number("u8", Type::u8, uint8_t{200})
      .number("i8", Type::i8, int8_t{-3})
      .number("u16", Type::u16, uint16_t{60000});
  b.number("i16", Type::i16, int16_t{-4})
      .u32("u32", 7)
      .number("i32", Type::i32, int32_t{-5})
      .f32("f32", 1e-5f);
  b.number("f64", Type::f64, 0.1)
      .number("u64", Type::u64, uint64_t{1} << 40)
      .number("i64", Type::i64, int64_t{-6});
  b.number("yes", Type::flag, uint8_t{1}).text("text", "Ünicode").number("huge", Type::u64, ~uint64_t{0});
  std::string texts = b.type(Type::array) + b.type(Type::text), ids = b.type(Type::array) + b.type(Type::i32);
  append_le<uint64_t>(texts, 3);
  texts += b.packed("a") + b.packed("") + b.packed("ccc");
  append_le<uint64_t>(ids, 2);
  append_le<int32_t>(ids, 4);
  append_le<int32_t>(ids, -1);
  const GgufFile file = opened(b.raw("texts", texts).raw("ids", ids));
  EXPECT_EQ(file.integer("u8"), 200);
  EXPECT_EQ(file.integer("i8"), -3);
  EXPECT_EQ(file.integer("u16"), 60000);
  EXPECT_EQ(file.integer("i16"), -4);
  EXPECT_EQ(file.integer("u32"), 7);
  EXPECT_EQ(file.integer("i32"), -5);
  EXPECT_EQ(file.integer("u64"), int64_t{1} << 40);
  EXPECT_EQ(file.integer("i64"), -6);
  EXPECT_EQ(file.real("f32"), 1e-5);  // not the float's 9.99999974e-6
  EXPECT_EQ(file.real("f64"), 0.1);
  EXPECT_EQ(file.flag("yes"), true);
  EXPECT_EQ(file.text("text"), "Ünicode");
  EXPECT_EQ(file.texts("texts"), (std::vector<std::string_view>{"a", "", "ccc"}));
  EXPECT_EQ(file.integers("ids"), (std::vector<int32_t>{4, -1}));
  EXPECT_EQ(file.integer("absent"), std::nullopt);
  EXPECT_TRUE(file.texts("absent").empty());
  expect_error([&] { (void)file.integer("text"); }, {"a.gguf: key text", "of type text", "whole number"});
  expect_error([&] { (void)file.integer("huge"); }, {"key huge", "18446744073709551615"});
  expect_error([&] { (void)file.real("u8"); }, {"key u8", "of type u8"});
  expect_error([&] { (void)file.flag("u8"); }, {"key u8"});
  expect_error([&] { (void)file.texts("ids"); }, {"key ids", "list of i32", "list of text"});
  expect_error([&] { (void)file.reals("texts"); }, {"key texts"});
}

TEST(Gguf, TensorsAreViewsInTorchsOrder) {
  GgufBuilder b;
  b.tensor("f32", 0, {3, 2}, floats({0, 1, 2, 3, 4, 5})).tensor("q8", 8, {64, 2}, std::string(136, '\1'));
  b.tensor("iq", 23, {256}, std::string(136, '\1')).tensor("scalar", 0, {}, floats({7}));
  b.tensor("cube", 2, {32, 1, 1}, std::string(18, '\0'));
  const GgufFile file = opened(b);
  EXPECT_EQ(file.names(), (std::vector<std::string>{"f32", "q8", "iq", "scalar", "cube"}));
  EXPECT_EQ(file.find("f32")->shape(), (Shape{2, 3}));
  EXPECT_EQ(file.find("f32")->values<float>()[5], 5);
  EXPECT_EQ(file.find("scalar")->values<float>()[0], 7);
  EXPECT_FALSE(file.find_packed("f32"));
  EXPECT_FALSE(file.find("q8"));
  const QuantizedTensor q8 = file.find_packed("q8").value();
  EXPECT_EQ(q8.format.type, QuantType::q8_0);
  EXPECT_EQ(q8.shape, (Shape{2, 64}));
  EXPECT_EQ(q8.bytes.shape(), (Shape{2, 68}));
  EXPECT_FALSE(file.find("absent"));
  EXPECT_FALSE(file.find_packed("absent"));
  expect_error([&] { (void)file.find("iq"); }, {"a.gguf: tensor iq", "IQ4_XS", "not supported"});
  expect_error([&] { (void)file.find_packed("iq"); }, {"a.gguf: tensor iq", "IQ4_XS", "not supported"});
  expect_error([&] { (void)file.find_packed("cube"); }, {"tensor cube", "Q4_0", "only matrices"});
}

TEST(Gguf, EveryPackedTypeIsKnownByItsNumber) {
  struct Known {
    uint32_t id;
    const char* name;
    uint64_t block, bytes;
  };
  for (const Known& k : {Known{2, "q4_0", 32, 18},
                         {3, "q4_1", 32, 20},
                         {6, "q5_0", 32, 22},
                         {7, "q5_1", 32, 24},
                         {8, "q8_0", 32, 34},
                         {10, "q2_k", 256, 84},
                         {11, "q3_k", 256, 110},
                         {12, "q4_k", 256, 144},
                         {13, "q5_k", 256, 176},
                         {14, "q6_k", 256, 210}}) {
    GgufBuilder b;
    const GgufFile file = opened(b.tensor("w", k.id, {k.block * 2, 3}, std::string(k.bytes * 6, '\1')));
    const QuantizedTensor w = file.find_packed("w").value();
    EXPECT_EQ(name_of(w.format), k.name);
    EXPECT_EQ(w.bytes.bytes(), k.bytes * 6);
    EXPECT_EQ(ggml_type(w.format)->id, k.id);
    GgufBuilder ragged;
    ragged.tensor("w", k.id, {k.block * 2 - 1, 3}, std::string(k.bytes * 6, '\1'));
    expect_refused(ragged.bytes(), {"a.gguf: tensor w", "not whole blocks"});
  }
}

TEST(Gguf, ReadsVersion2AndOtherAlignments) {
  GgufBuilder b;
  b.version = 2;
  b.alignment = 8;
  b.u32("general.alignment", 8).tensor("a", 0, {2}, floats({1, 2})).tensor("b", 0, {1}, floats({3}));
  EXPECT_EQ(opened(b).find("b")->values<float>()[0], 3);
}

TEST(Gguf, RefusesBadHeaders) {
  const std::string good = GgufBuilder().bytes();
  expect_refused("", {"not a GGUF file"});
  expect_refused("GGML" + good.substr(4), {"not a GGUF file"});
  for (const uint32_t version : {0u, 1u, 4u, 0x03000000u}) {
    GgufBuilder b;
    b.version = version;
    expect_refused(b.bytes(), {"a.gguf", version > 4 || version == 0 ? "big-endian" : "GGUF version"});
  }
  expect_refused(GgufBuilder().bytes(0, ~uint64_t{0}), {"18446744073709551615 keys"});
  expect_refused(GgufBuilder().bytes(uint64_t{1} << 40, 0), {"1099511627776 tensors"});
  expect_refused(GgufBuilder().u32("k", 1).bytes(0, 2), {"a.gguf"});
}

TEST(Gguf, RefusesBadKeys) {
  GgufBuilder twice, nested, unknown, empty, number, wide;
  expect_refused(twice.u32("k", 1).u32("k", 2).bytes(), {"a.gguf: key k is there twice"});
  expect_refused(
      nested.raw("k", nested.type(Type::array) + nested.type(Type::array) + nested.packed("")).bytes(),
      {"key k is a list of lists"});
  expect_refused(unknown.raw("k", std::string("\x0d\0\0\0", 4)).bytes(), {"key k has the unknown type 13"});
  expect_refused(empty.u32("", 1).bytes(), {"key 0 has 0 bytes"});
  expect_refused(number.u32("general.alignment", 24).bytes(), {"general.alignment is 24"});
  expect_refused(wide.number("general.alignment", Type::u64, uint64_t{32}).bytes(),
                 {"general.alignment is not a u32"});
  for (const Type item : {Type::u8, Type::f64, Type::text}) {
    GgufBuilder b;
    std::string list = b.type(Type::array) + b.type(item);
    append_le(list, uint64_t{1} << 62);
    expect_refused(b.raw("k\n", list).bytes(), {"key k? has 4611686018427387904 items"});
  }
  GgufBuilder text;
  std::string far = text.type(Type::text);
  append_le(far, ~uint64_t{0} - 3);
  expect_refused(text.raw("k", far).bytes(), {"key k has 18446744073709551612 bytes"});
}

TEST(Gguf, RefusesBadTensors) {
  const auto refuse = [](const std::function<void(GgufBuilder&)>& build,
                         const std::vector<std::string>& parts) {
    GgufBuilder b;
    build(b);
    expect_refused(b.bytes(), parts);
  };
  const std::string one = floats({1});
  refuse([&](auto& b) { b.tensor("t", 0, {1}, one).tensor("t", 0, {1}, one); }, {"tensor t: is there twice"});
  refuse([&](auto& b) { b.tensor("t", 4, {1}, one); }, {"tensor t: has the unknown type 4"});
  refuse([&](auto& b) { b.tensor("t", 0, {1, 1, 1, 1, 1}, one); }, {"tensor t: has 5 dimensions"});
  refuse([&](auto& b) { b.tensor("t", 0, {0}, one); }, {"tensor t: dimension 0 is 0"});
  refuse([&](auto& b) { b.tensor("t", 0, {~uint64_t{0}}, one); }, {"tensor t: dimension 0"});
  const uint64_t half = uint64_t{1} << 32;
  refuse([&](auto& b) { b.tensor("t", 0, {half, half}, one); }, {"tensor t", "overflows"});
  refuse([&](auto& b) { b.tensor("t", 0, {half, half / 4}, one); }, {"tensor t", "overflows"});
  refuse([&](auto& b) { b.tensor("t", 0, {9}, one); }, {"tensor t: offset 0 and 36 bytes go past the end"});
  refuse([&](auto& b) { b.entry("t", 0, {1}, 4, one); }, {"tensor t: offset 4 is not a multiple of 32"});
  refuse([&](auto& b) { b.entry("t", 0, {1}, ~uint64_t{31}, one); }, {"tensor t", "go past the end"});
  refuse([&](auto& b) { b.entry("t", 23, {256}, 64, one); }, {"tensor t", "go past the end"});
  refuse([&](auto& b) { b.tensor("s", 0, {9}, floats(std::vector<float>(9))).entry("t", 0, {1}, 32, one); },
         {"tensor t: its bytes overlap those of s"});
}

// A tiny Mamba of one layer, or a Mamba-2 of one layer and two groups.
GgufBuilder tiny(bool is_mamba2) {
  GgufBuilder b;
  const std::string arch = is_mamba2 ? "mamba2" : "mamba";
  const uint64_t M = 2, E = 4, N = 3, K = 2, R = 2, G = 2, C = is_mamba2 ? E + 2 * G * N : E;
  b.text("general.architecture", arch).u32(arch + ".embedding_length", M).u32(arch + ".block_count", 1);
  b.u32(arch + ".ssm.conv_kernel", K).u32(arch + ".ssm.inner_size", E).u32(arch + ".ssm.state_size", N);
  b.u32(arch + ".ssm.time_step_rank", R).f32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f);
  b.u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", 2);
  if (is_mamba2) b.u32(arch + ".ssm.group_count", G).u32("tokenizer.ggml.eot_token_id", 3);
  const auto add = [&](const std::string& name, const std::vector<uint64_t>& dims, float value) {
    uint64_t n = 1;
    for (const uint64_t d : dims) n *= d;
    std::vector<float> values(n);
    for (size_t i = 0; i < n; ++i) values[i] = value - static_cast<float>(i);
    b.tensor(name, 0, dims, floats(values));
  };
  add("token_embd.weight", {M, 5}, 1);
  add("output_norm.weight", {M}, 1);
  add("blk.0.attn_norm.weight", {M}, 1);
  add("blk.0.ssm_conv1d.weight", {K, C}, 1);
  add("blk.0.ssm_dt.bias", {is_mamba2 ? R : E}, 1);
  if (is_mamba2) {
    add("blk.0.ssm_a", {1, R}, -1);
    add("blk.0.ssm_d", {1, R}, 1);
    add("blk.0.ssm_norm.weight", {E / G, G}, 1);
  } else {
    add("blk.0.ssm_a", {N, E}, -1);
  }
  return b;
}

TEST(GgufModel, ConfigOfMamba) {
  const nlohmann::json config = gguf_config(opened(tiny(false)));
  EXPECT_EQ(config["model_type"], "mamba");
  EXPECT_EQ(config["vocab_size"], 5);
  EXPECT_EQ(config["hidden_size"], 2);
  EXPECT_EQ(config["intermediate_size"], 4);
  EXPECT_EQ(config["time_step_rank"], 2);
  EXPECT_EQ(config["layer_norm_epsilon"], 1e-5);
  EXPECT_EQ(config["tie_word_embeddings"], true);
  EXPECT_EQ(config["eos_token_id"], 2);
  EXPECT_EQ(config["pad_token_id"], nullptr);
  GgufBuilder falcon = tiny(false);
  falcon.number("mamba.ssm.dt_b_c_rms", Type::flag, uint8_t{1})
      .tensor("output.weight", 0, {2, 5}, floats({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
  const nlohmann::json falcon_config = gguf_config(opened(falcon));
  EXPECT_EQ(falcon_config["model_type"], "falcon_mamba");
  EXPECT_EQ(falcon_config["mixer_rms_eps"], 1e-6);
  EXPECT_EQ(falcon_config["tie_word_embeddings"], false);
}

TEST(GgufModel, ConfigOfMamba2) {
  const nlohmann::json config = gguf_config(opened(tiny(true)));
  EXPECT_EQ(config["model_type"], "mamba2");
  EXPECT_EQ(config["num_heads"], 2);
  EXPECT_EQ(config["head_dim"], 2);
  EXPECT_EQ(config["n_groups"], 2);
  EXPECT_EQ(config["time_step_limit"][1], std::numeric_limits<double>::infinity());
  EXPECT_EQ(config["eos_token_id"], (nlohmann::json{2, 3}));
}

TEST(GgufModel, AnyExpansionGivesItsInnerSize) {
  for (const auto& [hidden, inner] :
       {std::pair{3u, 28u}, {20u, 28u}, {49u, 50u}, {768u, 1537u}, {107u, 321u}}) {
    GgufBuilder b;
    b.text("general.architecture", "mamba").u32("mamba.embedding_length", hidden).u32("mamba.block_count", 1);
    b.u32("mamba.ssm.conv_kernel", 2).u32("mamba.ssm.inner_size", inner).u32("mamba.ssm.state_size", 3);
    b.u32("mamba.ssm.time_step_rank", 1).f32("mamba.attention.layer_norm_rms_epsilon", 1e-5f);
    b.tensor("token_embd.weight", 0, {1, 1}, floats({1}));
    const nlohmann::json config = gguf_config(opened(b));
    EXPECT_EQ(config["intermediate_size"], inner);
    EXPECT_EQ(static_cast<uint32_t>(config["expand"].get<double>() * hidden), inner);
  }
}

TEST(GgufModel, ConfigErrorsNameTheKey) {
  const auto refuse = [](GgufBuilder b, const std::vector<std::string>& parts) {
    const GgufFile file = opened(b);
    expect_error([&] { gguf_config(file); }, parts);
  };
  refuse(GgufBuilder(), {"a.gguf: key general.architecture is missing"});
  refuse(GgufBuilder().text("general.architecture", "llama"), {"general.architecture is llama", "mamba2"});
  refuse(GgufBuilder().text("general.architecture", "mamba"), {"tensor token_embd.weight: is missing"});
  refuse(tiny(false).number("split.count", Type::u16, uint16_t{3}), {"split.count is 3"});
  GgufBuilder zero, heads;
  zero.text("general.architecture", "mamba")
      .tensor("token_embd.weight", 0, {2, 5}, floats(std::vector<float>(10)));
  refuse(zero, {"key mamba.embedding_length is missing"});
  refuse(zero.u32("mamba.embedding_length", 0), {"key mamba.embedding_length is 0"});
  heads.text("general.architecture", "mamba2").u32("mamba2.embedding_length", 2).u32("mamba2.block_count", 1);
  heads.u32("mamba2.ssm.conv_kernel", 2).u32("mamba2.ssm.inner_size", 4).u32("mamba2.ssm.state_size", 3);
  heads.f32("mamba2.attention.layer_norm_rms_epsilon", 1e-5f).u32("mamba2.ssm.group_count", 1);
  heads.tensor("token_embd.weight", 0, {2, 5}, floats(std::vector<float>(10)));
  refuse(heads.u32("mamba2.ssm.time_step_rank", 3), {"key mamba2.ssm.time_step_rank is 3"});
}

std::unique_ptr<WeightSource> weights_of(const GgufBuilder& b) {
  auto file = std::make_shared<GgufFile>(bytes_of(b.bytes(), "a.gguf"));
  const nlohmann::json config = gguf_config(*file);
  return gguf_weights(std::move(file), config);
}

TEST(GgufModel, TensorsHaveTransformersNamesAndShapes) {
  const auto weights = weights_of(tiny(true));
  const std::string layer = "backbone.layers.0.";
  EXPECT_EQ(weights->find("backbone.embeddings.weight")->shape(), (Shape{5, 2}));
  EXPECT_EQ(weights->find("backbone.norm_f.weight")->shape(), (Shape{2}));
  EXPECT_EQ(weights->find(layer + "norm.weight")->shape(), (Shape{2}));
  EXPECT_EQ(weights->find(layer + "mixer.conv1d.weight")->shape(), (Shape{16, 1, 2}));
  EXPECT_EQ(weights->find(layer + "mixer.dt_bias")->shape(), (Shape{2}));
  EXPECT_EQ(weights->find(layer + "mixer.D")->shape(), (Shape{2}));
  EXPECT_EQ(weights->find(layer + "mixer.norm.weight")->shape(), (Shape{4}));
  const Tensor a_log = *weights->find(layer + "mixer.A_log");
  EXPECT_EQ(a_log.shape(), (Shape{2}));
  EXPECT_EQ(a_log.values<float>()[0], 0);
  EXPECT_EQ(a_log.values<float>()[1], std::log(2.0f));
  EXPECT_EQ(weights->describe(layer + "mixer.in_proj.weight"), "a.gguf: tensor blk.0.ssm_in.weight");
  EXPECT_EQ(weights->describe(layer + "mixer.D"), "a.gguf: tensor blk.0.ssm_d");
  const auto mamba = weights_of(tiny(false));
  EXPECT_EQ(mamba->find(layer + "mixer.dt_proj.bias")->shape(), (Shape{4}));
  EXPECT_EQ(mamba->find(layer + "mixer.A_log")->shape(), (Shape{4, 3}));
  EXPECT_FALSE(mamba->find(layer + "mixer.D"));
}

// No converter packs a vector, but a file may: whoever reads one computes in f32.
TEST(GgufModel, SmallTensorsAreUnpacked) {
  std::string block;
  append_le(block, from_float<Float16>(0.5f).bits);
  for (int i = 0; i < 32; ++i) block.push_back(static_cast<char>(-1 - i));
  GgufBuilder b = tiny(true);
  b.tensor("blk.1.ssm_d", 8, {32}, block)
      .tensor("blk.1.ssm_a", 8, {32}, block)
      .tensor("blk.1.ssm_in.weight", 8, {32}, block);
  const auto weights = weights_of(b);
  const std::string layer = "backbone.layers.1.mixer.";
  EXPECT_EQ(weights->find(layer + "D")->values<float>()[3], -2);
  EXPECT_EQ(weights->find(layer + "A_log")->values<float>()[1], 0);
  EXPECT_FALSE(weights->find_packed(layer + "D"));
  EXPECT_FALSE(weights->find(layer + "in_proj.weight"));
  EXPECT_EQ(weights->find_packed(layer + "in_proj.weight")->shape, (Shape{1, 32}));
}

TEST(GgufModel, NamesGoBothWays) {
  for (const char* type : {"mamba", "mamba2"}) {
    for (const std::string name : {"token_embd.weight", "output.weight", "blk.12.ssm_a", "blk.0.ssm_dt.bias",
                                   "blk.3.ssm_conv1d.bias", "blk.63.ssm_norm.weight"}) {
      EXPECT_EQ(gguf_name(transformers_name(name, type).value()), name);
    }
    for (const char* name : {"blk.ssm_a", "blk.x.ssm_a", "blk.1.attn_q.weight", "rope_freqs.weight"}) {
      EXPECT_FALSE(transformers_name(name, type)) << name;
    }
  }
  for (const std::string name : {"token_embd.weight", "output_norm.bias", "output.weight",
                                 "blk.12.attn_norm.bias", "blk.0.attn_qkv.weight", "blk.3.ffn_up.bias"}) {
    EXPECT_EQ(gguf_name(transformers_name(name, "gpt_neox").value()), name);
  }
  EXPECT_EQ(transformers_name("blk.7.ffn_down.weight", "gpt_neox"),
            "gpt_neox.layers.7.mlp.dense_4h_to_h.weight");
  for (const char* name : {"blk.0.ssm_a", "blk.0.attn_qkv", "blk.0.attn_qkv.scale", "blk..attn_qkv.bias"})
    EXPECT_FALSE(transformers_name(name, "gpt_neox")) << name;
}

// Rows [part, head, element] there, [head, part, element] here.
TEST(GgufModel, FusedRowsGoBothWays) {
  std::vector<float> values(36);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const Tensor here = Tensor::from_values<float>(values, {18, 2});  // 3 heads of 2 elements
  const Tensor there = reordered_qkv(here, 3, QkvOrder::gguf);
  const auto first = [](const Tensor& t, int64_t row) { return t.data<float>()[row * 2] / 2; };
  EXPECT_EQ(first(there, 0), 0);    // query of head 0
  EXPECT_EQ(first(there, 2), 6);    // query of head 1
  EXPECT_EQ(first(there, 6), 2);    // key of head 0
  EXPECT_EQ(first(there, 17), 17);  // value of head 2
  const Tensor back = reordered_qkv(there, 3, QkvOrder::transformers);
  EXPECT_TRUE(std::equal(values.begin(), values.end(), back.data<float>()));
}

// What a 16-bit model stored comes back as it was; whatever it was, A is the same to a bit or so.
TEST(GgufModel, ALogComesBack) {
  std::mt19937 random(7);
  std::vector<float> stored, a;
  for (int i = 0; i < 600; ++i) {
    const float x = std::uniform_real_distribution<float>(-6, 6)(random);
    stored.push_back(i % 2 == 0 ? to_float(from_float<BFloat16>(x))
                                : std::log(static_cast<float>(1 + i % 128)));
    a.push_back(static_cast<float>(-std::exp(static_cast<double>(stored.back()))));
  }
  GgufBuilder b = tiny(false);
  b.tensor("blk.1.ssm_a", 0, {600}, floats(a));
  const Tensor back = weights_of(b)->find("backbone.layers.1.mixer.A_log").value();
  for (size_t i = 0; i < stored.size(); ++i) {
    const float x = back.values<float>()[i];
    if (i % 2 == 0) {
      EXPECT_EQ(x, stored[i]);
    }
    EXPECT_EQ(static_cast<float>(-std::exp(static_cast<double>(x))), a[i]) << stored[i];
  }
}

TEST(GgufModel, RefusesAnAThatIsNoDecay) {
  for (const float bad : {0.0f, 1.0f, -std::numeric_limits<float>::infinity(), std::nanf("")}) {
    const auto weights = weights_of(tiny(false).tensor("blk.1.ssm_a", 0, {2}, floats({-1, bad})));
    expect_error([&] { (void)weights->find("backbone.layers.1.mixer.A_log"); },
                 {"a.gguf: tensor blk.1.ssm_a", "element 1", "not a negative number"});
  }
}

TEST(GgufModel, OpensWhereAModelGoes) {
  const TempFolder folder;
  write_text(folder / "m.gguf", tiny(true).bytes());
  const Checkpoint checkpoint = open_checkpoint(folder / "m.gguf");
  EXPECT_EQ(name_of(checkpoint.layout), "gguf");
  EXPECT_EQ(checkpoint.config["model_type"], "mamba2");
  EXPECT_TRUE(checkpoint.weights->find("backbone.layers.0.mixer.dt_bias"));
  write_text(folder / "n.gguf", "");
  expect_error([&] { open_checkpoint(folder.path()); }, {"name one of its files: m.gguf, n.gguf"});
}

TEST(Gguf, DamagedFilesOpenOrThrow) {
  GgufBuilder b = tiny(true);
  b.tensor("q", 8, {32, 2}, std::string(68, '\1'));
  damage(b.bytes(), [](const std::string& text) {
    auto file = std::make_shared<GgufFile>(bytes_of(text));
    read_all(*file);
    (void)file->texts("tokenizer.ggml.tokens");
    const nlohmann::json config = gguf_config(*file);
    read_all(*gguf_weights(std::move(file), config));
  });
}

}  // namespace
}  // namespace ssm::io
