// A restricted pickle reader (protocols 2 to 5): it builds a table of plain values and nothing else. No code
// is run. The only globals it knows are those of a torch state dict (OrderedDict, the tensor rebuilders, the
// storage types); a pickle that names any other is refused whole.
#pragma once

#include <cstdint>
#include <vector>

#include "ssm/io/bytes.h"

namespace ssm::io {

// Values refer to each other by position in the table, so a hostile pickle can nest as deep or in circles as
// it likes: nobody recurses, and nothing is freed recursively.
using PickleId = uint32_t;

struct PickleValue {
  enum class Kind : uint8_t {
    none,
    boolean,  // integer: 0 or 1
    integer,
    big,  // text: the little-endian bytes of an integer of more than 64 bits
    real,
    string,   // text
    bytes,    // text
    list,     // items
    tuple,    // items
    dict,     // items: key, value, key, value, ...
    global,   // text: "torch FloatStorage"
    storage,  // items: the persistent id ('storage', type, key, location, numel)
    tensor,   // items: the arguments of _rebuild_tensor_v2
  };
  Kind kind = Kind::none;
  int64_t integer = 0;
  double real = 0;
  std::string_view text;  // into the pickle's bytes
  std::vector<PickleId> items;
};

struct Pickle {
  std::vector<PickleValue> values;
  PickleId root = 0;
  size_t size = 0;  // bytes up to and with STOP

  const PickleValue& operator[](PickleId id) const { return values[id]; }
};

// Reads one pickle at the start of `data`, which must outlive the result. Throws Error beginning with `name`.
Pickle read_pickle(std::span<const std::byte> data, const std::string& name);

// "a dict", for messages.
std::string_view name_of(PickleValue::Kind kind);

}  // namespace ssm::io
