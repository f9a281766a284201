// The engine thread and what stands between it and everybody else: the bounded counter, the inbox
// and the copy of the statistics.
//
// Locks, never nested: Counter::mutex (places taken), mutex_ (inbox, live requests, stop and
// failure), stats_mutex_ (the published copy). The core belongs to the engine thread.
#include "engine/engine.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/log.h"
#include "device/cpu.h"
#include "engine/core.h"
#include "engine/memory_plan.h"

namespace nibble::engine {
namespace {

// Places for requests, running and queued. Shared with tickets, which may outlive the engine.
struct Counter {
  std::mutex mutex;
  std::condition_variable empty;
  int64_t taken = 0;
  int64_t capacity = 0;
  bool draining = false;

  void Release() {
    const std::lock_guard lock(mutex);
    if (--taken == 0) empty.notify_all();
  }
};

uint64_t DrawSeed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

class EngineImpl final : public Engine {
 public:
  EngineImpl(std::unique_ptr<models::Model> model, std::shared_ptr<const text::Tokenizer> tokenizer,
             MemoryPlan plan, const EngineOptions& options, std::unique_ptr<Core> core)
      : model_(std::move(model)),
        tokenizer_(std::move(tokenizer)),
        plan_(std::move(plan)),
        options_(options),
        core_(std::move(core)),
        stats_(core_->stats()) {
    const int64_t queued =
        options.max_queued >= 0 ? options.max_queued : int64_t{4} * options.max_sequences;
    counter_->capacity = options.max_sequences + queued;
    thread_ = std::thread([this] { Run(); });
  }

  ~EngineImpl() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  Result<Ticket> Reserve() override {
    NIBBLE_TRY(Health());
    const std::lock_guard lock(counter_->mutex);
    if (counter_->draining)
      return Fail(Code::kUnavailable, "shutting down: no new requests are taken");
    if (counter_->taken >= counter_->capacity)
      return Fail(Code::kResourceExhausted,
                  "all {} places for running and queued requests are taken; try again later, or "
                  "raise --max-num-queued-reqs",
                  counter_->capacity);
    ++counter_->taken;
    return Ticket([counter = counter_] { counter->Release(); });
  }

  Result<RequestId> Submit(Request request, Ticket ticket) override {
    NIBBLE_TRY(CheckRequest(request, {.vocab_size = model_->info().vocab_size,
                                      .max_model_len = plan_.max_model_len,
                                      .max_logprobs = options_.max_logprobs,
                                      .has_tokenizer = tokenizer_ != nullptr}));
    if (!ticket) {
      NIBBLE_ASSIGN(ticket, Reserve());
    }
    auto active = std::make_shared<ActiveRequest>();
    active->arrival = Clock::now();
    active->seed = request.sampling.seed ? *request.sampling.seed : DrawSeed();
    active->max_new_tokens = ResolveMaxTokens(request, plan_.max_model_len);
    active->request = std::move(request);
    active->ticket = std::move(ticket);
    RequestId id = 0;
    {
      const std::lock_guard lock(mutex_);
      if (failure_) return tl::unexpected(*failure_);
      id = active->id = ++last_id_;
      live_.emplace(id, active);
      inbox_.push_back(std::move(active));
    }
    wake_.notify_one();
    return id;
  }

  void Cancel(RequestId id) override {
    const std::lock_guard lock(mutex_);
    const auto found = live_.find(id);
    if (found != live_.end()) found->second->cancelled.store(true, std::memory_order_release);
  }

  bool Drain(std::chrono::milliseconds timeout) override {
    std::unique_lock lock(counter_->mutex);
    counter_->draining = true;
    return counter_->empty.wait_for(lock, timeout, [&] { return counter_->taken == 0; });
  }

  Status Health() const override {
    const std::lock_guard lock(mutex_);
    if (failure_) return tl::unexpected(*failure_);
    return {};
  }

  EngineStats stats() const override {
    EngineStats copy;
    {
      const std::lock_guard lock(stats_mutex_);
      copy = stats_;
    }
    const std::lock_guard lock(mutex_);
    copy.waiting += static_cast<int64_t>(inbox_.size());
    return copy;
  }

  const MemoryPlan& memory_plan() const override { return plan_; }
  const models::ModelInfo& model_info() const override { return model_->info(); }
  const text::Tokenizer& tokenizer() const override {
    NIBBLE_CHECK(tokenizer_ != nullptr, "this engine was made without a tokenizer");
    return *tokenizer_;
  }
  int64_t max_model_len() const override { return plan_.max_model_len; }

