// The engine: requests in, events out. One thread owns the scheduler, the cache and the model;
// everybody else talks to it through Reserve, Submit and Cancel, and hears from it through an
// EventSink.
//
// Continuous batching with chunked prefill over paged KV, automatic prefix reuse, pre-emption by
// recompute. Tokens and logits of a request do not depend on what runs beside it, on page or chunk
// size, or on the prefix cache.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "engine/stats.h"
#include "kernels/ops.h"
#include "models/model.h"
#include "text/tokenizer.h"

namespace nibble::engine {

// ---- A request ----

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::optional<uint64_t> seed;  // absent: one is drawn when the request is submitted
  int32_t n = 1;                 // choices

  int64_t max_tokens = -1;  // -1: up to the context; 0: score the prompt only
  int64_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool include_stop_string = false;
  bool skip_special_tokens = true;

  int32_t logprobs = -1;         // -1: none; n: the sampled token's and the n best
  int32_t prompt_logprobs = -1;  // the same for the prompt's tokens
  bool hashes_logits = false;    // DoneEvent::logits_hash
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0.0f;
  int32_t rank = 0;                            // 1 = the largest raw logit
  std::vector<std::pair<int32_t, float>> top;  // best first
};

enum class FinishReason { kStop, kLength, kAbort, kError };

// What a request's sink hears, in this order for each choice: Prompt (once), Delta..., Done. After
// Error nothing more follows for the whole request.
struct PromptEvent {
  int64_t cached_tokens = 0;  // of the prompt, taken from the prefix cache
  std::vector<std::optional<TokenLogprob>>
      logprobs;  // one per prompt token, the first empty; only when asked
};
struct DeltaEvent {
  int32_t choice = 0;
  std::string text;  // certain text: whole code points, no part of a possible stop string
  std::vector<int32_t> tokens;         // ids generated since the last delta, stop tokens included
  std::vector<TokenLogprob> logprobs;  // one per id, only when asked
};
struct DoneEvent {
  int32_t choice = 0;
  FinishReason reason = FinishReason::kStop;
  std::string stop_string;            // which one ended it, or empty
  std::optional<int32_t> stop_token;  // a stop_token_ids entry ended it; absent for EOS
  int64_t completion_tokens = 0;
  // kernels::HashLogits of the row that the last token was drawn from; absent when none was drawn,
  // or sampling.hashes_logits does not ask for it.
  std::optional<uint64_t> logits_hash;
};
struct StreamEvent {
  enum class Kind { kPrompt, kDelta, kDone, kError } kind;
  PromptEvent prompt;
  DeltaEvent delta;
  DoneEvent done;
  std::optional<Error> error;
};

// Post is called on the engine thread; it must not block and must not call back into the engine.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void Post(StreamEvent event) noexcept = 0;
};

struct Request {
  std::string id;  // for logs
  std::vector<int32_t> tokens;
  SamplingParams sampling;
  std::string cache_salt;  // prompts with different salts share no cache
  std::optional<std::chrono::steady_clock::time_point> deadline;
  std::shared_ptr<EventSink> sink;
  // With sampling.prompt_logprobs: hears the raw logits, (V), that follow each prompt token but the
  // last, in order, on the engine thread. For eval.
  std::function<void(int64_t position, std::span<const float> logits)> on_prompt_logits;
  // So many leading tokens count as computed although nobody computed them, for benchmarks at long
  // contexts: their cache holds whatever it holds. Less than all tokens; wants prefix_cache off.
  int64_t assumed_context = 0;
};

// ---- The engine ----

struct EngineOptions {
  int64_t max_model_len = 0;   // 0: the model's, or what the memory allows
  int32_t max_sequences = 64;  // running at once (--max-num-seqs)
  // --max-num-batched-tokens: the chunk of prefill. 0: by device and memory (DefaultStepTokens).
  int32_t max_step_tokens = 0;
  int32_t max_queued = -1;  // --max-num-queued-reqs; -1: 4 * max_sequences
  int32_t page_size = 16;
  kernels::KvFormat kv_format = kernels::KvFormat::kBf16;
  int64_t kv_bytes = 0;          // --kv-cache-memory-bytes; 0: from the memory plan
  double memory_fraction = 0.9;  // --gpu-memory-utilization: of what is available
  bool prefix_cache = true;
  std::vector<int32_t> eos_token_ids;
  int32_t max_logprobs = 20;  // the most that a request may ask for (--max-logprobs)
  // Experts are chosen evenly, by a hash of layer, sequence (seed, choice) and position, after the
  // router has done its work: for benchmarks with made-up weights.
  bool even_routing = false;
  ThreadPool* pool = nullptr;  // for sampling: the model's; outlives the engine. Null: one thread
};

