#include <nanobind/stl/shared_ptr.h>

#include "python/src/bindings.h"
#include "python/src/tokenizer.h"

namespace ssm::python {
namespace {

TokenizerPtr open(const std::string& path) {
  std::unique_ptr<text::Tokenizer> tokenizer = unlocked([&] { return text::open_tokenizer(path); });
  SSM_CHECK(tokenizer, "{}: no tokenizer.json or tokenizer.model there", path);
  return TokenizerPtr(std::move(tokenizer));
}

std::vector<int32_t> encode(const text::Tokenizer& tokenizer, const std::string& text) {
  const nb::gil_scoped_release unlocked;
  return tokenizer.encode(text);
}

nb::bytes decode(const text::Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  const std::string text = tokenizer.decode(ids);
  return nb::bytes(text.data(), text.size());
}

nb::bytes bytes_of(const text::Tokenizer& tokenizer, int32_t id) {
  const std::string_view bytes = tokenizer.bytes_of(id);
  return nb::bytes(bytes.data(), bytes.size());
}

}  // namespace

void bind_tokenizer(nb::module_& m) {
  using nb::arg;
  using text::Tokenizer;
  nb::class_<Tokenizer>(m, "Tokenizer")
      .def_static("open", &open, arg("path"),
                  "Of a tokenizer.json, a SentencePiece model or a folder with one.")
      .def("encode", &encode, arg("text"),
           "Ids; no token is added, special tokens in the text are recognised.")
      .def("decode", &decode, arg("ids"), "The exact bytes; special tokens are kept.")
      .def("bytes_of", &bytes_of, arg("id"))
      .def("find", &Tokenizer::find, arg("token"), "The id of a token as the vocabulary spells it, or None.")
      .def_prop_ro("size", &Tokenizer::size)
      .def_prop_ro("bos", &Tokenizer::bos)
      .def_prop_ro("eos", &Tokenizer::eos);
}

}  // namespace ssm::python
