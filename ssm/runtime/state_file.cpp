#include "ssm/runtime/state_file.h"

#include <cmath>
#include <cstring>

namespace ssm {
namespace {

constexpr const char* kFormat = "ssm-state";
constexpr const char* kSeen = "seen";
constexpr size_t kMaxPending = 1 << 16;

std::string tensor_name(size_t layer, std::string_view name) {
  return fmt::format("layers.{}.{}", layer, name);
}

const std::string& field(const io::Metadata& metadata, const std::string& key, const std::string& file) {
  const auto it = metadata.find(key);
  SSM_CHECK(it != metadata.end(), "{}: not a state file: metadata field \"{}\" is missing", file, key);
  return it->second;
}

Shape shape_of(const StateRow& row, int64_t tokens) {
  return row.per_token ? Shape{tokens, row.shape[0], row.shape[1]} : row.shape;
}

// The tensor of a row, finite, of a text of which `tokens` were read.
Tensor tensor_of(const io::SafetensorsFile& source, const StateRow& row, int64_t tokens,
                 const std::string& file) {
  const std::optional<Tensor> t = source.find(row.name);
  SSM_CHECK(t.has_value(), "{}: tensor {} is missing", file, row.name);
  const Shape shape = shape_of(row, tokens);
  SSM_CHECK(t->shape() == shape && t->dtype() == DType::f32,
            "{}: tensor {} is {} {}, this model's state is f32 {}", file, row.name, name_of(t->dtype()),
            t->shape(), shape);
  for (const float x : t->values<float>())
    SSM_CHECK(std::isfinite(x), "{}: tensor {} is not finite", file, row.name);
  return t->to(row.dtype);
}

int64_t tokens_read(const StateNote& note) { return note.tokens - std::ssize(note.pending); }

StateNote parse_note(const std::string& text, int64_t vocab, const std::string& file) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  const bool fits = json.is_object() && json.contains("tokens") && json["tokens"].is_number_unsigned() &&
                    json["tokens"] <= uint64_t{1} << 62 && json.contains("pending") &&
                    json["pending"].is_array() && !json["pending"].empty() &&
                    json["pending"].size() <= kMaxPending;
  SSM_CHECK(fits, "{}: metadata field \"note\" is damaged", file);
  StateNote note{.tokens = json["tokens"], .pending = {}, .seen = {}};
  for (const nlohmann::json& id : json["pending"]) {
    SSM_CHECK(id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(vocab),
              "{}: metadata field \"note\" holds a token outside the vocabulary of {}", file, vocab);
    note.pending.push_back(id.get<int32_t>());
  }
  return note;
}

}  // namespace

StateLayout state_layout(const StatePool& pool) {
  StateLayout layout;
  for (size_t layer = 0; layer < pool.state().size(); ++layer) {
    const MixerState& state = pool.state()[layer];
    state.for_each([&](std::string_view name, const Tensor& t) {
      layout.push_back({tensor_name(layer, name), t.select(0, 0).shape(), t.dtype()});
    });
    if (!state.kv) continue;
    const Shape token{state.kv->heads(), state.kv->head_dim()};
    layout.push_back({tensor_name(layer, "keys"), token, DType::f32, true});
    layout.push_back({tensor_name(layer, "values"), token, DType::f32, true});
  }
  return layout;
}

size_t bytes_of(const StateLayout& layout, int64_t tokens) {
  size_t bytes = 0;
  for (const StateRow& row : layout) {
    bytes += static_cast<size_t>(row.shape.numel() * (row.per_token ? tokens : 1)) * size_of(row.dtype);
  }
  return bytes;
}

void save_text(const std::filesystem::path& path, const LoadedModel& model, const StateLayout& layout,
               const TextCopy& text, const io::Metadata& more) {
  const StateNote& note = text.note;
  SSM_CHECK(!note.pending.empty() && note.pending.size() <= kMaxPending,
            "{}: {} tokens are not read yet, a state file holds 1 to {}", path.string(), note.pending.size(),
            kMaxPending);
  SSM_CHECK(text.state.bytes() == bytes_of(layout, tokens_read(note)),
            "{}: a state of {} bytes after {} tokens", path.string(), text.state.bytes(), tokens_read(note));
  std::vector<io::NamedTensor> tensors;
  const std::byte* from = text.state.raw();
  for (const StateRow& row : layout) {
    const Tensor t = Tensor::empty(shape_of(row, tokens_read(note)), row.dtype);
    std::memcpy(t.raw(), from, t.bytes());
    from += t.bytes();
    tensors.push_back({row.name, t.to(DType::f32)});
  }
  if (note.seen.defined()) tensors.push_back({kSeen, note.seen});
  const nlohmann::json about{{"tokens", note.tokens}, {"pending", note.pending}};
  io::Metadata metadata = more;
  metadata.insert({{"format", kFormat},
                   {"version", std::to_string(kStateFileVersion)},
                   {"model_type", model.config.at("model_type")},
                   {"note", about.dump()}});
  io::write_safetensors(path, tensors, metadata);
}

TextCopy load_text(const std::filesystem::path& path, const LoadedModel& model, const StateLayout& layout) {
  return read_text(*io::SafetensorsFile::open(path), path.string(), model, layout);
}

TextCopy read_text(const io::SafetensorsFile& source, const std::string& file, const LoadedModel& model,
                   const StateLayout& layout) {
  const io::Metadata& metadata = source.metadata();
  SSM_CHECK(field(metadata, "format", file) == kFormat, "{}: not a state file: format is \"{}\"", file,
            field(metadata, "format", file));
  SSM_CHECK(field(metadata, "version", file) == std::to_string(kStateFileVersion),
            "{}: version {} of a state file, this program reads version {}", file,
            field(metadata, "version", file), kStateFileVersion);
  const std::string type = model.config.at("model_type");
  SSM_CHECK(field(metadata, "model_type", file) == type, "{}: the state of a {} model, not of a {} one", file,
            field(metadata, "model_type", file), type);
  const int64_t vocab = model.model->vocab_size();
  TextCopy text;
  text.note = parse_note(field(metadata, "note", file), vocab, file);
  std::vector<Tensor> rows;  // all checked before memory is taken for them
  size_t bytes = 0;
  for (const StateRow& row : layout) {
    rows.push_back(tensor_of(source, row, tokens_read(text.note), file));
    bytes += rows.back().bytes();
  }
  text.state = Tensor::empty({static_cast<int64_t>(bytes)}, DType::u8);
  std::byte* to = text.state.raw();
  for (const Tensor& row : rows) {
    std::memcpy(to, row.raw(), row.bytes());
    to += row.bytes();
  }
  if (const std::optional<Tensor> seen = source.find(kSeen)) {
    SSM_CHECK(seen->shape() == Shape{vocab} && seen->dtype() == DType::u8, "{}: tensor {} is not u8 [{}]",
              file, kSeen, vocab);
    text.note.seen = seen->clone();
  }
  const size_t known = layout.size() + (text.note.seen.defined() ? 1 : 0);
  SSM_CHECK(source.names().size() == known, "{}: {} tensors, this model's state has {}", file,
            source.names().size(), known);
  return text;
}

}  // namespace ssm
