#include "models/layers/decoder.h"

#include <algorithm>
#include <set>
#include <utility>

namespace nibble::models {

Decoder::Decoder(DecoderConfig config, std::vector<Sublayer> sublayers, const BuildOptions& options,
                 std::optional<DraftHead> draft)
    : config_(std::move(config)), options_(options), stack_(std::move(sublayers)) {
  if (draft) draft_.emplace(std::move(*draft));
  info_.architecture = config_.architecture;
  info_.vocab_size = config_.vocab_size;
  info_.hidden_size = config_.hidden_size;
  info_.max_positions = config_.max_positions;
  info_.layers = config_.layers;
  for (const Sublayer* sublayer : AllSublayers()) sublayer->block->DescribeCaches(&info_);
}

std::vector<const Sublayer*> Decoder::AllSublayers() const {
  std::vector<const Sublayer*> all;
  for (const Sublayer& sublayer : stack_.sublayers) all.push_back(&sublayer);
  if (!draft_) return all;
  for (const Sublayer& sublayer : draft_->stack.sublayers) all.push_back(&sublayer);
  return all;
}

void Decoder::Stack::VisitSublayers(WeightVisitor& visitor, int64_t d) {
  for (size_t i = 0; i < sublayers.size(); ++i) {
    visitor.SetSection(Section::kOther);
    visitor.VisitVector(sublayers[i].norm, d, &norms[i].before);
    if (!sublayers[i].post_norm.empty())
      visitor.VisitVector(sublayers[i].post_norm, d, &norms[i].after);
    sublayers[i].block->VisitWeights(visitor);
  }
}

void Decoder::VisitWeights(WeightVisitor& visitor) {
  const int64_t d = config_.hidden_size;
  for (const std::string& suffix : config_.ignored) visitor.Ignore(suffix);
  for (const std::string& prefix : config_.ignored_prefixes) visitor.IgnorePrefix(prefix);
  visitor.SetSection(config_.tied_embeddings ? Section::kHead : Section::kOther);
  visitor.VisitEmbedding(config_.embedding_name, config_.vocab_size, d, config_.tied_embeddings,
                         &embedding_);
  stack_.VisitSublayers(visitor, d);
  visitor.SetSection(Section::kOther);
  visitor.VisitVector(config_.final_norm_name, d, &stack_.final_norm);
  if (config_.tied_embeddings) {
    visitor.Ignore("lm_head.weight");  // some exports store the tied copy
  } else {
    visitor.SetSection(Section::kHead);
    std::vector<RowRange> rows;
    if (options_.tp.active()) {
      const int64_t begin = options_.tp.rank * VocabShare();
      rows = {{.begin = begin, .count = std::min(VocabShare(), config_.vocab_size - begin)}};
    }
    visitor.VisitLinear({{"lm_head", config_.vocab_size, rows}}, d, Bias::kIfStored, &head_);
  }
  if (draft_) VisitDraft(visitor);
}

void Decoder::VisitDraft(WeightVisitor& visitor) {
  const int64_t d = config_.hidden_size;
  visitor.SetSection(Section::kDraft);
  visitor.VisitVector(draft_->embedding_norm, d, &draft_->embedding_norm_weight);
  visitor.VisitVector(draft_->hidden_norm, d, &draft_->hidden_norm_weight);
  visitor.VisitLinear({{draft_->projection, d, {}}}, 2 * d, Bias::kNone,
                      &draft_->projection_weight);
  draft_->stack.VisitSublayers(visitor, d);
  visitor.VisitVector(draft_->final_norm, d, &draft_->stack.final_norm);
}

std::vector<std::string_view> Decoder::RequiredOps() const {
  std::set<std::string_view> ops = {"pack_weight", "linear", "embed", "rms_norm", "gather_rows"};
  if (options_.tp.active()) ops.insert("round");
  for (const Sublayer* sublayer : AllSublayers()) {
    for (const std::string_view op : sublayer->block->RequiredOps()) ops.insert(op);
  }
  return {ops.begin(), ops.end()};
}

Status Decoder::FinishLoad(const kernels::OpTable& ops, ThreadPool* pool, int64_t max_positions) {
  ops_ = &ops;
  pool_ = pool;
  const FinishContext context = {
      .ops = ops, .pool = pool, .max_positions = max_positions, .info = &info_};
  for (const Sublayer* sublayer : AllSublayers()) NIBBLE_TRY(sublayer->block->FinishLoad(context));
  return {};
}

void Decoder::Carve(ScratchArena& arena, const MaxStep& max) {
  const StepSizes sizes = {.t = max.tokens,
                           .rows = max.rows,
                           .threads = pool_->threads(),
                           .prompt_forms = info_.prompt_forms};
  const int64_t d = config_.hidden_size;
  const std::vector<const Sublayer*> sublayers = AllSublayers();
  const bool post_norms =
      std::ranges::any_of(sublayers, [](const Sublayer* s) { return !s->post_norm.empty(); });
  arena.Take(&x_, sizes.t * d);
  arena.Take(&normed_, std::max(sizes.t, sizes.rows) * d);
  arena.Take(&delta_, sizes.t * d);
  if (post_norms) arena.Take(&post_delta_, sizes.t * d);
  if (draft_) {
    arena.Take(&hidden_, sizes.t * d);
    arena.Take(&pair_, 2 * sizes.t * d);
    arena.Take(&interleaved_, 2 * sizes.t * d);
    arena.Take(&pair_rows_, 2 * sizes.t);
    arena.NeedWorkspace(ops_->linear_workspace(sizes.t, 2 * d));
  }
  arena.Take(&row_x_, sizes.rows * d);
  arena.Take(&row_delta_, sizes.rows * d);
  arena.Take(&logits_, sizes.rows * config_.vocab_size);
  if (options_.tp.active() && !config_.tied_embeddings) {
    arena.Take(&shard_logits_, sizes.rows * VocabShare());
    arena.Take(&gathered_, sizes.rows * VocabShare() * options_.tp.size);
  }
  arena.NeedWorkspace(ops_->linear_workspace(sizes.rows, d));
  const int64_t mark = arena.mark();
  for (const Sublayer* sublayer : sublayers) {
    arena.Rewind(mark);
    sublayer->block->Carve(arena, *ops_, sizes);
  }
}

int64_t Decoder::ActivationBytes(const MaxStep& max) const {
  // Counting points every tensor at null, which is what they are before Prepare.
  auto& self = const_cast<Decoder&>(*this);
  return StepInputs::Bytes(*ops_->device, max) +
         ScratchArena::Count([&](ScratchArena& arena) { self.Carve(arena, max); });
}

Status Decoder::Prepare(const MaxStep& max) {
  context_.pool = pool_;
  NIBBLE_ASSIGN(memory_, ScratchArena::Make([&](ScratchArena& arena) { Carve(arena, max); },
                                            *ops_->device, &context_));
  NIBBLE_TRY(inputs_.Prepare(*ops_->device, max));
  if (info_.prompt_forms.any()) runs_.reserve(max.tokens);
  if (!draft_) return {};
  pair_distance_ = max.tokens;
  std::vector<int32_t> rows;
  for (int64_t i = 0; i < max.tokens; ++i) {
    rows.push_back(static_cast<int32_t>(i));
    rows.push_back(static_cast<int32_t>(pair_distance_ + i));
  }
  ops_->device->Upload(pair_rows_, rows.data(), rows.size() * sizeof(int32_t));
  return {};
}

void Decoder::Normalize(uint16_t* x, const uint16_t* delta, const Resident<float>& weight,
                        int64_t t, uint16_t* out) const {
  ops_->rms_norm(context_, {.x = x,
                            .delta = delta,
                            .weight = weight.data(),
                            .out = out,
                            .t = t,
                            .d = config_.hidden_size,
                            .eps = config_.norm_eps,
                            .style = config_.norm_style});
}

LayerInput Decoder::Normed(uint16_t* x, const uint16_t* delta, const Resident<float>& weight,
                           int64_t t) const {
  if (delta == nullptr) {
    return {x, {.weight = weight.data(), .eps = config_.norm_eps, .style = config_.norm_style}};
  }
  Normalize(x, delta, weight, t, normed_);
  return {normed_};
}

bool Decoder::AddsItself(const Sublayer& sublayer) const {
  return sublayer.post_norm.empty() && !options_.tp.active();
}

StepContext Decoder::Step(const Batch& batch, const KvPool& kv) const {
  return {.ops = *ops_,
          .context = context_,
          .batch = batch,
          .kv = kv,
          .tp = options_.tp,
          .t = static_cast<int64_t>(batch.tokens.size()),
          .prompt_forms = info_.prompt_forms,
          .runs = runs_};
}

void Decoder::FindRuns(const Batch& batch) {
  runs_.clear();
  const auto add = [&](int64_t first, int64_t count, bool prompt) {
    if (count == 0) return;
    if (!runs_.empty() && runs_.back().prompt == prompt) {
      runs_.back().count += count;
    } else {
      runs_.push_back({first, count, prompt});
    }
  };
  if (!info_.prompt_forms.any() || batch.prompt_tokens.empty()) return;
  for (size_t b = 0; b < batch.prompt_tokens.size(); ++b) {
    const int64_t first = batch.q_start[b], count = batch.q_start[b + 1] - first;
    const int64_t prompt = batch.prompt_tokens[b];
    add(first, prompt, true);
    add(first + prompt, count - prompt, false);
  }
  if (runs_.size() == 1 && !runs_[0].prompt) runs_.clear();
}

void Decoder::Embed(const Batch& batch, uint16_t* out) const {
  ops_->embed(context_, {.ids = batch.tokens.data(),
                         .drawn = batch.drawn,
                         .table = embedding_.segments[0].weight.get(),
                         .out = out,
                         .t = static_cast<int64_t>(batch.tokens.size()),
                         .scale = config_.embedding_scale});
}

const float* Decoder::Forward(const Batch& batch, const KvPool& kv) {
  FindRuns(batch);
  const Batch placed = inputs_.Place(batch, info_.rope_long_rows);
  const auto launch = [&] {
    Embed(placed, x_);
    const float* logits = RunStack(Step(placed, kv), stack_);
    if (placed.tail != nullptr) placed.tail->Launch(logits, placed.drawn_slots.data());
  };
  // What is recorded for a shape is a step of generated tokens.
  if (runs_.empty()) {
    graphs_.Run(*ops_, placed, kv, launch);
  } else {
    launch();
  }
  inputs_.Launched();
  return logits_;
}

const float* Decoder::ForwardDraft(const Batch& batch, const uint16_t* hidden, const KvPool& kv) {
  runs_.clear();  // drafts change no token: no role matters
  const Batch placed = inputs_.Place(batch, info_.rope_long_rows);
  const StepContext step = Step(placed, kv);
  const int64_t t = step.t, d = config_.hidden_size;
  const size_t row_bytes = d * sizeof(uint16_t);
  // Both norms write dense rows, which a gather then puts side by side.
  uint16_t* embedded = pair_;
  uint16_t* continued = pair_ + pair_distance_ * d;
  Embed(placed, embedded);
  Normalize(embedded, nullptr, draft_->embedding_norm_weight, t, embedded);
  ops_->device->Copy(continued, hidden, t * row_bytes);
  Normalize(continued, nullptr, draft_->hidden_norm_weight, t, continued);
  ops_->gather_rows(context_,
                    {.x = pair_, .rows = pair_rows_, .out = interleaved_, .r = 2 * t, .d = d});
  draft_->projection_weight.Run(*ops_, context_, {interleaved_}, t, {x_});
  const float* logits = RunStack(step, draft_->stack);
  // RunStack has added all that the blocks gave.
  if (draft_->continues_before_norm) ops_->device->Copy(hidden_, x_, t * row_bytes);
  inputs_.Launched();
  return logits;
}

const float* Decoder::RunStack(const StepContext& step, const Stack& stack) {
  const int64_t t = step.t, d = config_.hidden_size;
  const uint16_t* delta = nullptr;  // not yet added to x_
  for (size_t i = 0; i < stack.sublayers.size(); ++i) {
    const Sublayer& sublayer = stack.sublayers[i];
    const LayerInput in = Normed(x_, delta, stack.norms[i].before, t);
    if (AddsItself(sublayer)) {
      sublayer.block->Forward(step, in, {x_, true});
      delta = nullptr;
      continue;
    }
    sublayer.block->Forward(step, in, {delta_});
    delta = delta_;
    if (!sublayer.post_norm.empty()) {
      Normalize(delta_, nullptr, stack.norms[i].after, t, post_delta_);
      delta = post_delta_;
    }
  }
  if (draft_) Normalize(x_, delta, stack.final_norm, t, hidden_);
  const auto rows = static_cast<int64_t>(step.batch.logits_rows.size());
  if (rows == 0) return logits_;
  const int32_t* picked = step.batch.logits_rows.data();
  const bool all = step.batch.all_rows;
  if (draft_) {
    if (!all)
      ops_->gather_rows(context_,
                        {.x = hidden_, .rows = picked, .out = normed_, .r = rows, .d = d});
    RunHead(step, {all ? hidden_ : normed_}, rows);
    return logits_;
  }
  if (all) {
    RunHead(step, Normed(x_, delta, stack.final_norm, rows), rows);
    return logits_;
  }
  ops_->gather_rows(context_, {.x = x_, .rows = picked, .out = row_x_, .r = rows, .d = d});
  if (delta != nullptr) {
    ops_->gather_rows(context_, {.x = delta, .rows = picked, .out = row_delta_, .r = rows, .d = d});
    delta = row_delta_;
  }
  RunHead(step, Normed(row_x_, delta, stack.final_norm, rows), rows);
  return logits_;
}

void Decoder::RunHead(const StepContext& step, const LayerInput& in, int64_t rows) {
  if (config_.tied_embeddings) return embedding_.RunF32(*ops_, step.context, in, rows, logits_);
  if (!options_.tp.active()) return head_.RunF32(*ops_, step.context, in, rows, logits_);
  const int64_t share = VocabShare();
  head_.RunF32(*ops_, step.context, in, rows, shard_logits_, share);
  options_.tp.comm->AllGather(shard_logits_, rows * share, gathered_);
  for (int64_t rank = 0; rank < options_.tp.size; ++rank) {
    const int64_t count = std::min(share, config_.vocab_size - rank * share);
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(gathered_ + (rank * rows + row) * share, count,
                  logits_ + row * config_.vocab_size + rank * share);
    }
  }
}

