#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/even_routing.h"
#include "kernels/ref/ref.h"
#include "kernels/ref/scalar_functions.h"
#include "numerics/bf16.h"

namespace nibble::kernels::ref {
namespace {

std::vector<double> Scores(const Routing& routing, const std::vector<float>& logits) {
  std::vector<double> scores(logits.begin(), logits.end());
  if (routing.score == RouterScore::kSigmoid) {
    for (double& score : scores) score = Sigmoid(score);
    return scores;
  }
  const double largest = *std::ranges::max_element(scores);
  for (double& score : scores) score = std::exp(score - largest);
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  for (double& score : scores) score /= sum;
  return scores;
}

// The `count` best of `ids` by value, best first; among equals the smaller id.
std::vector<int32_t> Best(std::vector<int32_t> ids, const std::vector<double>& value,
                          int32_t count) {
  std::ranges::stable_sort(ids, [&](int32_t a, int32_t b) { return value[a] > value[b]; });
  ids.resize(count);
  return ids;
}

std::vector<int32_t> Ids(int32_t begin, int32_t count) {
  std::vector<int32_t> ids(count);
  std::iota(ids.begin(), ids.end(), begin);
  return ids;
}

// Experts of the chosen groups, in order of id.
std::vector<int32_t> Candidates(const Routing& routing, const std::vector<double>& value) {
  if (routing.groups == 1) return Ids(0, routing.experts);
  const int32_t size = routing.experts / routing.groups;
  std::vector<double> group_value;
  for (int32_t g = 0; g < routing.groups; ++g) {
    const int32_t counted = routing.group_score == GroupScore::kMax ? 1 : std::min(size, 2);
    double sum = 0.0;
    for (const int32_t id : Best(Ids(g * size, size), value, counted)) sum += value[id];
    group_value.push_back(sum);
  }
  std::vector<int32_t> groups = Best(Ids(0, routing.groups), group_value, routing.top_groups);
  std::ranges::sort(groups);
  std::vector<int32_t> candidates;
  for (const int32_t g : groups) {
    for (const int32_t id : Ids(g * size, size)) candidates.push_back(id);
  }
  return candidates;
}

struct Choice {
  int32_t expert;
  float weight;
};

// By ascending id.
std::vector<Choice> RouteEvenly(const Routing& routing, int64_t t) {
  const EvenChoice even =
      ChooseEvenly(routing.even_keys[t], routing.even_salt, routing.experts, routing.top_k);
  std::vector<Choice> choices;
  for (int32_t i = 0; i < routing.top_k; ++i)
    choices.push_back(
        {even.expert(i, routing.experts), routing.scale / static_cast<float>(routing.top_k)});
  std::ranges::sort(choices, {}, &Choice::expert);
  return choices;
}

// By ascending id; logits of token t.
std::vector<Choice> Route(const Routing& routing, const std::vector<float>& logits, int64_t t) {
  if (routing.even_keys != nullptr) return RouteEvenly(routing, t);
  const std::vector<double> scores = Scores(routing, logits);
  std::vector<double> value = scores;
  if (routing.choice_bias != nullptr) {
    for (int32_t e = 0; e < routing.experts; ++e) value[e] += routing.choice_bias[e];
  }
  std::vector<int32_t> chosen = Best(Candidates(routing, value), value, routing.top_k);
  double sum = 1e-20;
  for (const int32_t id : chosen) sum += scores[id];
  const double factor = routing.scale / (routing.renormalize ? sum : 1.0);
  std::ranges::sort(chosen);
  std::vector<Choice> choices;
  for (const int32_t id : chosen) choices.push_back({id, static_cast<float>(scores[id] * factor)});
  return choices;
}

// All routed experts or none.
bool RoutedTakeW4a4(const MoeParams& p) {
  return std::ranges::all_of(p.experts, [](const ExpertWeights& expert) {
    return expert.gate_up != nullptr && expert.up == nullptr &&
           expert.gate_up->input_scale() > 0.0f && expert.down->input_scale() > 0.0f;
  });
}

// down(activation(gate_up x)) of one token, (D).
std::vector<float> RunExpert(const MoeParams& p, int32_t id, const uint16_t* x) {
  const bool is_shared = id == MoeListener::kShared;
  const ExpertWeights& expert = is_shared ? p.shared : p.experts[id];
  const int64_t f = is_shared ? p.shared_f : p.f;
  const kernels::Activation& activation = p.activation;
  const int64_t d = expert.down->n();
  std::vector<uint16_t> hidden(activation.inputs(f)), activated(f);
  std::vector<float> y(d);
  if (p.listener != nullptr) p.listener->OnExpertInput(id, false, x, 1, p.d);
  const bool takes_w4a4 = p.w4a4 && RoutedTakeW4a4(p);
  const auto linear = [&](const LinearParams& params) {
    const bool w4a4 = takes_w4a4 && params.weight->input_scale() > 0.0f;
    (w4a4 ? LinearW4a4 : Linear)({}, params);
  };
  linear(
      {.x = x, .weight = expert.gate_up, .bias = expert.gate_up_bias, .y = hidden.data(), .m = 1});
  if (expert.up != nullptr) {
    linear({.x = x,
            .weight = expert.up,
            .bias = expert.gate_up_bias == nullptr ? nullptr : expert.gate_up_bias + f,
            .y = hidden.data() + f,
            .m = 1});
  }
  Activation({}, {.gate_up = hidden.data(),
                  .out = activated.data(),
                  .t = 1,
                  .f = f,
                  .activation = activation});
  if (p.listener != nullptr) p.listener->OnExpertInput(id, true, activated.data(), 1, f);
  linear({.x = activated.data(),
          .weight = expert.down,
          .bias = expert.down_bias,
          .y_f32 = y.data(),
          .m = 1});
  return y;
}

std::vector<uint16_t> Scaled(const uint16_t* x, int64_t d, float weight) {
  std::vector<uint16_t> scaled(d);
  for (int64_t i = 0; i < d; ++i) scaled[i] = Bf16FromFloat(Bf16ToFloat(x[i]) * weight);
  return scaled;
}

void AddScaled(const std::vector<float>& y, double weight, std::vector<double>* sum) {
  for (size_t i = 0; i < y.size(); ++i) (*sum)[i] += weight * y[i];
}

std::vector<double> RunToken(const MoeParams& p, int64_t t) {
  const int64_t router_k = p.router->k();
  const std::vector<uint16_t> normed = NormedRow(
      p.norm, p.router_x != nullptr ? p.router_x + t * router_k : p.x + t * p.d, router_k);
  const uint16_t* x = p.router_x != nullptr ? p.x + t * p.d : normed.data();
  std::vector<float> logits(p.routing.experts);
  Linear({}, {.x = normed.data(),
              .weight = p.router,
              .bias = p.router_bias,
              .y_f32 = logits.data(),
              .m = 1});
  std::vector<double> sum(p.d, 0.0);
  for (const auto& [id, weight] : Route(p.routing, logits, t)) {
    if (p.experts[id].gate_up == nullptr) continue;
    if (p.weight_on_input) {
      const std::vector<uint16_t> scaled = Scaled(x, p.d, weight);
      AddScaled(RunExpert(p, id, scaled.data()), 1.0, &sum);
    } else {
      AddScaled(RunExpert(p, id, x), weight, &sum);
    }
  }
  if (p.shared.gate_up != nullptr) {
    double weight = 1.0;
    if (p.shared_gate != nullptr) {
      float logit = 0.0f;
      Linear({}, {.x = x, .weight = p.shared_gate, .y_f32 = &logit, .m = 1});
      weight = Sigmoid(logit);
    }
    AddScaled(RunExpert(p, MoeListener::kShared, x), weight, &sum);
  }
  return sum;
}

}  // namespace

void Moe(const OpContext&, const MoeParams& p) {
  for (int64_t t = 0; t < p.t; ++t) {
    const std::vector<double> sum = RunToken(p, t);
    for (int64_t i = 0; i < p.d; ++i) {
      const auto value = static_cast<float>(sum[i]);
      if (p.out_f32 != nullptr) {
        p.out_f32[t * p.d + i] = value;
      } else {
        StoreOutput(value, p.add, &p.out[t * p.d + i]);
      }
    }
  }
}

}  // namespace nibble::kernels::ref
