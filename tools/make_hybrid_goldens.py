#!/usr/bin/env python3
"""Makes tests/golden/qwen3_{next,5,5_moe}_0: tiny Qwen hybrids, their MTP module included.

golden.json is what make_model_goldens.py writes for other models, from transformers. transformers has no MTP module, so
draft.json comes from a derivation of its own, in NumPy over the target's hidden states: log-probabilities of a first
pass over a prompt and of two further drafts, in FP32 and, as the yardstick, with every intermediate rounded to BF16.

The BF16 checkpoints are as published: experts one by one (Qwen3-Next) or stacked (Qwen3.5), the text model of a
multimodal wrapper under model.language_model. (Qwen3.5). The NVFP4 ones follow the exports: experts one by one, the
input projections of the mixers and the whole MTP module in BF16, scales of an FP8 cache (Qwen3-Next).

Needs what make_model_goldens.py needs. Run from the repository root:
  tools/make_hybrid_goldens.py [--only qwen3_next_0]
"""
import argparse

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from golden_weights import Checkpoint
from make_model_goldens import GOLDEN, GREEDY, PROMPT_LENGTHS, golden_of, rounded, write_json

DRAFT_PROMPTS = (5, 40)
FURTHER_DRAFTS = 2

NEXT = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "partial_rotary_factor": 0.25, "rope_theta": 10000000.0,
    "vocab_size": 211, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 24, "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 48, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [0]}

ROPE = {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25, "mrope_interleaved": True,
        "mrope_section": [2, 1, 1]}

DENSE = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "full_attention_interval": 2,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32, "rope_parameters": ROPE, "vocab_size": 223,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "linear_num_key_heads": 2,
    "linear_num_value_heads": 6, "linear_key_head_dim": 32, "linear_value_head_dim": 24, "linear_conv_kernel_dim": 4,
    "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False, "mamba_ssm_dtype": "float32"}

MOE = {
    "hidden_size": 48, "num_hidden_layers": 3, "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "rope_parameters": ROPE, "vocab_size": 199,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "linear_num_key_heads": 1,
    "linear_num_value_heads": 4, "linear_key_head_dim": 48, "linear_value_head_dim": 20, "linear_conv_kernel_dim": 4,
    "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 32,
    "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False}

# Seeds with which no token has two experts on the border of the chosen ones that are both near to each other and heavy.
SEEDS = {"qwen3_next_0": 11, "qwen3_5_0": 1, "qwen3_5_moe_0": 3}

# name: (config.json, the text model's type, the text model's fields)
MODELS = {
    "qwen3_next_0": ({"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"} | NEXT, "qwen3_next", NEXT),
    "qwen3_5_0": ({"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
                   "tie_word_embeddings": True, "text_config": {"model_type": "qwen3_5_text"} | DENSE,
                   "vision_config": {"depth": 1}}, "qwen3_5_text", DENSE),
    "qwen3_5_moe_0": ({"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe",
                       "tie_word_embeddings": False, "text_config": {"model_type": "qwen3_5_moe_text"} | MOE,
                       "vision_config": {"depth": 1}}, "qwen3_5_moe_text", MOE),
}

FORMATS = {"bf16": {},
           "nvfp4": {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4",
                                             "ignore": ["lm_head", "mtp.layers.0*"]}}}


# ---- weights

