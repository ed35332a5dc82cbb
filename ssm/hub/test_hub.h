// A hub for tests: one thread, one connection at a time, the parts of the hub's API that pull() uses, and
// faults on request.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "ssm/core/error.h"

namespace ssm::test {

class FakeHub {
 public:
  struct File {
    std::string content, etag;
    bool elsewhere = false;  // answered by a redirect to another host name, with the hub's own headers
    size_t cut_after = 0;    // bytes after which a connection breaks, once each; 0: never
    int overloaded = 0;      // answers 503 so many times first
    bool ignores_range = false;
  };

  FakeHub() {
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    SSM_CHECK(
        bind(listener_, reinterpret_cast<sockaddr*>(&address), length) == 0 && listen(listener_, 16) == 0,
        "no port for a test");
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { serve(); });
  }
  ~FakeHub() {
    done_ = true;
    shutdown(listener_, SHUT_RDWR);
    close(listener_);
    thread_.join();
  }

  std::string endpoint() const { return fmt::format("http://127.0.0.1:{}", port_); }

  std::map<std::string, File> files;  // of o/m
  std::string commit = "0123456789abcdef0123456789abcdef01234567";
  std::string token;                       // that is asked for
  std::vector<std::string> seen() const {  // "GET /path" and the like, with " bytes=N-" and " token" behind
    const std::lock_guard lock(mutex_);
    return seen_;
  }

 private:
  void serve() {
    while (!done_) {
      const int connection = accept(listener_, nullptr, nullptr);
      if (connection < 0) continue;
      std::string request;
      char block[4096];
      while (request.find("\r\n\r\n") == std::string::npos) {
        const ssize_t n = read(connection, block, sizeof block);
        if (n <= 0) break;
        request.append(block, static_cast<size_t>(n));
      }
      const std::string answer = answer_to(request);
      for (size_t sent = 0; sent < answer.size();) {
        const ssize_t n = send(connection, answer.data() + sent, answer.size() - sent, MSG_NOSIGNAL);
        if (n <= 0) break;
        sent += static_cast<size_t>(n);
      }
      close(connection);
    }
  }

  static std::string field(const std::string& request, const std::string& name) {
    const size_t at = request.find("\r\n" + name + ": ");
    if (at == std::string::npos) return "";
    const size_t begin = at + name.size() + 4;
    return request.substr(begin, request.find("\r\n", begin) - begin);
  }

  static std::string response(const std::string& status, const std::string& headers,
                              const std::string& body) {
    return "HTTP/1.1 " + status + "\r\nConnection: close\r\nContent-Length: " + std::to_string(body.size()) +
           "\r\n" + headers + "\r\n" + body;
  }

  std::string answer_to(const std::string& request) {
    const size_t space = request.find(' ');
    const std::string method = request.substr(0, space);
    const std::string path = request.substr(space + 1, request.find(' ', space + 1) - space - 1);
    const std::string range = field(request, "Range"), bearer = field(request, "Authorization");
    {
      const std::lock_guard lock(mutex_);
      seen_.push_back(method + " " + path + (range.empty() ? "" : " " + range) +
                      (bearer.empty() ? "" : " token"));
    }
    const bool is_cdn = field(request, "Host").starts_with("localhost");
    if (!token.empty() && !is_cdn && bearer != "Bearer " + token) return response("401 Unauthorized", "", "");
    if (path == "/api/models/o/m/revision/main" || path == "/api/models/o/m/revision/v1" ||
        path == "/api/models/o/m/revision/" + commit) {
      nlohmann::json body{{"sha", commit}, {"siblings", nlohmann::json::array()}};
      for (const auto& [name, file] : files) body["siblings"].push_back({{"rfilename", name}});
      return response("200 OK", "Content-Type: application/json\r\n", body.dump());
    }
    const std::string root = "/o/m/resolve/" + commit + "/", cdn = "/cdn/";
    const bool direct = path.starts_with(root);
    if (!direct && !path.starts_with(cdn)) return response("404 Not Found", "", "");
    const auto found = files.find(path.substr(direct ? root.size() : cdn.size()));
    if (found == files.end()) return response("404 Not Found", "", "");
    File& file = found->second;
    if (file.overloaded > 0 && method == "GET") {
      --file.overloaded;
      return response("503 Busy", "", "");
    }
    const std::string about = "X-Repo-Commit: " + commit + "\r\n";
    if (file.elsewhere && direct) {
      return response("302 Found",
                      about + "X-Linked-Etag: \"" + file.etag +
                          "\"\r\nX-Linked-Size: " + std::to_string(file.content.size()) +
                          fmt::format("\r\nLocation: http://localhost:{}/cdn/{}\r\n", port_, found->first),
                      "");
    }
    size_t from = range.empty() ? 0 : std::stoul(range.substr(6));
    if (file.ignores_range) from = 0;
    std::string all = response(from > 0 ? "206 Partial" : "200 OK", about + "ETag: \"" + file.etag + "\"\r\n",
                               file.content.substr(from));
    if (method == "HEAD") return all.substr(0, all.find("\r\n\r\n") + 4);
    if (file.cut_after > 0) {
      const size_t head = all.find("\r\n\r\n") + 4;
      if (head + file.cut_after < all.size()) all.resize(head + file.cut_after);
    }
    return all;
  }

  int listener_ = -1;
  uint16_t port_ = 0;
  std::atomic<bool> done_ = false;
  mutable std::mutex mutex_;
  std::vector<std::string> seen_;
  std::thread thread_;
};

}  // namespace ssm::test
