// Models that other programs have downloaded: the Hugging Face cache, read only. No network.
//
//   <cache>/models--OWNER--NAME/refs/REVISION       holds a commit
//   <cache>/models--OWNER--NAME/snapshots/COMMIT/   the folder
#pragma once

#include <filesystem>
#include <optional>
#include <string_view>

namespace ssm::hub {

// HF_HUB_CACHE, else HF_HOME/hub, else XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub. Empty
// when none of those is set and there is no home.
std::filesystem::path cache_folder();

// "owner/name" or "owner/name@revision" with nothing in it that could leave the cache.
bool is_hub_name(std::string_view name);

// The model's folder; nothing when it is not a hub name or not in the cache. Without a revision: main.
std::optional<std::filesystem::path> find_cached_model(std::string_view name);

}  // namespace ssm::hub
