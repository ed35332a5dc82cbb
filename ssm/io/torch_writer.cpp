// What torch.save writes: an archive of stored entries, archive/data.pkl (the state dict, a pickle that
// builds tensors) and archive/data/0, 1, ... (their bytes, each at a multiple of 64).
#include <array>

#include "ssm/io/atomic_file.h"
#include "ssm/io/original_writer.h"

namespace ssm::io {
namespace {

constexpr uint64_t kAlignment = 64;

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

constexpr std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = (c & 1) != 0 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
    table[i] = c;
  }
  return table;
}

uint32_t crc32(std::span<const std::byte> data) {
  static constexpr std::array<uint32_t, 256> kTable = crc_table();
  uint32_t crc = ~0u;
  for (const std::byte b : data) crc = kTable[(crc ^ static_cast<uint32_t>(b)) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

// Entries one after another, every size and offset as zip64 so that there is one way for small and large
// files.
class ZipWriter {
 public:
  explicit ZipWriter(const std::filesystem::path& path) : out_(path) {}

  void add(std::string_view name, std::span<const std::byte> data) {
    const uint32_t crc = crc32(data);
    const uint64_t offset = at_;
    std::string header;
    put<uint32_t>(header, 0x04034b50);
    put_common(header, crc);
    put<uint16_t>(header, static_cast<uint16_t>(name.size()));
    // Behind the sizes stands a field of zeros, which brings the data to its place.
    const uint64_t before = at_ + 30 + name.size() + 20 + 4;
    const auto fill = static_cast<uint16_t>((kAlignment - before % kAlignment) % kAlignment);
    put<uint16_t>(header, static_cast<uint16_t>(20 + 4 + fill));
    header.append(name);
    put_sizes(header, data.size(), std::nullopt);
    put<uint16_t>(header, 0x4246);  // torch's own: "FB"
    put<uint16_t>(header, fill);
    header.append(fill, '\0');
    write(header);
    out_.write(data);
    at_ += data.size();
    add_to_directory(name, crc, data.size(), offset);
  }

  void commit() {
    const uint64_t directory = at_;
    write(directory_);
    std::string end;
    put<uint32_t>(end, 0x06064b50);
    put<uint64_t>(end, 44);
    put<uint16_t>(end, 45);
    put<uint16_t>(end, 45);
    put<uint32_t>(end, 0);
    put<uint32_t>(end, 0);
    put<uint64_t>(end, count_);
    put<uint64_t>(end, count_);
    put<uint64_t>(end, directory_.size());
    put<uint64_t>(end, directory);
    put<uint32_t>(end, 0x07064b50);  // where the record above is
    put<uint32_t>(end, 0);
    put<uint64_t>(end, at_);
    put<uint32_t>(end, 1);
    put<uint32_t>(end, 0x06054b50);
    put<uint32_t>(end, 0);
    put<uint16_t>(end, 0xFFFF);
    put<uint16_t>(end, 0xFFFF);
    put<uint32_t>(end, 0xFFFFFFFF);
    put<uint32_t>(end, 0xFFFFFFFF);
    put<uint16_t>(end, 0);
    write(end);
    out_.commit();
  }

 private:
  // Version 4.5, no flags, stored, 1 January 1980.
  static void put_common(std::string& out, uint32_t crc) {
    for (const uint16_t v : {uint16_t{45}, uint16_t{0}, uint16_t{0}, uint16_t{0}, uint16_t{0x21}})
      put(out, v);
    put(out, crc);
    put<uint32_t>(out, 0xFFFFFFFF);
    put<uint32_t>(out, 0xFFFFFFFF);
  }
  static void put_sizes(std::string& out, uint64_t size, std::optional<uint64_t> offset) {
    put<uint16_t>(out, 1);
    put<uint16_t>(out, offset ? 24 : 16);
    put(out, size);
    put(out, size);
    if (offset) put(out, *offset);
  }
  void add_to_directory(std::string_view name, uint32_t crc, uint64_t size, uint64_t offset) {
    put<uint32_t>(directory_, 0x02014b50);
    put<uint16_t>(directory_, 45);
    put_common(directory_, crc);
    put<uint16_t>(directory_, static_cast<uint16_t>(name.size()));
    put<uint16_t>(directory_, 28);
    put<uint16_t>(directory_, 0);
    put<uint16_t>(directory_, 0);
    put<uint16_t>(directory_, 0);
    put<uint32_t>(directory_, 0);
    put<uint32_t>(directory_, 0xFFFFFFFF);
    directory_.append(name);
    put_sizes(directory_, size, offset);
    ++count_;
  }
  void write(std::string_view text) {
    out_.write(text);
    at_ += text.size();
  }

  AtomicFile out_;
  uint64_t at_ = 0, count_ = 0;
  std::string directory_;
};

// A pickle of protocol 2, in the few opcodes that a state dict takes.
class PickleWriter {
 public:
  PickleWriter() { op('\x80').op('\x02'); }

  PickleWriter& op(char c) {
    out_.push_back(c);
    return *this;
  }
  PickleWriter& global(std::string_view module, std::string_view name) {
    out_.append("c").append(module).append("\n").append(name).append("\n");
    return *this;
  }
  PickleWriter& text(std::string_view value) {
    op('X');
    put(out_, static_cast<uint32_t>(value.size()));
    out_.append(value);
    return *this;
  }
  PickleWriter& integer(int64_t value) {
    if (value >= INT32_MIN && value <= INT32_MAX) {
      op('J');
      put(out_, static_cast<int32_t>(value));
    } else {
      op('\x8a').op(8);
      put(out_, value);
    }
    return *this;
  }
  PickleWriter& integers(const Shape& values) {
    op('(');
    for (const int64_t v : values) integer(v);
    return op('t');
  }
  PickleWriter& ordered_dict() { return global("collections", "OrderedDict").op(')').op('R'); }
  std::string take() { return std::move(out_.append(".")); }

 private:
  std::string out_;
};

std::string_view storage_of(DType dtype, const std::string& what) {
  switch (dtype) {
    case DType::f32:
      return "FloatStorage";
    case DType::bf16:
      return "BFloat16Storage";
    case DType::f16:
      return "HalfStorage";
    default:
      fail("{}: {} is no type of a weight", what, name_of(dtype));
  }
}

void pickle_tensor(PickleWriter& pickle, const LazyTensor& t, size_t number, const std::string& file) {
  Shape strides = t.shape;
  int64_t step = 1;
  for (int i = t.shape.rank() - 1; i >= 0; --i) {
    strides[i] = step;
    step *= t.shape[i];
  }
  pickle.global("torch._utils", "_rebuild_tensor_v2").op('(');
  pickle.op('(').text("storage").global("torch",
                                        storage_of(t.dtype, fmt::format("{}: tensor {}", file, t.name)));
  pickle.text(std::to_string(number)).text("cpu").integer(t.shape.numel()).op('t').op('Q');
  pickle.integer(0).integers(t.shape).integers(strides).op('\x89').ordered_dict().op('t').op('R');
}

std::string pickle_of(std::span<const LazyTensor> tensors, std::span<const TensorAlias> aliases,
                      const std::string& file) {
  PickleWriter pickle;
  pickle.ordered_dict().op('(');
  for (size_t i = 0; i < tensors.size(); ++i)
    pickle_tensor(pickle.text(tensors[i].name), tensors[i], i, file);
  for (const TensorAlias& alias : aliases) {
    size_t i = 0;
    while (i < tensors.size() && tensors[i].name != alias.same_as) ++i;
    SSM_CHECK(i < tensors.size(), "{}: tensor {} is to be {}, which is not there", file, alias.name,
              alias.same_as);
    pickle_tensor(pickle.text(alias.name), tensors[i], i, file);
  }
  return pickle.op('u').take();
}

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

}  // namespace

void write_torch(const std::filesystem::path& path, std::span<const LazyTensor> tensors,
                 std::span<const TensorAlias> aliases) {
  const std::string file = printable(path.string());
  const std::string folder = path.stem().string() + "/";
  ZipWriter zip(path);
  zip.add(folder + "data.pkl", bytes_of(pickle_of(tensors, aliases, file)));
  for (size_t i = 0; i < tensors.size(); ++i) {
    const LazyTensor& t = tensors[i];
    Tensor tensor = t.make();
    SSM_CHECK(tensor.defined() && tensor.shape() == t.shape && tensor.dtype() == t.dtype,
              "{}: tensor {} is not the {} of shape {} that was announced", file, printable(t.name),
              name_of(t.dtype), t.shape);
    if (!tensor.contiguous()) tensor = tensor.clone();
    zip.add(fmt::format("{}data/{}", folder, i), std::span<const std::byte>(tensor.raw(), tensor.bytes()));
  }
  zip.add(folder + "version", bytes_of("3\n"));
  zip.commit();
}

}  // namespace ssm::io
