// StopMatcher: lets text through as it streams, except what is or may become a stop string.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ssm {

class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // What can be shown now.
  std::string push(std::string_view text) {
    held_.append(text);
    size_t end = std::string::npos;
    for (const std::string& stop : stops_) end = std::min(end, held_.find(stop));
    matched_ = end != std::string::npos;
    if (!matched_) end = held_.size() - longest_beginning();
    std::string out = held_.substr(0, end);
    held_.erase(0, end);
    return out;
  }
  bool matched() const { return matched_; }
  std::string finish() {
    return matched_ ? std::string() : std::exchange(held_, {});
  }  // the rest, at the text's end

 private:
  // The length of the longest end of held_ that begins a stop string.
  size_t longest_beginning() const {
    size_t longest = 0;
    for (const std::string& stop : stops_) {
      for (size_t n = std::min(stop.size() - 1, held_.size()); n > longest; --n) {
        if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, n))) longest = n;
      }
    }
    return longest;
  }

  std::vector<std::string> stops_;
  std::string held_;
  bool matched_ = false;
};

}  // namespace ssm
