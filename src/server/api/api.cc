#include "server/api/api.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "server/api/answer_json.h"
#include "server/api/fields.h"
#include "server/api/ids.h"
#include "server/api/json_text.h"
#include "server/api/prompts.h"

namespace nibble::server {
namespace {

HttpResponse JsonResponse(std::string body) {
  return {200, "application/json", std::move(body), {}};
}

// The client's own name for the request where it is harmless, else a random one.
std::string AnswerId(std::string_view prefix, const Exchange& exchange,
                     const GenerationRequest& request) {
  std::string_view name = request.request_id;
  if (name.empty()) name = exchange.request().Header("x-request-id");
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:";
  const bool harmless = !name.empty() && name.size() <= 128 &&
                        name.find_first_not_of(kAllowed) == std::string_view::npos;
  if (!harmless) return RandomId(prefix);
  return fmt::format("{}{}", prefix, name);
}

// In some vocabularies the tags that the parsers look for are special tokens, which would be
// skipped.
bool TagsAreSpecial(const ServedModel& model, const text::ParserNames& parsers) {
  const text::Tokenizer& tokenizer = model.tokenizer();
  const auto special = [&](std::string_view tag) {
    const std::optional<int32_t> id = tokenizer.TokenId(tag);
    return id && tokenizer.IsSpecial(*id);
  };
  return std::ranges::any_of(text::ParserTags(parsers), special);
}

}  // namespace

ModelApi::ModelApi(ApiOptions options, std::shared_ptr<const ServedModel> model,
                   std::shared_ptr<WorkPool> formatters, std::shared_ptr<AnswerRegistry> registry)
    : options_(options),
      model_(std::move(model)),
      formatters_(std::move(formatters)),
      registry_(std::move(registry)) {}

// ---- Generating ----

ApiResult<void> ModelApi::CheckModel(const GenerationRequest& request) const {
  if (model_->Answers(request.model)) return {};
  std::string served;
  for (const std::string& name : model_->names) served += (served.empty() ? "" : ", ") + name;
  return tl::unexpected(
      ApiError{Error(Code::kNotFound, fmt::format("model: {} does not exist; this server serves {}",
                                                  Quote(request.model), served)),
               "model"});
}

ApiResult<std::vector<engine::Ticket>> ModelApi::Reserve(size_t count) const {
  std::vector<engine::Ticket> tickets;
  for (size_t i = 0; i < count; ++i) {
    auto ticket = model_->engine->Reserve();
    if (!ticket) return tl::unexpected(ApiError{std::move(ticket).error(), ""});
    tickets.push_back(std::move(*ticket));
  }
  return tickets;
}

void ModelApi::ChatCompletions(const std::shared_ptr<Exchange>& exchange) const {
  if (auto status = StartChat(exchange); !status) exchange->Respond(ErrorResponse(status.error()));
}

void ModelApi::Completions(const std::shared_ptr<Exchange>& exchange) const {
  if (auto status = StartCompletions(exchange); !status) {
    exchange->Respond(ErrorResponse(status.error()));
  }
}

ApiResult<void> ModelApi::StartChat(const std::shared_ptr<Exchange>& exchange) const {
  auto request = ParseChatRequest(exchange->TakeBody().text);
  if (!request) return tl::unexpected(std::move(request).error());
  if (auto status = CheckModel(*request); !status) return status;
  auto tickets = Reserve(1);
  if (!tickets) return tl::unexpected(std::move(tickets).error());
  if (exchange->gone()) return {};

  auto prompt = PrepareChat(*model_, *request);
  if (!prompt) return tl::unexpected(std::move(prompt).error());
  auto sampling = PrepareSampling(*model_, *request, static_cast<int64_t>(prompt->tokens.size()),
                                  model_->default_max_tokens);
  if (!sampling) return tl::unexpected(std::move(sampling).error());
  if (request->logprobs) {
    auto count = PrepareLogprobs(*model_, "top_logprobs", request->top_logprobs.value_or(0));
    if (!count) return tl::unexpected(std::move(count).error());
    sampling->logprobs = *count;
  }
  if (TagsAreSpecial(*model_, prompt->start.parsers)) sampling->skip_special_tokens = false;

  WriterOptions writer_options{AnswerId("chatcmpl-", *exchange, *request),
                               options_.prompt_tokens_details};
  engine::Request engine_request;
  engine_request.id = writer_options.id;
  engine_request.tokens = prompt->tokens;
  engine_request.sampling = *std::move(sampling);
  auto writer = MakeChatWriter(model_, *request, prompt->start, std::move(prompt->tokens),
                               std::move(writer_options));
  std::vector<engine::Request> requests;
  requests.push_back(std::move(engine_request));
  Submit(exchange, *request, std::move(requests), *std::move(tickets), std::move(writer));
  return {};
}

ApiResult<void> ModelApi::StartCompletions(const std::shared_ptr<Exchange>& exchange) const {
  constexpr int64_t kDefaultTokens = 16;
  auto request = ParseCompletionRequest(exchange->TakeBody().text);
  if (!request) return tl::unexpected(std::move(request).error());
  if (auto status = CheckModel(*request); !status) return status;
  auto tickets = Reserve(request->prompts.size());
  if (!tickets) return tl::unexpected(std::move(tickets).error());

  WriterOptions writer_options{AnswerId("cmpl-", *exchange, *request),
                               options_.prompt_tokens_details};
  std::vector<engine::Request> engine_requests;
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::string> texts;
  for (const Prompt& prompt : request->prompts) {
    if (exchange->gone()) return {};
    auto tokens = PreparePrompt(*model_, prompt, request->add_special_tokens.value_or(true));
    if (!tokens) return tl::unexpected(std::move(tokens).error());
    auto sampling =
        PrepareSampling(*model_, *request, static_cast<int64_t>(tokens->size()), kDefaultTokens);
    if (!sampling) return tl::unexpected(std::move(sampling).error());
    if (request->logprobs) {
      auto count = PrepareLogprobs(*model_, "logprobs", *request->logprobs);
      if (!count) return tl::unexpected(std::move(count).error());
      sampling->logprobs = *count;
      if (request->echo) sampling->prompt_logprobs = std::max(sampling->prompt_logprobs, *count);
    }
    const auto* text = std::get_if<std::string>(&prompt);
    texts.push_back(!request->echo ? ""
                    : text != nullptr
                        ? *text
                        : model_->tokenizer().Decode(*tokens, request->skip_special_tokens));
    engine::Request engine_request;
    engine_request.id = writer_options.id;
    engine_request.tokens = *tokens;
    engine_request.sampling = *std::move(sampling);
    engine_requests.push_back(std::move(engine_request));
    prompts.push_back(*std::move(tokens));
  }
  auto writer = MakeCompletionWriter(model_, *request, std::move(prompts), std::move(texts),
                                     std::move(writer_options));
  Submit(exchange, *request, std::move(engine_requests), *std::move(tickets), std::move(writer));
  return {};
}

void ModelApi::Submit(const std::shared_ptr<Exchange>& exchange, const GenerationRequest& request,
                      std::vector<engine::Request> engine_requests,
                      std::vector<engine::Ticket> tickets,
                      std::unique_ptr<AnswerWriter> writer) const {
  std::optional<std::chrono::steady_clock::time_point> deadline;
  if (options_.request_timeout.count() > 0) {
    deadline = exchange->request().arrival + options_.request_timeout;
  }
  Answer::Setup setup;
  setup.exchange = exchange;
  setup.engine = model_->engine;
  setup.writer = std::move(writer);
  setup.pool = formatters_;
  setup.registry = registry_;
  setup.prompts = static_cast<int>(engine_requests.size());
  setup.choices = static_cast<int>(request.n);
  setup.stream = request.stream;
  setup.deadline = deadline.has_value();
  const auto answer = Answer::Start(std::move(setup));
  for (size_t i = 0; i < engine_requests.size(); ++i) {
    engine::Request& engine_request = engine_requests[i];
    engine_request.cache_salt = request.cache_salt;
    engine_request.deadline = deadline;
    engine_request.sink = answer->Sink(static_cast<int>(i));
    auto id = model_->engine->Submit(std::move(engine_request), std::move(tickets[i]));
    if (!id) {
      answer->Fail({std::move(id).error(), ""});
      return;
    }
    answer->Submitted(*id);
  }
}

// ---- Tokens ----

namespace {

// llama-server's form, asked for by `content`: {"tokens": [ids]} or [{"id", "piece"}].
std::string LlamaTokens(const TokenizeRequest& request, const std::vector<int32_t>& tokens,
                        const text::Tokenizer& tokenizer) {
  const TokenNames names(tokenizer, false);
  std::string list;
  if (!request.with_pieces) {
    AppendIds(list, tokens);
  } else {
    for (const int32_t id : tokens) {
      AppendComma(list);
      fmt::format_to(std::back_inserter(list), R"({{"id":{},"piece":)", id);
      AppendJsonString(list, names.Name(id));
      list += '}';
    }
  }
  return R"({"tokens":[)" + list + "]}";
}

std::string VllmTokens(const TokenizeRequest& request, const std::vector<int32_t>& tokens,
                       const ServedModel& model) {
  std::string ids;
  AppendIds(ids, tokens);
  std::string strings = "null";
  if (request.return_token_strs) {
    std::string list;
    for (const int32_t id : tokens) {
      AppendComma(list);
      AppendJsonString(list, model.tokenizer().TokenText(id));
    }
    strings = "[" + list + "]";
  }
  return fmt::format(R"({{"count":{},"max_model_len":{},"tokens":[{}],"token_strs":{}}})",
                     tokens.size(), model.engine->max_model_len(), ids, strings);
}

}  // namespace

void ModelApi::Tokenize(Exchange& exchange) const {
  auto request = ParseTokenizeRequest(exchange.TakeBody().text);
  if (!request) return void(exchange.Respond(ErrorResponse(request.error())));
  if (auto status = CheckModel(*request); !status) {
    return void(exchange.Respond(ErrorResponse(status.error())));
  }
  ApiResult<std::vector<int32_t>> tokens;
  const bool llama_form = request->content.has_value();
  if (llama_form) {
    tokens = PreparePrompt(*model_, *request->content, request->add_special_tokens.value_or(false),
                           request->parse_special);
  } else if (request->prompt) {
    tokens = PreparePrompt(*model_, *request->prompt, request->add_special_tokens.value_or(true));
  } else {
    auto prompt = PrepareChat(*model_, *request);
    if (prompt) {
      tokens = std::move(prompt->tokens);
    } else {
      tokens = tl::unexpected(std::move(prompt).error());
    }
  }
  if (!tokens) return void(exchange.Respond(ErrorResponse(tokens.error())));
  exchange.Respond(JsonResponse(llama_form ? LlamaTokens(*request, *tokens, model_->tokenizer())
                                           : VllmTokens(*request, *tokens, *model_)));
}

void ModelApi::Detokenize(Exchange& exchange) const {
  auto request = ParseDetokenizeRequest(exchange.TakeBody().text);
  if (!request) return void(exchange.Respond(ErrorResponse(request.error())));
  if (auto status = CheckModel(*request); !status) {
    return void(exchange.Respond(ErrorResponse(status.error())));
  }
  auto tokens = PreparePrompt(*model_, *std::move(request->tokens), false);
  if (!tokens) {
    return void(exchange.Respond(ErrorResponse(tokens.error().error, "tokens")));
  }
  // Both dialects at once: vLLM's clients read prompt, llama-server's read content.
  const std::string text = model_->tokenizer().Decode(*tokens, false);
  std::string body = R"({"prompt":)";
  AppendJsonString(body, text);
  body += R"(,"content":)";
  AppendJsonString(body, text);
  exchange.Respond(JsonResponse(body + "}"));
}

// ---- Models ----

std::string ModelApi::ModelCard(std::string_view name) const {
  std::string card = R"({"id":)";
  AppendJsonString(card, name);
  fmt::format_to(std::back_inserter(card),
                 R"(,"object":"model","created":{},"owned_by":"nibble","root":)", model_->created);
  AppendJsonString(card, model_->root);
  fmt::format_to(std::back_inserter(card), R"(,"parent":null,"max_model_len":{},"permission":[]}})",
                 model_->engine->max_model_len());
  return card;
}

void ModelApi::Models(Exchange& exchange) const {
  std::string cards;
  for (const std::string& name : model_->names) {
    AppendComma(cards);
    cards += ModelCard(name);
  }
  exchange.Respond(JsonResponse(R"({"object":"list","data":[)" + cards + "]}"));
}

void ModelApi::Model(Exchange& exchange, std::string_view name) const {
  GenerationRequest request;
  request.model = name;
  if (auto status = CheckModel(request); !status) {
    return void(exchange.Respond(ErrorResponse(status.error())));
  }
  exchange.Respond(JsonResponse(ModelCard(name)));
}

}  // namespace nibble::server