def draft_shapes(fields):
    """Names and shapes of the MTP module: one layer of full attention, experts if the model has any."""
    d, dh = fields["hidden_size"], fields["head_dim"]
    q, kv = fields["num_attention_heads"] * dh, fields["num_key_value_heads"] * dh
    layer = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,),
             "self_attn.q_proj.weight": (2 * q, d), "self_attn.k_proj.weight": (kv, d),
             "self_attn.v_proj.weight": (kv, d), "self_attn.o_proj.weight": (d, q),
             "self_attn.q_norm.weight": (dh,), "self_attn.k_norm.weight": (dh,)}
    if "num_experts" in fields:
        e, f, shared = fields["num_experts"], fields["moe_intermediate_size"], fields["shared_expert_intermediate_size"]
        layer |= {"mlp.gate.weight": (e, d), "mlp.shared_expert_gate.weight": (1, d),
                  "mlp.experts.gate_up_proj": (e, 2 * f, d), "mlp.experts.down_proj": (e, d, f),
                  "mlp.shared_expert.gate_proj.weight": (shared, d), "mlp.shared_expert.up_proj.weight": (shared, d),
                  "mlp.shared_expert.down_proj.weight": (d, shared)}
    else:
        f = fields["intermediate_size"]
        layer |= {"mlp.gate_proj.weight": (f, d), "mlp.up_proj.weight": (f, d), "mlp.down_proj.weight": (d, f)}
    return {"mtp.fc.weight": (d, 2 * d), "mtp.pre_fc_norm_embedding.weight": (d,), "mtp.pre_fc_norm_hidden.weight": (d,),
            "mtp.norm.weight": (d,)} | {"mtp.layers.0." + name: shape for name, shape in layer.items()}


def rule_of(name, shape):
    """Centre and deviation, for lively logits, states that last, routers with clear favourites."""
    if name.endswith("linear_attn.norm.weight"):
        return 1, 0.2
    if "norm" in name:
        return 0, 0.2
    if name.endswith("A_log"):
        return -2, 1
    if name.endswith("dt_bias"):
        return 0, 0.5
    if "conv1d" in name:
        return 0, 0.6
    if "embed_tokens" in name:
        return 0, 1
    if "lm_head" in name:
        return 0, 2 / shape[1] ** 0.5
    if name.endswith("mlp.gate.weight"):
        return 0, 8 / shape[1] ** 0.5
    return 0, 1.2 / shape[-1] ** 0.5


