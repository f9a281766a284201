// Core after the forward pass: rows become tokens, tokens become events.
#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "engine/core.h"

namespace nibble::engine {
namespace {

double Seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

Error BrokenLogits(const std::string& model, int64_t position) {
  return Error(
      Code::kCorruption,
      fmt::format(
          "{}: logits at position {} are NaN or infinite, so no token can be drawn: weights "
          "of the checkpoint are damaged, or activations overflow; fetch the checkpoint "
          "anew, or try --activations 16, --kv-cache-dtype bf16 or another --device",
          model, position));
}

bool Contains(const std::vector<int32_t>& tokens, int32_t token) {
  return std::ranges::find(tokens, token) != tokens.end();
}

}  // namespace

// Waits for the step in flight, if there is one, and takes in what it gave.
void Core::ReadStep() {
  if (in_flight_ == nullptr) return;
  LaunchedStep& step = *std::exchange(in_flight_, nullptr);
  Device& device = *setup_.model->ops().device;
  device.Wait(*step.done);
  if (const std::string reason = device.failure(); !reason.empty())
    throw std::runtime_error(reason);
  const double seconds = device.SecondsBetween(*step.begin, *step.done);
  prompt_budget_.Observe(step.prompt_tokens, seconds);
  const Clock::time_point now = setup_.now();
  for (size_t row = 0; row < step.rows.size(); ++row) UseRow(step, row, now);
  for (const LaunchedStep::Part& part : step.parts) {
    // A prompt that is only scored has no row to sample from: it is done when it is computed.
    Sequence& sequence = *part.sequence;
    if (sequence.request.max_new_tokens > 0 || part.end < sequence.length() ||
        sequence.state == Sequence::State::kFinished)
      continue;
    if (sequence.choice == 0) CompletePrompt(sequence);
    Finish(sequence, {.choice = sequence.choice, .reason = FinishReason::kLength}, now);
  }
  step.Forget();
}

void Core::UseRow(const LaunchedStep& step, size_t row, Clock::time_point now) {
  const LogitsRow& use = step.rows[row];
  // Its end was not known yet when the step was launched.
  if (use.sequence->state == Sequence::State::kFinished) return;
  ActiveRequest& request = use.sequence->request;
  if (step.results.broken(row))
    return Fail(request, BrokenLogits(setup_.model->info().architecture, use.position));
  if (use.sample) return Append(step, row, now);
  request.prompt_logprobs[use.position + 1] = step.results.logprob(row);
  if (request.request.on_prompt_logits)
    request.request.on_prompt_logits(use.position, HostLogits(row));
}

// ONE-FORM
void Core::IndexFullPages(Sequence& sequence) {
  if (!cache_.indexes()) return;
  const int32_t page_size = cache_.page_size();
  const int64_t full = std::min(sequence.computed, FormBorder(sequence)) / page_size;
  EnsureHashes(sequence, full);
  for (int64_t& i = sequence.indexed_pages; i < full; ++i) {
    const std::span<const int32_t> content(sequence.tokens.data() + i * page_size,
                                           static_cast<size_t>(page_size));
    sequence.pages[i] =
        cache_.Insert(i == 0 ? KvCache::kNoPage : sequence.pages[i - 1], sequence.page_hashes[i],
                      content, sequence.cache_key, sequence.pages[i]);
  }
}

// The prompt of choice 0 is computed: says so, and lets its siblings queue behind it.
void Core::CompletePrompt(Sequence& sequence) {
  ActiveRequest& request = sequence.request;
  stats_.prompt_tokens += sequence.prompt_length;
  stats_.prompt_tokens_cached += request.cached_tokens;
  stats_.request_prompt_tokens.Observe(static_cast<double>(sequence.prompt_length));
  stats_.request_prefill_kv_computed_tokens.Observe(
      static_cast<double>(sequence.prompt_length - request.cached_tokens));
  StreamEvent event{.kind = StreamEvent::Kind::kPrompt};
  event.prompt.cached_tokens = request.cached_tokens;
  event.prompt.logprobs = std::move(request.prompt_logprobs);
  Post(request, std::move(event));
  for (int32_t choice = 1; choice < request.request.sampling.n; ++choice)
    Enqueue(
        request.choices.emplace_back(request, choice, sequence.order + choice, setup_.tokenizer));
}

void Core::Append(const LaunchedStep& step, size_t row, Clock::time_point now) {
  Sequence& sequence = *step.rows[row].sequence;
  const ActiveRequest& request = sequence.request;
  const SamplingParams& p = request.request.sampling;
  if (sequence.choice == 0 && sequence.seen_length() == sequence.prompt_length)
    CompletePrompt(sequence);
  const int32_t token = step.results.token(row);
  sequence.tokens[sequence.seen_length()] = token;
  --sequence.unseen;
  if (UsesPenalties(p)) sequence.counts.AddOutput(token);
  sequence.pending.tokens.push_back(token);
  if (p.logprobs >= 0) sequence.pending.logprobs.push_back(step.results.logprob(row));
  ObserveToken(sequence, now);

  const int64_t length = sequence.seen_length();
  const int64_t generated = length - sequence.prompt_length;
  DoneEvent done{.choice = sequence.choice, .completion_tokens = generated};
  // Stop tokens are left out of the text. Before min_tokens they are not drawn at all.
  const bool is_eos = !p.ignore_eos && Contains(setup_.options.eos_token_ids, token);
  const bool is_stop_token = !is_eos && Contains(p.stop_token_ids, token);
  if (is_stop_token) done.stop_token = token;
  const bool ends_by_token = is_eos || is_stop_token;
  const bool may_stop = generated > p.min_tokens;
  bool goes_on = true;
  if (!ends_by_token || p.include_stop_string) goes_on = sequence.text.Push(token, may_stop);

  const bool is_full = generated >= request.max_new_tokens || length >= setup_.plan.max_model_len;
  if (goes_on && !ends_by_token && !is_full) {
    std::string text = sequence.text.TakeCertain();
    if (setup_.tokenizer == nullptr || !text.empty()) Emit(sequence, std::move(text));
    return;
  }
  if (goes_on) goes_on = sequence.text.Finish(may_stop);
  Emit(sequence, sequence.text.TakeAll());
  done.stop_string = sequence.text.stop_string();
  done.reason = ends_by_token || !goes_on ? FinishReason::kStop : FinishReason::kLength;
  if (p.hashes_logits) done.logits_hash = step.results.logits_hash(row);
  Finish(sequence, std::move(done), now);
}

// Hands out what has gathered.
void Core::Emit(Sequence& sequence, std::string text) {
  if (sequence.pending.tokens.empty() && text.empty()) return;
  StreamEvent event{.kind = StreamEvent::Kind::kDelta};
  event.delta = std::exchange(sequence.pending, {.choice = sequence.choice});
  event.delta.text = std::move(text);
  Post(sequence.request, std::move(event));
}

void Core::Finish(Sequence& sequence, DoneEvent done, Clock::time_point now) {
  ActiveRequest& request = sequence.request;
  sequence.tokens.resize(sequence.seen_length());  // what was drawn after the end is dropped
  sequence.unseen = 0;
  ObserveDone(sequence, done.reason, now);
  ReleaseCaches(sequence);
  sequence.state = Sequence::State::kFinished;
  if (--request.unfinished == 0) {
    stats_.request_max_num_generation_tokens.Observe(static_cast<double>(request.longest_output));
    EndRequest(request);
  }
  StreamEvent event{.kind = StreamEvent::Kind::kDone};
  event.done = std::move(done);
  Post(request, std::move(event));
}

void Core::ObserveToken(Sequence& sequence, Clock::time_point now) {
  ++stats_.generation_tokens;
  if (!sequence.first_token) {
    sequence.first_token = now;
    stats_.time_to_first_token_seconds.Observe(Seconds(sequence.request.arrival, now));
    stats_.request_prefill_time_seconds.Observe(Seconds(*sequence.first_planned, now));
  } else {
    stats_.inter_token_latency_seconds.Observe(Seconds(*sequence.last_token, now));
  }
  sequence.last_token = now;
}

void Core::ObserveDone(const Sequence& sequence, FinishReason reason, Clock::time_point now) {
  ++stats_.requests_finished[static_cast<int>(reason)];
  const int64_t generated = sequence.generated();
  ActiveRequest& request = sequence.request;
  request.longest_output = std::max(request.longest_output, generated);
  stats_.e2e_request_latency_seconds.Observe(Seconds(request.arrival, now));
  stats_.request_inference_time_seconds.Observe(Seconds(*sequence.first_planned, now));
  stats_.request_generation_tokens.Observe(static_cast<double>(generated));
  if (!sequence.first_token) return;
  const double decode = Seconds(*sequence.first_token, now);
  stats_.request_decode_time_seconds.Observe(decode);
  if (generated > 1)
    stats_.request_time_per_output_token_seconds.Observe(decode /
                                                         static_cast<double>(generated - 1));
}

void Core::Post(ActiveRequest& request, StreamEvent event) {
  outbox_.emplace_back(request.shared_from_this(), std::move(event));
}

void Core::PostEvents() {
  for (auto& [request, event] : outbox_) {
    if (!request->cancelled.load(std::memory_order_acquire))
      request->request.sink->Post(std::move(event));
  }
  outbox_.clear();
}

}  // namespace nibble::engine
