#include "ssm/io/torch_zip.h"

#include <algorithm>
#include <array>
#include <set>

#include "ssm/io/mapped_file.h"
#include "ssm/io/zip.h"

namespace ssm::io {
namespace {

using Kind = PickleValue::Kind;

// The first pickle of the older format: the 10-byte integer 0x1950a86a20f9469cfc6c.
constexpr std::string_view kLegacyMagic("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e", 15);
constexpr int64_t kLegacyVersion = 1001;

std::optional<DType> storage_dtype(std::string_view global) {
  static constexpr std::array<std::pair<std::string_view, DType>, 8> kTypes{{
      {"torch FloatStorage", DType::f32},
      {"torch HalfStorage", DType::f16},
      {"torch BFloat16Storage", DType::bf16},
      {"torch DoubleStorage", DType::f64},
      {"torch LongStorage", DType::i64},
      {"torch IntStorage", DType::i32},
      {"torch ByteStorage", DType::u8},
      {"torch CharStorage", DType::i8},
  }};
  for (const auto& [name, dtype] : kTypes) {
    if (name == global) return dtype;
  }
  return std::nullopt;
}

// Row-major copy of a strided tensor whose bounds have been checked.
Tensor gather(const std::byte* storage, const Shape& shape, const Shape& strides, DType dtype) {
  const ArenaScope heap(nullptr);
  Tensor copy = Tensor::empty(shape, dtype);
  const size_t size = size_of(dtype);
  const int64_t n = copy.numel();
  std::array<int64_t, Shape::kMaxRank> index{};
  int64_t offset = 0;
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(copy.raw() + static_cast<size_t>(i) * size, storage + static_cast<size_t>(offset) * size,
                size);
    for (int d = shape.rank() - 1; d >= 0; --d) {
      int64_t& k = index[static_cast<size_t>(d)];
      offset += strides[d];
      if (++k < shape[d]) break;
      offset -= k * strides[d];
      k = 0;
    }
  }
  return copy;
}

bool is_contiguous(const Shape& shape, const Shape& strides) {
  int64_t step = 1;
  for (int d = shape.rank() - 1; d >= 0; --d) {
    if (shape[d] != 1 && strides[d] != step) return false;
    step *= shape[d];
  }
  return true;
}

}  // namespace

std::unique_ptr<TorchFile> TorchFile::open(const std::filesystem::path& path) {
  return std::make_unique<TorchFile>(map_file(path));
}

TorchFile::TorchFile(Bytes bytes) : bytes_(std::move(bytes)) {
  if (bytes_.text().starts_with(kLegacyMagic)) {
    open_legacy();
  } else {
    open_zip();
  }
  for (size_t i = 0; i < entries_.size(); ++i) {
    SSM_CHECK(index_.emplace(entries_[i].name, i).second, "{}: tensor {} appears twice", bytes_.name,
              printable(entries_[i].name));
  }
}

void TorchFile::open_zip() {
  constexpr std::string_view kPickle = "/data.pkl";
  const std::string& file = bytes_.name;
  const ZipArchive zip(bytes_);
  std::string prefix;
  for (const auto& [name, entry] : zip.entries()) {
    SSM_CHECK(!name.ends_with("/constants.pkl"), "{}: is a TorchScript archive (entry {}), not a state dict",
              file, printable(name));
    if (!name.ends_with(kPickle)) continue;
    SSM_CHECK(prefix.empty(), "{}: two pickles, {}data.pkl and {}", file, printable(prefix), printable(name));
    prefix = name.substr(0, name.size() - kPickle.size() + 1);
  }
  SSM_CHECK(!prefix.empty(), "{}: a zip archive without an entry */data.pkl: not saved by torch", file);
  if (zip.contains(prefix + "byteorder")) {
    const auto [offset, size] = zip.locate(prefix + "byteorder");
    const std::string_view order = bytes_.text().substr(offset, size);
    SSM_CHECK(order == "little", "{}: entry {}byteorder: {}-endian tensors are not supported", file,
              printable(prefix), printable(order));
  }
  const auto [offset, size] = zip.locate(prefix + "data.pkl");
  read_state_dict(read_pickle(bytes_.data.subspan(offset, size), file));
  for (Entry& entry : entries_) {
    const ZipArchive::Range storage = zip.locate(prefix + "data/" + entry.storage);
    SSM_CHECK(static_cast<uint64_t>(entry.storage_numel) == storage.size / size_of(entry.dtype),
              "{}: its storage {} should hold {} elements of {}, the entry has {} bytes",
              describe(entry.name), printable(entry.storage), entry.storage_numel, name_of(entry.dtype),
              storage.size);
    entry.position = storage.offset;
  }
}

