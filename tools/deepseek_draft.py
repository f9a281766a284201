"""DeepSeek-V3's MTP module in NumPy, from the technical report and over the target's hidden states: an oracle for draft
heads that owes nothing to the code it judges. Keys and values are expanded per head. Used by make_deepseek_goldens.py.
"""
import math

import numpy as np


def exact(x):
    return np.asarray(x, np.float32)


def bf16(x):
    """Rounded to the nearest BF16 number, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def prefix_of(fields):
    return f"model.layers.{fields['num_hidden_layers']}."


def shapes(fields):
    """Names, as published, and shapes of the module's tensors."""
    d, heads = fields["hidden_size"], fields["num_attention_heads"]
    nope, rope, v = fields["qk_nope_head_dim"], fields["qk_rope_head_dim"], fields["v_head_dim"]
    q_rank, rank = fields["q_lora_rank"], fields["kv_lora_rank"]
    f, experts = fields["moe_intermediate_size"], fields["n_routed_experts"]
    shared = f * fields["n_shared_experts"]
    out = {"enorm.weight": (d,), "hnorm.weight": (d,), "eh_proj.weight": (d, 2 * d), "shared_head.norm.weight": (d,),
           "input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,),
           "self_attn.q_a_proj.weight": (q_rank, d), "self_attn.q_a_layernorm.weight": (q_rank,),
           "self_attn.q_b_proj.weight": (heads * (nope + rope), q_rank),
           "self_attn.kv_a_proj_with_mqa.weight": (rank + rope, d), "self_attn.kv_a_layernorm.weight": (rank,),
           "self_attn.kv_b_proj.weight": (heads * (nope + v), rank), "self_attn.o_proj.weight": (d, heads * v),
           "mlp.gate.weight": (experts, d), "mlp.gate.e_score_correction_bias": (experts,)}
    for part, width in [(f"experts.{e}", f) for e in range(experts)] + [("shared_experts", shared)]:
        out |= {f"mlp.{part}.gate_proj.weight": (width, d), f"mlp.{part}.up_proj.weight": (width, d),
                f"mlp.{part}.down_proj.weight": (d, width)}
    return {prefix_of(fields) + name: shape for name, shape in out.items()}


