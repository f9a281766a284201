#!/usr/bin/env python3
"""Makes tests/golden/<model>/: tiny random checkpoints and what transformers computes for them.

For every tiny config a checkpoint in BF16 and one with NVFP4 linears (ModelOpt's names) are described (weights.json, see
golden_weights.py), and a golden.json is written with log-probabilities of the original implementation in FP32 and, as the
yardstick, in BF16: at every position the prompt's next token and the original's five best, plus a greedy continuation.
--smollm2 FILE.gguf does the same for the real SmolLM2.

Needs torch, transformers, safetensors, numpy (and gguf for --smollm2). Run from the repository root:
  tools/make_model_goldens.py [--only llama_0] [--smollm2 path.gguf]
"""
import argparse
import copy
import json
import pathlib
import re

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from golden_weights import Checkpoint

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
PROMPT_LENGTHS = (5, 40, 200)
GREEDY = 16
# Of router logits, which spread by 4: in prompts, so that int8 activations choose the same experts, and in greedy
# continuations, which cannot be chosen freely, BF16 ones.
PROMPT_MARGIN, GREEDY_MARGIN = 0.5, 0.1

# Awkward sizes; windows and original contexts below 200 tokens. All linears have K % 16 == 0.
CONFIGS = {
    "llama_0": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 96, "intermediate_size": 112,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 307,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64}},
    "llama_1": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 176,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 259,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "attention_bias": True},
    "mistral_0": {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 96, "intermediate_size": 144,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 331,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": 37,
        "tie_word_embeddings": False},
    "qwen2_0": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 112, "intermediate_size": 160,
        "num_hidden_layers": 3, "num_attention_heads": 7, "num_key_value_heads": 1, "vocab_size": 283,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "use_sliding_window": True,
        "sliding_window": 41, "max_window_layers": 1, "tie_word_embeddings": True},
    "qwen3_0": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 96, "intermediate_size": 144,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 48, "vocab_size": 293,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True},
    # Phi-4-mini: a share of each head turns, and other frequencies beyond 64 tokens.
    "phi3_0": {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 80, "intermediate_size": 112,
        "num_hidden_layers": 2, "num_attention_heads": 5, "num_key_value_heads": 1, "vocab_size": 211,
        "max_position_embeddings": 512, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.75,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.02, 1.05, 1.1, 1.3, 1.6],
                         "long_factor": [1.1, 1.4, 2.1, 3.3, 6.0, 8.0]},
        "sliding_window": 262144, "tie_word_embeddings": True, "pad_token_id": 0},
    # Phi-3-mini-4k: a window, plain frequencies.
    "phi3_1": {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 64, "intermediate_size": 144,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 197,
        "max_position_embeddings": 512, "original_max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "sliding_window": 43, "tie_word_embeddings": False, "pad_token_id": 0},
    # Local layers with their own rotation between global ones, as the first releases spell it.
    "gemma3_0": {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 64,
        "intermediate_size": 112, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 40, "vocab_size": 203, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "query_pre_attn_scalar": 24, "sliding_window": 29,
        "sliding_window_pattern": 3},
    # The same inside a multimodal wrapper, as newer files spell it.
    "gemma3_1": {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "tie_word_embeddings": True,
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 197,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 16, "sliding_window": 23,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0},
                                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}}},
    # Queries grow every 32 tokens.
    "ministral3_0": {
        "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
        "text_config": {
            "model_type": "ministral3", "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 227,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "yarn", "type": "yarn", "rope_theta": 1000000.0, "factor": 16.0,
                                "original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0,
                                "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.4}}},
    # A window in one layer of two.
    "ministral_0": {
        "architectures": ["MinistralForCausalLM"], "model_type": "ministral", "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 24, "vocab_size": 199, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "sliding_window": 31,
        "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": False},
    # Scout: chunks, a layer without positions, norms after the rotation, experts in every second layer.
    "llama4_0": {
        "architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4",
        "text_config": {
            "model_type": "llama4_text", "hidden_size": 64, "intermediate_size": 48, "intermediate_size_mlp": 96,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
            "vocab_size": 199, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 64},
            "num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2,
            "no_rope_layers": [1, 0, 1], "attention_chunk_size": 37, "use_qk_norm": True,
            "attn_temperature_tuning": True, "floor_scale": 16, "attn_scale": 0.3, "tie_word_embeddings": False,
            "pad_token_id": 0}},
    # Without those norms and without temperatures; experts everywhere.
    "llama4_1": {
        "architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text", "hidden_size": 64,
        "intermediate_size": 32, "intermediate_size_mlp": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 24, "vocab_size": 193, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "num_local_experts": 4, "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1, "no_rope_layers": [1, 0], "attention_chunk_size": 41, "use_qk_norm": False,
        "attn_temperature_tuning": False, "tie_word_embeddings": False, "pad_token_id": 0},
    "glm4_0": {
        "architectures": ["Glm4ForCausalLM"], "model_type": "glm4", "hidden_size": 64, "intermediate_size": 80,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24,
        "attention_bias": True, "partial_rotary_factor": 0.5, "vocab_size": 223, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": False,
        "pad_token_id": 0},
    # Every kind of layer, as the first releases spell it. transformers clamps the step of Mamba-2 to time_step_min, the
    # original's kernels to time_step_limit, which is 0 and no limit here.
    # Experts come first, where rounding cannot make a near tie of the router's fall the other way.
    "nemotron_h_0": {
        "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "hidden_size": 64,
        "hybrid_override_pattern": "EM-M*", "num_hidden_layers": 5, "intermediate_size": 80, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 24, "mamba_num_heads": 4, "mamba_head_dim": 24, "n_groups": 2,
        "ssm_state_size": 40, "conv_kernel": 4, "use_conv_bias": True, "chunk_size": 32, "time_step_min": 1e-30,
        "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
        "moe_shared_expert_intermediate_size": 64, "routed_scaling_factor": 2.5, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": True, "vocab_size": 199, "max_position_embeddings": 512, "layer_norm_epsilon": 1e-5,
        "mlp_hidden_act": "relu2", "tie_word_embeddings": False},
    # Experts in a latent space, in groups; a narrow convolution without bias; steps that hit their lower limit.
    "nemotron_h_1": {
        "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "hidden_size": 64,
        "layers_block_type": ["moe", "linear_attention", "full_attention"], "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 40, "mamba_num_heads": 4, "mamba_head_dim": 24, "n_groups": 2,
        "ssm_state_size": 16, "conv_kernel": 3, "use_conv_bias": False, "chunk_size": 32, "time_step_min": 0.25,
        "time_step_limit": [0.25, 1e30], "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2,
        "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32, "moe_latent_size": 48,
        "norm_topk_prob": False, "vocab_size": 193, "max_position_embeddings": 512, "layer_norm_epsilon": 1e-5},
    # A dense layer among sparse ones.
    "qwen3_moe_0": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 64,
        "intermediate_size": 80, "moe_intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 2,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [1], "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 211,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False},
    # Weights as the softmax gives them.
    "qwen3_moe_1": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 48,
        "intermediate_size": 80, "moe_intermediate_size": 48, "num_experts": 5, "num_experts_per_tok": 3,
        "norm_topk_prob": False, "decoder_sparse_step": 2, "num_hidden_layers": 2, "num_attention_heads": 3,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 197, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True},
    # Experts stacked, their columns first; the head tied only by the text part's word, which does not count.
    "qwen3_vl_moe_0": {
        "architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen3_vl_moe_text", "hidden_size": 48, "intermediate_size": 80,
            "moe_intermediate_size": 32, "num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": True,
            "decoder_sparse_step": 1, "mlp_only_layers": [], "num_hidden_layers": 2, "num_attention_heads": 3,
            "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 197, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6, "rope_theta": 5000000.0, "tie_word_embeddings": True,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]}},
        "vision_config": {
            "model_type": "qwen3_vl_moe", "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16,
            "in_channels": 1, "patch_size": 2, "temporal_patch_size": 1, "num_position_embeddings": 4,
            "out_hidden_size": 48, "deepstack_visual_indexes": [0]}},
    "qwen3_vl_0": {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_vl_text", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
            "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 197,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 5000000.0,
            "tie_word_embeddings": True,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]}},
        "vision_config": {
            "model_type": "qwen3_vl", "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16,
            "in_channels": 1, "patch_size": 2, "temporal_patch_size": 1, "num_position_embeddings": 4,
            "out_hidden_size": 48, "deepstack_visual_indexes": [0]}},
    "mixtral_0": {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 48,
        "num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 203, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": 37, "tie_word_embeddings": False},
    # As in the published models both sizes are equal.
    "gpt_oss_0": {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 64,
        "num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 199, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "sliding_window": 33, "attention_bias": True,
        "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": False, "swiglu_limit": 7.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32,
                         "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}},
}

