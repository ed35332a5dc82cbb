// Where the library's warnings go. It never prints: without a handler a message is dropped. Two threads may
// call the handler at a time.
#pragma once

#include <functional>
#include <string_view>

namespace ssm {

enum class LogLevel { debug, info, warning };

void set_log_handler(std::function<void(LogLevel, std::string_view)> handler);
void log(LogLevel level, std::string_view message);

}  // namespace ssm