int64_t Decoder::VocabShare() const {
  return (config_.vocab_size + options_.tp.size - 1) / options_.tp.size;
}

DecoderConfig ReadDecoderConfig(ConfigReader& config, std::string architecture) {
  DecoderConfig c;
  c.architecture = std::move(architecture);
  c.layers = config.Int("num_hidden_layers", 1, kMaxLayers);
  c.hidden_size = config.Int("hidden_size", 1, kMaxSize);
  c.vocab_size = config.Int("vocab_size", 1, kMaxSize);
  c.max_positions = config.Int("max_position_embeddings", 1, int64_t{1} << 30);
  c.tied_embeddings = config.Bool("tie_word_embeddings", false);
  c.norm_eps = static_cast<float>(config.Float("rms_norm_eps", 0.0, 1.0, 1e-6));
  c.ignored = {"rotary_emb.inv_freq"};
  return c;
}

AttentionConfig ReadAttentionConfig(ConfigReader& config, const DecoderConfig& decoder,
                                    int64_t default_head_dim) {
  AttentionConfig a;
  a.hidden_size = decoder.hidden_size;
  a.q_heads = static_cast<int32_t>(config.Int("num_attention_heads", 1, 1 << 16));
  a.kv_heads = static_cast<int32_t>(config.Int("num_key_value_heads", 1, 1 << 16, a.q_heads));
  a.head_dim = static_cast<int32_t>(config.Int(
      "head_dim", 1, 1 << 16, default_head_dim > 0 ? default_head_dim : a.hidden_size / a.q_heads));
  a.norm_eps = decoder.norm_eps;
  a.norm_style = decoder.norm_style;
  config.Require(a.q_heads % a.kv_heads == 0,
                 fmt::format("num_attention_heads {} is not a multiple of num_key_value_heads {}",
                             a.q_heads, a.kv_heads));
  config.Require(a.head_dim >= 2 && a.head_dim % 2 == 0 && a.head_dim <= 512,
                 fmt::format("head_dim {}: expected an even number in 2..512", a.head_dim));
  return a;
}

