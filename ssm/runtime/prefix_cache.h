// PrefixCache: the states that stand after known texts, in a tree over their tokens, within a budget of
// bytes. A prompt begins at the deepest one that it extends.
//
// A recurrent state costs the same whatever its text's length, what attention keeps grows with it; each entry
// counts what it takes. What was used longest ago goes first; a text's tokens (4 bytes each) go with the last
// state that needs them. Not thread-safe.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "ssm/core/tensor.h"

namespace ssm {

class PrefixCache {
 public:
  explicit PrefixCache(size_t budget_bytes);
  ~PrefixCache();

  // In host memory: the state after a text, and the hidden states of its last token [1, M], which give the
  // next token of a prompt that is this very text; undefined where it was not kept.
  struct Entry {
    Tensor state, hidden;
  };

  struct Match {
    int64_t length = 0;  // the entry is that of the first `length` ids; 0: no entry
    Entry entry;
    int64_t shared = 0;  // so many first ids are also another text's
  };
  // The longest one; of all of `ids` only where its hidden state was kept. It counts as used now.
  Match find(std::span<const int32_t> ids);

  // Replaces what stood there. Nothing happens when it alone passes the budget.
  void insert(std::span<const int32_t> ids, Entry entry);
  bool contains(std::span<const int32_t> ids) const;

  size_t bytes() const { return bytes_; }
  size_t budget() const { return budget_; }
  int64_t size() const { return std::ssize(recent_); }  // entries
  void clear();

 private:
  struct Node;

  Node& node_for(std::span<const int32_t> ids);
  void drop_entry(Node& node);
  void prune(Node* node);

  size_t budget_, bytes_ = 0;
  std::unique_ptr<Node> root_;
  std::list<Node*> recent_;  // with an entry, last used first
};

}  // namespace ssm
