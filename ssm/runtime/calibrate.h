// What a text tells about the columns of a model's matrices: how large that which they are multiplied by is.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "ssm/core/progress.h"
#include "ssm/load/load_model.h"

namespace ssm {

// The mean square of each column's inputs while `model` reads `ids` as one sequence, by the matrix's name: of
// every Linear, and of the head's matrix (the embedding's, where that is tied). For Quantization::importance.
// The model is dense, in f32 on the CPU.
std::map<std::string, std::vector<float>, std::less<>> column_importance(const LoadedModel& model,
                                                                         std::span<const int32_t> ids,
                                                                         const OnProgress& progress = {});

}  // namespace ssm
