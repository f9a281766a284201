// A request that is in the engine, and its choices as sequences.
//
// Ownership: an ActiveRequest is shared by the inbox (which only sets `cancelled`) and the core on
// the engine thread, which owns everything else. A choice is a sequence of its own: it shares the
// full pages of the prompt with its siblings and recomputes what lies behind them, so that no page
// ever has two writers.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"
#include "engine/output.h"
#include "kernels/ops.h"

namespace nibble::engine {

using Clock = std::chrono::steady_clock;

struct ActiveRequest;

// How often each token occurred, in the form that the sampling op reads.
class TokenCounts {
 public:
  void AddPrompt(std::span<const int32_t> tokens);
  void AddOutput(int32_t token);
  std::span<const kernels::TokenCount> counts() const { return counts_; }

 private:
  kernels::TokenCount& Of(int32_t token);

  std::vector<kernels::TokenCount> counts_;
  std::unordered_map<int32_t, size_t> index_;
};

struct Sequence {
  enum class State { kWaiting, kRunning, kFinished };

  Sequence(ActiveRequest& owner, int32_t choice_index, uint64_t arrival_order,
           const text::Tokenizer* tokenizer);

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  int64_t generated() const { return length() - prompt_length; }
  int64_t seen_length() const { return length() - unseen; }
  int64_t remaining() const { return length() - computed; }
  // Where the prompt's last whole chunk ends: tokens before it are computed in chunks, later ones
  // one by one, whenever they are computed. Without chunks (1) no token is computed otherwise than
  // another, however long the prompt is: then there is no such border.
  int64_t ChunkBorder(int64_t prompt_chunk) const;
  // Of the next `tokens` tokens, those that are computed in chunks.
  int64_t ChunkedTokens(int64_t tokens, int64_t prompt_chunk) const;
  // Of the next `tokens` tokens, those of the prompt.
  int64_t PromptTokens(int64_t tokens) const;
  // Behind it tokens are computed in another form than those of a longer prompt would be: other
  // sequences see no pages and states from there on. prompts_apart: ModelInfo.prompt_forms.
  int64_t FormBorder(int64_t prompt_chunk, bool prompts_apart) const;
  // Nothing is to be computed for it until the tokens that are on their way have been seen: the
  // last of them ends it.
  bool awaits_end(int64_t max_model_len) const;
  // Positions whose rows of logits are wanted for prompt log-probabilities and not yet launched.
  bool collects_prompt_logprobs() const;

  ActiveRequest& request;
  const int32_t choice;
  const uint64_t order;  // arrival, then choice
  State state = State::kWaiting;

  // The prompt, then the output. Its last `unseen` tokens have been drawn by a launched step and
  // not been read: -1 - drawn_slot stands for them.
  std::vector<int32_t> tokens;
  int32_t unseen = 0;
  int32_t drawn_slot = -1;  // of a running sequence, in Sampler::drawn
  const int64_t prompt_length;
  int64_t computed = 0;               // leading tokens whose k and v are in the pages
  std::vector<int32_t> pages;         // in order of position
  int32_t state_slot = -1;            // of a running sequence, where the model has recurrent layers
  int32_t snapshot_page = -1;         // of its latest snapshot behind the prompt
  int64_t known_prefix = 0;           // tokens that other prompts were seen to start with, too
  bool long_rope = false;             // beyond ModelInfo.rope_border
  std::string cache_key;              // what the prefix index sees: the salt and the RoPE set
  std::vector<uint64_t> page_hashes;  // of the leading full pages, as far as needed
  int64_t indexed_pages = 0;          // leading pages that are in the prefix index
  uint64_t last_step = 0;

  TokenCounts counts;  // of seen tokens; filled only when a penalty is on
  TextStream text;
  DeltaEvent pending;  // tokens not yet handed out

  std::optional<Clock::time_point> first_planned;
  std::optional<Clock::time_point> first_token;
  std::optional<Clock::time_point> last_token;
};

struct ActiveRequest : std::enable_shared_from_this<ActiveRequest> {
  RequestId id = 0;
  Request request;
  Ticket ticket;
  Clock::time_point arrival;
  uint64_t seed = 0;
  int64_t max_new_tokens = 0;  // resolved: 0 scores the prompt only
  std::vector<kernels::TokenBias> bias;
  std::atomic<bool> cancelled{false};  // set by any thread

  // Engine thread only.
  std::deque<Sequence> choices;  // choice 0 alone until its prompt is computed
  int32_t unfinished = 0;        // choices
  bool ended = false;
  bool planned = false;
  int64_t cached_tokens = 0;
  int64_t longest_output = 0;
  std::vector<int32_t> banned_early;  // until min_tokens
  std::vector<std::optional<TokenLogprob>> prompt_logprobs;
  int64_t prompt_rows_done = 0;  // leading positions whose row has been launched
};

// What a request is checked against.
struct RequestLimits {
  int64_t vocab_size = 0;
  int64_t max_model_len = 0;
  int32_t max_logprobs = 20;
  bool has_tokenizer = true;
};

// kInvalidArgument with the field, the value and the allowed range.
Status CheckRequest(const Request& request, const RequestLimits& limits);

// max_tokens with "up to the context" resolved. The request has been checked.
int64_t ResolveMaxTokens(const Request& request, int64_t max_model_len);

inline bool UsesPenalties(const SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

}  // namespace nibble::engine
