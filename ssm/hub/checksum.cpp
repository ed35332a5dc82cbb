#include "ssm/hub/checksum.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>

#include "ssm/core/error.h"

namespace ssm::hub {

struct Checksum::Context {
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> digest{EVP_MD_CTX_new(), EVP_MD_CTX_free};
};

Checksum::Checksum(std::string_view etag, int64_t size) : expected_(etag) {
  const bool hex = std::all_of(etag.begin(), etag.end(),
                               [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
  if (!hex || (etag.size() != 64 && etag.size() != 40)) return;
  context_ = std::make_unique<Context>();
  const EVP_MD* kind = etag.size() == 64 ? EVP_sha256() : EVP_sha1();
  SSM_CHECK(context_->digest && EVP_DigestInit_ex(context_->digest.get(), kind, nullptr) == 1,
            "libcrypto cannot compute checksums");
  if (etag.size() == 40) {
    add("blob " + std::to_string(size));
    add(std::string_view("\0", 1));
  }
}

Checksum::~Checksum() = default;

void Checksum::add(std::string_view bytes) {
  if (context_) EVP_DigestUpdate(context_->digest.get(), bytes.data(), bytes.size());
}

bool Checksum::matches() {
  if (!context_) return true;
  std::array<unsigned char, EVP_MAX_MD_SIZE> sum{};
  unsigned length = 0;
  EVP_DigestFinal_ex(context_->digest.get(), sum.data(), &length);
  std::string text;
  for (unsigned i = 0; i < length; ++i) text += fmt::format("{:02x}", sum[i]);
  return text == expected_;
}

}  // namespace ssm::hub
