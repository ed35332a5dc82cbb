// The files of training data, and their texts in stretches small enough to be held and worked on together.
#pragma once

#include <filesystem>
#include <memory>
#include <string_view>
#include <vector>

#include "ssm/io/mapped_file.h"
#include "ssm/train/records.h"

namespace ssm::train {

struct Source {
  std::filesystem::path path;
  std::string format;  // of records.h
  uint64_t bytes = 0;
};

// Of files and folders; see open_dataset. `raw_unknown`: files of other extensions are taken as they are.
// Throws Error.
std::vector<Source> find_sources(const std::vector<std::filesystem::path>& paths,
                                 const RecordOptions& options, bool raw_unknown);

// A stretch of one part of one document, and what must live while it is looked at.
struct TextPiece {
  std::string_view text;
  bool learn = true, framed = false;
  bool begins_document = false, ends_document = false;
  std::shared_ptr<const Document> document;
  std::shared_ptr<RecordReader> reader;
};

// The pieces of all documents with text in them of all sources, in order, of about a mebibyte at most.
class TextPieces {
 public:
  enum class Cut {
    anywhere,    // bytes
    text,        // where a tokenizer's words end; see tokenisable_prefix
    drop_space,  // the same, without the space there: the tokenizer puts one before each text itself
  };
  TextPieces(std::vector<Source> sources, RecordOptions options, Cut cut)
      : sources_(std::move(sources)), options_(std::move(options)), cut_(cut) {}

  bool next(TextPiece& piece);  // false at the end; throws Error naming file, line and field
  // The next pieces, together of some `bytes`; empty at the end.
  void next_round(size_t bytes, std::vector<TextPiece>& round);
  double fraction() const;  // of all bytes, given so far
  // What was given is not needed any more: its pages may leave memory.
  void release() const;

 private:
  bool next_document();
  void open(const Source& source);
  size_t consumed() const;

  std::vector<Source> sources_;
  RecordOptions options_;
  Cut cut_;
  size_t source_ = 0;  // the next one
  std::shared_ptr<const io::MappedFile> file_;
  std::shared_ptr<RecordReader> reader_;
  std::shared_ptr<const Document> document_;
  size_t part_ = 0, at_ = 0;
  std::string_view last_;
};

// How much of `text` to tokenise next so that the rest can follow by itself: at most `limit` bytes (at least
// 8).
size_t tokenisable_prefix(std::string_view text, size_t limit);

}  // namespace ssm::train
