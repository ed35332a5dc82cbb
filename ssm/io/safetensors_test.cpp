#include "ssm/io/safetensors.h"

#include <sys/stat.h>

#include <algorithm>

#include "ssm/io/mapped_file.h"
#include "ssm/io/test_files.h"

namespace ssm::io {
namespace {

std::string file_of(const std::string& header, size_t data_size) {
  std::string out;
  append_le<uint64_t>(out, header.size());
  return out + header + std::string(data_size, '\1');
}

void open_header(const std::string& header, size_t data_size) {
  read_all(SafetensorsFile(bytes_of(file_of(header, data_size), "a.safetensors")));
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}";
}

TEST(MappedFile, NamesWhatIsWrong) {
  const TempFolder folder;
  expect_error([&] { map_file(folder / "absent"); }, {"absent", "No such file"});
  expect_error([&] { map_file(folder.path()); }, {folder.path().string(), "is a folder"});
  write_text(folder / "empty", "");
  expect_error([&] { map_file(folder / "empty"); }, {"empty", "the file is empty"});
  ::mkfifo((folder / "pipe").c_str(), 0600);
  expect_error([&] { map_file(folder / "pipe"); }, {"pipe", "not a regular file"});
}

TEST(MappedFile, ReleasedPagesAreReadAgain) {
  const TempFolder folder;
  write_text(folder / "big", std::string(100'000, 'x'));
  const auto file = MappedFile::open(folder / "big");
  file->release(file->bytes().data() + 10, 90'000);
  file->release(folder.path().c_str(), 100'000);  // not in the mapping: left alone
  for (const std::byte b : file->bytes()) ASSERT_EQ(b, std::byte{'x'});
}

TEST(Safetensors, ReadsWhatPythonWrote) {
  const auto file = SafetensorsFile::open(golden("mixed.safetensors"));
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ(file->find("f32")->shape(), (Shape{2, 3}));
  EXPECT_EQ(file->find("f32")->values<float>()[5], 5);
  EXPECT_EQ(to_float(file->find("bf16")->values<BFloat16>()[4]), 4);
  EXPECT_EQ(to_float(file->find("f16")->values<Float16>()[4]), 4);
  EXPECT_EQ(file->find("f64")->values<double>()[2], 2);
  EXPECT_EQ(file->find("i64")->values<int64_t>()[2], 2);
  EXPECT_EQ(file->find("i32")->values<int32_t>()[2], 2);
  EXPECT_EQ(file->find("u8")->values<uint8_t>()[2], 2);
  EXPECT_EQ(file->find("i8")->values<int8_t>()[2], 2);
  EXPECT_EQ(file->find("transposed")->values<float>()[1], 6);
  EXPECT_EQ(file->find("scalar")->shape(), Shape{});
  EXPECT_EQ(file->find("scalar")->values<float>()[0], 7);
  EXPECT_EQ(file->find("nothing")->shape(), (Shape{0, 3}));
  EXPECT_TRUE(file->find("nothing")->defined());
  EXPECT_FALSE(file->find("absent"));
  expect_error([&] { (void)file->find("bool"); },
               {"mixed.safetensors", "tensor bool", "BOOL", "not supported"});
}

TEST(Safetensors, OutlivesTheFileObject) {
  Tensor t;
  { t = *SafetensorsFile::open(golden("mixed.safetensors"))->find("f32"); }
  EXPECT_EQ(t.values<float>()[5], 5);
}

TEST(Safetensors, CopiesMisalignedTensors) {
  std::string text =
      file_of("{" + entry("b", "U8", "[1]", "[0,1]") + "," + entry("f", "F32", "[2]", "[1,9]") + "}", 1);
  for (const float f : {3.0f, 4.0f}) append_le(text, f);
  const SafetensorsFile file(bytes_of(text));
  const Tensor t = *file.find("f");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(t.raw()) % 4, 0u);
  EXPECT_EQ(t.values<float>()[1], 4);
}

TEST(Safetensors, WritesWhatItReads) {
  const TempFolder folder;
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  const Tensor f = Tensor::from_values<float>(values, {2, 3});
  const std::vector<NamedTensor> tensors{
      {"b", f.to(DType::bf16)}, {"a", f.transpose(0, 1)}, {"empty", Tensor::zeros({0, 4})}, {"Ümlaut\n", f}};
  write_safetensors(folder / "x.safetensors", tensors, {{"k", "v"}});
  write_safetensors(folder / "y.safetensors", tensors, {{"k", "v"}});
  EXPECT_EQ(read_text(folder / "x.safetensors"), read_text(folder / "y.safetensors"));
  const auto file = SafetensorsFile::open(folder / "x.safetensors");
  EXPECT_EQ(file->metadata(), (Metadata{{"k", "v"}}));
  EXPECT_EQ(file->names().back(), "b");  // the smallest element last
  EXPECT_EQ(file->find("a")->shape(), (Shape{3, 2}));
  EXPECT_EQ(file->find("a")->values<float>()[1], 4);
  EXPECT_EQ(to_float(file->find("b")->values<BFloat16>()[5]), 6);
  EXPECT_EQ(file->find("empty")->shape(), (Shape{0, 4}));
  EXPECT_TRUE(file->find("Ümlaut\n"));
  const std::string text = read_text(folder / "x.safetensors");
  EXPECT_EQ((8 + load_le<uint64_t>(std::as_bytes(std::span(text)), 0)) % 64, 0u);
  write_safetensors(folder / "none.safetensors", std::span<const NamedTensor>{});
  EXPECT_TRUE(SafetensorsFile::open(folder / "none.safetensors")->names().empty());
}

TEST(Safetensors, AFailedWriteLeavesTheOldFileAndNothingElse) {
  const TempFolder folder;
  const std::filesystem::path path = folder / "x.safetensors";
  write_text(path, "old");
  const std::vector<LazyTensor> tensors{
      {"a", DType::f32, {2}, [] { return Tensor::zeros({2}); }},
      {"b", DType::f32, {2}, []() -> Tensor { fail("no b today"); }},
  };
  expect_error([&] { write_safetensors(path, tensors); }, {"no b today"});
  const std::vector<LazyTensor> wrong{{"a", DType::f32, {2}, [] { return Tensor::zeros({3}); }}};
  expect_error([&] { write_safetensors(path, wrong); }, {"x.safetensors", "tensor a", "[2]"});
  const std::vector<NamedTensor> twice{{"a", Tensor::zeros({1})}, {"a", Tensor::zeros({1})}};
  expect_error([&] { write_safetensors(path, twice); }, {"x.safetensors", "tensor a", "twice"});
  const std::vector<NamedTensor> broken{{"\xff", Tensor::zeros({1})}};
  expect_error([&] { write_safetensors(path, broken); }, {"x.safetensors", "UTF-8"});
  const std::vector<NamedTensor> good{{"a", Tensor::zeros({1})}};
  expect_error([&] { write_safetensors(folder / "no/such/x", good); }, {"no/such/x", "cannot create"});
  expect_error([&] { write_safetensors(folder.path(), good); }, {"is a folder"});
  EXPECT_EQ(read_text(path), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(SafetensorsRefuses, BrokenOuterStructure) {
  const auto open = [](const std::string& text) { SafetensorsFile(bytes_of(text, "a.safetensors")); };
  expect_error([&] { open("short"); }, {"a.safetensors", "too short"});
  std::string huge;
  append_le<uint64_t>(huge, 100'000'001);
  expect_error([&] { open(huge + "{}"); }, {"a.safetensors", "header length 100000001", "at most"});
  huge.clear();
  append_le<uint64_t>(huge, UINT64_MAX);
  expect_error([&] { open(huge + "{}"); }, {"a.safetensors", "header length"});
  std::string past;
  append_le<uint64_t>(past, 3);
  expect_error([&] { open(past + "{}"); }, {"a.safetensors", "header length 3", "past the end"});
  expect_error([] { open_header(" {}", 0); }, {"a.safetensors", "does not begin with '{'"});
  expect_error([] { open_header("{\"a\":", 0); }, {"a.safetensors", "not valid JSON"});
  expect_error([] { open_header("{} x", 0); }, {"a.safetensors", "not valid JSON"});
}

TEST(SafetensorsRefuses, BadOffsets) {
  const auto pair = [](const char* first, const char* second, size_t size) {
    return [=] {
      open_header("{" + entry("a", "U8", "[4]", first) + "," + entry("b", "U8", "[4]", second) + "}", size);
    };
  };
  EXPECT_NO_THROW(pair("[4,8]", "[0,4]", 8)());  // the JSON's order is free
  expect_error(pair("[0,4]", "[2,6]", 8), {"a.safetensors", "tensor b", "overlap"});
  expect_error(pair("[0,4]", "[5,9]", 9), {"a.safetensors", "tensor b", "hole"});
  expect_error(pair("[1,5]", "[5,9]", 9), {"a.safetensors", "tensor a", "hole"});
  expect_error(pair("[0,4]", "[4,8]", 9), {"a.safetensors", "end at byte 8", "at 9"});
  expect_error(pair("[0,4]", "[4,8]", 7), {"a.safetensors", "tensor b", "past the end"});
  expect_error(pair("[4,0]", "[4,8]", 8), {"a.safetensors", "tensor a", "data_offsets", "end before"});
  expect_error(pair("[0,4]", "[4]", 8), {"a.safetensors", "tensor b", "data_offsets"});
  expect_error(pair("[0,4]", "[4,8,9]", 8), {"a.safetensors", "tensor b", "data_offsets"});
  expect_error(pair("[0,4]", "[4,18446744073709551615]", 8), {"a.safetensors", "tensor b", "data_offsets"});
}

TEST(SafetensorsRefuses, BadEntries) {
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return [=] { open_header("{" + entry("w", dtype, shape, offsets) + "}", 8); };
  };
  expect_error(one("F32", "[3]", "[0,8]"), {"a.safetensors", "tensor w", "data_offsets span 8", "[3]", "12"});
  expect_error(one("F32", "[4611686018427387904,4]", "[0,8]"),
               {"a.safetensors", "tensor w", "shape", "overflows"});
  expect_error(one("F32", "[9223372036854775808]", "[0,8]"),
               {"a.safetensors", "tensor w", "shape", "too large"});
  expect_error(one("F32", "[-2]", "[0,8]"), {"a.safetensors", "tensor w", "shape", "-2"});
  expect_error(one("F32", "[2.0]", "[0,8]"), {"a.safetensors", "tensor w", "shape", "2.0"});
  expect_error(one("F32", "[[2]]", "[0,8]"), {"a.safetensors", "tensor w", "shape", "an array"});
  expect_error(one("F32", "[1,1,1,1,1,1,2]", "[0,8]"), {"a.safetensors", "tensor w", "shape", "more than 6"});
  expect_error(one("F32", "\"x\"", "[0,8]"), {"a.safetensors", "tensor w", "shape", "a string"});
  expect_error([] { open_header(R"({"w":{"dtype":"F32","shape":[2]}})", 8); },
               {"a.safetensors", "tensor w", "data_offsets is missing"});
  expect_error([] { open_header(R"({"w":{"dtype":"F32","dtype":"F32"}})", 8); },
               {"a.safetensors", "tensor w", "dtype appears twice"});
  expect_error([] { open_header(R"({"w":{"type":"F32"}})", 8); }, {"a.safetensors", "tensor w", "type"});
  expect_error([] { open_header(R"({"w":7})", 0); }, {"a.safetensors", "tensor w", "a number"});
  expect_error([] { open_header(R"({"w":{"dtype":{}}})", 0); }, {"a.safetensors", "tensor w", "an object"});
  expect_error(
      [&] {
        open_header("{" + entry("w", "U8", "[4]", "[0,4]") + "," + entry("w", "U8", "[4]", "[4,8]") + "}", 8);
      },
      {"a.safetensors", "tensor w appears twice"});
  expect_error(
      [&] { SafetensorsFile(bytes_of(file_of("{" + entry("w", "F99", "[8]", "[0,8]") + "}", 8))).find("w"); },
      {"test.file", "tensor w", "dtype F99"});
}

TEST(SafetensorsRefuses, BadMetadata) {
  expect_error([] { open_header(R"({"__metadata__":{"a":1}})", 0); }, {"a.safetensors", "__metadata__: a"});
  expect_error([] { open_header(R"({"__metadata__":{"a":{}}})", 0); }, {"a.safetensors", "__metadata__: a"});
  expect_error([] { open_header(R"({"__metadata__":"x"})", 0); }, {"a.safetensors", "__metadata__"});
  expect_error([] { open_header(R"({"__metadata__":{"a":"b","a":"c"}})", 0); },
               {"a.safetensors", "a appears twice"});
}

TEST(Safetensors, SurvivesDamage) {
  damage(read_text(golden("mixed.safetensors")),
         [](const std::string& text) { read_all(SafetensorsFile(bytes_of(text))); });
}

}  // namespace
}  // namespace ssm::io
