#pragma once

#include <cstddef>
#include <string_view>

namespace ssm {

// Whether a name from outside can be the name of a file: 1 to `longest` letters, digits, '-', '_' and '.',
// not beginning with '-' or '.'.
bool is_plain_name(std::string_view name, size_t longest);

}  // namespace ssm
