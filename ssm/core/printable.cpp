#include "ssm/core/printable.h"

namespace ssm {

std::string printable(std::string_view text) {
  constexpr size_t kLongest = 160;
  std::string result(text.substr(0, kLongest));
  for (char& c : result) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  if (text.size() > kLongest) result += "...";
  return result;
}

}  // namespace ssm
