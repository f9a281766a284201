#include "kernels/cpu/moe/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/even_routing.h"

namespace nibble::kernels::cpu {
namespace {

// The best `count` of candidates offered by ascending id, best first. Ids that were never offered
// stay 0.
class BestList {
 public:
  BestList(int32_t* ids, float* values, int32_t count) : ids_(ids), values_(values), count_(count) {
    std::fill_n(ids, count, 0);
  }

  void Offer(int32_t id, float value) {
    if (size_ == count_) {
      if (!(value > values_[size_ - 1])) return;
      --size_;
    }
    int32_t at = size_++;
    for (; at > 0 && value > values_[at - 1]; --at) {
      ids_[at] = ids_[at - 1];
      values_[at] = values_[at - 1];
    }
    ids_[at] = id;
    values_[at] = value;
  }

 private:
  int32_t* ids_;
  float* values_;
  int32_t count_;
  int32_t size_ = 0;
};

void Score(const VectorKernels& kernels, const Routing& routing, const float* logits,
           float* scores) {
  if (routing.score == RouterScore::kSigmoid) {
    for (int32_t e = 0; e < routing.experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  float largest = 0.0f;
  int64_t index = 0;
  kernels.best_logit(logits, routing.experts, &largest, &index);
  const float sum = kernels.softmax_weights(logits, routing.experts, largest, 1.0f, scores);
  for (int32_t e = 0; e < routing.experts; ++e) scores[e] /= sum;
}

float GroupValue(GroupScore kind, const float* value, int32_t size) {
  float best = -std::numeric_limits<float>::infinity(), second = best;
  for (int32_t i = 0; i < size; ++i) {
    if (value[i] > best) {
      second = best;
      best = value[i];
    } else if (value[i] > second) {
      second = value[i];
    }
  }
  return kind == GroupScore::kMax || size == 1 ? best : best + second;
}

// Offers the experts of the best groups. scratch: 2 * groups floats.
void OfferGroups(const Routing& routing, const float* value, float* scratch, BestList* best) {
  const int32_t size = routing.experts / routing.groups;
  auto* groups = reinterpret_cast<int32_t*>(scratch);
  BestList best_groups(groups, scratch + routing.groups, routing.top_groups);
  for (int32_t g = 0; g < routing.groups; ++g) {
    best_groups.Offer(g, GroupValue(routing.group_score, value + g * size, size));
  }
  std::sort(groups, groups + routing.top_groups);
  for (int32_t i = 0; i < routing.top_groups; ++i) {
    for (int32_t e = groups[i] * size; e < (groups[i] + 1) * size; ++e) best->Offer(e, value[e]);
  }
}

}  // namespace

int64_t RoutingScratch(const Routing& routing) {
  return 2 * int64_t{routing.experts} + 2 * int64_t{routing.groups};
}

void Route(const VectorKernels& kernels, const Routing& routing, const float* logits,
           float* scratch, int32_t* experts, float* weights) {
  float* scores = scratch;
  Score(kernels, routing, logits, scores);
  const float* value = scores;
  if (routing.choice_bias != nullptr) {
    float* biased = scratch + routing.experts;
    for (int32_t e = 0; e < routing.experts; ++e) biased[e] = scores[e] + routing.choice_bias[e];
    value = biased;
  }
  BestList best(experts, weights, routing.top_k);
  if (routing.groups == 1) {
    for (int32_t e = 0; e < routing.experts; ++e) best.Offer(e, value[e]);
  } else {
    OfferGroups(routing, value, scratch + 2 * routing.experts, &best);
  }
  float sum = 1e-20f;
  for (int32_t i = 0; i < routing.top_k; ++i) {
    weights[i] = scores[experts[i]];
    sum += weights[i];
  }
  const float factor = routing.renormalize ? routing.scale / sum : routing.scale;
  for (int32_t i = 0; i < routing.top_k; ++i) weights[i] *= factor;
}

void RouteEvenly(const Routing& routing, int64_t t, int32_t* experts, float* weights) {
  const EvenChoice even =
      ChooseEvenly(routing.even_keys[t], routing.even_salt, routing.experts, routing.top_k);
  for (int32_t i = 0; i < routing.top_k; ++i) {
    experts[i] = even.expert(i, routing.experts);
    weights[i] = routing.scale / static_cast<float>(routing.top_k);
  }
}

}  // namespace nibble::kernels::cpu
