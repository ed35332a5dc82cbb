#include "ssm/io/checkpoint.h"

#include <algorithm>
#include <array>
#include <map>

#include "ssm/io/config.h"
#include "ssm/io/gguf_model.h"
#include "ssm/io/json.h"
#include "ssm/io/mapped_file.h"
#include "ssm/io/packed_folder.h"
#include "ssm/io/renamed.h"
#include "ssm/io/safetensors.h"
#include "ssm/io/sharded.h"
#include "ssm/io/torch_zip.h"

namespace ssm::io {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Transformers' name of a tensor of any layout: the original says "embedding", Mistral puts "model." before
// some names, and a bare MambaModel is saved without "backbone.".
std::string canonical_name(std::string_view name) {
  if (name.starts_with("model.")) name.remove_prefix(6);
  if (name == "backbone.embedding.weight") return "backbone.embeddings.weight";
  if (name.starts_with("layers.") || name == "embeddings.weight" || name == "norm_f.weight") {
    return "backbone." + std::string(name);
  }
  return std::string(name);
}

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

void check_folder(const fs::path& folder) {
  const std::string name = printable(folder.string());
  std::error_code error;
  const fs::file_status status = fs::status(folder, error);
  SSM_CHECK(fs::exists(status), "{}: there is no such folder", name);
  SSM_CHECK(fs::is_directory(status), "{}: is a file that is neither a model folder nor GGUF", name);
  const fs::directory_iterator first(folder, error);
  SSM_CHECK(!error, "{}: cannot list the folder: {}", name, error.message());
  SSM_CHECK(first != fs::directory_iterator(), "{}: the folder is empty", name);
}

// Under Transformers' names.
std::unique_ptr<WeightSource> open_weights(const fs::path& folder, Layout layout) {
  std::vector<const char*> files{"model.safetensors", "model.safetensors.index.json",
                                 "consolidated.safetensors", "pytorch_model.bin",
                                 "pytorch_model.bin.index.json"};
  if (layout == Layout::mistral) std::swap(files[0], files[2]);
  for (const std::string_view file : files) {
    const fs::path path = folder / file;
    if (!is_there(path)) continue;
    if (file.ends_with(".index.json"))
      return std::make_unique<RenamedSource>(open_sharded(path), canonical_name);
    if (file.ends_with(".bin")) return std::make_unique<RenamedSource>(TorchFile::open(path), canonical_name);
    return std::make_unique<RenamedSource>(SafetensorsFile::open(path), canonical_name);
  }
  fail("{}: no weights: none of {} is in this folder", printable(folder.string()), fmt::join(files, ", "));
}

// A folder of one model in several quantizations: which one is the user's to say.
void refuse_gguf_folder(const fs::path& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".gguf") files.push_back(printable(it->path().filename().string()));
  }
  std::sort(files.begin(), files.end());
  SSM_CHECK(files.empty(), "{}: name one of its files: {}", printable(folder.string()),
            fmt::join(files, ", "));
}

// The layout, the normalised config and which tensors are packed. config.json decides; params.json where it
// is absent or unknown.
PackedEntries read_config_files(Checkpoint& checkpoint) {
  const fs::path& folder = checkpoint.folder;
  std::string unknown;
  for (const char* file : {"config.json", "params.json"}) {
    const fs::path path = folder / file;
    if (!is_there(path)) continue;
    const std::string name = printable(path.string());
    const json config = parse_json(map_file(path).text(), name, SpecialFloats::allow);
    if (const std::optional<Layout> layout = layout_of_config(config)) {
      checkpoint.layout = *layout;
      MistralSizes sizes;
      if (*layout == Layout::mistral) {
        const int64_t groups =
            config.value("n_groups", json()).is_number_integer() ? config["n_groups"].get<int64_t>() : 0;
        sizes = sizes_from_tensors(*open_weights(folder, *layout), groups);
      }
      checkpoint.config = normalise_config(config, *layout, name, sizes);
      return *layout == Layout::transformers ? packed_entries(config, name) : PackedEntries{};
    }
    if (unknown.empty()) unknown = name;
  }
  SSM_CHECK(unknown.empty(),
            "{}: has neither model_type (Transformers), d_model and n_layer (state-spaces) nor dim (Mistral)",
            unknown);
  SSM_CHECK(!is_there(folder / "adapter_config.json"),
            "{}: holds a LoRA adapter (adapter_config.json), not a model", printable(folder.string()));
  refuse_gguf_folder(folder);
  fail("{}: no config.json and no params.json in this folder", printable(folder.string()));
}

Checkpoint open_gguf(const fs::path& path) {
  Checkpoint checkpoint{path, Layout::gguf, {}, nullptr, GgufFile::open(path)};
  checkpoint.config = gguf_config(*checkpoint.gguf);
  checkpoint.weights = gguf_weights(checkpoint.gguf, checkpoint.config);
  return checkpoint;
}

}  // namespace

Checkpoint open_checkpoint(const fs::path& folder) {
  if (is_gguf(folder)) return open_gguf(folder);
  check_folder(folder);
  Checkpoint checkpoint{folder, Layout::transformers, {}, nullptr, nullptr};
  PackedEntries packed = read_config_files(checkpoint);
  checkpoint.weights = with_packed(open_weights(folder, checkpoint.layout), std::move(packed));
  return checkpoint;
}

}  // namespace ssm::io