FeedForwardConfig ReadFeedForwardConfig(ConfigReader& config, const DecoderConfig& decoder) {
  FeedForwardConfig f;
  f.hidden_size = decoder.hidden_size;
  f.ffn_size = config.Int("intermediate_size", 1, kMaxSize);
  const std::string activation = config.String("hidden_act", "silu");
  config.Require(activation == "silu",
                 fmt::format("hidden_act {}: only silu is supported", activation));
  return f;
}

std::vector<Sublayer> MakePreNormLayers(const DecoderConfig& decoder, const MakeBlock& attention,
                                        const MakeBlock& feed_forward) {
  std::vector<Sublayer> sublayers;
  for (int64_t l = 0; l < decoder.layers; ++l) {
    const std::string prefix = fmt::format("model.layers.{}", l);
    sublayers.push_back({prefix + ".input_layernorm.weight", attention(l, prefix), ""});
    sublayers.push_back({prefix + ".post_attention_layernorm.weight", feed_forward(l, prefix), ""});
  }
  return sublayers;
}

std::vector<int32_t> ReadLayerWindows(ConfigReader& config, int64_t layers, int32_t window) {
  std::vector<int32_t> windows;
  for (const std::string& type : config.Strings("layer_types")) {
    config.Require(
        type == "sliding_attention" || type == "full_attention",
        fmt::format("layer_types holds {}: expected sliding_attention or full_attention", type));
    windows.push_back(type == "sliding_attention" ? window : 0);
  }
  config.Require(
      windows.empty() || static_cast<int64_t>(windows.size()) == layers,
      fmt::format("layer_types names {} layers, num_hidden_layers is {}", windows.size(), layers));
  return windows;
}

