// What a server serves, and its limits.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ssm/core/dtype.h"
#include "ssm/text/chat_template.h"

namespace ssm::serve {

inline std::chrono::steady_clock::duration duration_of(double seconds) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(
      std::chrono::duration<double>(seconds));
}

// How conversations are written for the model.
struct ChatFormat {
  std::shared_ptr<const text::ChatTemplate> format;  // null: no chat
  std::string stop;                                  // an answer ends before this; empty: nothing
};

struct ServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8080;  // 0: any free one
  std::string api_key;   // empty: none is asked for
  std::vector<std::string>
      hosts;  // names that a browser may know this server by, beside those of this machine
  std::string model_name;
  ChatFormat chat;
  bool begins_with_bos = false;  // a prompt that is given as text

  int64_t max_sequences = 64;  // texts at the same time
  int64_t max_waiting = 256;   // beyond those
  size_t prefix_cache_bytes = size_t{256} << 20;
  DType prefix_cache_dtype = DType::f32;
  std::filesystem::path session_dir;  // sessions are kept here; empty: in memory alone
  int64_t max_sessions = 1000;
  size_t session_bytes = size_t{256} << 20;  // of their states in memory; without a folder no more are taken
  int64_t max_new_tokens = 4096;             // of a choice; the default of a chat's answer
  int64_t max_prompt_tokens = int64_t{1} << 20;
  int64_t max_choices = 16;  // n
  size_t max_body_bytes = size_t{8} << 20;
  int64_t max_connections = 4096;
  double request_seconds = 600;  // a text that takes longer ends
  double read_seconds = 30;      // a request that takes longer to arrive: its connection is closed
  double write_seconds = 30;     // a client that does not take an answer for so long is closed
  double idle_seconds = 75;      // a connection without a request
  double drain_seconds = 30;     // what runs may finish when the server is to stop
  double stream_seconds = 0.01;  // tokens of a stream that come within this time go out together
  std::function<void(std::string_view)> warn;  // what people should know, a line each
  std::function<void(std::string_view)> log;   // a line for each request; never what was asked or answered
};

}  // namespace ssm::serve