# Seeds follow from the names, but where a single position would lie so near a kink that rounding throws it far.
SEEDS = {"mixtral_0": 2, "nemotron_h_0": 4, "nemotron_h_1": 13, "qwen2_0": 12}

# Whose prompts are chosen such that rounding does not change a token's experts.
ROUTES_APART = ("qwen3_moe_0", "qwen3_moe_1", "qwen3_vl_moe_0", "mixtral_0", "gpt_oss_0", "llama4_0",
                "llama4_1")

def is_linear(name):
    return name.endswith(("_proj.weight", "_proj_with_mqa.weight", ".w1.weight", ".w2.weight", ".w3.weight"))


def published(weights, model_type):
    """Experts as checkpoints store them, one by one, where transformers stacks them, and names as they have them."""
    if model_type in STACKS_OF_COLUMNS:
        return weights
    out = {}
    for name, value in weights.items():
        if model_type == "nemotron_h":
            name = re.sub(r"^model\.", "backbone.", name)
        stem = name.rpartition(".")[0]
        if name.endswith("experts.gate_up_proj"):
            for e, both in enumerate(value):
                gate, up = both.chunk(2)
                out[f"{stem}.{e}.gate_proj.weight"] = gate.contiguous()
                out[f"{stem}.{e}.up_proj.weight"] = up.contiguous()
        elif name.endswith(("experts.up_proj", "experts.down_proj")):
            projection = name.rpartition(".")[2]
            out |= {f"{stem}.{e}.{projection}.weight": one.contiguous() for e, one in enumerate(value)}
        else:
            out[name] = value
    if model_type == "mixtral":
        return {in_mixtral(name): value for name, value in out.items()}
    return out


