#include "ssm/train/checkpoint.h"

#include <algorithm>
#include <charconv>

#include "ssm/core/atomic_file.h"
#include "ssm/core/crc32c.h"
#include "ssm/core/log.h"
#include "ssm/io/atomic_folder.h"
#include "ssm/io/json.h"
#include "ssm/io/mapped_file.h"
#include "ssm/io/safetensors.h"
#include "ssm/load/chat.h"
#include "ssm/load/save_model.h"
#include "ssm/train/adapter.h"

namespace ssm::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::string_view kPrefix = "step-";
constexpr const char* kInfo = "training.json";
constexpr const char* kFormat = "ssm-training";
constexpr int kVersion = 1;
constexpr const char* kChecksum = "crc32c";
constexpr const char* kModel = "model.safetensors";
constexpr const char* kAdapter = "adapter_model.safetensors";
constexpr const char* kMoments = "training.safetensors";

std::optional<int64_t> steps_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t steps = 0;
  const char* end = name.data() + name.size();
  const auto [at, error] = std::from_chars(name.data() + kPrefix.size(), end, steps);
  return error == std::errc() && at == end && steps >= 0 ? std::optional(steps) : std::nullopt;
}

// The newest first.
std::vector<fs::path> checkpoints_in(const fs::path& folder) {
  std::vector<std::pair<int64_t, fs::path>> found;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    if (const std::optional<int64_t> steps = steps_of(at->path())) found.emplace_back(*steps, at->path());
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<fs::path> paths;
  for (auto& [steps, path] : found) paths.push_back(std::move(path));
  return paths;
}

json facts_of(const fs::path& file) {
  const io::Bytes bytes = io::map_file(file);
  return {{"bytes", bytes.size()}, {"crc32c", crc32c(bytes.data)}};
}

// Of all of training.json but this number.
uint32_t checksum_of(json info) {
  info.erase(kChecksum);
  return crc32c(info.dump());
}

json read_info(const fs::path& checkpoint) {
  const io::Bytes text = io::map_file(checkpoint / kInfo);
  const json info = io::parse_json(text.text(), text.name);
  SSM_CHECK(info.is_object() && info.value("format", "") == kFormat, "{}: not a checkpoint's", text.name);
  SSM_CHECK(info.value("version", 0) == kVersion, "{}: version {}, this program reads version {}", text.name,
            io::shown(info.value("version", json())), kVersion);
  for (const char* key : {"steps", "position", "run", "files", kChecksum}) {
    SSM_CHECK(info.contains(key), "{}: {} is missing", text.name, key);
  }
  SSM_CHECK(info[kChecksum] == checksum_of(info), "{}: {} is not that of the rest", text.name, kChecksum);
  SSM_CHECK(info["steps"].is_number_unsigned() && info["steps"] <= uint64_t{1} << 62, "{}: steps is {}",
            text.name, io::shown(info["steps"]));
  return info;
}

bool has_adapter(const json& info) { return info["files"].contains(kAdapter); }

void check_whole(const fs::path& checkpoint) {
  const json info = read_info(checkpoint);
  for (const char* file : {has_adapter(info) ? kAdapter : kModel, kMoments}) {
    SSM_CHECK(info["files"].contains(file) && info["files"][file] == facts_of(checkpoint / file),
              "{}: size or checksum is not what {} says", (checkpoint / file).string(), kInfo);
  }
}

// `to` may lie transposed; what is read is row-major.
void fill(const io::WeightSource& source, const std::string& name, const Tensor& to) {
  const std::optional<Tensor> from = source.find(name);
  SSM_CHECK(from.has_value(), "{}: missing", source.describe(name));
  SSM_CHECK(from->shape() == to.shape() && from->dtype() == DType::f32, "{}: is {} {}, expected f32 {}",
            source.describe(name), name_of(from->dtype()), from->shape(), to.shape());
  const Tensor laid =
      nn::stored_as(*from, to.contiguous() ? nn::Storage::row_major : nn::Storage::channels_contiguous);
  copy_bytes(to.raw(), to.device(), laid.raw(), kCpu, to.bytes());
}

