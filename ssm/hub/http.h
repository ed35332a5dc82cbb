// HTTP GET and HEAD by libcurl, which is loaded at first use: commands that need no network do not pay for
// it. Proxies are those of the environment (HTTPS_PROXY, NO_PROXY).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

namespace ssm::hub {

struct HttpRequest {
  std::string url;
  std::string token;  // sent as a bearer token, to the url's own host only; empty: none
  bool head = false;
  bool follow = true;  // redirects; otherwise only those to a path of the same host
  int64_t from = 0;    // the first byte that is asked for
  // Gets the status and the body of an answer below 300, piece by piece; false ends the transfer. Other
  // bodies, and all without a sink, are in the response, at most kMaxBody bytes.
  std::function<bool(long status, std::string_view bytes)> sink = {};
  std::function<bool()> stop = {};  // asked often; true ends the transfer
};

struct HttpResponse {
  long status = 0;
  std::map<std::string, std::string, std::less<>> headers;  // of the last response, names in lower case
  std::string body;
  // Why the transfer ended early (no connection, cut off); empty: it did not.
  std::string broken;
  bool stopped = false;  // by sink or stop

  std::string header(std::string_view name) const;  // empty: not there
};

constexpr size_t kMaxBody = size_t{64} << 20;

// Throws Error where libcurl is missing or the url is neither http nor https.
HttpResponse http_get(const HttpRequest& request);

// A value as a part of a url's path: what is not a letter, digit or one of -_.~ becomes %XX.
std::string url_part(std::string_view text);

}  // namespace ssm::hub