def expert_names(name, shape):
    """The tensors of single experts and their shapes, in the order of a stacked tensor's rows."""
    prefix, stacked = name.rsplit(".", 1)
    experts, rows, columns = shape
    projections = ["down_proj"] if stacked == "down_proj" else ["gate_proj", "up_proj"]
    return {f"{prefix}.{expert}.{projection}.weight": [rows // len(projections), columns]
            for expert in range(experts) for projection in projections}


def is_stacked(name):
    return name.endswith(("experts.gate_up_proj", "experts.down_proj"))


def is_quantised(name):
    module = name.removesuffix(".weight").rsplit(".", 1)[-1]
    return module.endswith("_proj") and module not in ("q_proj", "k_proj", "v_proj") and not name.startswith("mtp.")


def stored_name(name, model):
    if model == "qwen3_next_0" or not name.startswith("model."):
        return name
    return "model.language_model." + name.removeprefix("model.")


def make_checkpoint(seed, shapes, model, stored_format):
    """A checkpoint, and its values by the names of `shapes`, which are transformers' and the MTP module's."""
    checkpoint, values = Checkpoint(seed), {}
    for name, shape in shapes.items():
        quantise = stored_format == "nvfp4" and is_quantised(name)
        one_by_one = is_stacked(name) and (quantise or model == "qwen3_next_0")
        pieces = []
        for piece, piece_shape in (expert_names(name, shape) if one_by_one else {name: list(shape)}).items():
            key, (centre, deviation) = stored_name(piece, model), rule_of(piece, piece_shape)
            pieces.append(checkpoint.nvfp4([key, key + "_scale", key + "_scale_2"], piece_shape, deviation)
                          if quantise else checkpoint.floats(key, piece_shape, centre, deviation))
        values[name] = torch.from_numpy(np.concatenate(pieces).reshape(shape))
        if stored_format == "nvfp4" and model == "qwen3_next_0" and name.startswith("model.") and "k_proj" in name:
            attention = name.removesuffix("k_proj.weight")
            checkpoint.floats(attention + "k_proj.k_scale", [], 0.031, 0, "F32")
            checkpoint.floats(attention + "v_proj.v_scale", [], 0.017, 0, "F32")
    if model != "qwen3_next_0":  # of the vision tower, which the text model must know and leave alone
        checkpoint.floats("model.visual.merger.norm.weight", [8], 1, 0)
    return checkpoint, values


# ---- the draft head in NumPy

def bf16(x):
    """Rounded to the nearest BF16 number, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class DraftHead:
    def __init__(self, fields, weights, round_to):
        self.fields, self.round = fields, round_to
        self.weights = {name: value.float().numpy() for name, value in weights.items()
                        if name.startswith("mtp.") or "embed_tokens" in name or "lm_head" in name}
        self.keys, self.values = {}, {}  # by position

    def linear(self, x, name):
        return self.round(x @ self.weights[name].T)

    def norm(self, x, name):
        inverse = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.fields["rms_norm_eps"]))
        return self.round(x * inverse * (1 + self.weights[name]))

    def rotate(self, x, position):
        """x (heads, Dh): the first dimensions of each head turn, in pairs (i, i + half)."""
        rope = self.fields.get("rope_parameters", self.fields)
        dims = int(self.fields["head_dim"] * rope["partial_rotary_factor"])
        half = dims // 2
        angle = (position / rope["rope_theta"] ** (np.arange(half) / half)).astype(np.float32)
        cos, sin = self.round(np.cos(angle)), self.round(np.sin(angle))
        first, second = x[:, :half], x[:, half:dims]
        turned = [self.round(self.round(first * cos) - self.round(second * sin)),
                  self.round(self.round(second * cos) + self.round(first * sin))]
        return np.concatenate(turned + [x[:, dims:]], 1)

    def attention(self, x, first):
        heads, kv_heads, dh = (self.fields[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        prefix = "mtp.layers.0.self_attn."
        query_gate = self.linear(x, prefix + "q_proj.weight").reshape(-1, heads, 2, dh)
        keys = self.norm(self.linear(x, prefix + "k_proj.weight").reshape(-1, kv_heads, dh), prefix + "k_norm.weight")
        values = self.linear(x, prefix + "v_proj.weight").reshape(-1, kv_heads, dh)
        rows = []
        for i in range(len(x)):
            position = first + i
            self.keys[position], self.values[position] = self.rotate(keys[i], position), values[i]
            query = self.rotate(self.norm(query_gate[i, :, 0], prefix + "q_norm.weight"), position)
            row = []
            for head in range(heads):
                group = head * kv_heads // heads
                k = np.stack([self.keys[p][group] for p in range(position + 1)])
                v = np.stack([self.values[p][group] for p in range(position + 1)])
                scores = self.round(self.round(k @ query[head]) * np.float32(dh**-0.5))
                shares = np.exp(scores - scores.max())
                row.append(self.round(self.round(shares / shares.sum()) @ v))
            rows.append(np.concatenate(row))
        gated = self.round(np.stack(rows) * self.round(sigmoid(query_gate[:, :, 1].reshape(len(x), -1))))
        return self.linear(gated, prefix + "o_proj.weight")

    def gated_unit(self, gate, up):
        return self.round(self.round(gate * sigmoid(gate)) * up)

    def feed_forward(self, x, prefix):
        hidden = self.gated_unit(self.linear(x, prefix + "gate_proj.weight"), self.linear(x, prefix + "up_proj.weight"))
        return self.linear(hidden, prefix + "down_proj.weight")

    def experts(self, x, prefix):
        logits = self.linear(x, prefix + "gate.weight")
        out = []
        for i, row in enumerate(x):
            chosen = np.argsort(-logits[i], kind="stable")[:self.fields["num_experts_per_tok"]]
            shares = np.exp(logits[i, chosen] - logits[i].max())
            total = np.zeros_like(row)
            for expert, share in zip(chosen, self.round(shares / shares.sum())):
                gate, up = np.split(self.round(self.weights[prefix + "experts.gate_up_proj"][expert] @ row), 2)
                down = self.round(self.weights[prefix + "experts.down_proj"][expert] @ self.gated_unit(gate, up))
                total = self.round(total + self.round(down * share))
            out.append(total)
        shared = self.feed_forward(x, prefix + "shared_expert.")
        gate = self.round(sigmoid(self.linear(x, prefix + "shared_expert_gate.weight")))
        return self.round(np.stack(out) + self.round(gate * shared))

    def forward(self, tokens, hidden, first):
        """tokens (n), hidden (n, D) of positions first.. → (log-probabilities (n, V), hidden (n, D))."""
        embedded = self.norm(self.weights["model.embed_tokens.weight"][tokens], "mtp.pre_fc_norm_embedding.weight")
        continued = self.norm(hidden, "mtp.pre_fc_norm_hidden.weight")
        x = self.linear(np.concatenate([embedded, continued], 1), "mtp.fc.weight")
        layer = "mtp.layers.0."
        x = self.round(x + self.attention(self.norm(x, layer + "input_layernorm.weight"), first))
        mixer = self.experts if "num_experts" in self.fields else self.feed_forward
        x = self.round(x + mixer(self.norm(x, layer + "post_attention_layernorm.weight"), layer + "mlp."))
        x = self.norm(x, "mtp.norm.weight")
        logits = self.linear(x, "lm_head.weight").astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), x


@torch.no_grad()
def target_run(model, tokens):
    """Hidden states behind the final norm (n, D), and the token that follows."""
    hidden = model.model(torch.tensor([tokens])).last_hidden_state[0]
    return hidden.float().numpy(), int(model.lm_head(hidden[-1]).argmax())


def draft_golden(fields, weights, full, half, prompts):
    entries = []
    for tokens in prompts:
        heads = [DraftHead(fields, weights, lambda x: np.asarray(x, np.float32)), DraftHead(fields, weights, bf16)]
        (hidden, following), (half_hidden, _) = target_run(full, tokens), target_run(half, tokens)
        hiddens, first, inputs, passes = [hidden, half_hidden], 0, tokens[1:] + [following], []
        for _ in range(1 + FURTHER_DRAFTS):
            runs = [head.forward(inputs, h, first) for head, h in zip(heads, hiddens)]
            positions = []
            for reference, yardstick in zip(runs[0][0], runs[1][0]):
                ids = np.argsort(-reference, kind="stable")[:5]
                positions.append({"ids": ids.tolist(), "fp32": rounded(reference[ids]), "bf16": rounded(yardstick[ids])})
            passes.append({"first": first, "tokens": inputs, "positions": positions})
            first += len(inputs)
            inputs, hiddens = [positions[-1]["ids"][0]], [run[1][-1:] for run in runs]
        entries.append({"tokens": tokens, "passes": passes})
    return {"prompts": entries}


# ---- putting it together

def build(config, weights, dtype):
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype,
                                             experts_implementation="eager")
    model.load_state_dict({k: v.to(dtype) for k, v in weights.items() if not k.startswith("mtp.")})
    return model.eval()


def write_model(folder, config_json, config, fields, checkpoint, weights, prompts):
    checkpoint.write(folder)
    write_json(folder / "config.json", config_json)
    full, half = build(config, weights, torch.float32), build(config, weights, torch.bfloat16)
    write_json(folder / "golden.json", golden_of(full, half, prompts, GREEDY))
    short = [tokens for tokens in prompts if len(tokens) in DRAFT_PROMPTS]
    write_json(folder / "draft.json", draft_golden(fields, weights, full, half, short))


def make(name):
    config_json, model_type, fields = MODELS[name]
    config = AutoConfig.for_model(model_type, **fields)
    seed = SEEDS[name]
    shapes = {n: tuple(p.shape) for n, p in AutoModelForCausalLM.from_config(config).state_dict().items()}
    generator = np.random.default_rng(seed)
    prompts = [generator.integers(0, fields["vocab_size"], length).tolist() for length in PROMPT_LENGTHS]
    tied = fields["tie_word_embeddings"]
    shapes = {k: v for k, v in (shapes | draft_shapes(fields)).items() if not (tied and k == "lm_head.weight")}
    for stored_format, quantization in FORMATS.items():
        checkpoint, values = make_checkpoint(seed, shapes, name, stored_format)
        if tied:
            values["lm_head.weight"] = values["model.embed_tokens.weight"]
        write_model(GOLDEN / name / stored_format, config_json | quantization, config, fields, checkpoint, values, prompts)
    print(name, "done")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one model by name")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for golden_name in [arguments.only] if arguments.only else MODELS:
        make(golden_name)
