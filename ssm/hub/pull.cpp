#include "ssm/hub/pull.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "ssm/core/error.h"
#include "ssm/hub/checksum.h"
#include "ssm/hub/http.h"

namespace ssm::hub {
namespace {

namespace fs = std::filesystem;

struct Descriptor {
  int fd = -1;
  explicit Descriptor(int opened) : fd(opened) {}
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
};

Descriptor open_file(const fs::path& path, int flags) {
  fs::create_directories(path.parent_path());
  const int fd = open(path.c_str(), flags | O_CLOEXEC, 0644);
  SSM_CHECK(fd >= 0, "{}: {}", path.string(), std::strerror(errno));
  return Descriptor(fd);
}

void write_whole(const fs::path& path, const std::string& text) {
  const fs::path temporary = path.string() + ".new";
  fs::create_directories(path.parent_path());
  {
    std::ofstream out(temporary, std::ios::binary);
    out << text;
    SSM_CHECK(out.flush(), "{}: cannot be written", temporary.string());
  }
  fs::rename(temporary, path);
}

// A file's path inside a model: parts that are safe here, at least one.
bool is_safe_path(std::string_view path) {
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    if (!is_safe_part(path.substr(begin, end - begin))) return false;
    begin = end + 1;
  }
  return true;
}

struct RemoteFile {
  std::string etag;
  int64_t size = -1;
};

class Pull {
 public:
  Pull(const HubName& model, const PullOptions& options)
      : model_(model),
        options_(options),
        name_(fmt::format("{}/{}", model.owner, model.name)),
        folder_(model.folder()) {
    SSM_CHECK(!folder_.empty(), "{}: there is no cache folder: set HF_HOME or HOME", name_);
  }

  fs::path run() {
    const std::vector<std::string> all = list();
    std::vector<std::string> wanted = options_.files.empty() ? needed() : options_.files;
    for (const std::string& file : wanted) {
      SSM_CHECK(std::find(all.begin(), all.end(), file) != all.end(), "{}: has no file {}", name_, file);
    }
    fs::path snapshot = folder_ / "snapshots" / commit_;
    for (const std::string& file : wanted) get(file, snapshot / file);
    if (model_.revision != commit_) write_whole(folder_ / "refs" / model_.revision, commit_);
    return snapshot;
  }

 private:
  std::vector<std::string> needed() const {
    try {
      return needed_files(all_);
    } catch (const Error& e) {
      fail("{}: {}", name_, e.what());
    }
  }

  // Tries again while the network fails, is overloaded, or answers with an error of its own.
  template <class Attempt>
  HttpResponse persistently(const std::string& what, Attempt&& attempt) {
    double pause = options_.first_pause;
    for (int tries = 1;; ++tries) {
      HttpResponse response = attempt();
      SSM_CHECK(!response.stopped && !(options_.stop && options_.stop()), "{}: stopped", what);
      const bool passing = !response.broken.empty() || response.status == 429 || response.status >= 500;
      if (!passing) return response;
      if (tries >= options_.attempts) {
        if (response.broken.empty()) refuse(what, response);
        fail("{}: {} ({} attempts)", what, response.broken, tries);
      }
      std::this_thread::sleep_for(std::chrono::duration<double>(pause));
      pause *= 2;
    }
  }

  [[noreturn]] void refuse(const std::string& what, const HttpResponse& response) const {
    if (response.status == 401 || response.status == 403) {
      fail("{}: the hub refuses access ({}): a private or gated model needs HF_TOKEN{}", what,
           response.status, options_.token.empty() ? "" : " with rights to it");
    }
    if (response.status == 404) fail("{}: the hub has no such model, revision or file", what);
    fail("{}: the hub answers {}", what, response.status);
  }

  HttpRequest request(const std::string& path) const {
    HttpRequest r;
    r.url = options_.endpoint + path;
    r.token = options_.token;
    r.stop = options_.stop;
    return r;
  }
  std::string repository() const {
    return fmt::format("{}/{}", url_part(model_.owner), url_part(model_.name));
  }

  std::vector<std::string> list() {
    const HttpResponse response = persistently(name_, [&] {
      return http_get(
          request(fmt::format("/api/models/{}/revision/{}", repository(), url_part(model_.revision))));
    });
    if (response.status != 200) refuse(fmt::format("{}@{}", name_, model_.revision), response);
    const nlohmann::json body = nlohmann::json::parse(response.body, nullptr, false);
    const auto text = [&](const nlohmann::json& object, const char* key) {
      SSM_CHECK(object.is_object() && object.contains(key) && object[key].is_string(),
                "{}: the hub's answer lacks {}", name_, key);
      return object[key].get<std::string>();
    };
    commit_ = text(body, "sha");
    SSM_CHECK(is_safe_part(commit_), "{}: the hub's sha is no commit", name_);
    SSM_CHECK(body.contains("siblings") && body["siblings"].is_array(), "{}: the hub's answer lacks siblings",
              name_);
    for (const nlohmann::json& entry : body["siblings"]) {
      std::string file = text(entry, "rfilename");
      if (is_safe_path(file)) all_.push_back(std::move(file));  // .gitattributes and the like are not needed
    }
    return all_;
  }

