#include "ssm/io/pickle.h"
#include "ssm/io/test_files.h"
#include "ssm/io/torch_zip.h"
#include "ssm/io/zip.h"

namespace ssm::io {
namespace {

// Pickle opcodes by hand.
std::string text_op(const std::string& s) {
  std::string out = "X";
  append_le(out, static_cast<uint32_t>(s.size()));
  return out + s;
}
std::string int_op(int64_t value) {
  std::string out = "\x8a\x08";
  append_le(out, value);
  return out;
}
std::string tuple_op(const std::vector<int64_t>& values) {
  std::string out = "(";
  for (const int64_t v : values) out += int_op(v);
  return out + "t";
}
struct TensorOps {
  std::string type = "FloatStorage";
  std::string key = "0";
  int64_t numel = 4;
  int64_t offset = 0;
  std::vector<int64_t> shape{2, 2};
  std::vector<int64_t> strides{2, 1};
  std::string location = "cpu";

  std::string ops() const {
    return "ctorch._utils\n_rebuild_tensor_v2\n((" + text_op("storage") + "ctorch\n" + type + "\n" +
           text_op(key) + text_op(location) + int_op(numel) + "tQ" + int_op(offset) + tuple_op(shape) +
           tuple_op(strides) + "\x89" + "ccollections\nOrderedDict\n)RtR";
  }
};
const std::string kStart = "\x80\x02";

std::string state_of(const TensorOps& tensor) { return kStart + "}" + text_op("w") + tensor.ops() + "s."; }

std::string zip_of(const std::string& pickle, size_t storage = 16) {
  return make_zip(
      {{"m/data.pkl", pickle}, {"m/byteorder", "little"}, {"m/data/0", std::string(storage, '\0')}});
}

void open_text(const std::string& text) { read_all(TorchFile(bytes_of(text, "m.bin"))); }
void open_pickle(const std::string& pickle) { open_text(zip_of(pickle)); }

void expect_module_state(const TorchFile& file) {
  EXPECT_EQ(file.names(), (std::vector<std::string>{"embedding.weight", "head.weight"}));
  const Tensor a = *file.find("embedding.weight"), b = *file.find("head.weight");
  EXPECT_EQ(a.shape(), (Shape{4, 3}));
  EXPECT_EQ(a.values<float>()[11], 11);
  EXPECT_EQ(b.values<float>()[11], 11);
}

TEST(Torch, ReadsStateDicts) {
  for (const char* name : {"state_dict.bin", "checkpoint.bin", "protocol4.bin", "cuda.bin"}) {
    SCOPED_TRACE(name);
    expect_module_state(*TorchFile::open(golden(name)));
  }
}

TEST(Torch, TiedTensorsShareTheirBytes) {
  const auto file = TorchFile::open(golden("state_dict.bin"));
  EXPECT_EQ(file->find("embedding.weight")->raw(), file->find("head.weight")->raw());
}

TEST(Torch, ReadsEveryDtypeAndStride) {
  for (const char* name : {"mixed.bin", "legacy.bin"}) {
    SCOPED_TRACE(name);
    const auto file = TorchFile::open(golden(name));
    EXPECT_EQ(file->find("f32")->values<float>()[5], 5);
    EXPECT_EQ(to_float(file->find("bf16")->values<BFloat16>()[4]), 4);
    EXPECT_EQ(to_float(file->find("f16")->values<Float16>()[4]), 4);
    EXPECT_EQ(file->find("f64")->values<double>()[2], 2);
    EXPECT_EQ(file->find("i64")->values<int64_t>()[2], 2);
    EXPECT_EQ(file->find("i32")->values<int32_t>()[2], 2);
    EXPECT_EQ(file->find("u8")->values<uint8_t>()[2], 2);
    EXPECT_EQ(file->find("i8")->values<int8_t>()[2], 2);
    EXPECT_EQ(file->find("parameter")->values<float>()[3], 3);
    const Tensor transposed = *file->find("transposed");
    EXPECT_EQ(transposed.shape(), (Shape{6, 4}));
    EXPECT_EQ(transposed.values<float>()[1], 6);
    EXPECT_EQ(transposed.values<float>()[23], 23);
    const Tensor window = *file->find("window");
    EXPECT_EQ(window.shape(), (Shape{2, 3}));
    EXPECT_EQ(window.values<float>()[0], 8);
    EXPECT_EQ(window.values<float>()[5], 16);
    EXPECT_EQ(file->find("row")->values<float>()[5], 17);
    EXPECT_EQ(file->find("every_other")->values<float>()[4], 8);
    EXPECT_EQ(file->find("scalar")->values<float>()[0], 7);
    EXPECT_EQ(file->find("nothing")->shape(), (Shape{0, 3}));
    EXPECT_FALSE(file->find("absent"));
  }
}

TEST(Torch, ReadsZip64) {
  std::string values;
  for (const float f : {1.f, 2.f, 3.f, 4.f}) append_le(values, f);
  const TorchFile file(bytes_of(make_zip({{"m/data.pkl", state_of({})}, {"m/data/0", values}}, true)));
  EXPECT_EQ(file.find("w")->values<float>()[3], 4);
}

TEST(TorchRefuses, GlobalsOutsideTheListEvenWhereNoModelLooks) {
  expect_error([] { TorchFile::open(golden("evil.bin")); }, {"evil.bin", "posix.system", "refused"});
  for (const char* module : {"os", "builtins", "torch", "collections", "torch._utils"}) {
    const std::string global = std::string("c") + module + "\neval\n";
    expect_error([&] { open_pickle(kStart + "}" + text_op("x") + global + "s."); },
                 {"m.bin", std::string(module) + ".eval", "refused"});
    // Pushed and thrown away, and in the attributes of an OrderedDict.
    expect_error([&] { open_pickle(kStart + global + "0}."); }, {std::string(module) + ".eval"});
    expect_error([&] { open_pickle(kStart + text_op(module) + text_op("eval") + "\x93" + "0}."); },
                 {std::string(module) + ".eval"});
  }
  expect_error([] { open_pickle(kStart + "ctorch\nBoolStorage\n0}."); }, {"torch.BoolStorage"});
}

TEST(TorchRefuses, TensorsThatReachPastTheirStorage) {
  const auto tensor = [](auto change) {
    TensorOps t;
    change(t);
    return [t] { open_pickle(state_of(t)); };
  };
  using T = TensorOps&;
  EXPECT_NO_THROW(tensor([](T) {})());
  EXPECT_NO_THROW(tensor([](T t) { t.location = "cuda:0"; })());
  expect_error(tensor([](T t) { t.offset = 1; }), {"m.bin", "tensor w", "offset 1", "storage of 4"});
  expect_error(tensor([](T t) { t.offset = -1; }), {"m.bin", "tensor w", "offset -1"});
  expect_error(tensor([](T t) { t.shape = {3, 2}; }), {"m.bin", "tensor w", "[3, 2]"});
  expect_error(tensor([](T t) { t.shape = {-2, 2}; }), {"m.bin", "tensor w", "shape holds -2"});
  expect_error(tensor([](T t) { t.strides = {-2, 1}; }), {"m.bin", "tensor w", "strides holds -2"});
  expect_error(tensor([](T t) { t.strides = {3, 1}; }), {"m.bin", "tensor w", "strides [3, 1]"});
  expect_error(tensor([](T t) { t.strides = {1}; }), {"m.bin", "tensor w", "strides [1]"});
  expect_error(tensor([](T t) { t.strides = {INT64_MAX, INT64_MAX}; }), {"m.bin", "tensor w", "overflows"});
  expect_error(tensor([](T t) {
                 t.shape = {1L << 40, 2}, t.strides = {0, 1};
               }),
               {"m.bin", "tensor w", "more elements"});
  expect_error(tensor([](T t) { t.shape = {0}, t.strides = {1}, t.offset = 5; }),
               {"m.bin", "tensor w", "offset 5"});
  expect_error(tensor([](T t) { t.shape = {1, 1, 1, 1, 1, 1, 1}; }), {"m.bin", "tensor w", "rank 7"});
  expect_error(tensor([](T t) { t.numel = -1; }), {"m.bin", "tensor w", "-1 elements"});
  expect_error(tensor([](T t) { t.numel = INT64_MAX; }), {"m.bin", "tensor w", "storage of"});
  expect_error(tensor([](T t) { t.numel = 5; }), {"m.bin", "tensor w", "storage 0", "16 bytes"});
  expect_error(tensor([](T t) { t.key = "../0"; }), {"m.bin", "entry m/data/../0 is missing"});
}

TEST(TorchRefuses, BrokenPickles) {
  const auto expect = [](const std::string& pickle, const std::vector<std::string>& parts) {
    expect_error([&] { open_pickle(pickle); }, parts);
  };
  expect("", {"m.bin", "not a pickle"});
  expect("(dp0\n.", {"m.bin", "not a pickle of protocol 2"});
  expect("\x80\x06}.", {"m.bin", "protocol 6"});
  expect(kStart + "}", {"m.bin", "wanted"});
  expect(kStart + ".", {"m.bin", "nothing on the stack"});
  expect(kStart + "}}.", {"m.bin", "left over"});
  expect(kStart + "}.", {"m.bin", "no tensors"});
  expect(kStart + "].", {"m.bin", "a list", "not a state dict"});
  expect(kStart + "h\x05.", {"m.bin", "memo 5"});
  expect(kStart + "t.", {"m.bin", "no mark"});
  expect(kStart + "(0s.", {"m.bin", "nothing on the stack"});
  expect(kStart + "}(Nu.", {"m.bin", "without a value"});
  expect(kStart + "]NNs.", {"m.bin", "sets an item of a list"});
  expect(kStart + "}Na.", {"m.bin", "appends to a dict"});
  expect(kStart + "})R.", {"m.bin", "calls a dict"});
  expect(kStart + "ctorch\nFloatStorage\n)R.", {"m.bin", "calls torch FloatStorage"});
  expect(kStart + "NQ.", {"m.bin", "persistent id"});
  expect(kStart + ")Q.", {"m.bin", "persistent id"});
  expect(kStart + "}Nb.", {"m.bin", "sets the state of a dict from None"});
  expect(kStart + "i__main__\nx\n.", {"m.bin", "opcode 0x69"});
  expect(kStart + std::string("X\xff\xff\xff\xff", 5), {"m.bin", "4294967295 bytes wanted"});
  expect(kStart + std::string("\x8b\xff\xff\xff\xff", 5), {"m.bin", "4294967295 bytes wanted"});
  expect(kStart + std::string("\x8d\xff\xff\xff\xff\xff\xff\xff\xff", 9), {"m.bin", "bytes wanted"});
  expect(kStart + "I12x\n.", {"m.bin", "12x"});
  expect(kStart + "}N" + TensorOps{}.ops() + "s.", {"m.bin", "under None"});
  expect(kStart + "}" + text_op("w") + "ctorch._utils\n_rebuild_tensor_v2\n)Rs.", {"m.bin", "tensor w"});
  const std::string twice = text_op("w") + TensorOps{}.ops() + "s";
  expect(kStart + "}" + twice + twice + ".", {"m.bin", "tensor w appears twice"});
}

TEST(TorchRefuses, PickleBombs) {
  // A million nested lists: nothing may recurse, neither while building nor while freeing.
  std::string nested = kStart + std::string(900'000, ']') + std::string(899'999, 'a') + "0}.";
  expect_error([&] { open_pickle(nested); }, {"m.bin", "no tensors"});
  expect_error([] { open_pickle(kStart + std::string(2'000'000, ']') + "."); },
               {"m.bin", "more than 1048576 values"});
  expect_error([] { open_pickle(kStart + "N" + std::string(2'000'000, '2') + "."); },
               {"m.bin", "stack of more"});
  expect_error([] { open_pickle(kStart + std::string(2'000'000, '(') + "."); }, {"m.bin", "marks"});
  std::string memo = kStart + "N";
  for (uint32_t i = 0; i < 1'100'000; ++i) {
    memo += 'r';
    append_le(memo, i * 3);
  }
  expect_error([&] { open_pickle(memo + "."); }, {"m.bin", "memo of more"});
  // One long tuple that thousands of calls would copy.
  std::string copies = kStart + "(" + std::string(500'000, 'N') + "tq\x01" +
                       "0ctorch._utils\n_rebuild_tensor_v2\nq\x02"
                       "0";
  for (int i = 0; i < 100'000; ++i) copies += "h\x02h\x01R0";
  expect_error([&] { open_pickle(copies + "}."); }, {"m.bin", "500000 arguments"});
  // A list inside itself.
  expect_error(
      [] {
        open_pickle(kStart +
                    "]q\x01h\x01"
                    "a0}.");
      },
      {"m.bin", "no tensors"});
}

TEST(TorchRefuses, BrokenZips) {
  const std::string pickle = state_of({});
  const std::string data(16, '\0');
  expect_error([] { open_text("not a zip at all"); }, {"m.bin", "not a zip archive"});
  expect_error([&] { open_text(make_zip({{"m/version", "3"}})); }, {"m.bin", "data.pkl"});
  expect_error([&] { open_text(make_zip({{"m/data.pkl", pickle}})); }, {"m.bin", "m/data/0 is missing"});
  expect_error(
      [&] {
        open_text(make_zip({{"m/data.pkl", pickle}, {"n/data.pkl", pickle}}));
      },
      {"m.bin", "two pickles"});
  expect_error(
      [&] {
        open_text(make_zip({{"m/data.pkl", pickle}, {"m/data.pkl", pickle}}));
      },
      {"m.bin", "m/data.pkl", "twice"});
  expect_error(
      [&] {
        open_text(make_zip({{"m/data.pkl", pickle}, {"m/data/0", data}, {"m/byteorder", "big"}}));
      },
      {"m.bin", "byteorder", "big"});
  expect_error(
      [&] {
        open_text(make_zip({{"m/data.pkl", pickle, 8}, {"m/data/0", data}}));
      },
      {"m.bin", "m/data.pkl is compressed"});
  expect_error(
      [&] {
        open_text(make_zip({{"m/data.pkl", pickle}, {"m/data/0", data, 8}}));
      },
      {"m.bin", "m/data/0 is compressed"});
  expect_error(
      [&] {
        open_text(make_zip({{"m/data.pkl", pickle, 0, 1}, {"m/data/0", data}}));
      },
      {"m.bin", "m/data.pkl is encrypted"});
  expect_error(
      [&] {
        open_text(make_zip({{"m/data.pkl", pickle}, {"m/constants.pkl", ""}}));
      },
      {"m.bin", "TorchScript"});
  expect_error([] { TorchFile::open(golden("compressed.bin")); },
               {"compressed.bin", "byteorder is compressed"});
}

TEST(Torch, SurvivesDamage) {
  for (const char* name : {"state_dict.bin", "mixed.bin", "legacy.bin", "protocol4.bin"}) {
    SCOPED_TRACE(name);
    damage(read_text(golden(name)), open_text);
  }
  damage(make_zip({{"m/data.pkl", state_of({})}, {"m/data/0", std::string(16, 'x')}}, true), open_text);
}

}  // namespace
}  // namespace ssm::io