MIXTRAL_NAMES = {".mlp.": ".block_sparse_moe.", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def in_mixtral(name):
    if ".mlp." in name:
        for ours, theirs in MIXTRAL_NAMES.items():
            name = name.replace(ours, theirs)
    return name


def from_mixtral(name):
    if ".block_sparse_moe." in name:
        for ours, theirs in MIXTRAL_NAMES.items():
            name = name.replace(theirs, ours)
    return name


def in_memory(weights):
    """The inverse of published()."""
    out, stacks = {}, {}
    for name, value in weights.items():
        name = from_mixtral(re.sub(r"^backbone\.", "model.", name))
        expert = re.fullmatch(r"(.*experts)\.(\d+)\.(gate|up|down)_proj\.weight", name)
        if expert:
            stacks.setdefault(expert[1], {})[int(expert[2]), expert[3]] = value
        else:
            out[name] = value
    for stem, parts in stacks.items():
        def stack(projection):
            return torch.stack([parts[e, projection] for e in range(1 + max(e for e, _ in parts))])

        if (0, "gate") in parts:
            out[stem + ".gate_up_proj"] = torch.cat([stack("gate"), stack("up")], 1)
        else:
            out[stem + ".up_proj"] = stack("up")
        out[stem + ".down_proj"] = stack("down")
    return out


FORMATS = {
    "nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
    "mxfp4": {"quant_method": "mxfp4",
              "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
                                         "lm_head"]},
}


STACKS_OF_COLUMNS = ("llama4_text", "gpt_oss")


def is_stack_of_columns(name, model_type):
    """Llama 4's and gpt-oss's experts: (E, K, N) in one tensor."""
    return model_type in STACKS_OF_COLUMNS and name.endswith((".experts.gate_up_proj", ".experts.down_proj"))


def with_stacks_turned(weights):
    """Qwen3-VL-MoE's experts are published (E, K, N); in memory they are (E, N, K)."""
    return {name: value.transpose(1, 2).contiguous() if value.dim() == 3 else value for name, value in weights.items()}


def rule_of(name, shape, model_type, inputs, router=4, choice_bias=0.2):
    """Centre and deviation of a tensor, for lively logits. router, choice_bias: deviations of a router's logits and
    biases; inputs: the axis of K."""
    name = from_mixtral(name)
    if name.endswith(("norm.weight", "norm_f.weight", "mixer.D")):
        return 0 if model_type == "gemma3_text" else 1, 0.2
    if name.endswith("e_score_correction_bias"):
        return 0, choice_bias
    if name.endswith("dt_bias"):
        return -1, 1
    if name.endswith((".bias", "_bias")):
        return 0, 0.3
    if name.endswith(("mlp.gate.weight", "mlp.router.weight")):  # routes that no rounding changes
        return 0, router / shape[-1] ** 0.5
    if "embed_tokens" in name or "embeddings" in name:
        scaled_by_model = model_type == "gemma3_text"
        return 0, 2 / shape[1] ** 0.5 if scaled_by_model else 1
    if "lm_head" in name:
        return 0, 2 / shape[1] ** 0.5
    if len(shape) == 1:
        return 0, 1
    return 0, 1.5 / shape[inputs] ** 0.5


