// The documents of training data, read one after another from mapped files, so that data may be larger than
// memory.
//
//   .txt             one document, or several with a line between them that is exactly `separator`
//   .jsonl, .ndjson  an object a line
//   .csv             a record a document, the first record names the columns (RFC 4180)
//   raw              the whole file is one document
//
// What a jsonl object or csv record holds is decided by the file's first one, unless `column` names the text:
// `messages` (jsonl only) a conversation, `prompt` and `completion` a pair, `text` a text. Of a conversation
// the assistant's turns are learned (ChatTemplate::pieces), of a pair the completion. `tools` beside
// `messages` reaches the template.
//
// Errors name the file, the line and the field. Files are hostile input.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ssm/io/bytes.h"
#include "ssm/text/chat_template.h"

namespace ssm::train {

// A piece of a document. Pieces are tokenised each by itself, as a prompt is at inference.
struct Part {
  std::string_view view() const { return owned.empty() ? mapped : std::string_view(owned); }

  std::string owned;        // or, where it is empty,
  std::string_view mapped;  // a view of the file
  bool learn = true;        // its tokens are targets
  bool framed = false;      // of a conversation: what begins and ends the document is in the text
};
using Document = std::vector<Part>;

struct RecordOptions {
  std::string column;                              // of jsonl and csv; empty: decided by the first record
  std::string separator = "<|endoftext|>";         // of .txt; empty: a file is one document
  std::string format;                              // txt, jsonl, csv or raw; empty: by the file's extension
  std::shared_ptr<const text::ChatTemplate> chat;  // without one a file of conversations is refused,
  std::string why_no_chat = "no chat template";    // for this reason
};

class RecordReader {
 public:
  virtual ~RecordReader() = default;
  // The next document; false at the end. Views in it live as long as the reader.
  virtual bool next(Document& document) = 0;
  virtual size_t offset() const = 0;  // how much of the file is read
};

// `bytes` is the whole file, named for errors and, where `options` say none, for its format.
std::unique_ptr<RecordReader> read_records(io::Bytes bytes, const RecordOptions& options);

// txt, jsonl, csv or raw: what `options` or the extension say. Throws Error naming the file.
std::string record_format(const std::filesystem::path& path, const RecordOptions& options);

}  // namespace ssm::train
