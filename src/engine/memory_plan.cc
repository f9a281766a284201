#include "engine/memory_plan.h"

#include <algorithm>
#include <limits>
#include <string_view>

#include "base/progress.h"

namespace nibble::engine {
namespace {

// A page number is an int32_t.
constexpr int64_t kMaxPages = std::numeric_limits<int32_t>::max() / 2;

int64_t PagesFor(int64_t tokens, int64_t page_size) { return (tokens + page_size - 1) / page_size; }

std::string Bytes(int64_t bytes) { return FormatBytes(static_cast<double>(bytes)); }

// What there was before the weights were loaded.
int64_t AvailableBytes(const MemoryPlanInput& input) {
  return input.available_bytes + input.weight_bytes;
}

// The fraction leaves the rest to the system.
int64_t UsableBytes(const MemoryPlanInput& input, double memory_fraction) {
  return static_cast<int64_t>(static_cast<double>(AvailableBytes(input)) * memory_fraction);
}

// Why the KV cache has its size, and the flag that changes it.
std::string DescribeRule(const MemoryPlan& plan) {
  constexpr std::string_view kOther = "; --kv-cache-memory-bytes sets another size";
  switch (plan.kv_rule) {
    case KvSizeRule::kOption:
      return "as --kv-cache-memory-bytes says";
    case KvSizeRule::kSequences:
      return fmt::format("{} (--max-num-seqs) sequences of {}{}", plan.max_sequences,
                         plan.sequence_tokens, kOther);
    case KvSizeRule::kContext:
      return fmt::format("one whole context (--max-model-len){}", kOther);
    case KvSizeRule::kShare:
      return fmt::format("{:.0f} % of the memory beside weights and activations{}",
                         100 * kDefaultKvShare, kOther);
    case KvSizeRule::kMemory:
      return "all that --gpu-memory-utilization leaves";
  }
  return "";
}

// A state per running sequence, and as many snapshots at most.
Status PlanStates(const MemoryPlanInput& input, const EngineOptions& options, int64_t beside,
                  MemoryPlan* plan) {
  if (input.state_bytes == 0) return {};
  plan->state_bytes = input.state_bytes;
  plan->live_states = options.max_sequences;
  const int64_t live_bytes = plan->live_states * input.state_bytes;
  if (live_bytes > beside) {
    return Fail(Code::kResourceExhausted,
                "{} more memory is needed: the recurrent states of {} sequences take {}, and {} is "
                "left beside weights and activations; --max-num-seqs {} would fit",
                Bytes(live_bytes - beside), options.max_sequences, Bytes(live_bytes),
                Bytes(std::max<int64_t>(beside, 0)),
                std::max<int64_t>(beside, 0) / 2 / input.state_bytes);
  }
  if (!options.prefix_cache) return {};
  const auto share = static_cast<int64_t>(kSnapshotShare * static_cast<double>(beside));
  plan->snapshots = std::min<int64_t>(options.max_sequences, share / input.state_bytes);
  plan->snapshots = std::min(plan->snapshots, (beside - live_bytes) / input.state_bytes);
  return {};
}

}  // namespace

Status CheckOptions(const EngineOptions& options, int64_t max_positions) {
  if (options.page_size < 16 || options.page_size > 256 ||
      (options.page_size & (options.page_size - 1)) != 0)
    return Fail(Code::kInvalidArgument,
                "--block-size {}: must be a power of two between 16 and 256", options.page_size);
  if (options.max_sequences < 1 || options.max_sequences > 4096)
    return Fail(Code::kInvalidArgument, "--max-num-seqs {}: must be between 1 and 4096",
                options.max_sequences);
  if (options.max_step_tokens != 0 &&
      (options.max_step_tokens < 2 || options.max_step_tokens > (1 << 20)))
    return Fail(Code::kInvalidArgument,
                "--max-num-batched-tokens {}: must be between 2 and 1048576, or 0 for what suits "
                "the device",
                options.max_step_tokens);
  if (!(options.memory_fraction > 0.0 && options.memory_fraction <= 1.0))
    return Fail(Code::kInvalidArgument,
                "--gpu-memory-utilization {}: must be above 0 and at most 1",
                options.memory_fraction);
  if (options.kv_bytes < 0)
    return Fail(Code::kInvalidArgument, "--kv-cache-memory-bytes {}: must not be negative",
                options.kv_bytes);
  if (options.max_model_len < 0 || options.max_model_len > max_positions)
    return Fail(Code::kInvalidArgument,
                "--max-model-len {}: this model has {} positions; give 1 to {}, or leave it out",
                options.max_model_len, max_positions, max_positions);
  if (options.max_queued < -1)
    return Fail(Code::kInvalidArgument, "--max-num-queued-reqs {}: must not be negative",
                options.max_queued);
  if (options.max_logprobs < 0 || options.max_logprobs > 1000)
    return Fail(Code::kInvalidArgument, "--max-logprobs {}: must be between 0 and 1000",
                options.max_logprobs);
  return {};
}

Status CheckWeightsFit(const WeightsInput& input, double memory_fraction) {
  const auto usable =
      static_cast<int64_t>(static_cast<double>(input.available_bytes) * memory_fraction);
  if (input.weight_bytes <= usable) return {};
  std::string way_out;
  if (input.weight_bytes < input.available_bytes) {
    way_out =
        fmt::format("a larger --gpu-memory-utilization (now {}) would fit them", memory_fraction);
  } else if (input.weight_bytes <
             static_cast<int64_t>(static_cast<double>(input.host_available_bytes) *
                                  memory_fraction)) {
    way_out = fmt::format("--device cpu would fit them into {}", Bytes(input.host_available_bytes));
  } else {
    way_out = "free memory, or make a smaller checkpoint with nibble quantize";
  }
  return Fail(Code::kResourceExhausted,
              "{} more memory is needed: the weights alone take {}, and {} of {} available on {} "
              "may be used; {}",
              Bytes(input.weight_bytes - usable), Bytes(input.weight_bytes), Bytes(usable),
              Bytes(input.available_bytes), input.device, way_out);
}

int32_t DefaultStepTokens(bool on_host, const MemoryPlanInput& input, double memory_fraction,
                          const std::function<int64_t(int32_t tokens)>& bytes_of) {
  if (on_host) return kHostStepTokens;
  const auto beside = static_cast<double>(UsableBytes(input, memory_fraction) - input.weight_bytes);
  int32_t tokens = kDeviceStepTokens;
  while (tokens > kHostStepTokens &&
         static_cast<double>(bytes_of(tokens)) > kActivationShare * beside)
    tokens /= 2;
  return tokens;
}

Result<MemoryPlan> PlanMemory(const MemoryPlanInput& input, const EngineOptions& options) {
  const int64_t page_bytes = std::max<int64_t>(1, input.kv_bytes_per_token) * options.page_size;
  const int64_t available = AvailableBytes(input);
  const int64_t usable = UsableBytes(input, options.memory_fraction);
  const int64_t beside = usable - input.weight_bytes - input.activation_bytes;
  MemoryPlan plan;
  NIBBLE_TRY(PlanStates(input, options, beside, &plan));
  const int64_t left = beside - plan.all_state_bytes();

  if (options.kv_bytes > left) {
    return Fail(Code::kResourceExhausted,
                "--kv-cache-memory-bytes {} ({}): {} more than is left beside {} of weights and {} "
                "of activations within {} of {} (--gpu-memory-utilization {}); give at most {}",
                options.kv_bytes, Bytes(options.kv_bytes), Bytes(options.kv_bytes - left),
                Bytes(input.weight_bytes), Bytes(input.activation_bytes), Bytes(usable),
                Bytes(available), options.memory_fraction, std::max<int64_t>(left, 0));
  }
  const int64_t kv_limit = options.kv_bytes > 0 ? options.kv_bytes : left;
  const int64_t pages_limit =
      kv_limit < page_bytes ? 0 : std::min(kv_limit / page_bytes, kMaxPages);

  const int64_t needed =
      options.max_model_len > 0 ? PagesFor(options.max_model_len, options.page_size) : 1;
  if (pages_limit < needed) {
    const int64_t missing = needed * page_bytes - kv_limit;
    const std::string way_out =
        pages_limit > 0
            ? fmt::format("--max-model-len {} would fit", pages_limit * options.page_size)
            : std::string("lower --max-num-batched-tokens or free memory");
    return Fail(Code::kResourceExhausted,
                "{} more memory is needed: a context of {} tokens takes {} of KV cache, and {} is "
                "left of {} after {} of weights and {} of activations; {}{}",
                Bytes(missing), options.max_model_len > 0 ? options.max_model_len : 1,
                Bytes(needed * page_bytes), Bytes(std::max<int64_t>(kv_limit, 0)), Bytes(usable),
                Bytes(input.weight_bytes), Bytes(input.activation_bytes), way_out,
                options.kv_bytes > 0
                    ? fmt::format(", or --kv-cache-memory-bytes {}", needed * page_bytes)
                    : fmt::format(", or a larger --gpu-memory-utilization (now {})",
                                  options.memory_fraction));
  }

  const auto share = static_cast<int64_t>(
      kDefaultKvShare * static_cast<double>(available - input.weight_bytes -
                                            input.activation_bytes - plan.all_state_bytes()));
  const int64_t pages_default = options.kv_bytes > 0 || input.dedicated
                                    ? pages_limit
                                    : std::clamp<int64_t>(share / page_bytes, 1, pages_limit);

  plan.available_bytes = available;
  plan.weight_bytes = input.weight_bytes;
  plan.activation_bytes = input.activation_bytes;
  plan.max_step_tokens = options.max_step_tokens;
  plan.max_sequences = options.max_sequences;
  plan.model_positions = input.max_positions;
  plan.max_model_len = options.max_model_len > 0
                           ? options.max_model_len
                           : std::min(input.max_positions, pages_default * options.page_size);
  const int64_t whole_context = PagesFor(
      options.max_model_len > 0 ? options.max_model_len : input.max_positions, options.page_size);
  plan.sequence_tokens =
      input.dedicated ? plan.max_model_len : std::min(kUsualSequenceTokens, plan.max_model_len);
  const int64_t usual = PagesFor(plan.sequence_tokens, options.page_size) * options.max_sequences;
  int64_t pages = std::min(std::max(whole_context, usual), pages_default);
  if (options.max_model_len > 0) pages = std::max(pages, whole_context);
  if (options.kv_bytes > 0) {
    pages = pages_limit;
    plan.kv_rule = KvSizeRule::kOption;
  } else if (pages == whole_context) {
    plan.kv_rule = KvSizeRule::kContext;
  } else if (pages == usual) {
    plan.kv_rule = KvSizeRule::kSequences;
  } else {
    plan.kv_rule = pages == pages_limit ? KvSizeRule::kMemory : KvSizeRule::kShare;
  }
  plan.kv_bytes = pages * page_bytes;
  plan.kv_tokens = pages * options.page_size;
  return plan;
}

std::string MemoryPlan::ToString() const {
  const int64_t planned = weight_bytes + activation_bytes + kv_bytes + all_state_bytes();
  const std::string states =
      state_bytes == 0
          ? ""
          : fmt::format(
                "  states       {:>10}  {} of running sequences (--max-num-seqs), {} kept "
                "for the prefix cache\n",
                Bytes(all_state_bytes()), live_states, snapshots);
  const std::string shorter =
      max_model_len < model_positions ? fmt::format(" (the model's: {})", model_positions) : "";
  return fmt::format(
      "memory plan\n"
      "  weights      {:>10}\n"
      "  activations  {:>10}  of steps of {} tokens (--max-num-batched-tokens)\n"
      "  KV cache     {:>10}  {} tokens: {}\n"
      "{}"
      "  planned      {:>10}  of {} available\n"
      "  context      {:>10}  tokens{}, --max-model-len\n",
      Bytes(weight_bytes), Bytes(activation_bytes), max_step_tokens, Bytes(kv_bytes), kv_tokens,
      DescribeRule(*this), states, Bytes(planned), Bytes(available_bytes), max_model_len, shorter);
}

}  // namespace nibble::engine
