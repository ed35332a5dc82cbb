// Files of torch.save: a state dict in a zip archive, or in the older format of pickles one after another.
// Opening reads the small pickle, through a restricted reader, and checks every tensor against its storage;
// a find() is a view of the file, or a contiguous copy of a tensor saved with other strides.
#pragma once

#include <filesystem>
#include <map>

#include "ssm/io/pickle.h"
#include "ssm/io/weight_source.h"

namespace ssm::io {

class TorchFile : public WeightSource {
 public:
  static std::unique_ptr<TorchFile> open(const std::filesystem::path& path);
  explicit TorchFile(Bytes bytes);

  std::optional<Tensor> find(std::string_view name) const override;
  std::vector<std::string> names() const override;  // in the order of the file
  std::string describe(std::string_view name) const override;

 private:
  // A tensor of the pickle: tied tensors share a storage.
  struct Entry {
    std::string name;
    std::string storage;
    DType dtype;
    int64_t storage_numel;
    int64_t offset;  // in elements
    Shape shape;
    Shape strides;
    size_t position = 0;  // of the storage in the file
  };

  void open_zip();
  void open_legacy();
  void read_state_dict(const Pickle& pickle);
  PickleId find_state_dict(const Pickle& pickle) const;
  void add_tensor(const Pickle& pickle, std::string_view name, const PickleValue& tensor);
  Shape read_shape(const Pickle& pickle, PickleId id, std::string_view name, std::string_view what) const;
  void check_bounds(const Entry& entry) const;
  void locate_legacy_storages(const Pickle& keys, size_t position);

  Bytes bytes_;
  std::vector<Entry> entries_;
  std::map<std::string, size_t, std::less<>> index_;
};

}  // namespace ssm::io
