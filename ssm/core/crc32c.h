// CRC-32C (Castagnoli, RFC 3720 appendix B.4): against damage, not against malice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace ssm {

// `before`: the checksum of the bytes that come before these.
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t before = 0);
uint32_t crc32c(std::string_view bytes);

}  // namespace ssm