  std::string address(const std::string& file) const {
    std::string path = fmt::format("/{}/resolve/{}", repository(), url_part(commit_));
    for (size_t begin = 0; begin <= file.size();) {
      const size_t end = std::min(file.find('/', begin), file.size());
      path += fmt::format("/{}", url_part(std::string_view(file).substr(begin, end - begin)));
      begin = end + 1;
    }
    return path;
  }

  RemoteFile describe(const std::string& file) {
    const std::string what = fmt::format("{}: {}", name_, file);
    const HttpResponse response = persistently(what, [&] {
      HttpRequest r = request(address(file));
      r.head = true;
      r.follow = false;  // the hub's own answer knows the contents, where it sends us may not
      return http_get(r);
    });
    if (response.status >= 400 || response.status < 200) refuse(what, response);
    const auto first_of = [&](const char* linked, const char* plain) {
      const std::string value = response.header(linked);
      return value.empty() ? response.header(plain) : value;
    };
    std::string etag = first_of("x-linked-etag", "etag");
    if (etag.starts_with("W/")) etag.erase(0, 2);
    std::erase(etag, '"');
    SSM_CHECK(is_safe_part(etag), "{}: the hub gives no etag", what);
    const std::string size = first_of("x-linked-size", "content-length");
    RemoteFile remote{etag, -1};
    if (!size.empty() && size.size() < 19 &&
        std::all_of(size.begin(), size.end(), [](char c) { return c >= '0' && c <= '9'; }))
      remote.size = std::stoll(size);
    SSM_CHECK(remote.size >= 0, "{}: the hub does not say how long it is", what);
    return remote;
  }