io::LazyTensor lazy(const std::string& name, const Tensor& tensor) {
  return {name, DType::f32, tensor.shape(), [tensor] { return tensor.to(kCpu).row_major(); }};
}

void remove_old(const fs::path& folder, int64_t keep) {
  const std::vector<fs::path> all = checkpoints_in(folder);
  for (size_t i = static_cast<size_t>(std::max<int64_t>(keep, 1)); i < all.size(); ++i) {
    // Without its training.json it is no checkpoint any more: a kill in between leaves nothing half.
    std::error_code error;
    fs::remove(all[i] / kInfo, error);
    fs::remove_all(all[i], error);
    if (error) log(LogLevel::warning, fmt::format("{}: cannot remove: {}", all[i].string(), error.message()));
  }
}

}  // namespace

void save_checkpoint(const fs::path& folder, Trainer& trainer, const LoadedModel& loaded,
                     const CheckpointInfo& info, int64_t keep, const io::AdapterConfig* adapter) {
  const fs::path target = folder / fmt::format("{}{:08}", kPrefix, info.steps);
  std::error_code error;
  fs::create_directories(folder, error);
  fs::remove_all(target, error);  // of the same step: damaged, or a run that was begun anew
  io::AtomicFolder made(target);
  if (adapter) {
    io::write_adapter(made.path(), *adapter, adapter_tensors(trainer, DType::f32));
  } else {
    save_model(made.path(), *loaded.model, loaded.config, DType::f32, loaded.folder,
               [&](const std::string& name) { return trainer.parameters().value_of(name); });
    save_bos_setting(loaded, made.path());
  }
  save_chat_template(loaded, made.path());
  std::vector<io::LazyTensor> tensors;
  trainer.for_each_moment(
      [&](const std::string& name, const Tensor& t) { tensors.push_back(lazy(name, t)); });
  io::write_safetensors(made.path() / kMoments, tensors);
  json files;
  for (const char* file : {adapter ? kAdapter : kModel, kMoments}) files[file] = facts_of(made.path() / file);
  json written{{"format", kFormat},         {"version", kVersion}, {"steps", info.steps},
               {"position", info.position}, {"run", info.run},     {"files", files}};
  written[kChecksum] = checksum_of(written);
  write_whole(made.path() / kInfo, written.dump(2) + "\n");
  made.commit();
  remove_old(folder, keep);
}

std::optional<fs::path> newest_checkpoint(const fs::path& folder) {
  for (const fs::path& checkpoint : checkpoints_in(folder)) {
    try {
      check_whole(checkpoint);
      return checkpoint;
    } catch (const Error& e) {
      log(LogLevel::warning, fmt::format("{}; passing over this checkpoint", e.what()));
    }
  }
  return std::nullopt;
}

CheckpointInfo restore_checkpoint(const fs::path& checkpoint, Trainer& trainer) {
  const json info = read_info(checkpoint);
  const std::unique_ptr<io::WeightSource> values = has_adapter(info)
                                                       ? io::open_adapter(checkpoint).weights
                                                       : io::SafetensorsFile::open(checkpoint / kModel);
  const auto moments = io::SafetensorsFile::open(checkpoint / kMoments);
  if (const std::optional<Tensor> carried = moments->find("carried.0.ssm")) {
    SSM_CHECK(carried->rank() >= 1 && carried->size(0) >= 1, "{}: has shape {}",
              moments->describe("carried.0.ssm"), carried->shape());
    trainer.carry_streams(carried->size(0));
  }
  for (const TrainedParameter& p : trainer.parameters().all()) fill(*values, p.name, p.value);
  trainer.for_each_moment([&](const std::string& name, const Tensor& t) { fill(*moments, name, t); });
  trainer.restored(info["steps"]);
  return {.steps = info["steps"], .position = info["position"], .run = info["run"]};
}

}  // namespace ssm::train
