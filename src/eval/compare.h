// How a model reads a text, alone and beside a reference: perplexity, Kullback-Leibler divergence
// and agreement of the likeliest token.
//
// The text is cut into windows of `window` tokens that do not overlap; every token but a window's
// first is predicted from those before it in the window. Sums are FP64 in the order of the text, so
// that a figure is the same on every run.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/progress.h"
#include "engine/engine.h"

namespace nibble::eval {

struct Reading {
  int64_t scored_tokens = 0;
  double perplexity = 0;  // exp of the mean negative log-probability
};

struct Comparison {
  Reading model;
  Reading reference;
  double mean_kl = 0;     // nats: mean over tokens of Σ p log(p / q), p the reference's
  double largest_kl = 0;  // of one token
  double same_top = 0;    // share of tokens whose likeliest next token is the same
};

struct ReadOptions {
  int64_t window = 512;          // at most the engine's context
  Progress* progress = nullptr;  // advanced by tokens
};

// kInvalidArgument when the text has fewer than two tokens.
Result<Reading> Read(engine::Engine& model, std::string_view text, const ReadOptions& options = {});

// Both models are in memory; they must share a vocabulary: kInvalidArgument if the text's tokens or
// the sizes of the logits differ.
Result<Comparison> Compare(engine::Engine& model, engine::Engine& reference, std::string_view text,
                           const ReadOptions& options = {});

}  // namespace nibble::eval
