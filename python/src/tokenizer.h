#pragma once

#include <memory>

#include "ssm/text/tokenizer.h"

namespace ssm::python {

using TokenizerPtr = std::shared_ptr<text::Tokenizer>;

}  // namespace ssm::python
