// Mutates JSON as JSON: libFuzzer's bytes rarely leave an object valid, so the checks behind the parser are
// reached slowly. Members are dropped, doubled, renamed and replaced by values at the edges of what readers
// accept; a string that holds JSON (the note of a state file) is mutated inside.
#pragma once

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

class JsonMutator {
 public:
  explicit JsonMutator(unsigned seed) : random_(seed) {}

  // False: `text` is not JSON, or came out longer than `limit`. Then it is as it was.
  bool mutate(std::string& text, size_t limit) {
    nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
    if (json.is_discarded()) return false;
    for (size_t times = 1 + pick(2); times > 0; --times) change(any_node(json));
    std::string changed = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    if (changed.size() > limit) return false;
    text = std::move(changed);
    return true;
  }

  size_t pick(size_t n) { return random_() % n; }

 private:
  using Json = nlohmann::json;

  Json& any_node(Json& root) {
    std::vector<Json*> nodes{&root};
    for (size_t i = 0; i < nodes.size() && nodes.size() < 4096; ++i) {
      if (!nodes[i]->is_structured()) continue;
      for (Json& child : *nodes[i]) nodes.push_back(&child);
    }
    return *nodes[pick(nodes.size())];
  }

  void change(Json& node) {
    if (node.is_string() && pick(2) != 0) {
      std::string inner = node.get<std::string>();
      if (mutate(inner, inner.size() + 64)) {
        node = inner;
        return;
      }
    }
    if (node.is_structured() && !node.empty() && pick(4) != 0) return change_members(node);
    if (node.is_number_integer() && pick(2) != 0) {
      node = static_cast<int64_t>(node.get<uint64_t>() + pick(5) - 2);  // wraps
    } else {
      node = edge_value();
    }
  }

  void change_members(Json& node) {
    const auto child = std::next(node.begin(), static_cast<int64_t>(pick(node.size())));
    const size_t what = pick(4);
    if (what == 0) {
      node.erase(child);
    } else if (what == 1) {
      *child = edge_value();
    } else if (node.is_array()) {
      node.push_back(what == 2 ? Json(*child) : edge_value());
    } else {
      Json value = *child;
      const std::string name = child.key();
      if (what == 2) node.erase(name);
      node[name + "x"] = std::move(value);
    }
  }

  Json edge_value() {
    static const std::vector<Json> values{nullptr,
                                          true,
                                          "",
                                          "F32",
                                          Json::array(),
                                          Json::object(),
                                          {0},
                                          0,
                                          1,
                                          8,
                                          -1,
                                          0.5,
                                          1e300,
                                          65536,
                                          (int64_t{1} << 31) - 1,
                                          int64_t{1} << 31,
                                          int64_t{1} << 32,
                                          int64_t{1} << 62,
                                          (uint64_t{1} << 62) + 1,
                                          uint64_t{1} << 63,
                                          ~uint64_t{0}};
    return values[pick(values.size())];
  }

  std::minstd_rand random_;
};

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

// LLVMFuzzerCustomMutator of a target whose input is JSON or holds it: change(input, limit, mutator) as
// JsonMutator::mutate. One time of `plain` libFuzzer changes the bytes, as it does where there is no JSON.
template <class Change>
size_t mutate_input(uint8_t* data, size_t size, size_t max_size, unsigned seed, size_t plain,
                    Change&& change) {
  JsonMutator mutator(seed);
  std::string input(reinterpret_cast<const char*>(data), size);
  if (mutator.pick(plain) == 0 || !change(input, max_size, mutator))
    return LLVMFuzzerMutate(data, size, max_size);
  std::copy(input.begin(), input.end(), data);
  return input.size();
}
inline size_t mutate_input(uint8_t* data, size_t size, size_t max_size, unsigned seed, size_t plain) {
  return mutate_input(
      data, size, max_size, seed, plain,
      [](std::string& input, size_t limit, JsonMutator& mutator) { return mutator.mutate(input, limit); });
}