std::vector<std::string> VisionPrefixes() {
  std::vector<std::string> prefixes;
  for (const char* module :
       {"vision_tower.", "vision_model.", "visual.", "multi_modal_projector.", "mm_projector."})
    for (const char* outer : {"", "model."}) prefixes.push_back(std::string(outer) + module);
  return prefixes;
}

std::vector<Sublayer> MakeDenseLayers(const DecoderConfig& decoder, const DenseLayers& layers,
                                      const BuildOptions& options) {
  const auto attention = [&](int64_t layer, const std::string& prefix) {
    AttentionConfig config = layers.attention;
    config.window = layers.layer_window.empty() ? 0 : layers.layer_window[layer];
    return std::make_unique<Attention>(config, prefix + ".self_attn", options.tp);
  };
  const auto feed_forward = [&](int64_t, const std::string& prefix) {
    return std::make_unique<FeedForward>(layers.ffn, prefix + ".mlp", options.tp);
  };
  return MakePreNormLayers(decoder, attention, feed_forward);
}

std::vector<int32_t> ReadQwenWindows(ConfigReader& config, int64_t layers) {
  std::vector<int32_t> windows(layers, 0);
  if (!config.Bool("use_sliding_window", false)) return windows;
  const auto window = static_cast<int32_t>(config.Int("sliding_window", 1, 1 << 30));
  const std::vector<int32_t> typed = ReadLayerWindows(config, layers, window);
  if (!typed.empty()) return typed;
  const int64_t first = config.Int("max_window_layers", 0, 1 << 20, 28);
  for (int64_t l = first; l < layers; ++l) windows[l] = window;
  return windows;
}

Status CheckShares(const TensorParallel& tp, const AttentionConfig& attention, int64_t ffn_size) {
  if (!tp.active()) return {};
  NIBBLE_TRY(TensorParallel::CheckDivides(tp.size, attention.q_heads, "num_attention_heads"));
  if (attention.kv_heads >= tp.size) {
    NIBBLE_TRY(TensorParallel::CheckDivides(tp.size, attention.kv_heads, "num_key_value_heads"));
  } else {
    NIBBLE_TRY(TensorParallel::CheckDivides(attention.kv_heads, tp.size, "ranks"));
  }
  return TensorParallel::CheckDivides(tp.size, ffn_size, "intermediate_size");
}

}  // namespace nibble::models
