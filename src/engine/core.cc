#include "engine/core.h"

#include <algorithm>
#include <limits>
#include <random>
#include <utility>

namespace nibble::engine {
namespace {

constexpr int64_t kMaxPromptRows = 64;

int64_t PagesFor(int64_t tokens, int64_t page_size) { return (tokens + page_size - 1) / page_size; }

// Unknown to callers, so that nobody can prepare prompts whose hashes collide.
uint64_t RandomHashSeed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

}  // namespace

StepLimits MakeStepLimits(const EngineOptions& options, int64_t max_model_len) {
  return {.max_tokens = options.max_step_tokens,
          .max_sequences = std::min(options.max_sequences, options.max_step_tokens),
          .max_pages = PagesFor(max_model_len, options.page_size),
          .max_prompt_rows = std::min<int64_t>(options.max_step_tokens, kMaxPromptRows)};
}

int64_t TokenizerVocab(const text::Tokenizer* tokenizer, int64_t model_vocab) {
  return tokenizer == nullptr ? model_vocab
                              : std::min<int64_t>(model_vocab, tokenizer->vocab_size());
}

Sampler::Options MakeSamplerOptions(const EngineOptions& options, const StepLimits& limits,
                                    int64_t model_vocab, const text::Tokenizer* tokenizer) {
  return {.vocab = model_vocab,
          .tokenizer_vocab = TokenizerVocab(tokenizer, model_vocab),
          .max_rows = limits.max_rows(),
          .max_sequences = options.max_sequences,
          .max_top_logprobs = options.max_logprobs,
          .pool = options.pool};
}

Result<std::unique_ptr<Core>> Core::Create(CoreSetup setup) {
  const models::ModelInfo& info = setup.model->info();
  const EngineOptions& options = setup.options;
  if (const int64_t chunk = models::PromptChunk(info, setup.model->ops());
      chunk > 1 && setup.limits.max_tokens <= chunk)
    return nibble::Fail(
        Code::kInvalidArgument,
        "--max-num-batched-tokens {}: this model computes prompts in chunks of {} tokens, "
        "beside which a token of an answer must fit; give at least {}",
        setup.limits.max_tokens, chunk, chunk + 1);
  NIBBLE_ASSIGN(
      auto sampler,
      Sampler::Create(setup.model->ops(),
                      MakeSamplerOptions(options, setup.limits, info.vocab_size, setup.tokenizer)));
  NIBBLE_ASSIGN(auto pool,
                models::KvPool::Create(info, options.kv_format, options.page_size,
                                       setup.plan.kv_tokens / options.page_size,
                                       setup.plan.state_slots(), *setup.model->ops().device));
  Steps steps;
  for (LaunchedStep& step : steps) {
    step.parts.reserve(static_cast<size_t>(setup.limits.max_sequences));
    step.requests.reserve(static_cast<size_t>(setup.limits.max_sequences));
    step.rows.reserve(static_cast<size_t>(setup.limits.max_rows()));
    NIBBLE_ASSIGN(step.results, sampler->MakeResults());
    step.begin = setup.model->ops().device->Mark();
    step.done = setup.model->ops().device->Mark();
  }
  return std::unique_ptr<Core>(
      new Core(std::move(setup), std::move(pool), std::move(sampler), std::move(steps)));
}

Core::Core(CoreSetup setup, models::KvPool pool, std::unique_ptr<Sampler> sampler, Steps steps)
    : setup_(std::move(setup)),
      prompt_chunk_(models::PromptChunk(setup_.model->info(), setup_.model->ops())),
      pool_(std::move(pool)),
      sampler_(std::move(sampler)),
      cache_(pool_.pages(), pool_.page_size(), setup_.options.prefix_cache, RandomHashSeed()),
      states_(setup_.plan.live_states, setup_.plan.snapshots, pool_.pages()),
      batch_(setup_.limits, pool_.page_size(), prompt_chunk_,
             setup_.model->info().prompt_forms.any(), setup_.options.even_routing),
      prompt_budget_(setup_.model->ops().device->host_memory() ? PromptBudget::kHostStepSeconds
                                                               : PromptBudget::kDeviceStepSeconds,
                     setup_.limits.max_tokens),
      stats_(setup_.plan.max_model_len),
      launches_ahead_(setup_.launches_ahead.value_or(!setup_.model->ops().device->host_memory())),
      steps_(std::move(steps)) {
  if (setup_.model->ops().device->host_memory())
    populator_ = std::make_unique<PagePopulator>(pool_);
  stats_.kv_pages = pool_.pages();
  const auto sequences = static_cast<size_t>(setup_.options.max_sequences);
  view_.running.reserve(sequences);
  running_.reserve(sequences);
  for (int32_t slot = setup_.options.max_sequences; slot-- > 0;) drawn_slots_.push_back(slot);
  if (states_.enabled()) cache_.set_on_forget([this](int32_t page) { states_.Remove(page); });
  shared_.reserve(static_cast<size_t>(setup_.limits.max_pages));
}

// What launched steps read and write goes with the core.
Core::~Core() { setup_.model->ops().device->Synchronize(); }

void Core::Add(std::shared_ptr<ActiveRequest> request) {
  ActiveRequest& added = *request;
  const SamplingParams& p = added.request.sampling;
  added.unfinished = p.n;
  for (const auto& [token, bias] : p.logit_bias) added.bias.push_back({token, bias});
  if (p.min_tokens > 0) {
    added.banned_early.assign(sampler_->padding().begin(), sampler_->padding().end());
    const auto ban = [&](const std::vector<int32_t>& tokens) {
      added.banned_early.insert(added.banned_early.end(), tokens.begin(), tokens.end());
    };
    if (!p.ignore_eos) ban(setup_.options.eos_token_ids);
    ban(p.stop_token_ids);
  }
  if (p.prompt_logprobs >= 0) added.prompt_logprobs.resize(added.request.tokens.size());
  const uint64_t order = arrivals_++ << 16;
  Enqueue(added.choices.emplace_back(added, 0, order, setup_.tokenizer));
  requests_.push_back(std::move(request));
  stats_.request_params_n.Observe(p.n);
  stats_.request_params_max_tokens.Observe(static_cast<double>(added.max_new_tokens));
}

void Core::Step() {
  const Clock::time_point start = setup_.now();
  EndEarly(start);
  // In turn, as models place a step's arrays: what they record knows both.
  LaunchedStep& step = steps_[stats_.steps % steps_.size()];
  PlanStep(step, start);
  const bool has_work = batch_.tokens() > 0;
  if (has_work) Launch(step);
  ReadStep();  // the one before, which has had the time since it was launched
  if (has_work) {
    Settle(step);
    in_flight_ = &step;
    if (!launches_ahead_ || step.read_at_once()) ReadStep();
  }
  Sweep();
}

// From here on sequences count the tokens that the step draws.
void Core::Launch(LaunchedStep& step) {
  ++stats_.steps;
  stats_.iteration_tokens_total.Observe(static_cast<double>(batch_.tokens()));
  Device& device = *setup_.model->ops().device;
  device.Set(*step.begin);
  step.rows.assign(batch_.rows().begin(), batch_.rows().end());
  models::Batch batch = batch_.Finish(sampler_->drawn());
  const bool samples = !step.rows.empty();
  if (samples) batch.tail = sampler_->Prepare(step.rows, &step.results);
  logits_ = setup_.model->Forward(batch, pool_);
  if (samples && batch.tail == nullptr) sampler_->Launch(logits_, nullptr);
  device.Set(*step.done);
  for (const LogitsRow& row : step.rows) {
    Sequence& sequence = *row.sequence;
    if (row.sample) {
      sequence.tokens.push_back(-1 - sequence.drawn_slot);
      ++sequence.unseen;
    } else {
      sequence.request.prompt_rows_done = row.position + 1;
    }
  }
}

// After a step's launch and before the next one: the step before it has been read, so that all the
// tokens which this one computes are known. What follows on the device sees their pages and states.
void Core::Settle(const LaunchedStep& step) {
  for (const LaunchedStep::Part& part : step.parts) {
    if (part.sequence->state != Sequence::State::kRunning) continue;
    IndexFullPages(*part.sequence);
    TakeSnapshot(*part.sequence);
  }
}

std::span<const float> Core::HostLogits(size_t row) {
  const auto vocab = static_cast<size_t>(setup_.model->info().vocab_size);
  const float* logits = logits_ + row * vocab;
  Device& device = *setup_.model->ops().device;
  if (device.host_memory()) return {logits, vocab};
  host_logits_.resize(vocab);
  device.Download(host_logits_.data(), logits, vocab * sizeof(float));
  return host_logits_;
}

void Core::FailAll(const Error& error) {
  for (const auto& request : requests_)
    if (!request->ended) Fail(*request, error);
  Sweep();
  // What is under way is not read any more. Requests, and with them their sinks, go now: a sink may
  // call the engine's Cancel when it is destroyed.
  in_flight_ = nullptr;
  for (LaunchedStep& step : steps_) step.Forget();
}

// Forgets what ended and counts what is left. Sequences live until here, so that a step may point
// at them.
void Core::Sweep() {
  std::erase_if(running_, [](const Sequence* s) { return s->state != Sequence::State::kRunning; });
  std::erase_if(waiting_, [](const Sequence* s) { return s->state != Sequence::State::kWaiting; });
  std::erase_if(requests_, [&](const std::shared_ptr<ActiveRequest>& request) {
    if (request->ended) ended_.push_back(request->id);
    return request->ended;
  });
  stats_.running = static_cast<int64_t>(running_.size());
  stats_.waiting = static_cast<int64_t>(waiting_.size());
  stats_.kv_usage = static_cast<double>(cache_.pages() - cache_.available()) /
                    static_cast<double>(cache_.pages());
}

std::string Core::CheckInvariants() const {
  if (std::string broken = cache_.CheckInvariants(); !broken.empty()) return broken;
  std::vector<int32_t> references(static_cast<size_t>(cache_.pages()), 0);
  std::vector<bool> slot_taken(static_cast<size_t>(setup_.options.max_sequences), false);
  const auto takes_slot = [&](int32_t slot) {
    const auto slots = static_cast<int32_t>(slot_taken.size());
    if (slot < 0 || slot >= slots || slot_taken[slot]) return false;
    slot_taken[slot] = true;
    return true;
  };
  for (const Sequence* sequence : running_) {
    if (!takes_slot(sequence->drawn_slot))
      return fmt::format("OWN-SLOT: a running sequence has slot {} for what it draws",
                         sequence->drawn_slot);
    const auto held = static_cast<int64_t>(sequence->pages.size()) * cache_.page_size();
    if (held < sequence->computed) return "HELD: a running sequence lacks pages";
    for (const int32_t page : sequence->pages) ++references[page];
    for (size_t i = sequence->computed / cache_.page_size(); i < sequence->pages.size(); ++i) {
      const int32_t page = sequence->pages[i];
      if (cache_.references(page) != 1 || cache_.indexed(page))
        return fmt::format("ONE-WRITER: page {} will be written, but is shared or indexed", page);
    }
  }
  for (const int32_t slot : drawn_slots_)
    if (!takes_slot(slot)) return fmt::format("OWN-SLOT: slot {} is free, but not its own", slot);
  if (std::ranges::find(slot_taken, false) != slot_taken.end())
    return "OWN-SLOT: a slot is neither free nor a sequence's";
  for (const Sequence* sequence : waiting_) {
    if (!sequence->pages.empty()) return "HELD: a waiting sequence holds pages";
    if (sequence->drawn_slot >= 0) return "OWN-SLOT: a waiting sequence has a slot";
  }
  if (std::string broken = states_.CheckInvariants(); !broken.empty()) return broken;
  if (states_.enabled() && states_.live() != static_cast<int64_t>(running_.size()))
    return fmt::format("OWN-STATE: {} live slots for {} running sequences", states_.live(),
                       running_.size());
  for (int32_t page = 0; page < cache_.pages(); ++page) {
    if (references[page] != cache_.references(page))
      return fmt::format("HELD: page {} has {} references, {} are held", page,
                         cache_.references(page), references[page]);
  }
  return "";
}

}  // namespace nibble::engine