@torch.no_grad()
def log_probabilities(model, tokens):
    return torch.log_softmax(model(torch.tensor([tokens])).logits[0].float(), -1)


@torch.no_grad()
def greedy(model, tokens, count):
    """Continuation and, per token, by how much the best log-probability leads the second."""
    tokens, out, leads = list(tokens), [], []
    for _ in range(count):
        best = log_probabilities(model, tokens)[-1].topk(2)
        out.append(best.indices[0].item())
        leads.append(round((best.values[0] - best.values[1]).item(), 6))
        tokens.append(out[-1])
    return out, leads


def rounded(values):
    return [round(float(v), 6) for v in values]


def routing_margins(model, tokens):
    """Per position, by how much the router logits of a token's last expert lead the first one left out."""
    margins = torch.full((len(tokens),), float("inf"))
    top_k = model.config.get_text_config().num_experts_per_tok

    def measure(router, _, output):
        logits = output[1 if type(router).__name__ == "Llama4Router" else 0].float().sort(-1, descending=True).values
        margins.copy_(torch.minimum(margins, logits[:, top_k - 1] - logits[:, top_k]))

    hooks = [router.register_forward_hook(measure) for router in routers(model)]
    log_probabilities(model, tokens)
    for hook in hooks:
        hook.remove()
    return margins


def routers(model):
    return [module for module in model.modules() if type(module).__name__.endswith(("TopKRouter", "Llama4Router"))]


def make_prompts(model, generator, apart):
    """Random tokens; `apart`: such that roundings do not change a token's experts."""
    vocab = model.config.get_text_config().vocab_size
    prompts = [generator.integers(0, vocab, length).tolist() for length in PROMPT_LENGTHS]
    for tokens in prompts if apart else []:
        while True:
            # A token's margin depends on itself and the tokens before it.
            close = torch.nonzero(routing_margins(model, tokens) < PROMPT_MARGIN).flatten().tolist()
            if not close:
                continuation, _ = greedy(model, tokens, GREEDY)
                if routing_margins(model, tokens + continuation).min() >= GREEDY_MARGIN:
                    break
            tokens[close[0] if close else -1] = int(generator.integers(0, vocab))
    return prompts


def golden_of(full, half, prompts, greedy_count):
    """full: the original in FP32; half: in BF16; both already loaded."""
    entries = []
    for tokens in prompts:
        reference, yardstick = log_probabilities(full, tokens), log_probabilities(half, tokens)
        positions = []
        for i in range(len(tokens)):
            ids = reference[i].topk(5).indices.tolist()
            if i + 1 < len(tokens):
                ids = [tokens[i + 1]] + ids
            positions.append({"ids": ids, "fp32": rounded(reference[i, ids]), "bf16": rounded(yardstick[i, ids])})
        continuation, leads = greedy(full, tokens, greedy_count)
        entries.append({"tokens": tokens, "positions": positions, "greedy": continuation, "leads": leads})
    return {"prompts": entries}


def auto_class(config):
    return AutoModelForImageTextToText if config.model_type.startswith("qwen3_vl") else AutoModelForCausalLM


def build(config, weights, dtype):
    model = auto_class(config).from_config(config, attn_implementation="eager", dtype=dtype)
    model.load_state_dict({k: v.to(dtype) for k, v in in_memory(weights).items()})
    return model.eval()


def write_json(path, value):
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n")


def add_tensor(checkpoint, name, key, shape, stored_format, model_type, inputs, **spreads):
    """Tensor `key`, in the checkpoint under `name`, as that format stores it. Returns what it stands for."""
    centre, deviation = rule_of(key, shape, model_type, inputs, **spreads)
    is_stack = is_stack_of_columns(key, model_type)
    if is_stack and stored_format == "mxfp4":
        experts, k, n = shape
        codes = checkpoint.mxfp4([name + "_blocks", name + "_scales"], [experts, n, k], deviation)
        return convert_moe_packed_tensors(*map(torch.from_numpy, codes), dtype=torch.float32).numpy()
    if is_stack and stored_format == "nvfp4":
        return checkpoint.nvfp4([name, name + "_weight_scale", name + "_weight_scale_2"], shape, deviation, inputs)
    if is_linear(key) and stored_format == "nvfp4":
        return checkpoint.nvfp4([name, name + "_scale", name + "_scale_2"], shape, deviation)
    return checkpoint.floats(name, shape, centre, deviation)