def frequencies(fields):
    """YaRN: dimensions that turn often in the original context keep their speed, slow ones are interpolated."""
    dims, theta, scaling = fields["qk_rope_head_dim"], fields["rope_theta"], fields["rope_scaling"]
    plain = theta ** (-np.arange(0, dims, 2) / dims)
    context = scaling["original_max_position_embeddings"]

    def dimension(turns):
        """That turns so often in the original context."""
        return dims * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling["beta_fast"])), 0)
    high = min(math.ceil(dimension(scaling["beta_slow"])), dims - 1)
    slow = np.clip((np.arange(dims // 2) - low) / max(high - low, 0.001), 0, 1)
    return (plain * (1 - slow) + plain / scaling["factor"] * slow).astype(np.float32)


class DraftHead:
    """round_to: exact, or bf16 to round every intermediate as a BF16 implementation does."""

    def __init__(self, fields, weights, round_to):
        self.fields, self.round, self.prefix = fields, round_to, prefix_of(fields)
        wanted = (self.prefix, "model.embed_tokens.", "lm_head.")
        self.weights = {name: value.float().numpy() for name, value in weights.items() if name.startswith(wanted)}
        self.frequencies = frequencies(fields)
        scaling = fields["rope_scaling"]
        temperature = 0.1 * scaling["mscale_all_dim"] * math.log(scaling["factor"]) + 1
        self.scale = np.float32(temperature**2 / math.sqrt(fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"]))
        self.keys, self.values = [], []  # by position: (heads, N + P) and (heads, V)
        self.noise = None  # a generator and a size: notes in `settled` whether a router's choice survives it
        self.settled = True

    def snapshot(self):
        return list(self.keys), list(self.values)

    def restore(self, state):
        self.keys, self.values = (list(part) for part in state)

    def linear(self, x, name):
        return self.round(x @ self.weights[self.prefix + name + ".weight"].T)

    def norm(self, x, name, eps):
        inverse = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps))
        return self.round(self.round(x * inverse) * self.weights[self.prefix + name + ".weight"])

    def layer_norm(self, x, name):
        return self.norm(x, name, self.fields["rms_norm_eps"])

    def rotate(self, x, position):
        """Pairs (2i, 2i + 1) of the last axis turn in place."""
        angle = np.float32(position) * self.frequencies
        cos, sin = self.round(np.cos(angle)), self.round(np.sin(angle))
        out = np.empty_like(x)
        out[..., 0::2] = self.round(self.round(x[..., 0::2] * cos) - self.round(x[..., 1::2] * sin))
        out[..., 1::2] = self.round(self.round(x[..., 1::2] * cos) + self.round(x[..., 0::2] * sin))
        return out

    def attention(self, x, first):
        heads, nope, v = (self.fields[k] for k in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"))
        rank = self.fields["kv_lora_rank"]
        q_latent = self.norm(self.linear(x, "self_attn.q_a_proj"), "self_attn.q_a_layernorm", 1e-6)
        queries = self.linear(q_latent, "self_attn.q_b_proj").reshape(len(x), heads, -1)
        latent = self.linear(x, "self_attn.kv_a_proj_with_mqa")
        expanded = self.linear(self.norm(latent[:, :rank], "self_attn.kv_a_layernorm", 1e-6), "self_attn.kv_b_proj")
        expanded = expanded.reshape(len(x), heads, nope + v)
        rows = []
        for i in range(len(x)):
            shared = self.rotate(latent[i, rank:], first + i)
            self.keys.append(np.concatenate([expanded[i, :, :nope], np.tile(shared, (heads, 1))], 1))
            self.values.append(expanded[i, :, nope:])
            query = np.concatenate([queries[i, :, :nope], self.rotate(queries[i, :, nope:], first + i)], 1)
            scores = self.round(self.round(np.einsum("phd,hd->hp", np.stack(self.keys), query)) * self.scale)
            shares = np.exp(scores - scores.max(1, keepdims=True))
            shares = self.round(shares / shares.sum(1, keepdims=True))
            rows.append(self.round(np.einsum("hp,phd->hd", shares, np.stack(self.values))).reshape(-1))
        return self.linear(np.stack(rows), "self_attn.o_proj")

    def feed_forward(self, x, prefix):
        gate = self.linear(x, prefix + "gate_proj")
        activated = self.round(self.round(gate * sigmoid(gate)) * self.linear(x, prefix + "up_proj"))
        return self.linear(activated, prefix + "down_proj")

    def route(self, x):
        """Experts of one token and their weights."""
        chosen, scores = self.choose(x)
        if self.noise:
            generator, size = self.noise
            for _ in range(8):
                other, _ = self.choose(x * (1 + size * generator.standard_normal(x.shape, np.float32)))
                self.settled = self.settled and set(other) == set(chosen)
        return chosen, scores[chosen] / scores[chosen].sum() * self.fields["routed_scaling_factor"]

    def choose(self, x):
        groups, kept, top = (self.fields[k] for k in ("n_group", "topk_group", "num_experts_per_tok"))
        scores = sigmoid(self.weights[self.prefix + "mlp.gate.weight"] @ x)
        choice = scores + self.weights[self.prefix + "mlp.gate.e_score_correction_bias"]
        by_group = choice.reshape(groups, -1)
        best = np.argsort(-np.sort(by_group, 1)[:, -2:].sum(1), kind="stable")[:kept]
        open_groups = np.isin(np.arange(groups), best)[:, None]
        chosen = np.argsort(-np.where(open_groups, by_group, -np.inf).reshape(-1), kind="stable")[:top]
        return chosen, scores

    def experts(self, x):
        out = self.feed_forward(x, "mlp.shared_experts.")
        routed = []
        for row in x:
            parts = [self.round(self.feed_forward(row, f"mlp.experts.{e}.") * w) for e, w in zip(*self.route(row))]
            routed.append(self.round(sum(parts)))
        return self.round(np.stack(routed) + out)

    def forward(self, tokens, hidden, first):
        """tokens (n), hidden (n, D) of positions first.. → log-probabilities (n, V), and what a next pass takes."""
        assert first == len(self.keys)
        embedded = self.layer_norm(self.weights["model.embed_tokens.weight"][tokens], "enorm")
        x = self.linear(np.concatenate([embedded, self.layer_norm(hidden, "hnorm")], 1), "eh_proj")
        x = self.round(x + self.attention(self.layer_norm(x, "input_layernorm"), first))
        x = self.round(x + self.experts(self.layer_norm(x, "post_attention_layernorm")))
        normed = self.layer_norm(x, "shared_head.norm")
        logits = self.round(normed @ self.weights["lm_head.weight"].T).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), x


def golden(fields, weights, targets, prompts, further):
    """A first pass over each prompt, then `further` drafts that continue from the module's own output.

    targets: functions from tokens to hidden states behind the final norm (n, D) and the next token, in FP32 and in BF16.
    """
    entries = []
    for tokens in prompts:
        first, passes = 0, []
        runs = [target(tokens) for target in targets]
        hidden, tokens_in = [h for h, _ in runs], tokens[1:] + [runs[0][1]]
        heads = [DraftHead(fields, weights, rounding) for rounding in (exact, bf16)]
        for _ in range(1 + further):
            results = [head.forward(tokens_in, h, first) for head, h in zip(heads, hidden)]
            positions = []
            for reference, yardstick in zip(results[0][0], results[1][0]):
                ids = np.argsort(-reference, kind="stable")[:5]
                positions.append({"ids": ids.tolist(), "fp32": [round(float(x), 6) for x in reference[ids]],
                                  "bf16": [round(float(x), 6) for x in yardstick[ids]]})
            passes.append({"first": first, "tokens": tokens_in, "positions": positions})
            first += len(tokens_in)
            tokens_in, hidden = [positions[-1]["ids"][0]], [x[-1:] for _, x in results]
        entries.append({"tokens": tokens, "passes": passes})
    return {"prompts": entries}
