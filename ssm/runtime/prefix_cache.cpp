#include "ssm/runtime/prefix_cache.h"

#include <algorithm>
#include <utility>

namespace ssm {

// An edge's tokens stand in the node it leads to. A node without an entry has at least two children.
struct PrefixCache::Node {
  Node* parent = nullptr;
  std::vector<int32_t> tokens;
  std::map<int32_t, std::unique_ptr<Node>> children;  // by their first token
  Entry entry;
  std::list<Node*>::iterator place;  // in recent_, where there is an entry

  bool has_entry() const { return entry.state.defined(); }
};

namespace {

constexpr size_t kNodeBytes = 256;  // what a node and its places in maps and lists take, about

size_t bytes_of(const PrefixCache::Entry& entry) {
  return entry.state.bytes() + (entry.hidden.defined() ? entry.hidden.bytes() : 0);
}

size_t common_length(std::span<const int32_t> a, std::span<const int32_t> b) {
  const size_t n = std::min(a.size(), b.size());
  return static_cast<size_t>(std::mismatch(a.begin(), a.begin() + static_cast<int64_t>(n), b.begin()).first -
                             a.begin());
}

}  // namespace

PrefixCache::PrefixCache(size_t budget_bytes) : budget_(budget_bytes) {}

// Children go one by one: a deep tree must not take a deep stack.
PrefixCache::~PrefixCache() { clear(); }

void PrefixCache::clear() {
  while (!recent_.empty()) {
    Node* last = recent_.back();
    drop_entry(*last);
    prune(last);
  }
  root_.reset();
}

PrefixCache::Match PrefixCache::find(std::span<const int32_t> ids) {
  Match match;
  if (!root_) return match;
  Node* node = root_.get();
  Node* best = nullptr;
  size_t depth = 0;
  for (;;) {
    const auto child = depth < ids.size() ? node->children.find(ids[depth]) : node->children.end();
    if (child == node->children.end()) break;
    node = child->second.get();
    const size_t common = common_length(node->tokens, ids.subspan(depth));
    depth += common;
    if (common < node->tokens.size()) break;
    if (node->has_entry() && (depth < ids.size() || node->entry.hidden.defined())) {
      best = node;
      match.length = static_cast<int64_t>(depth);
    }
  }
  match.shared = static_cast<int64_t>(depth);
  if (best) {
    match.entry = best->entry;
    recent_.splice(recent_.begin(), recent_, best->place);
  }
  return match;
}

bool PrefixCache::contains(std::span<const int32_t> ids) const {
  const Node* node = root_.get();
  size_t depth = 0;
  while (node && depth < ids.size()) {
    const auto child = node->children.find(ids[depth]);
    node = child == node->children.end() ? nullptr : child->second.get();
    if (!node || common_length(node->tokens, ids.subspan(depth)) < node->tokens.size()) return false;
    depth += node->tokens.size();
  }
  return node && node->has_entry();
}

// The node of a text, made where there is none; edges are split on the way.
PrefixCache::Node& PrefixCache::node_for(std::span<const int32_t> ids) {
  if (!root_) root_ = std::make_unique<Node>();
  Node* node = root_.get();
  while (!ids.empty()) {
    std::unique_ptr<Node>& place = node->children[ids[0]];
    if (!place) {
      place = std::make_unique<Node>();
      place->parent = node;
      place->tokens.assign(ids.begin(), ids.end());
      bytes_ += kNodeBytes + ids.size_bytes();
      return *place;
    }
    const size_t common = common_length(place->tokens, ids);
    if (common < place->tokens.size()) {
      auto upper = std::make_unique<Node>();
      upper->parent = node;
      upper->tokens.assign(place->tokens.begin(), place->tokens.begin() + static_cast<int64_t>(common));
      place->tokens.erase(place->tokens.begin(), place->tokens.begin() + static_cast<int64_t>(common));
      place->parent = upper.get();
      bytes_ += kNodeBytes;
      std::unique_ptr<Node> lower = std::exchange(place, std::move(upper));
      const int32_t first = lower->tokens[0];
      place->children.emplace(first, std::move(lower));
    }
    node = place.get();
    ids = ids.subspan(common);
  }
  return *node;
}

void PrefixCache::insert(std::span<const int32_t> ids, Entry entry) {
  const size_t needed = bytes_of(entry) + 2 * kNodeBytes + ids.size_bytes();
  if (ids.empty() || needed > budget_) return;
  Node& node = node_for(ids);
  if (node.has_entry()) {
    bytes_ -= bytes_of(node.entry);
    recent_.erase(node.place);
  }
  node.entry = std::move(entry);
  bytes_ += bytes_of(node.entry);
  recent_.push_front(&node);
  node.place = recent_.begin();
  while (bytes_ > budget_ && recent_.size() > 1) {
    Node* last = recent_.back();
    drop_entry(*last);
    prune(last);
  }
}

void PrefixCache::drop_entry(Node& node) {
  bytes_ -= bytes_of(node.entry);
  node.entry = {};
  recent_.erase(node.place);
}

// Takes away nodes that lead to no entry, and joins one that only leads on to its one child.
void PrefixCache::prune(Node* node) {
  while (node->parent && !node->has_entry() && node->children.empty()) {
    Node* parent = node->parent;
    bytes_ -= kNodeBytes + node->tokens.size() * sizeof(int32_t);
    const int32_t first = node->tokens[0];
    parent->children.erase(first);
    node = parent;
  }
  if (!node->parent || node->has_entry() || node->children.size() != 1) return;
  std::unique_ptr<Node> child = std::move(node->children.begin()->second);
  child->tokens.insert(child->tokens.begin(), node->tokens.begin(), node->tokens.end());
  child->parent = node->parent;
  bytes_ -= kNodeBytes;
  const int32_t first = child->tokens[0];
  child->parent->children[first] = std::move(child);  // the joined node goes
}

}  // namespace ssm