def stored_shapes(config, stored_format):
    """Names and shapes as published."""
    with torch.device("meta"):
        tensors = auto_class(config).from_config(config).state_dict()
    if config.model_type == "qwen3_vl_moe" and stored_format == "bf16":
        tensors = with_stacks_turned(tensors)
    else:
        tensors = published(tensors, config.model_type)
    return {name: list(tensor.shape) for name, tensor in tensors.items()
            if not (config.tie_word_embeddings and name == "lm_head.weight")}


def make_checkpoint(seed, config, stored_format, prefix):
    """A checkpoint whose names begin with `prefix`, and its values by published name."""
    checkpoint, values = Checkpoint(seed), {}
    model_type = config.model_type
    for key, shape in stored_shapes(config, stored_format).items():
        is_stack = is_stack_of_columns(key, model_type) or model_type == "qwen3_vl_moe" and len(shape) == 3
        value = add_tensor(checkpoint, prefix + key, key, shape, stored_format, model_type, 1 if is_stack else -1)
        values[key] = torch.from_numpy(value).contiguous()
    if prefix:  # something of a vision tower
        checkpoint.floats("vision_tower.patch_embed.weight", [4, 4], 1, 0)
    if model_type == "qwen3_vl_moe" and stored_format == "bf16":
        values = with_stacks_turned(values)
    if config.tie_word_embeddings:
        values["lm_head.weight"] = next(v for k, v in values.items() if k.endswith("embed_tokens.weight"))
    return checkpoint, values


def make_tiny(name):
    config_json = CONFIGS[name]
    model_type = config_json["model_type"]
    is_whole = model_type.startswith("qwen3_vl")  # a multimodal model, not its text part alone
    is_wrapped = "text_config" in config_json and not is_whole
    text_json = config_json["text_config"] if is_wrapped else config_json
    fields = {k: v for k, v in text_json.items() if k != "model_type"}
    config = AutoConfig.for_model(text_json["model_type"], **copy.deepcopy(fields))
    seed = SEEDS.get(name, sum(map(ord, name)))
    for stored_format in ["bf16", "nvfp4"] + ["mxfp4"] * (model_type == "gpt_oss"):
        quantization = {}
        if stored_format in FORMATS:
            quantization = {"quantization_config": dict(FORMATS[stored_format])}
            if model_type == "nemotron_h":  # ModelOpt writes a damaged list
                quantization["quantization_config"]["ignore"] = ["lm_head.\0backbone.pt_name_sentinel"]
        checkpoint, values = make_checkpoint(seed, config, stored_format, "language_model." if is_wrapped else "")
        folder = GOLDEN / name / stored_format
        checkpoint.write(folder)
        write_json(folder / "config.json", config_json | quantization)
        full, half = build(config, values, torch.float32), build(config, values, torch.bfloat16)
        prompts = make_prompts(full, np.random.default_rng(seed), name in ROUTES_APART)
        write_json(folder / "golden.json", golden_of(full, half, prompts, GREEDY))
    print(name, "done")


SMOLLM2_PROMPTS = [
    "The capital of France is", "Gravity is the force that", "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ", "The three primary colours are", "Water boils at a temperature of",
    "In 1969, the first humans walked on the", "To bake bread you need flour, water, salt and",
    "The opposite of hot is", "Dear Sir or Madam,\n\nI am writing to",
]


def make_smollm2(path):
    path = pathlib.Path(path)
    load = dict(gguf_file=path.name, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    full = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **load).eval()
    half = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **load).to(torch.bfloat16).eval()
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in SMOLLM2_PROMPTS]
    golden = golden_of(full, half, prompts, 32)
    for entry, text in zip(golden["prompts"], SMOLLM2_PROMPTS):
        entry["text"] = text
    folder = GOLDEN / "smollm2"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "golden.json", golden)
    print("smollm2 done")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one tiny config by name")
    parser.add_argument("--smollm2", help="the real SmolLM2 as GGUF")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if not arguments.smollm2:
        for golden_name in [arguments.only] if arguments.only else CONFIGS:
            make_tiny(golden_name)
    else:
        make_smollm2(arguments.smollm2)