// What decided the size of the KV cache.
enum class KvSizeRule {
  kOption,     // --kv-cache-memory-bytes
  kSequences,  // max_sequences of a usual length
  kContext,    // one whole context
  kShare,      // the default's share of the memory beside weights and activations
  kMemory,     // everything that memory_fraction leaves
};

// Where the memory goes: made before anything is allocated, printed, and held.
struct MemoryPlan {
  int64_t available_bytes = 0;
  int64_t weight_bytes = 0;
  int64_t activation_bytes = 0;
  int32_t max_step_tokens = 0;
  int64_t kv_bytes = 0;
  int64_t kv_tokens = 0;  // capacity
  // Recurrent layers: a state per running sequence, and copies that the prefix cache keeps.
  int64_t state_bytes = 0;  // of one
  int64_t live_states = 0;
  int64_t snapshots = 0;
  KvSizeRule kv_rule = KvSizeRule::kOption;
  int32_t max_sequences = 0;
  int64_t sequence_tokens = 0;  // kSequences: of each
  int64_t max_model_len = 0;
  int64_t model_positions = 0;  // the model's own context: max_model_len may be less

  int64_t state_slots() const { return live_states + snapshots; }
  int64_t all_state_bytes() const { return state_slots() * state_bytes; }
  std::string ToString() const;  // a table for people
};

// Space for one request, counted from Reserve until the request ends or the ticket is destroyed
// unused.
class Ticket {
 public:
  Ticket() = default;
  Ticket(Ticket&& other) noexcept : release_(std::move(other.release_)) {
    other.release_ = nullptr;
  }
  Ticket& operator=(Ticket&& other) noexcept {
    std::swap(release_, other.release_);
    return *this;
  }
  ~Ticket() {
    if (release_) release_();
  }
  explicit Ticket(std::function<void()> release) : release_(std::move(release)) {}
  explicit operator bool() const { return release_ != nullptr; }

 private:
  std::function<void()> release_;
};

using RequestId = uint64_t;

class Engine {
 public:
  // Plans memory, prepares the model, starts the engine thread. Errors say how many bytes are
  // missing and which option would make it fit. Without a tokenizer deltas carry ids alone, and
  // stop strings are refused.
  static Result<std::unique_ptr<Engine>> Create(std::unique_ptr<models::Model> model,
                                                std::shared_ptr<const text::Tokenizer> tokenizer,
                                                const EngineOptions& options);
  virtual ~Engine() = default;  // stops at once: running requests end with an error

  // A place in the bounded counter (running + queued), or kResourceExhausted. Any thread.
  virtual Result<Ticket> Reserve() = 0;

  // Checks the request (length, ids, ranges) and queues it. With a ticket it is never refused as
  // full; with an empty one it reserves its own. Any thread.
  virtual Result<RequestId> Submit(Request request, Ticket ticket) = 0;

  // Idempotent; unknown ids are ignored. No event follows but one whose Post has already begun; the
  // pages are free at the next step border. Any thread, sinks excepted.
  virtual void Cancel(RequestId id) = 0;

  // Refuses new reservations; returns when nothing runs or the timeout is over (true: all done).
  // Any thread.
  virtual bool Drain(std::chrono::milliseconds timeout) = 0;

  // An error (kUnavailable, with the reason) once the engine thread has failed: every request has
  // then ended with kInternal and none is taken any more. Any thread.
  virtual Status Health() const { return {}; }

  virtual EngineStats stats() const = 0;
  virtual const MemoryPlan& memory_plan() const = 0;
  virtual const models::ModelInfo& model_info() const = 0;
  virtual const text::Tokenizer& tokenizer() const = 0;
  virtual int64_t max_model_len() const = 0;
};

}  // namespace nibble::engine
