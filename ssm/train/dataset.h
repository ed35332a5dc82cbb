// Training data as token ids: sources are tokenised once, by all threads and in memory that does not grow
// with them, into a TokenFile in the cache, and mapped from there ever after.
//
// A cache file belongs to its sources (path, size, modification time, hash of the first 64 KiB), the content
// of the tokenizer's files, and the options below; when one of them changes, another is made.
#pragma once

#include <functional>
#include <optional>

#include "ssm/train/records.h"
#include "ssm/train/token_file.h"

namespace ssm {
struct LoadedModel;
}

namespace ssm::train {

struct DatasetOptions {
  RecordOptions records;
  std::filesystem::path tokenizer;  // as text::open_tokenizer takes it; empty: 256 ids, the bytes themselves
  std::optional<int32_t> bos, eos;  // before and after every document but conversations, whose template
                                    // writes them; eos is learned, also after a prompt's completion
  std::filesystem::path cache;      // folder; empty: dataset_cache_folder()
  std::function<void(double fraction)> progress;  // while tokenising; may throw to stop it
};

// Sources are files (records.h) or folders, of which every .txt, .jsonl, .ndjson and .csv is taken in the
// order of their names. Without a tokenizer a file with another extension is taken as it is (audio, genomes).
// Documents without text are left out. Long documents are tokenised in pieces of a mebibyte, cut before a
// space between two words where there is one, so that the ids are those of the whole. Throws Error naming
// file, line and field; also where no document is left.
std::shared_ptr<const TokenFile> open_dataset(const std::vector<std::filesystem::path>& sources,
                                              const DatasetOptions& options);

// Conversations are written as the model's template has it (load/chat.h), or as `choice` has it if it is not
// empty, which becomes the model's. Where a model's template cannot be used, conversations are refused.
void set_chat_template(RecordOptions& records, LoadedModel& model, const std::filesystem::path& adapter,
                       const std::string& choice);

// XDG_CACHE_HOME/ssm/datasets, or ~/.cache/ssm/datasets. Throws Error where neither is known.
std::filesystem::path dataset_cache_folder();

}  // namespace ssm::train
