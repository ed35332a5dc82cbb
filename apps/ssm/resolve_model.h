// MODEL: an existing path, a name of the Hugging Face hub, or empty for the bundled model.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace ssm::app {

inline constexpr const char* kBundledModel = "tale-10m";

// A hub's model that is not in the cache is pulled. Throws Error with what was looked for when there is none.
std::filesystem::path resolve_model(const std::string& model);
// The same for a name that may be something else: nothing instead of an Error, and nothing is pulled.
std::optional<std::filesystem::path> find_model(const std::string& model);

// Whether the only positional argument of `generate` is a MODEL, not a prompt: a folder that exists, or a
// word that could only be a path, a hub name or a published model's name.
bool names_model(const std::string& argument);

// Throws Error for a name of a Transformer: a clear line beats a missing file.
void refuse_transformer(const std::string& model);

}  // namespace ssm::app
