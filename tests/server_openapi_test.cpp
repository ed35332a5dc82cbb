// The OpenAPI document says what the server does: each path, method and field in it is served, and answers
// hold what their schemas say.
#include <algorithm>
#include <map>

#include "server_fixture.h"
#include "ssm/text/chat_history.h"

namespace ssm {
namespace {

class OpenApiTest : public ServerTest {
 protected:
  void SetUp() override {
    start([](serve::ServerOptions& options) {
      options.chat.format =
          std::make_shared<const text::ChatTemplate>(text::built_in_chat_template("plain", {}));
    });
    document_ = ask("GET", "/openapi.json").object();
  }

  const json& resolved(const json& schema) const {
    const auto ref = schema.find("$ref");
    return ref == schema.end() ? schema : document_.at(json::json_pointer(ref->get<std::string>().substr(1)));
  }
  // A list of a schema; an empty one where it is absent.
  static const json& list_of(const json& schema, const char* name) {
    static const json none = json::array();
    const auto at = schema.find(name);
    return at == schema.end() ? none : *at;
  }
  // The properties of a schema and of those that it includes.
  json properties(const json& schema) const {
    json all = json::object();
    if (resolved(schema).contains("properties")) all = resolved(schema)["properties"];
    for (const json& part : list_of(resolved(schema), "allOf")) all.update(properties(part));
    return all;
  }
  // What of a value is not as its schema says, if anything.
  std::string fault(const json& value, const json& reference, const std::string& at) const {
    const json& schema = resolved(reference);
    if (schema.contains("const") && value != schema["const"]) return at + " is not " + schema["const"].dump();
    if (schema.contains("type")) {
      const json& given = schema["type"];
      const std::string type = value.is_number_integer() ? "integer" : value.type_name();
      const auto is = [&](const json& t) { return t == type || (t == "number" && value.is_number()); };
      const bool fits = given.is_array() ? std::any_of(given.begin(), given.end(), is) : is(given);
      if (!fits) return at + " is " + type;
    }
    for (const json& name : list_of(schema, "required")) {
      if (!value.contains(name.get<std::string>())) return at + " lacks " + name.get<std::string>();
    }
    if (value.is_object() && schema.contains("properties")) {
      const json known = properties(schema);
      for (const auto& [name, field] : value.items()) {
        if (!known.contains(name)) return at + "." + name + " is not in the document";
        const std::string wrong = fault(field, known[name], at + "." + name);
        if (!wrong.empty()) return wrong;
      }
    }
    for (size_t i = 0; value.is_array() && schema.contains("items") && i < value.size(); ++i) {
      const std::string wrong = fault(value[i], schema["items"], at + "[" + std::to_string(i) + "]");
      if (!wrong.empty()) return wrong;
    }
    return "";
  }

  json document_;
};

const std::map<std::string, json> kBodies{
    {"/v1/completions", {{"prompt", "Once"}, {"max_tokens", 2}, {"logprobs", 2}, {"session", "one"}}},
    {"/v1/chat/completions",
     {{"messages", {{{"role", "user"}, {"content", "Hello"}}}},
      {"max_tokens", 2},
      {"logprobs", true},
      {"top_logprobs", 1},
      {"session", "two"}}},
    {"/v1/embeddings", {{"input", "Once"}}},
    {"/v1/sessions", {{"name", "three"}}},
    {"/tokenize", {{"prompt", "Once"}}},
    {"/detokenize", {{"tokens", {1, 2}}}},
};

TEST_F(OpenApiTest, EveryPathIsServedAndAnswersAsItSays) {
  const auto answer_of = [&](const std::string& method, const std::string& path) {
    std::string real = path, upper = method;
    if (const size_t at = real.find("{session}"); at != std::string::npos) real.replace(at, 9, "three");
    std::transform(upper.begin(), upper.end(), upper.begin(),
                   [](char c) { return static_cast<char>(c - 32); });
    return ask(upper, real, method == "post" ? kBodies.at(path).dump() : "");
  };
  // Those that make something go first.
  for (const std::string method : {"post", "get", "delete"}) {
    for (const auto& [path, item] : document_["paths"].items()) {
      if (!item.contains(method)) continue;
      const Answer answer = answer_of(method, path);
      const json& responses = item[method]["responses"];
      ASSERT_TRUE(responses.contains(std::to_string(answer.status)))
          << method << ' ' << path << ' ' << answer.status << ' ' << answer.body;
      const json& content = responses[std::to_string(answer.status)]["content"];
      const std::string type = content.begin().key();
      EXPECT_NE(answer.headers.find("Content-Type: " + type + "\r\n"), std::string::npos) << answer.headers;
      if (type == "application/json") {
        EXPECT_EQ(fault(answer.object(), content.begin().value()["schema"], path), "");
      }
    }
  }
  const Answer missing = ask("GET", "/nothing");
  EXPECT_EQ(fault(missing.object(), json{{"$ref", "#/components/schemas/Error"}}, "error"), "");
}

// A value of a type that no field takes is refused by the field's name: so the server reads the field.
TEST_F(OpenApiTest, EveryFieldIsRead) {
  int64_t fields = 0;
  for (const auto& [path, body] : kBodies) {
    const json& request = document_["paths"][path]["post"]["requestBody"]["content"]["application/json"];
    const json known = properties(request["schema"]);
    for (const auto& [field, schema] : known.items()) {
      json wrong = body;
      wrong.erase("session");
      if (path == "/tokenize") wrong.erase("prompt");
      wrong[field] = field == "messages" || field == "logit_bias" ? json("x") : json{{"x", 1}};
      if (field == "stream_options") wrong[field] = "x";
      const bool inner = field == "add_special_tokens" || field == "dimensions";
      if (inner && path == "/tokenize") wrong["prompt"] = "Once";
      const Answer answer = ask("POST", path, wrong.dump());
      EXPECT_EQ(answer.status, 400) << path << ' ' << field << ' ' << answer.body;
      EXPECT_EQ(answer.object()["error"]["param"], field) << path << ' ' << answer.body;
      ++fields;
    }
  }
  EXPECT_GT(fields, 50);
}

TEST_F(OpenApiTest, ThePageIsOneFileThatLoadsNothing) {
  const Answer page = ask("GET", "/");
  EXPECT_EQ(page.status, 200);
  EXPECT_NE(page.headers.find("Content-Security-Policy: default-src 'none'"), std::string::npos);
  for (const char* word : {"http://", "https://", "src=", "@import", "url("}) {
    EXPECT_EQ(page.body.find(word), std::string::npos) << word;
  }
}

}  // namespace
}  // namespace ssm
