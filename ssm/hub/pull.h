// pull: a model of the hub into this machine's cache, in the layout that huggingface_hub uses, so that either
// finds what the other has got. Only the files that this program reads: config, tokenizer, chat template, and
// one form of the weights (safetensors before pytorch_model.bin before a GGUF file).
//
// Contents go to blobs/ETAG.incomplete and are renamed when their length and checksum are right; a transfer
// that was cut off goes on where it stopped, also in a later call. Nothing outside the cache is written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "ssm/hub/model_cache.h"

namespace ssm::hub {

struct PullOptions {
  std::string endpoint = "https://huggingface.co";
  std::string token = {};               // empty: public models only
  std::vector<std::string> files = {};  // exactly these; empty: those that are needed
  int attempts = 5;                     // of a request, while the network fails
  double first_pause = 0.5;             // seconds before the second attempt; doubled after each
  std::function<bool()> stop = {};      // asked often; true: pull() throws Error soon
  // What is there of a file, and of how much; once more when it is complete. A file that was here already
  // is told of once.
  std::function<void(const std::string& file, int64_t done, int64_t size)> progress = {};
};

// From the environment: HF_ENDPOINT, HF_TOKEN or the file `token` in the home folder. Throws Error where
// HF_HUB_OFFLINE asks for no network.
PullOptions pull_options_from_environment();

// Returns the folder of the snapshot. Throws Error naming the model, the file and what the hub said.
std::filesystem::path pull(const HubName& model, const PullOptions& options);

// Which of a model's files are needed; throws Error where there are no weights, or several GGUF files to
// choose from.
std::vector<std::string> needed_files(const std::vector<std::string>& all);

}  // namespace ssm::hub
