// From messages or text to token ids, with every check that needs the model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "server/api/answer_writer.h"
#include "server/api/errors.h"
#include "server/api/requests.h"
#include "server/api/served_model.h"

namespace nibble::server {

struct ChatPrompt {
  std::vector<int32_t> tokens;
  ChatStart start;
};

// Renders the template and tokenises. What the caller wrote never becomes a control token.
ApiResult<ChatPrompt> PrepareChat(const ServedModel& model, const ChatRequest& request);

// A raw prompt: special tokens in the text are parsed; ids are checked against the vocabulary.
ApiResult<std::vector<int32_t>> PreparePrompt(const ServedModel& model, const Prompt& prompt,
                                              bool add_special_tokens, bool parse_special = true);

// The engine's parameters for a prompt of that many tokens. max_tokens_default: what a request
// without max_tokens gets; nothing: the rest of the context.
ApiResult<engine::SamplingParams> PrepareSampling(const ServedModel& model,
                                                  const GenerationRequest& request,
                                                  int64_t prompt_tokens,
                                                  std::optional<int64_t> max_tokens_default);

// `asked` best log-probabilities, checked against the server's limit.
ApiResult<int32_t> PrepareLogprobs(const ServedModel& model, std::string_view field, int64_t asked);

}  // namespace nibble::server