void TorchFile::open_legacy() {
  const std::string& file = bytes_.name;
  size_t position = kLegacyMagic.size();
  const auto next = [&] {
    Pickle pickle = read_pickle(bytes_.data.subspan(position), file);
    position += pickle.size;
    return pickle;
  };
  const Pickle version = next();
  SSM_CHECK(version[version.root].integer == kLegacyVersion, "{}: torch file version {} (only {} is read)",
            file, version[version.root].integer, kLegacyVersion);
  const Pickle system = next();
  const std::vector<PickleId>& facts = system[system.root].items;
  SSM_CHECK(system[system.root].kind == Kind::dict, "{}: its second pickle is {}", file,
            name_of(system[system.root].kind));
  for (size_t i = 0; i + 1 < facts.size(); i += 2) {
    SSM_CHECK(system[facts[i]].text != "little_endian" || system[facts[i + 1]].integer == 1,
              "{}: little_endian: big-endian tensors are not supported", file);
  }
  read_state_dict(next());
  const Pickle keys = next();
  locate_legacy_storages(keys, position);
}

// After the pickles each storage of the key list follows: its element count (int64) and its bytes.
void TorchFile::locate_legacy_storages(const Pickle& keys, size_t position) {
  const std::string& file = bytes_.name;
  SSM_CHECK(keys[keys.root].kind == Kind::list, "{}: its list of storages is {}", file,
            name_of(keys[keys.root].kind));
  std::map<std::string_view, std::vector<Entry*>> users;
  for (Entry& entry : entries_) users[entry.storage].push_back(&entry);
  for (const PickleId id : keys[keys.root].items) {
    const std::string_view key = keys[id].text;
    const auto found = users.find(key);
    SSM_CHECK(found != users.end(), "{}: storage {} belongs to no tensor", file, printable(key));
    const Entry& entry = *found->second.front();
    SSM_CHECK(
        fits(position, 8, bytes_.size()) && load_le<int64_t>(bytes_.data, position) == entry.storage_numel,
        "{}: storage {}: its size does not stand at byte {}", describe(entry.name), printable(key), position);
    position += 8;
    const uint64_t size = static_cast<uint64_t>(entry.storage_numel) * size_of(entry.dtype);
    SSM_CHECK(fits(position, size, bytes_.size()),
              "{}: storage {} goes past the end of the file (truncated?)", describe(entry.name),
              printable(key));
    for (Entry* user : found->second) {
      SSM_CHECK(user->dtype == entry.dtype && user->storage_numel == entry.storage_numel,
                "{}: storage {} is described in two ways", describe(user->name), printable(key));
      user->position = position;
    }
    users.erase(found);
    position += size;
  }
  SSM_CHECK(users.empty(), "{}: storage {} is missing", describe(users.begin()->second.front()->name),
            printable(users.begin()->first));
}

// The state dict is the root, or stands in a training checkpoint under "state_dict" or "model".
PickleId TorchFile::find_state_dict(const Pickle& pickle) const {
  const PickleValue& root = pickle[pickle.root];
  SSM_CHECK(root.kind == Kind::dict, "{}: holds {}, not a state dict", bytes_.name, name_of(root.kind));
  PickleId inner = pickle.root;
  for (size_t i = 0; i + 1 < root.items.size(); i += 2) {
    const PickleValue& key = pickle[root.items[i]];
    const PickleValue& value = pickle[root.items[i + 1]];
    if (value.kind == Kind::tensor) return pickle.root;
    if (value.kind == Kind::dict && key.kind == Kind::string &&
        (key.text == "state_dict" || (key.text == "model" && inner == pickle.root))) {
      inner = root.items[i + 1];
    }
  }
  return inner;
}

void TorchFile::read_state_dict(const Pickle& pickle) {
  const PickleValue& dict = pickle[find_state_dict(pickle)];
  for (size_t i = 0; i + 1 < dict.items.size(); i += 2) {
    const PickleValue& key = pickle[dict.items[i]];
    const PickleValue& value = pickle[dict.items[i + 1]];
    if (value.kind != Kind::tensor) continue;  // a step count, hyperparameters
    SSM_CHECK(key.kind == Kind::string, "{}: a tensor under {} instead of a name", bytes_.name,
              name_of(key.kind));
    add_tensor(pickle, key.text, value);
  }
  SSM_CHECK(!entries_.empty(), "{}: holds no tensors", bytes_.name);
}

