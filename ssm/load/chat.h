// How a loaded model is spoken to.
#pragma once

#include "ssm/load/load_model.h"
#include "ssm/text/chat_template.h"

namespace ssm {

// Whether a text for this model begins with its bos token: Mistral's do, others where the folder says so.
bool begins_with_bos(const LoadedModel& model);

// The model's chat template (text/chat_template.h); an adapter's folder, where there is one, goes before the
// model's. `choice` names another one. Throws Error.
text::ChatTemplate open_chat_template(const LoadedModel& model, const std::filesystem::path& adapter = {},
                                      const std::string& choice = "");

// A rendered conversation, or more of one, as ids. `begins`: nothing stands before it. Templates write their
// bos token themselves; the plain one knows none, so it is put there where the model's texts have one.
std::vector<int32_t> encode_chat(const LoadedModel& model, const text::ChatTemplate& chat,
                                 std::string_view text, bool begins);

}  // namespace ssm
