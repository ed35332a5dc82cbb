// The input is a chat template. It renders a conversation with tools, as a prompt and marked for training,
// with a time and without; what it marks must lie in what it wrote.
#include "fuzz_target.h"
#include "ssm/text/chat_template.h"

namespace {

using Json = nlohmann::ordered_json;

Json conversation() {
  return Json::parse(R"([{"role":"system","content":"Be brief."},{"role":"user","content":" Ünï \n"},
      {"role":"assistant","content":"It is 7.","tool_calls":[{"function":{"name":"f","arguments":{"x":[1,2.5,null]}}}]},
      {"role":"tool","content":["a","b"]},{"role":"user","content":""}])");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Json messages = conversation();
  static const Json tools = Json::parse(R"([{"type":"function","function":{"name":"f","parameters":{}}}])");
  ignore_errors([&] {
    const ssm::text::ChatTemplate chat(text_of(data, size), "fuzz",
                                       {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
    ignore_errors(
        [&] { chat.render(messages, {.tools = tools, .add_generation_prompt = true, .now = std::tm{}}); });
    std::string whole, together;
    ignore_errors([&] {
      whole = chat.render(messages);
      for (const auto& piece : chat.pieces(messages)) together += piece.text;
      if (together != whole) __builtin_trap();
    });
  });
  return 0;
}
