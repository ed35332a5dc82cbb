#include "ssm/train/dataset.h"

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "ssm/core/error.h"
#include "ssm/core/log.h"
#include "ssm/core/parallel.h"
#include "ssm/load/chat.h"
#include "ssm/load/tokenizer.h"
#include "ssm/text/vocab.h"
#include "ssm/train/sources.h"

namespace ssm::train {
namespace {

namespace fs = std::filesystem;

constexpr size_t kRoundBytes = size_t{4} << 20;  // tokenised together
constexpr size_t kHeadBytes = size_t{64} << 10;
constexpr int64_t kByteIds = 256;

std::string hex(uint64_t hash) { return fmt::format("{:016x}", hash); }

std::string hash_of_head(const fs::path& path, size_t limit) {
  const io::Bytes bytes = io::map_file(path);
  return hex(text::hash_bytes(bytes.text().substr(0, limit)));
}

nlohmann::ordered_json tokenizer_identity(const fs::path& tokenizer) {
  if (tokenizer.empty()) return "bytes";
  nlohmann::ordered_json files;
  std::error_code error;
  if (io::is_gguf(tokenizer)) return hash_of_head(tokenizer, io::GgufFile::open(tokenizer)->header_size());
  if (!fs::is_directory(tokenizer, error)) return hash_of_head(tokenizer, SIZE_MAX);
  std::vector<fs::path> found;
  for (fs::directory_iterator it(tokenizer, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code ignored;
    if ((name == "tokenizer.json" || name.starts_with("tokenizer.model")) && it->is_regular_file(ignored)) {
      found.push_back(it->path());
    }
  }
  std::sort(found.begin(), found.end());
  for (const fs::path& file : found) files[file.filename().string()] = hash_of_head(file, SIZE_MAX);
  return files;
}

// What a cache file was made from, as it stands in the file.
std::string identity_of(const std::vector<Source>& sources, const DatasetOptions& options) {
  nlohmann::ordered_json files = nlohmann::ordered_json::array();
  for (const Source& source : sources) {
    std::error_code error;
    const auto modified = fs::last_write_time(source.path, error).time_since_epoch().count();
    SSM_CHECK(!error, "{}: {}", printable(source.path.string()), error.message());
    files.push_back({{"path", fs::absolute(source.path).lexically_normal().string()},
                     {"format", source.format},
                     {"bytes", source.bytes},
                     {"modified", static_cast<int64_t>(modified)},
                     {"head", hash_of_head(source.path, kHeadBytes)}});
  }
  const auto id = [](std::optional<int32_t> token) {
    return token ? nlohmann::ordered_json(*token) : nlohmann::ordered_json();
  };
  const nlohmann::ordered_json all{
      {"format", 1},
      {"sources", files},
      {"tokenizer", tokenizer_identity(options.tokenizer)},
      {"column", options.records.column},
      {"separator", options.records.separator},
      {"chat", options.records.chat ? hex(text::hash_bytes(options.records.chat->identity())) : ""},
      {"bos", id(options.bos)},
      {"eos", id(options.eos)}};
  return all.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
}

std::vector<int32_t> encode(const text::Tokenizer* tokenizer, std::string_view text) {
  if (tokenizer) return tokenizer->encode(text);
  std::vector<int32_t> ids(text.size());
  std::transform(text.begin(), text.end(), ids.begin(), [](char c) { return static_cast<uint8_t>(c); });
  return ids;
}

void write_piece(const TextPiece& piece, const std::vector<int32_t>& ids, const DatasetOptions& options,
                 TokenFileWriter& writer) {
  if (piece.begins_document && options.bos && !piece.framed)
    writer.append(std::span(&*options.bos, 1), piece.learn);
  writer.append(ids, piece.learn);
  if (!piece.ends_document) return;
  if (options.eos && !piece.framed) writer.append(std::span(&*options.eos, 1));
  writer.end_document();
}

void tokenise(const std::vector<Source>& sources, const DatasetOptions& options, const std::string& identity,
              const fs::path& target) {
  std::unique_ptr<text::Tokenizer> tokenizer;
  if (!options.tokenizer.empty()) {
    tokenizer = open_model_tokenizer(options.tokenizer);
    SSM_CHECK(tokenizer, "{}: no tokenizer.json and no tokenizer.model in this folder",
              options.tokenizer.string());
  }
  const int64_t vocab = tokenizer ? tokenizer->size() : kByteIds;
  for (const auto& id : {options.bos, options.eos}) {
    SSM_CHECK(!id || (*id >= 0 && *id < vocab),
              "id {} before or after documents is outside a vocabulary of {}", id.value_or(0), vocab);
  }
  TokenFileWriter writer(target, vocab);
  const auto cut = !tokenizer                       ? TextPieces::Cut::anywhere
                   : tokenizer->drops_first_space() ? TextPieces::Cut::drop_space
                                                    : TextPieces::Cut::text;
  TextPieces pieces(sources, options.records, cut);
  std::vector<TextPiece> round;
  for (pieces.next_round(kRoundBytes, round); !round.empty(); pieces.next_round(kRoundBytes, round)) {
    std::vector<std::vector<int32_t>> ids(round.size());
    parallel_for(std::ssize(round), 1, [&](int64_t begin, int64_t end) {
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
        ids[i] = encode(tokenizer.get(), round[i].text);
      }
    });
    for (size_t i = 0; i < round.size(); ++i) write_piece(round[i], ids[i], options, writer);
    pieces.release();
    if (options.progress) options.progress(pieces.fraction());
  }
  writer.commit(identity);
}

std::shared_ptr<const TokenFile> open_cached(const fs::path& path, const std::string& identity) {
  std::error_code error;
  if (!fs::exists(path, error)) return nullptr;
  try {
    auto file = TokenFile::open(path);
    return file->identity() == identity ? file : nullptr;
  } catch (const Error& e) {
    log(LogLevel::warning, fmt::format("{}; tokenising again", e.what()));
    return nullptr;
  }
}

}  // namespace

void set_chat_template(RecordOptions& records, LoadedModel& model, const fs::path& adapter,
                       const std::string& choice) {
  try {
    records.chat = std::make_shared<const text::ChatTemplate>(open_chat_template(model, adapter, choice));
    if (!choice.empty()) model.chat_template = records.chat->source();
  } catch (const Error& e) {
    if (!choice.empty()) throw;
    records.why_no_chat = e.what();  // it matters where a conversation is read only
  }
}

fs::path dataset_cache_folder() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache == '/')
    return fs::path(cache) / "ssm/datasets";
  const char* home = std::getenv("HOME");
  SSM_CHECK(home && *home, "no folder for the tokenised data: neither XDG_CACHE_HOME nor HOME is set");
  return fs::path(home) / ".cache/ssm/datasets";
}

std::shared_ptr<const TokenFile> open_dataset(const std::vector<fs::path>& paths,
                                              const DatasetOptions& options) {
  const std::vector<Source> sources = find_sources(paths, options.records, options.tokenizer.empty());
  const std::string identity = identity_of(sources, options);
  const fs::path folder = options.cache.empty() ? dataset_cache_folder() : options.cache;
  std::error_code error;
  fs::create_directories(folder, error);
  SSM_CHECK(!error, "{}: cannot create this folder: {}", printable(folder.string()), error.message());
  const fs::path target = folder / (sources[0].path.stem().string().substr(0, 64) + "-" +
                                    hex(text::hash_bytes(identity)) + ".tokens");
  auto file = open_cached(target, identity);
  if (!file) {
    tokenise(sources, options, identity, target);
    file = TokenFile::open(target);
  }
  SSM_CHECK(file->documents() > 0, "{}: no document with text in it", printable(sources[0].path.string()));
  return file;
}

}  // namespace ssm::train
