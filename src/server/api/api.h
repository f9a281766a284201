// The endpoints. Each takes an exchange whose body has been read, on a worker thread, and answers
// it, at once or through an Answer.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>

#include "server/api/answer.h"
#include "server/api/served_model.h"
#include "server/http/exchange.h"
#include "server/work_pool.h"

namespace nibble::server {

struct ApiOptions {
  std::chrono::milliseconds request_timeout{0};  // 0: none
  bool prompt_tokens_details = true;             // usage tells the cached tokens
};

class ModelApi {
 public:
  // formatters: where answers are turned into bytes.
  ModelApi(ApiOptions options, std::shared_ptr<const ServedModel> model,
           std::shared_ptr<WorkPool> formatters, std::shared_ptr<AnswerRegistry> registry);

  void ChatCompletions(const std::shared_ptr<Exchange>& exchange) const;
  void Completions(const std::shared_ptr<Exchange>& exchange) const;
  void Tokenize(Exchange& exchange) const;
  void Detokenize(Exchange& exchange) const;
  void Models(Exchange& exchange) const;
  void Model(Exchange& exchange, std::string_view name) const;

  const ServedModel& model() const { return *model_; }

 private:
  ApiResult<void> CheckModel(const GenerationRequest& request) const;
  ApiResult<std::vector<engine::Ticket>> Reserve(size_t count) const;
  void Submit(const std::shared_ptr<Exchange>& exchange, const GenerationRequest& request,
              std::vector<engine::Request> engine_requests, std::vector<engine::Ticket> tickets,
              std::unique_ptr<AnswerWriter> writer) const;
  ApiResult<void> StartChat(const std::shared_ptr<Exchange>& exchange) const;
  ApiResult<void> StartCompletions(const std::shared_ptr<Exchange>& exchange) const;
  std::string ModelCard(std::string_view name) const;

  const ApiOptions options_;
  const std::shared_ptr<const ServedModel> model_;
  const std::shared_ptr<WorkPool> formatters_;
  const std::shared_ptr<AnswerRegistry> registry_;
};

}  // namespace nibble::server
