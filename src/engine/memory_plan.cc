#include "engine/memory_plan.h"

#include <algorithm>
#include <limits>

#include "base/progress.h"

namespace nibble::engine {
namespace {

// A page number is an int32_t.
constexpr int64_t kMaxPages = std::numeric_limits<int32_t>::max() / 2;

int64_t PagesFor(int64_t tokens, int64_t page_size) { return (tokens + page_size - 1) / page_size; }

std::string Bytes(int64_t bytes) { return FormatBytes(static_cast<double>(bytes)); }

}  // namespace

Status CheckOptions(const EngineOptions& options, int64_t max_positions) {
  if (options.page_size < 16 || options.page_size > 256 ||
      (options.page_size & (options.page_size - 1)) != 0)
    return Fail(Code::kInvalidArgument,
                "--block-size {}: must be a power of two between 16 and 256", options.page_size);
  if (options.max_sequences < 1 || options.max_sequences > 4096)
    return Fail(Code::kInvalidArgument, "--max-num-seqs {}: must be between 1 and 4096",
                options.max_sequences);
  if (options.max_step_tokens < 2 || options.max_step_tokens > (1 << 20))
    return Fail(Code::kInvalidArgument,
                "--max-num-batched-tokens {}: must be between 2 and 1048576",
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

Result<MemoryPlan> PlanMemory(const MemoryPlanInput& input, const EngineOptions& options) {
  const int64_t page_bytes = input.kv_bytes_per_token * options.page_size;
  // What there was before the weights were loaded; the fraction leaves the rest to the system.
  const int64_t available = input.available_bytes + input.weight_bytes;
  const auto usable =
      static_cast<int64_t>(static_cast<double>(available) * options.memory_fraction);
  const int64_t left = usable - input.weight_bytes - input.activation_bytes;

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

  MemoryPlan plan;
  plan.available_bytes = available;
  plan.weight_bytes = input.weight_bytes;
  plan.activation_bytes = input.activation_bytes;
  plan.max_model_len = options.max_model_len > 0
                           ? options.max_model_len
                           : std::min(input.max_positions, pages_limit * options.page_size);
  const int64_t wanted = PagesFor(plan.max_model_len, options.page_size) * options.max_sequences;
  const int64_t pages = options.kv_bytes > 0 ? pages_limit : std::min(pages_limit, wanted);
  plan.kv_bytes = pages * page_bytes;
  plan.kv_tokens = pages * options.page_size;
  return plan;
}

std::string MemoryPlan::ToString() const {
  const int64_t planned = weight_bytes + activation_bytes + kv_bytes;
  return fmt::format(
      "memory plan\n"
      "  weights      {:>10}\n"
      "  activations  {:>10}\n"
      "  KV cache     {:>10}  {} tokens, {:.1f} contexts of {}\n"
      "  planned      {:>10}  of {} available\n",
      Bytes(weight_bytes), Bytes(activation_bytes), Bytes(kv_bytes), kv_tokens,
      static_cast<double>(kv_tokens) / static_cast<double>(max_model_len), max_model_len,
      Bytes(planned), Bytes(available_bytes));
}

}  // namespace nibble::engine
