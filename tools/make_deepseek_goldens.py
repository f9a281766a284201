#!/usr/bin/env python3
"""Makes tests/golden/{deepseek_v2,deepseek_v3,glm4_moe}_0, as make_model_goldens.py does, for DeepSeek's experts.

Prompts are such that no router is undecided (settled_prompts.py), and a greedy continuation ends where one is.
DeepSeek-V3 is stored in FP8 blocks, too, and with its MTP module, whose golden, draft.json, is of a derivation in NumPy
(deepseek_draft.py).

Needs what make_model_goldens.py needs. Run from the repository root:
  tools/make_deepseek_goldens.py [--only deepseek_v3_0]
"""
import argparse
import copy
import functools
import json

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import deepseek_draft
import settled_prompts
from golden_weights import Checkpoint
from make_model_goldens import FORMATS, GOLDEN, GREEDY, PROMPT_LENGTHS, add_tensor, golden_of, in_memory, is_linear
from make_model_goldens import rule_of, stored_shapes, write_json

DRAFT_PROMPTS = (5, 40)
FURTHER_DRAFTS = 2
FP8_BLOCK = 32
SEEDS = {"deepseek_v2_0": 1, "glm4_moe_0": 3}  # where int8 activations throw no position far

CONFIGS = {
    # As DeepSeek-V2: groups by their best expert, no renormalisation.
    "deepseek_v2_0": {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_size": 64,
        "intermediate_size": 80, "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 32, "qk_nope_head_dim": 20,
        "qk_rope_head_dim": 12, "v_head_dim": 24, "n_routed_experts": 12, "n_shared_experts": 2,
        "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy",
        "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 2.0,
        "first_k_dense_replace": 1, "moe_layer_freq": 1, "vocab_size": 229, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10000,
        "rope_scaling": {"type": "yarn", "factor": 8, "original_max_position_embeddings": 64, "beta_fast": 32,
                         "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707},
        "tie_word_embeddings": False},
    "deepseek_v3_0": {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 64,
        "intermediate_size": 80, "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 5,
        "num_key_value_heads": 5, "q_lora_rank": 48, "kv_lora_rank": 32, "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 12, "v_head_dim": 16, "n_routed_experts": 16, "n_shared_experts": 1, "n_group": 4,
        "topk_group": 2, "num_experts_per_tok": 3, "first_k_dense_replace": 1, "moe_layer_freq": 1,
        "norm_topk_prob": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 1, "vocab_size": 251, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "rope_theta": 10000,
        "rope_scaling": {"type": "yarn", "factor": 8, "original_max_position_embeddings": 64, "beta_fast": 32,
                         "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
        "tie_word_embeddings": False},
    "glm4_moe_0": {
        "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "hidden_size": 64,
        "intermediate_size": 80, "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 24, "attention_bias": True, "use_qk_norm": True,
        "partial_rotary_factor": 0.5, "n_routed_experts": 10, "n_shared_experts": 1, "num_experts_per_tok": 3,
        "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.5,
        "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "vocab_size": 241,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 1000000,
        "rope_scaling": None, "tie_word_embeddings": False},
}


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]}
STORED = {"deepseek_v2_0": ["bf16", "nvfp4"], "deepseek_v3_0": ["bf16", "nvfp4", "fp8"], "glm4_moe_0": ["bf16", "nvfp4"]}
ROUTERS = {"router": 6, "choice_bias": 0.5}  # with clear favourites


def has_draft(fields):
    return fields.get("num_nextn_predict_layers", 0) > 0


def make_checkpoint(seed, config, fields, stored_format):
    """A checkpoint and its values by name."""
    checkpoint, values = Checkpoint(seed), {}
    shapes = stored_shapes(config, stored_format)
    if has_draft(fields):
        shapes |= deepseek_draft.shapes(fields)
    for name, shape in shapes.items():
        if stored_format == "fp8" and is_linear(name):
            _, deviation = rule_of(name, shape, config.model_type, -1)
            value = checkpoint.fp8_blocks([name, name + "_scale_inv"], shape, deviation, FP8_BLOCK)
        else:
            value = add_tensor(checkpoint, name, name, shape, stored_format, config.model_type, -1, **ROUTERS)
        values[name] = torch.from_numpy(value)
    return checkpoint, values


