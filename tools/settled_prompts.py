"""Random prompts on which no router is undecided, so that goldens of mixtures judge arithmetic and not luck: another
order of summation must not send a token to another expert. Used by make_deepseek_goldens.py.
"""
import torch

NOISE = 0.085  # of what a router sees: what BF16 activations do where attention is sharp
DRAWS = 8
MORE_DRAWS, MORE_NOISE = 64, 0.0425  # ours on a GPU is 1 % as a rule and 3.5 % at most, of a router's logits
ATTEMPTS = 100  # per token
RETREATS = 200  # per prompt


def noisy(x, noise, generator):
    return x * (1 + noise * torch.randn(x.shape, generator=generator))


class Routers:
    """The routers of a transformers model: their choices for the last token, with and without noise on their inputs."""

    def __init__(self, model):
        self.model, self.choices, self.generator = model, [], torch.Generator().manual_seed(0)
        for name, module in model.named_modules():
            if name.endswith("mlp.gate"):
                module.register_forward_pre_hook(self.disturb)
                module.register_forward_hook(self.record)

    def disturb(self, _, args):
        clean = args[0]
        return (torch.cat([clean[:1], noisy(clean[1:], self.noise, self.generator)]),)

    def record(self, _, args, output):
        self.choices.append(output[-1].reshape(self.rows, -1, output[-1].shape[-1]).sort(-1).values)

    @torch.no_grad()
    def run_draws(self, tokens, draws, noise):
        """Hidden states (n, D) behind the final norm, and for which tokens (n) every draw chooses alike."""
        self.choices, self.rows, self.noise = [], 1 + draws, noise
        hidden = self.model.model(torch.tensor([tokens] * self.rows)).last_hidden_state[0]
        settled = torch.ones(len(tokens), dtype=torch.bool)
        for choice in self.choices:
            settled &= (choice == choice[0]).all(-1).all(0)
        return hidden.numpy(), settled.tolist()

    def run(self, tokens):
        """Hidden states (n, D) behind the final norm, and whether every draw chooses alike for the last token."""
        hidden, settled = self.run_draws(tokens, DRAWS, NOISE)
        return hidden, settled[-1]

    def undecided(self, tokens):
        """Positions that a search through many tokens has let pass by luck: a few draws miss one in a few hundred."""
        return [i for i, settled in enumerate(self.run_draws(tokens, MORE_DRAWS, MORE_NOISE)[1]) if not settled]


class Prompt:
    """Grows token by token; in step with it, draft heads (of deepseek_draft.py), one per model or none."""

    def __init__(self, models, heads):
        self.models, self.heads, self.tokens = models, heads, []

    def accept(self, token, drafts):
        """Appends the token if all routers are decided; drafts > 0: and go on being so in that many draft passes."""
        runs = [model.run(self.tokens + [token]) for model in self.models]
        before = [head.snapshot() for head in self.heads]
        settled = all(ok for _, ok in runs)
        for (hidden, _), head, model in zip(runs, self.heads, self.models):
            position = len(self.tokens) - 1
            settled = settled and (position < 0 or self.draft(head, [token], hidden[position:position + 1], position)[0])
            if settled and drafts > 0:
                settled = self.draft_on(head, model, hidden[-1:], drafts)
        if settled:
            self.tokens.append(token)
        else:
            for head, state in zip(self.heads, before):
                head.restore(state)
        return settled

    def retreat(self, tokens):
        self.tokens = self.tokens[:-tokens]
        for head in self.heads:
            head.restore([part[:max(len(self.tokens) - 1, 0)] for part in head.snapshot()])

    @staticmethod
    def draft(head, tokens, hidden, position):
        head.settled = True
        log_probabilities, further = head.forward(tokens, hidden, position)
        return head.settled, int(log_probabilities[-1].argmax()), further

    def draft_on(self, head, model, hidden, drafts):
        with torch.no_grad():
            token = int(model.model.lm_head(torch.from_numpy(hidden[0])).argmax())
        for i in range(drafts):
            settled, token, hidden = self.draft(head, [token], hidden, len(self.tokens) + i)
            if not settled:
                return False
        return True


def settled_prompt(models, heads, vocab_size, length, drafts, generator):
    """models: Routers of models in FP32, one per stored format. drafts: passes of the heads from the last token on."""
    prompt = Prompt(models, heads)
    for _ in range(RETREATS):
        while len(prompt.tokens) < length:
            last = len(prompt.tokens) + 1 == length
            tokens = generator.permutation(vocab_size)[:ATTEMPTS]
            if not any(prompt.accept(int(token), drafts if last else 0) for token in tokens):
                break
        if len(prompt.tokens) == length:
            return prompt.tokens
        prompt.retreat(3)
    raise RuntimeError(f"no tokens settle the routers around position {len(prompt.tokens)}")
