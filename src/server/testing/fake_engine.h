// Test support: an engine that follows a script instead of a model, and a tokenizer of bytes for
// it.
//
// Every submitted request runs the current script on a thread of its own; the script posts events
// through FakeStream. What was submitted and cancelled is recorded.
#pragma once

#include <atomic>
#include <boost/json.hpp>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "engine/engine.h"

namespace nibble::server {

// Ids 0..255 are the bytes; then the control tokens, in this order.
inline constexpr int32_t kStartId = 256;  // <|im_start|>
inline constexpr int32_t kEndId = 257;    // <|im_end|>, the EOS
inline constexpr int32_t kThinkId = 258;  // <think>, not special
inline constexpr int32_t kFakeVocabulary = 260;

// The character that stands for a byte in byte-level tokenizers: printable Latin-1 stands for
// itself, the others follow from U+0100 on.
inline std::string ByteCharacter(int byte) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

inline text::Tokenizer MakeByteTokenizer() {
  namespace json = boost::json;
  json::object vocabulary;
  for (int byte = 0; byte < 256; ++byte) vocabulary[ByteCharacter(byte)] = byte;
  const auto added = [](int id, const char* content, bool special) {
    return json::object({{"id", id},
                         {"content", content},
                         {"single_word", false},
                         {"lstrip", false},
                         {"rstrip", false},
                         {"normalized", false},
                         {"special", special}});
  };
  const json::object byte_level = {{"type", "ByteLevel"},
                                   {"add_prefix_space", false},
                                   {"trim_offsets", true},
                                   {"use_regex", false}};
  const json::object file = {
      {"version", "1.0"},
      {"added_tokens",
       json::array({added(kStartId, "<|im_start|>", true), added(kEndId, "<|im_end|>", true),
                    added(kThinkId, "<think>", false)})},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level},
      {"post_processor", nullptr},
      {"decoder", byte_level},
      {"model", json::object({{"type", "BPE"}, {"vocab", vocabulary}, {"merges", json::array()}})}};
  auto tokenizer = text::Tokenizer::Load(
      {.tokenizer_json = json::serialize(file),
       .tokenizer_config_json = R"({"eos_token": "<|im_end|>", "bos_token": null})"});
  NIBBLE_CHECK(tokenizer.has_value(), "{}", tokenizer.error().message());
  return std::move(*tokenizer);
}

class FakeEngine;

// What a script sees of its request.
class FakeStream {
 public:
  FakeStream(FakeEngine* engine, engine::RequestId id, std::shared_ptr<engine::EventSink> sink)
      : engine_(engine), id_(id), sink_(std::move(sink)) {}

  void Post(engine::StreamEvent event) { sink_->Post(std::move(event)); }
  void Prompt(int64_t cached_tokens = 0,
              std::vector<std::optional<engine::TokenLogprob>> logprobs = {}) {
    engine::StreamEvent event{engine::StreamEvent::Kind::kPrompt};
    event.prompt = {cached_tokens, std::move(logprobs)};
    sink_->Post(std::move(event));
  }
  // One token per byte, as the byte tokenizer has it.
  void Text(const std::string& text, int32_t choice = 0,
            std::vector<engine::TokenLogprob> logprobs = {}) {
    engine::StreamEvent event{engine::StreamEvent::Kind::kDelta};
    event.delta.choice = choice;
    event.delta.text = text;
    for (const char c : text) event.delta.tokens.push_back(static_cast<unsigned char>(c));
    event.delta.logprobs = std::move(logprobs);
    sink_->Post(std::move(event));
  }
  void Done(engine::FinishReason reason = engine::FinishReason::kStop, int32_t choice = 0,
            std::string stop_string = "") {
    engine::StreamEvent event{engine::StreamEvent::Kind::kDone};
    event.done.choice = choice;
    event.done.reason = reason;
    event.done.stop_string = std::move(stop_string);
    sink_->Post(std::move(event));
  }
  void Error(Code code, const std::string& message) {
    engine::StreamEvent event{engine::StreamEvent::Kind::kError};
    event.error = nibble::Error(code, message);
    sink_->Post(std::move(event));
  }
  bool Cancelled() const;
  bool WaitCancelled(std::chrono::milliseconds timeout) const;

