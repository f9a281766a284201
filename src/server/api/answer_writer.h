// From the engine's events to the bytes of one API's answer. One writer per HTTP request; used by
// one thread at a time.
//
// A stream: every call appends whole SSE events to `out`. Otherwise the calls gather, and Finish
// appends the one JSON document.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/api/requests.h"
#include "server/api/served_model.h"

namespace nibble::server {

class AnswerWriter {
 public:
  virtual ~AnswerWriter() = default;
  virtual void OnPrompt(int prompt, engine::PromptEvent event, std::string& out) = 0;
  virtual void OnDelta(int prompt, engine::DeltaEvent event, std::string& out) = 0;
  virtual void OnDone(int prompt, engine::DoneEvent event, std::string& out) = 0;
  virtual void Finish(std::string& out) = 0;  // after the last OnDone
};

struct WriterOptions {
  std::string id;       // "chatcmpl-..."
  bool cached_details;  // usage tells the cached tokens
};

// What the prompt says about the beginning of the answer.
struct ChatStart {
  text::ParserNames parsers;
  text::AnswerStart start = text::AnswerStart::kContent;
};

std::unique_ptr<AnswerWriter> MakeChatWriter(std::shared_ptr<const ServedModel> model,
                                             const ChatRequest& request, const ChatStart& start,
                                             std::vector<int32_t> prompt, WriterOptions options);

// prompt_texts: what `echo` repeats, one per prompt.
std::unique_ptr<AnswerWriter> MakeCompletionWriter(std::shared_ptr<const ServedModel> model,
                                                   const CompletionRequest& request,
                                                   std::vector<std::vector<int32_t>> prompts,
                                                   std::vector<std::string> prompt_texts,
                                                   WriterOptions options);

}  // namespace nibble::server
