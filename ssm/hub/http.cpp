#include "ssm/hub/http.h"

#include <curl/curl.h>
#include <dlfcn.h>

#include <memory>
#include <mutex>

#include "ssm/core/error.h"

namespace ssm::hub {
namespace {

constexpr long kConnectSeconds = 20, kStallSeconds = 60, kMaxRedirects = 10;

struct Curl {
  decltype(&curl_global_init) global_init;
  decltype(&curl_easy_init) init;
  decltype(&curl_easy_setopt) setopt;
  decltype(&curl_easy_perform) perform;
  decltype(&curl_easy_getinfo) getinfo;
  decltype(&curl_easy_cleanup) cleanup;
  decltype(&curl_easy_strerror) strerror;
  decltype(&curl_slist_append) slist_append;
  decltype(&curl_slist_free_all) slist_free;

  static const Curl& get() {
    static const Curl curl;
    return curl;
  }

 private:
  Curl() {
    void* library = nullptr;
    for (const char* name : {"libcurl.so.4", "libcurl-gnutls.so.4"}) {
      if (!library) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    SSM_CHECK(library, "libcurl is not installed (libcurl.so.4): it is needed to reach the hub");
    const auto bind = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      SSM_CHECK(function, "libcurl.so.4 lacks {}", name);
    };
    bind(global_init, "curl_global_init");
    bind(init, "curl_easy_init");
    bind(setopt, "curl_easy_setopt");
    bind(perform, "curl_easy_perform");
    bind(getinfo, "curl_easy_getinfo");
    bind(cleanup, "curl_easy_cleanup");
    bind(strerror, "curl_easy_strerror");
    bind(slist_append, "curl_slist_append");
    bind(slist_free, "curl_slist_free_all");
    global_init(CURL_GLOBAL_DEFAULT);
  }
};

struct Transfer {
  const HttpRequest& request;
  HttpResponse& response;
  CURL* easy;
};

size_t on_header(char* data, size_t size, size_t count, void* user) {
  HttpResponse& response = static_cast<Transfer*>(user)->response;
  std::string_view line(data, size * count);
  if (line.starts_with("HTTP/")) response.headers.clear();  // another response begins
  const size_t colon = line.find(':');
  if (colon != std::string_view::npos && response.headers.size() < 256) {
    std::string name(line.substr(0, colon));
    for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    std::string_view value = line.substr(colon + 1);
    while (!value.empty() && (value.front() == ' ' || value.front() == '\t')) value.remove_prefix(1);
    while (!value.empty() && static_cast<unsigned char>(value.back()) <= ' ') value.remove_suffix(1);
    response.headers[std::move(name)] = value;
  }
  return size * count;
}

size_t on_body(char* data, size_t size, size_t count, void* user) {
  auto& [request, response, easy] = *static_cast<Transfer*>(user);
  const std::string_view bytes(data, size * count);
  Curl::get().getinfo(easy, CURLINFO_RESPONSE_CODE, &response.status);
  if (request.sink && response.status < 300) {
    if (request.sink(response.status, bytes)) return bytes.size();
    response.stopped = true;
    return 0;
  }
  if (response.body.size() + bytes.size() > kMaxBody) return 0;
  response.body.append(bytes);
  return bytes.size();
}

int on_progress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  auto& [request, response, easy] = *static_cast<Transfer*>(user);
  response.stopped = response.stopped || (request.stop && request.stop());
  return response.stopped ? 1 : 0;
}

std::string origin_of(std::string_view url) {
  const size_t host = url.find("://");
  const size_t end = host == std::string_view::npos ? host : url.find('/', host + 3);
  return std::string(url.substr(0, end));
}

// One request without redirects.
HttpResponse perform(const HttpRequest& request, const std::string& url, bool with_token) {
  const Curl& curl = Curl::get();
  const std::unique_ptr<CURL, decltype(curl.cleanup)> easy(curl.init(), curl.cleanup);
  SSM_CHECK(easy, "libcurl cannot start");
  HttpResponse response;
  Transfer transfer{request, response, easy.get()};
  curl_slist* headers = nullptr;
  if (with_token && !request.token.empty())
    headers = curl.slist_append(headers, ("Authorization: Bearer " + request.token).c_str());
  if (request.from > 0)
    headers = curl.slist_append(headers, fmt::format("Range: bytes={}-", request.from).c_str());
  // A length that stands for the file, not for what is sent.
  headers = curl.slist_append(headers, "Accept-Encoding: identity");
  const std::unique_ptr<curl_slist, decltype(curl.slist_free)> owned(headers, curl.slist_free);
  CURL* const h = easy.get();
  curl.setopt(h, CURLOPT_URL, url.c_str());
  curl.setopt(h, CURLOPT_PROTOCOLS_STR, "http,https");
  curl.setopt(h, CURLOPT_NOSIGNAL, 1L);
  curl.setopt(h, CURLOPT_USERAGENT, "ssm.cpp");
  curl.setopt(h, CURLOPT_HTTPHEADER, headers);
  curl.setopt(h, CURLOPT_CONNECTTIMEOUT, kConnectSeconds);
  curl.setopt(h, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl.setopt(h, CURLOPT_LOW_SPEED_TIME, kStallSeconds);
  curl.setopt(h, CURLOPT_NOBODY, request.head ? 1L : 0L);
  curl.setopt(h, CURLOPT_HEADERFUNCTION, on_header);
  curl.setopt(h, CURLOPT_HEADERDATA, &transfer);
  curl.setopt(h, CURLOPT_WRITEFUNCTION, on_body);
  curl.setopt(h, CURLOPT_WRITEDATA, &transfer);
  curl.setopt(h, CURLOPT_NOPROGRESS, 0L);
  curl.setopt(h, CURLOPT_XFERINFOFUNCTION, on_progress);
  curl.setopt(h, CURLOPT_XFERINFODATA, &transfer);
  const CURLcode code = curl.perform(h);
  curl.getinfo(h, CURLINFO_RESPONSE_CODE, &response.status);
  if (code != CURLE_OK && !response.stopped) response.broken = curl.strerror(code);
  return response;
}

// Where a redirect leads: a whole url, or a path of the same host.
std::string target_of(const std::string& url, const std::string& location) {
  if (location.starts_with("/") && !location.starts_with("//")) return origin_of(url) + location;
  return location;
}

}  // namespace

std::string HttpResponse::header(std::string_view name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? std::string() : found->second;
}

HttpResponse http_get(const HttpRequest& request) {
  std::string url = request.url;
  for (long redirects = 0;; ++redirects) {
    SSM_CHECK(url.starts_with("http://") || url.starts_with("https://"), "{}: is no http or https address",
              url);
    const bool home = origin_of(url) == origin_of(request.url);
    HttpResponse response = perform(request, url, home);
    const std::string location = response.header("location");
    if (response.status < 300 || response.status >= 400 || location.empty() || !response.broken.empty())
      return response;
    const std::string next = target_of(url, location);
    if (!request.follow && next == location) return response;
    SSM_CHECK(redirects < kMaxRedirects, "{}: redirected more than {} times", request.url, kMaxRedirects);
    SSM_CHECK(!(url.starts_with("https://") && next.starts_with("http://")),
              "{}: redirected from https to http", request.url);
    url = next;
  }
}

std::string url_part(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       c == '-' || c == '_' || c == '.' || c == '~';
    if (plain)
      out.push_back(c);
    else
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

}  // namespace ssm::hub
