// The Hugging Face cache of this machine, as every program that follows its layout fills it. No network.
//
//   <cache>/models--OWNER--NAME/refs/REVISION       holds a commit
//   <cache>/models--OWNER--NAME/snapshots/COMMIT/   the folder; its files are links into blobs/
//   <cache>/models--OWNER--NAME/blobs/ETAG          what the hub calls the file's contents
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace ssm::hub {

// HF_HOME, else XDG_CACHE_HOME/huggingface, else ~/.cache/huggingface. Empty when none of those is set and
// there is no home.
std::filesystem::path home_folder();
// HF_HUB_CACHE, else `hub` in the home folder; empty like it.
std::filesystem::path cache_folder();

struct HubName {
  std::string owner, name, revision;  // revision: main without another

  std::filesystem::path folder() const;  // of the model, in the cache; empty where there is no cache
};

// Parts of "owner/name" or "owner/name@revision"; nothing: it is not one.
std::optional<HubName> parse_hub_name(std::string_view text);
// What may be a part of a path here: letters, digits, '-', '_' and '.', no leading '-' or '.', no "..".
bool is_safe_part(std::string_view part);

// "owner/name" or "owner/name@revision" with nothing in it that could leave the cache.
bool is_hub_name(std::string_view name);

// The model's folder; nothing when it is not a hub name or not in the cache. Without a revision: main.
std::optional<std::filesystem::path> find_cached_model(std::string_view name);

}  // namespace ssm::hub
