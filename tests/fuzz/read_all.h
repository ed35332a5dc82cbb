// Touches every byte of every tensor, so that a view outside its file is seen.
#pragma once

#include "fuzz_target.h"
#include "ssm/io/weight_source.h"

inline void read_all(const ssm::io::WeightSource& source) {
  volatile unsigned sum = 0;
  for (const std::string& name : source.names()) {
    ignore_errors([&] {
      std::optional<ssm::Tensor> tensor = source.find(name);
      if (!tensor) tensor = source.find_packed(name).value().bytes;
      for (size_t i = 0; i < tensor.value().bytes(); ++i) sum = sum + static_cast<unsigned>(tensor->raw()[i]);
    });
  }
}