  void get(const std::string& file, const fs::path& link) {
    const RemoteFile remote = describe(file);
    const fs::path blob = folder_ / "blobs" / remote.etag;
    // One process a file; huggingface_hub takes the same locks.
    const fs::path locks = folder_.parent_path() / ".locks" / folder_.filename();
    const Descriptor lock = open_file(locks / (remote.etag + ".lock"), O_RDWR | O_CREAT);
    while (flock(lock.fd, LOCK_EX | LOCK_NB) != 0) {
      SSM_CHECK(errno == EWOULDBLOCK || errno == EINTR, "{}: {}", locks.string(), std::strerror(errno));
      SSM_CHECK(!(options_.stop && options_.stop()), "{}: {}: stopped", name_, file);
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    if (!fs::exists(blob)) download(file, remote, blob);
    if (options_.progress) options_.progress(file, remote.size, remote.size);
    fs::create_directories(link.parent_path());
    std::error_code ignored;
    fs::remove(link, ignored);
    fs::create_symlink(fs::relative(blob, link.parent_path()), link);
  }

  void download(const std::string& file, const RemoteFile& remote, const fs::path& blob) {
    const std::string what = fmt::format("{}: {}", name_, file);
    const fs::path partial = blob.string() + ".incomplete";
    const Descriptor out = open_file(partial, O_RDWR | O_CREAT);
    int64_t have = std::max<int64_t>(0, lseek(out.fd, 0, SEEK_END));
    if (have > remote.size) have = 0;
    const fs::space_info space = fs::space(blob.parent_path());
    SSM_CHECK(static_cast<uintmax_t>(remote.size - have) <= space.available,
              "{}: takes {} bytes, the disk has {} left", what, remote.size - have, space.available);
    std::string trouble;
    const auto store = [&](long status, std::string_view bytes) {
      if (status != 206) have = bytes_so_far_ == 0 ? 0 : have;  // all of it, from the beginning
      bytes_so_far_ += static_cast<int64_t>(bytes.size());
      if (have + static_cast<int64_t>(bytes.size()) > remote.size) {
        trouble = "is longer than the hub said";
      } else if (pwrite(out.fd, bytes.data(), bytes.size(), have) != static_cast<ssize_t>(bytes.size())) {
        trouble = std::strerror(errno);
      }
      have += static_cast<int64_t>(bytes.size());
      if (options_.progress && trouble.empty()) options_.progress(file, have, remote.size);
      return trouble.empty();
    };
    while (have < remote.size) {
      const int64_t before = have;
      const HttpResponse response = persistently(what, [&] {
        bytes_so_far_ = 0;
        HttpRequest r = request(address(file));
        r.from = have;
        r.sink = store;
        HttpResponse answer = http_get(r);
        if (!trouble.empty()) fail("{}: {}", what, trouble);
        return answer;
      });
      if (response.status != 200 && response.status != 206) refuse(what, response);
      SSM_CHECK(have != before || have == remote.size, "{}: ends after {} of {} bytes", what, have,
                remote.size);
    }
    SSM_CHECK(ftruncate(out.fd, remote.size) == 0 && fsync(out.fd) == 0, "{}: {}", partial.string(),
              std::strerror(errno));
    if (!is_right(out.fd, remote)) {
      fs::remove(partial);
      fail("{}: its checksum is wrong: it was damaged on the way and is removed", what);
    }
    fs::rename(partial, blob);
  }

  static bool is_right(int fd, const RemoteFile& remote) {
    Checksum sum(remote.etag, remote.size);
    std::vector<char> block(1 << 20);
    for (int64_t at = 0; at < remote.size;) {
      const ssize_t n = pread(fd, block.data(), block.size(), at);
      if (n <= 0) return false;
      sum.add({block.data(), static_cast<size_t>(n)});
      at += n;
    }
    return sum.matches();
  }

  const HubName& model_;
  const PullOptions& options_;
  std::string name_;
  fs::path folder_;
  std::string commit_;
  std::vector<std::string> all_;
  int64_t bytes_so_far_ = 0;  // of the attempt at hand
};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::string token_of_file() {
  std::ifstream in(home_folder() / "token");
  std::string token;
  in >> token;
  return token;
}

}  // namespace

std::vector<std::string> needed_files(const std::vector<std::string>& all) {
  std::vector<std::string> wanted;
  const auto take = [&](auto&& wants) {
    const size_t before = wanted.size();
    std::copy_if(all.begin(), all.end(), std::back_inserter(wanted), wants);
    return wanted.size() > before;
  };
  const auto is_part_of = [](std::string_view stem, std::string_view end) {
    return [=](const std::string& file) {
      return file.starts_with(stem) && file.ends_with(end) && file.find('/') == std::string::npos;
    };
  };
  const auto has = [&](std::string_view name) {
    return std::find(all.begin(), all.end(), name) != all.end();
  };
  take([](const std::string& file) {
    constexpr std::string_view kSmall[]{
        "config.json",        "params.json",         "tokenizer.json",          "tokenizer_config.json",
        "chat_template.json", "chat_template.jinja", "special_tokens_map.json", "generation_config.json"};
    return std::find(std::begin(kSmall), std::end(kSmall), file) != std::end(kSmall) ||
           file.starts_with("tokenizer.model");
  });
  if (has("adapter_config.json")) {
    wanted.push_back("adapter_config.json");
    if (take([](const std::string& file) { return file == "adapter_model.safetensors"; })) return wanted;
  }
  if (take(is_part_of("model", ".safetensors"))) {
    take([](const std::string& file) { return file == "model.safetensors.index.json"; });
    return wanted;
  }
  if (take([](const std::string& file) { return file == "consolidated.safetensors"; })) return wanted;
  if (take(is_part_of("pytorch_model", ".bin"))) {
    take([](const std::string& file) { return file == "pytorch_model.bin.index.json"; });
    return wanted;
  }
  std::vector<std::string> gguf;
  std::copy_if(all.begin(), all.end(), std::back_inserter(gguf), is_part_of("", ".gguf"));
  SSM_CHECK(!gguf.empty(), "has no weights that this program reads (safetensors, pytorch_model.bin, GGUF)");
  SSM_CHECK(gguf.size() == 1, "has several GGUF files, name one with --file: {}", fmt::join(gguf, ", "));
  return gguf;
}

PullOptions pull_options_from_environment() {
  const std::string offline = environment("HF_HUB_OFFLINE");
  SSM_CHECK(offline.empty() || offline == "0", "HF_HUB_OFFLINE is set: the network is not used");
  PullOptions options;
  if (std::string endpoint = environment("HF_ENDPOINT"); !endpoint.empty()) options.endpoint = endpoint;
  while (options.endpoint.ends_with('/')) options.endpoint.pop_back();
  options.token = environment("HF_TOKEN");
  if (options.token.empty()) options.token = token_of_file();
  return options;
}

fs::path pull(const HubName& model, const PullOptions& options) { return Pull(model, options).run(); }

}  // namespace ssm::hub