void TorchFile::add_tensor(const Pickle& pickle, std::string_view name, const PickleValue& tensor) {
  SSM_CHECK(tensor.items.size() >= 4 && pickle[tensor.items[0]].kind == Kind::storage &&
                pickle[tensor.items[1]].kind == Kind::integer,
            "{}: is not built from a storage and an offset", describe(name));
  const PickleValue& storage = pickle[tensor.items[0]];
  const std::string_view type = pickle[storage.items[1]].text;
  const std::optional<DType> dtype = storage_dtype(type);
  SSM_CHECK(dtype, "{}: {} is not a storage type", describe(name), type);
  // The older format can make one storage a window into another.
  SSM_CHECK(storage.items.size() == 5 || pickle[storage.items[5]].kind == Kind::none,
            "{}: a view of another storage is not supported; save the file again with a current torch",
            describe(name));
  Entry entry;
  entry.name = name;
  entry.storage = pickle[storage.items[2]].text;
  entry.dtype = *dtype;
  entry.storage_numel = pickle[storage.items[4]].integer;
  entry.offset = pickle[tensor.items[1]].integer;
  entry.shape = read_shape(pickle, tensor.items[2], name, "shape");
  entry.strides = read_shape(pickle, tensor.items[3], name, "strides");
  SSM_CHECK(entry.strides.rank() == entry.shape.rank(), "{}: strides {} for shape {}", describe(name),
            entry.strides, entry.shape);
  check_bounds(entry);
  entries_.push_back(std::move(entry));
}

Shape TorchFile::read_shape(const Pickle& pickle, PickleId id, std::string_view name,
                            std::string_view what) const {
  const PickleValue& tuple = pickle[id];
  SSM_CHECK(tuple.kind == Kind::tuple, "{}: {} is {}", describe(name), what, name_of(tuple.kind));
  SSM_CHECK(tuple.items.size() <= Shape::kMaxRank, "{}: {} of rank {} (at most {})", describe(name), what,
            tuple.items.size(), Shape::kMaxRank);
  std::vector<int64_t> dims;
  for (const PickleId item : tuple.items) {
    const PickleValue& dim = pickle[item];
    SSM_CHECK(dim.kind == Kind::integer && dim.integer >= 0, "{}: {} holds {}", describe(name), what,
              dim.kind == Kind::integer ? std::to_string(dim.integer) : std::string(name_of(dim.kind)));
    dims.push_back(dim.integer);
  }
  return Shape(std::span<const int64_t>(dims));
}

void TorchFile::check_bounds(const Entry& entry) const {
  const std::string where = describe(entry.name);
  int64_t bytes = 0;
  SSM_CHECK(
      entry.storage_numel >= 0 &&
          !__builtin_mul_overflow(entry.storage_numel, static_cast<int64_t>(size_of(entry.dtype)), &bytes),
      "{}: a storage of {} elements", where, entry.storage_numel);
  SSM_CHECK(entry.offset >= 0, "{}: storage offset {}", where, entry.offset);
  int64_t numel = 1;
  bool overflow = false, empty = false;
  int64_t last = entry.offset;
  for (int d = 0; d < entry.shape.rank(); ++d) {
    int64_t reach = 0;
    empty |= entry.shape[d] == 0;
    overflow |= __builtin_mul_overflow(numel, entry.shape[d], &numel);
    overflow |= __builtin_mul_overflow(std::max<int64_t>(entry.shape[d] - 1, 0), entry.strides[d], &reach);
    overflow |= __builtin_add_overflow(last, reach, &last);
  }
  SSM_CHECK(!overflow, "{}: shape {} with strides {} overflows", where, entry.shape, entry.strides);
  // An empty tensor touches nothing, but its offset still becomes a pointer.
  SSM_CHECK(empty ? entry.offset <= entry.storage_numel : last < entry.storage_numel,
            "{}: offset {}, shape {} and strides {} reach past its storage of {} elements", where,
            entry.offset, entry.shape, entry.strides, entry.storage_numel);
  // A broadcast (stride 0) would make a small file ask for any amount of memory.
  SSM_CHECK(numel <= entry.storage_numel, "{}: shape {} has more elements than its storage ({})", where,
            entry.shape, entry.storage_numel);
}

std::optional<Tensor> TorchFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) return std::nullopt;
  const Entry& entry = entries_[found->second];
  const size_t position = entry.position + static_cast<size_t>(entry.offset) * size_of(entry.dtype);
  if (entry.shape.numel() == 0 || is_contiguous(entry.shape, entry.strides)) {
    return tensor_at(bytes_, position, entry.shape, entry.dtype);
  }
  return gather(bytes_.data.data() + position, entry.shape, entry.strides, entry.dtype);
}

std::vector<std::string> TorchFile::names() const {
  std::vector<std::string> result;
  result.reserve(entries_.size());
  for (const Entry& entry : entries_) result.push_back(entry.name);
  return result;
}

std::string TorchFile::describe(std::string_view name) const {
  return fmt::format("{}: tensor {}", bytes_.name, printable(name));
}

}  // namespace ssm::io
