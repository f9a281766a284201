// EngineOptions.even_routing on every registered model with experts: decode steps hit as many
// experts as random choices would, the same ones on CPU and GPU.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/testing/workload.h"
#include "kernels/likely_hits.h"
#include "kernels/op_probe.h"
#include "models/dummy_checkpoint.h"
#include "models/registry.h"

namespace nibble::engine {
namespace {

struct Hits {
  double per_call = 0;
  double likely = 0;  // by random choices
  int64_t calls = 0;
};

// Decode steps of `batch` sequences.
Hits CountHits(const boost::json::object& config, const kernels::OpTable& ops, int32_t batch) {
  ThreadPool pool(2);
  kernels::OpProbe probe(ops);
  auto checkpoint = models::MakeDummyCheckpoint(config);
  auto model = models::LoadModel(**checkpoint, {.ops = &probe.table(), .pool = &pool});
  EXPECT_TRUE(model) << model.error().message();
  const auto& layers = (*model)->info().expert_layers;
  if (layers.empty()) return {};
  CoreRunner runner(**model, nullptr,
                    {.pages = 160,
                     .max_model_len = 48,
                     .max_sequences = batch,
                     .max_step_tokens = 128,
                     .prefix_cache = false,
                     .pool = &pool,
                     .even_routing = true});
  probe.Inspect({.tokens = batch, .context = 1});
  for (int32_t i = 0; i < batch; ++i) {
    Request request{.tokens = {i % 7}, .sink = std::make_shared<CheckingSink>(1)};
    request.sampling.seed = i;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = 40;
    runner.Add(std::move(request));
  }
  while (!runner.core->idle()) runner.Step();
  Hits hits{.calls = probe.expert_calls()};
  for (const models::ExpertLayer& layer : layers)
    hits.likely +=
        kernels::LikelyHits(layer.experts, layer.top_k, batch) / static_cast<double>(layers.size());
  hits.per_call =
      static_cast<double>(probe.experts_hit()) / static_cast<double>(probe.expert_calls());
  return hits;
}

TEST(EvenRouting, StepsHitWhatRandomChoicesHit) {
  const auto cuda = kernels::CudaOps();
  for (const models::Architecture& architecture : models::RegisteredArchitectures()) {
    for (const std::string& text : architecture.tiny_configs) {
      SCOPED_TRACE(architecture.architectures.front());
      const boost::json::object config = boost::json::parse(text).as_object();
      for (const int32_t batch : {1, 8, 64}) {
        SCOPED_TRACE(batch);
        const Hits hits = CountHits(config, kernels::CpuOps(), batch);
        if (hits.calls == 0) break;
        EXPECT_NEAR(hits.per_call, hits.likely, 0.05 * hits.likely);
        if (!cuda) continue;
        const Hits on_gpu = CountHits(config, **cuda, batch);
        EXPECT_EQ(on_gpu.calls, hits.calls);
        EXPECT_EQ(on_gpu.per_call, hits.per_call);
      }
    }
  }
}

}  // namespace
}  // namespace nibble::engine
