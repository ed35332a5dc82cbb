#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "ssm/core/atomic_file.h"
#include "ssm/io/safetensors.h"

namespace ssm::io {
namespace {

std::string_view type_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "F32";
    case DType::bf16:
      return "BF16";
    case DType::f16:
      return "F16";
    case DType::f64:
      return "F64";
    case DType::u8:
      return "U8";
    case DType::i8:
      return "I8";
    case DType::i32:
      return "I32";
    case DType::i64:
      return "I64";
  }
  fail("a dtype without a safetensors name");
}

std::string header_text(std::span<const LazyTensor* const> tensors, const Metadata& metadata,
                        const std::string& file) {
  nlohmann::ordered_json header;
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t position = 0;
  for (const LazyTensor* t : tensors) {
    const uint64_t end = position + static_cast<uint64_t>(t->shape.numel()) * size_of(t->dtype);
    header[t->name] = {{"dtype", type_name(t->dtype)},
                       {"shape", std::vector<int64_t>(t->shape.begin(), t->shape.end())},
                       {"data_offsets", {position, end}}};
    position = end;
  }
  std::string text = "{}";
  if (!header.empty()) {
    try {
      text = header.dump();
    } catch (const nlohmann::json::exception&) {
      fail("{}: a tensor name or a metadata text is not valid UTF-8", file);
    }
  }
  text.append((64 - (8 + text.size()) % 64) % 64, ' ');
  return text;
}

}  // namespace

Tensor made_as_announced(const LazyTensor& t, const std::string& file) {
  const Tensor tensor = t.make();
  SSM_CHECK(tensor.defined() && tensor.shape() == t.shape && tensor.dtype() == t.dtype,
            "{}: tensor {} is not the {} of shape {} that was announced", file, printable(t.name),
            name_of(t.dtype), t.shape);
  return tensor.row_major();
}

void write_safetensors(const std::filesystem::path& path, std::span<const LazyTensor> tensors,
                       const Metadata& metadata) {
  const std::string file = printable(path.string());
  std::vector<const LazyTensor*> order;
  std::set<std::string_view> names{"__metadata__"};
  for (const LazyTensor& t : tensors) {
    SSM_CHECK(names.insert(t.name).second, "{}: tensor {} would be written twice", file, printable(t.name));
    order.push_back(&t);
  }
  std::sort(order.begin(), order.end(), [](const LazyTensor* a, const LazyTensor* b) {
    const size_t size_a = size_of(a->dtype), size_b = size_of(b->dtype);
    return size_a != size_b ? size_a > size_b : a->name < b->name;
  });
  const std::string header = header_text(order, metadata, file);
  AtomicFile out(path);
  const uint64_t length = header.size();
  out.write(std::as_bytes(std::span(&length, 1)));
  out.write(header);
  for (const LazyTensor* t : order) {
    const Tensor tensor = made_as_announced(*t, file);
    out.write(std::span<const std::byte>(tensor.raw(), tensor.bytes()));
  }
  out.commit();
}

void write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                       const Metadata& metadata) {
  std::vector<LazyTensor> lazy;
  lazy.reserve(tensors.size());
  for (const NamedTensor& t : tensors) {
    SSM_CHECK(t.tensor.defined(), "{}: tensor {} is undefined", printable(path.string()), printable(t.name));
    lazy.push_back({t.name, t.tensor.dtype(), t.tensor.shape(), [&t] { return t.tensor; }});
  }
  write_safetensors(path, std::span<const LazyTensor>(lazy), metadata);
}

}  // namespace ssm::io
