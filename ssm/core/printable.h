#pragma once

#include <string>
#include <string_view>

namespace ssm {

// Text of a hostile file for a one-line message: control characters become '?', long text is cut.
std::string printable(std::string_view text);

}  // namespace ssm
