// Files of this folder that are part of the program.
#pragma once

#include <string_view>

namespace ssm::serve {

extern const std::string_view kPage;     // page.html
extern const std::string_view kOpenApi;  // openapi.json

}  // namespace ssm::serve
