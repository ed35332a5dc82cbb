// How a loaded model is spoken to.
#pragma once

#include "ssm/load/load_model.h"
#include "ssm/text/chat_template.h"

namespace ssm {

// Whether a text for this model begins with its bos token: Mistral's do, others where the folder says so.
bool begins_with_bos(const LoadedModel& model);

// The model's chat template (text/chat_template.h); that of an adapter's folder goes before it. `choice`
// names another one. Throws Error.
text::ChatTemplate open_chat_template(const LoadedModel& model, const std::filesystem::path& adapter = {},
                                      const std::string& choice = "");

// Whether the model carries a template of its own.
bool has_chat_template(const LoadedModel& model);

// write_bos_setting, of a model whose layout says that its texts begin with bos.
void save_bos_setting(const LoadedModel& model, const std::filesystem::path& folder);
// Writes the model's `chat_template`, where it is not its folder's, as chat_template.jinja.
void save_chat_template(const LoadedModel& model, const std::filesystem::path& folder);

// A rendered conversation, or more of one, as ids. `begins`: nothing stands before it. Templates write their
// bos token themselves; the plain one knows none, so it is put there where the model's texts have one.
std::vector<int32_t> encode_chat(const LoadedModel& model, const text::ChatTemplate& chat,
                                 std::string_view text, bool begins);

}  // namespace ssm