 private:
  FakeEngine* engine_;
  const engine::RequestId id_;
  const std::shared_ptr<engine::EventSink> sink_;
};

class FakeEngine final : public engine::Engine {
 public:
  using Script = std::function<void(const engine::Request&, FakeStream&)>;

  explicit FakeEngine(Script script) : script_(std::move(script)), tokenizer_(MakeByteTokenizer()) {
    info_.architecture = "FakeForCausalLM";
    info_.vocab_size = kFakeVocabulary;
  }
  ~FakeEngine() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void SetScript(Script script) {
    std::lock_guard lock(mutex_);
    script_ = std::move(script);
  }
  void SetCapacity(int capacity) { capacity_ = capacity; }
  void SetMaxModelLen(int64_t tokens) { max_model_len_ = tokens; }

  std::vector<engine::Request> submitted() const {
    std::lock_guard lock(mutex_);
    return submitted_;
  }
  size_t cancelled() const {
    std::lock_guard lock(mutex_);
    return cancelled_.size();
  }
  // True when that many requests have been cancelled.
  bool WaitCancelled(size_t count, std::chrono::milliseconds timeout) const {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [&] { return cancelled_.size() >= count; });
  }
  bool IsCancelled(engine::RequestId id) const {
    std::lock_guard lock(mutex_);
    return stopping_ || cancelled_.contains(id);
  }
  bool WaitCancelledId(engine::RequestId id, std::chrono::milliseconds timeout) const {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [&] { return stopping_ || cancelled_.contains(id); });
  }

  // engine::Engine
  Result<engine::Ticket> Reserve() override {
    if (reserved_.fetch_add(1) >= capacity_) {
      --reserved_;
      return Fail(Code::kResourceExhausted, "the queue is full ({} requests); try again",
                  capacity_.load());
    }
    return engine::Ticket([this] { --reserved_; });
  }
  Result<engine::RequestId> Submit(engine::Request request, engine::Ticket ticket) override {
    std::lock_guard lock(mutex_);
    const engine::RequestId id = next_id_++;
    FakeStream stream(this, id, std::exchange(request.sink, nullptr));
    submitted_.push_back(request);
    threads_.emplace_back([script = script_, request = std::move(request),
                           stream = std::move(stream),
                           ticket = std::make_shared<engine::Ticket>(std::move(ticket))]() mutable {
      script(request, stream);
    });
    return id;
  }
  void Cancel(engine::RequestId id) override {
    {
      std::lock_guard lock(mutex_);
      cancelled_[id] = true;
    }
    changed_.notify_all();
  }
  bool Drain(std::chrono::milliseconds) override { return true; }
  // From then on it is dead.
  void SetFailed() { failed_ = true; }
  Status Health() const override {
    if (failed_) return Fail(Code::kUnavailable, "the engine failed: out of order");
    return {};
  }
  engine::EngineStats stats() const override { return stats_; }
  const engine::MemoryPlan& memory_plan() const override { return plan_; }
  const models::ModelInfo& model_info() const override { return info_; }
  const text::Tokenizer& tokenizer() const override { return tokenizer_; }
  int64_t max_model_len() const override { return max_model_len_; }

  engine::EngineStats stats_;  // set before the server runs
  std::atomic<bool> failed_ = false;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  Script script_;
  std::vector<engine::Request> submitted_;
  std::map<engine::RequestId, bool> cancelled_;
  std::vector<std::thread> threads_;
  engine::RequestId next_id_ = 1;
  bool stopping_ = false;
  std::atomic<int> reserved_{0};
  std::atomic<int> capacity_{1000};
  std::atomic<int64_t> max_model_len_{512};
  const text::Tokenizer tokenizer_;
  engine::MemoryPlan plan_;
  models::ModelInfo info_;
};

inline bool FakeStream::Cancelled() const { return engine_->IsCancelled(id_); }
inline bool FakeStream::WaitCancelled(std::chrono::milliseconds timeout) const {
  return engine_->WaitCancelledId(id_, timeout);
}

}  // namespace nibble::server