 private:
  void Run() {
    try {
      while (TakeInbox()) {
        core_->Step();
        Publish();
        core_->PostEvents();
      }
      EndAll(Error(Code::kUnavailable, "the engine was stopped"));
    } catch (const std::exception& exception) {
      Die(exception.what());
    } catch (...) {
      Die("unknown exception");
    }
  }

  // Sleeps until there is work. False: stop.
  bool TakeInbox() {
    std::vector<std::shared_ptr<ActiveRequest>> arrived;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || !inbox_.empty() || !core_->idle(); });
      if (stop_) return false;
      arrived.swap(inbox_);
    }
    for (auto& request : arrived) core_->Add(std::move(request));
    return true;
  }

  void Publish() {
    {
      const std::lock_guard lock(stats_mutex_);
      stats_ = core_->stats();
    }
    const std::vector<RequestId> ended = core_->TakeEnded();
    if (ended.empty()) return;
    // Destroyed outside the lock: a sink's destructor may call Cancel.
    std::vector<std::shared_ptr<ActiveRequest>> forgotten;
    const std::lock_guard lock(mutex_);
    for (const RequestId id : ended) {
      auto node = live_.extract(id);
      if (!node.empty()) forgotten.push_back(std::move(node.mapped()));
    }
  }

  // Nobody is left waiting: what runs and what is still in the inbox ends with this error.
  void EndAll(const Error& error) {
    std::vector<std::shared_ptr<ActiveRequest>> arrived;
    {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = Error(Code::kUnavailable, error.message());
      arrived.swap(inbox_);
    }
    for (auto& request : arrived) core_->Add(std::move(request));
    core_->FailAll(error);
    Publish();
    core_->PostEvents();
  }

  void Die(std::string_view reason) {
    LogError("the engine failed: {}", reason);
    EndAll(Error(Code::kInternal, fmt::format("the engine failed: {}", reason)));
  }

  const std::unique_ptr<models::Model> model_;
  const std::shared_ptr<const text::Tokenizer> tokenizer_;
  const MemoryPlan plan_;
  const EngineOptions options_;
  const std::unique_ptr<Core> core_;
  const std::shared_ptr<Counter> counter_ = std::make_shared<Counter>();

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<ActiveRequest>> inbox_;
  std::unordered_map<RequestId, std::shared_ptr<ActiveRequest>> live_;
  RequestId last_id_ = 0;
  bool stop_ = false;
  std::optional<Error> failure_;

  mutable std::mutex stats_mutex_;
  EngineStats stats_;

  std::thread thread_;
};

// Activations, logits and workspaces of steps of so many tokens.
int64_t StepBytes(const models::Model& model, EngineOptions options, int32_t max_tokens) {
  options.max_step_tokens = max_tokens;
  const models::ModelInfo& info = model.info();
  const StepLimits limits = MakeStepLimits(options, info.max_positions);
  return model.ActivationBytes(limits.max_step()) +
         Sampler::Bytes(model.ops(), MakeSamplerOptions(options, limits, info.vocab_size, nullptr));
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::Create(std::unique_ptr<models::Model> model,
                                               std::shared_ptr<const text::Tokenizer> tokenizer,
                                               const EngineOptions& given) {
  EngineOptions options = given;
  const models::ModelInfo& info = model->info();
  NIBBLE_TRY(CheckOptions(options, info.max_positions));
  MemoryPlanInput memory = {.available_bytes = model->ops().device->memory().free_bytes,
                            .weight_bytes = info.weight_bytes,
                            .kv_bytes_per_token = models::KvBytesPerToken(info, options.kv_format),
                            .state_bytes = models::StateBytes(info),
                            .max_positions = info.max_positions,
                            .dedicated = !model->ops().device->shares_host_memory()};
  const auto bytes_of_steps = [&](int32_t tokens) { return StepBytes(*model, options, tokens); };
  if (options.max_step_tokens == 0)
    options.max_step_tokens = DefaultStepTokens(model->ops().device->host_memory(), memory,
                                                options.memory_fraction, bytes_of_steps);
  memory.activation_bytes = bytes_of_steps(options.max_step_tokens);
  NIBBLE_ASSIGN(MemoryPlan plan, PlanMemory(memory, options));
  const StepLimits limits = MakeStepLimits(options, plan.max_model_len);
  NIBBLE_TRY(model->Prepare(limits.max_step()));
  NIBBLE_ASSIGN(auto core, Core::Create({.model = model.get(),
                                         .tokenizer = tokenizer.get(),
                                         .options = options,
                                         .limits = limits,
                                         .plan = plan}));
  return std::make_unique<EngineImpl>(std::move(model), std::move(tokenizer), std::move(plan),
                                      options, std::move(core));
}

}  // namespace nibble::engine
