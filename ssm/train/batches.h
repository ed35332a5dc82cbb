// What a training step reads: inputs and the tokens they should be followed by, as ragged sequences without
// padding. A target is the next token of the same document, never of another; the last token of a document is
// a target only (where state flows on into the next document it is an input without a target).
//
//   packed     rows x length inputs a step, of as many documents as it takes. A document longer than `length`
//              is cut, and what a step has no room for begins the next; each piece is a sequence of its own.
//   stream     truncated back-propagation: `rows` streams of documents, of each `length` inputs a step. The
//              last sequence of a stream goes on in its first of the next step, with its state.
//   documents  `rows` documents a step, each cut off after `length` inputs.
//
// The order depends on seed and epoch alone. Position and file are all there is to resume from: the batches
// that follow are those that would have followed.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "ssm/train/document_set.h"

namespace ssm::train {

enum class BatchMode { packed, stream, documents };

struct BatchOptions {
  BatchMode mode = BatchMode::packed;
  int64_t rows = 8;
  int64_t length = 1024;
  uint64_t seed = 0;
  bool shuffle = true;
  int64_t epochs = 0;              // 0: without end, step after step of the same size
  bool reset_at_documents = true;  // stream: a document begins with no state; otherwise state flows through
  int64_t longest =
      0;  // stream: longer documents are cut and shuffled in pieces of this many inputs; 0: of a
          // quarter of what an epoch has for a stream, so that few long documents fill all streams
};

struct Batch {
  std::vector<int32_t> ids, targets;  // [T]; target -1: none
  std::vector<int64_t> lengths;       // [B], their sum is T
  // Of each sequence: the stream it belongs to (packed, documents: 0, 1, ...), whether it begins with the
  // state that stream kept, and whether its last state is to be kept for that stream.
  std::vector<int32_t> streams;     // [B]
  std::vector<uint8_t> continues;   // [B]
  std::vector<uint8_t> carries_on;  // [B]
  int64_t learned = 0;              // targets that are not -1
};

// Where the next batch begins.
struct BatchPosition {
  struct Stream {
    int64_t unit = -1, at = 0;  // the piece it is in (-1: between two) and the inputs of it that are read
    bool continues = false;
    bool operator==(const Stream&) const = default;
  };
  uint64_t data = 0;  // fingerprint of documents and options
  int64_t step = 0, epoch = 0;
  int64_t next = 0;  // pieces of this epoch that are taken
  std::vector<Stream> streams;
  bool operator==(const BatchPosition&) const = default;

  nlohmann::json to_json() const;
  // `name` is what errors call it; throws Error naming the field.
  static BatchPosition from_json(const nlohmann::json& json, const std::string& name);
};

// Pieces of documents of at most so many inputs: what is shuffled. Stores something of long documents only.
class DocumentPieces {
 public:
  struct Piece {
    TokenRange document;
    int64_t begin, end;  // inputs, from the document's first token
  };
  // `last_is_input`: a document's last token counts.
  DocumentPieces(const DocumentSet& documents, int64_t longest, bool last_is_input);

  int64_t size() const { return size_; }      // some may be empty
  int64_t inputs() const { return inputs_; }  // of all
  Piece operator[](int64_t i) const;

 private:
  struct Long {
    int64_t document, first_piece;
  };
  int64_t inputs_of(const TokenRange& document) const;

  const DocumentSet* documents_;
  int64_t longest_, last_is_input_;
  int64_t size_ = 0, inputs_ = 0;
  std::vector<Long> long_;
};

class Batches {
 public:
  // Throws Error for options that make no sense, and for documents without a single input.
  Batches(DocumentSet documents, const BatchOptions& options);
  Batches(const Batches&) = delete;
  Batches& operator=(const Batches&) = delete;

  // False after the last epoch; the last batches before it may be smaller.
  bool next(Batch& batch);

  const BatchPosition& position() const { return position_; }
  // Throws Error where the position is none of these documents and options.
  void seek(const BatchPosition& position);

  int64_t steps_per_epoch() const;                               // rounded up
  int64_t inputs_per_epoch() const { return pieces_.inputs(); }  // documents: before cutting off
  double epochs_done() const;

 private:
  bool take(BatchPosition::Stream& stream);
  void fill_row(size_t stream, int64_t room, Batch& batch);
  void fill_documents(Batch& batch);
  void append(const DocumentPieces::Piece& piece, int64_t at, int64_t count, Batch& batch);
  void set_order();
  bool flows() const { return options_.mode == BatchMode::stream && !options_.reset_at_documents; }
  static int64_t longest_piece(const DocumentSet& documents, const BatchOptions& options);

  const DocumentSet documents_;
  const BatchOptions options_;
  const DocumentPieces pieces_;
  Permutation order_;
  BatchPosition position_;
  std::vector<int32_t> tokens_;
};

}  // namespace ssm::train