def build(config, weights, dtype):
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    behind = f"model.layers.{config.num_hidden_layers}."  # an MTP module, which the original leaves alone
    weights = {k: v for k, v in weights.items() if not k.startswith(behind)}
    model.load_state_dict({k: v.to(dtype) for k, v in in_memory(weights).items()})
    return model.eval()


@torch.no_grad()
def target_run(model, tokens):
    """Hidden states behind the final norm (n, D), and the token that follows."""
    hidden = model.model(torch.tensor([tokens])).last_hidden_state[0]
    return hidden.float().numpy(), int(model.lm_head(hidden[-1]).argmax())


def with_settled_greedy(golden, routers):
    """Greedy tokens on which the routers are undecided end a continuation."""
    for prompt in golden["prompts"]:
        for i in range(len(prompt["greedy"])):
            if not routers.run(prompt["tokens"] + prompt["greedy"][:i + 1])[1]:
                prompt["greedy"], prompt["leads"] = prompt["greedy"][:i + 1], prompt["leads"][:i + 1]
                break
    return golden


def write_goldens(folder, config, fields, weights, prompts):
    full, half = build(config, weights, torch.float32), build(config, weights, torch.bfloat16)
    # Its own model: routers disturb what runs through them.
    routers = settled_prompts.Routers(build(config, weights, torch.float32))
    golden = with_settled_greedy(golden_of(full, half, prompts, GREEDY), routers)
    for prompt in golden["prompts"]:
        prompt["undecided"] = routers.undecided(prompt["tokens"])  # positions that say nothing
    write_json(folder / "golden.json", golden)
    if not has_draft(fields) or folder.name == "fp8":
        return
    targets = [functools.partial(target_run, model) for model in (full, half)]
    short = [tokens for tokens in prompts if len(tokens) in DRAFT_PROMPTS]
    write_json(folder / "draft.json", deepseek_draft.golden(fields, weights, targets, short, FURTHER_DRAFTS))


def make_prompts(config, fields, seed, variants):
    """variants: weights of every stored format: the same prompts must settle the routers of all of them."""
    generator = np.random.default_rng(seed)
    routers = [settled_prompts.Routers(build(config, weights, torch.float32)) for weights in variants]
    prompts = []
    for length in PROMPT_LENGTHS:
        heads = []
        if has_draft(fields) and length in DRAFT_PROMPTS:
            heads = [deepseek_draft.DraftHead(fields, weights, deepseek_draft.exact) for weights in variants[:2]]
        for head in heads:
            head.noise = np.random.default_rng(0), settled_prompts.NOISE
        prompts.append(
            settled_prompts.settled_prompt(routers, heads, config.vocab_size, length, 1 + FURTHER_DRAFTS, generator))
    return prompts


def kept_prompts(name):
    golden = json.loads((GOLDEN / name / STORED[name][0] / "golden.json").read_text())
    return [prompt["tokens"] for prompt in golden["prompts"]]


def make(name, keep_prompts):
    fields = CONFIGS[name]
    model_type = fields["model_type"]
    config = AutoConfig.for_model(model_type, **copy.deepcopy({k: v for k, v in fields.items() if k != "model_type"}))
    seed = SEEDS.get(name, sum(map(ord, name)))
    variants = {stored_format: make_checkpoint(seed, config, fields, stored_format) for stored_format in STORED[name]}
    prompts = kept_prompts(name) if keep_prompts else make_prompts(
        config, fields, seed, [values for _, values in variants.values()])
    for stored_format, (checkpoint, values) in variants.items():
        folder = GOLDEN / name / stored_format
        checkpoint.write(folder)
        quantization = (FORMATS | {"fp8": FP8}).get(stored_format)
        write_json(folder / "config.json", fields | ({"quantization_config": quantization} if quantization else {}))
        write_goldens(folder, config, fields, values, prompts)
    print(name, "done")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one model by name")
    parser.add_argument("--keep-prompts", action="store_true", help="those of the goldens that are there: the search takes long")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for golden_name in [arguments.only] if arguments.only else CONFIGS:
        make(golden_name, arguments.keep_prompts)
