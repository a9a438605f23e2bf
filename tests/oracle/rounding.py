"""What the served arithmetic rounds, done to the model of `reference.py`.

Activations before every quantised matrix: 8 bits per block of 32 (Q8_0 weights) or of 256 (routed experts). KV rows: E4M3 with a power-of-two
scale per 64 values and f16 for the rotary tail; indexer queries and rows: Hadamard transform, then E2M1 with a scale per 32.
"""
import torch
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

E4M3 = torch.tensor([m * 2.0**-9 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7) for e in range(16) for m in range(8)][:127])
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
# Below these a block counts as all zero: what DeepSeek's own kernels use.
E4M3_FLOOR, E2M1_FLOOR = 1e-4, 6 * 2.0**-126


def q8_0(x):
    blocks = x.reshape(-1, 32)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(scale > 0, 1 / scale, 0)
    return (torch.round(blocks * inverse) * scale).reshape(x.shape)


def q8_k(x):
    """The value of largest magnitude becomes -127 exactly, whatever its sign."""
    blocks = x.reshape(-1, 256)
    most = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    inverse = torch.where(most != 0, -127 / most, 1)
    return torch.where(most != 0, torch.round(blocks * inverse) / inverse, 0).reshape(x.shape)


def nearest(x, table):
    """To the nearest entry in magnitude; ties to the even index."""
    size = x.abs().contiguous()
    high = torch.searchsorted(table, size).clamp(1, len(table) - 1)
    down, up = size - table[high - 1], table[high] - size
    lower = (down < up) | ((down == up) & (high % 2 == 1))
    return torch.sign(x) * table[torch.where(lower, high - 1, high)]


def scaled(x, block, table, floor):
    blocks = x.reshape(-1, block)
    most = blocks.abs().amax(-1, keepdim=True).clamp(min=floor)
    scale = torch.exp2(torch.ceil(torch.log2(most / table[-1])))
    return (nearest((blocks / scale).clamp(-table[-1], table[-1]), table) * scale).reshape(x.shape)


def kv_row(x, rotated):
    plain = x.shape[-1] - rotated
    body = scaled(x[..., :plain].contiguous(), 64, E4M3, E4M3_FLOOR)
    return torch.cat([body, x[..., plain:]], -1).half().float()


def hadamard(x):
    n, y, step = x.shape[-1], x, 1
    while step < n:
        pairs = y.reshape(*x.shape[:-1], n // (2 * step), 2, step)
        left, right = pairs[..., 0, :], pairs[..., 1, :]
        y = torch.stack((left + right, left - right), -2).reshape(x.shape)
        step *= 2
    return y * n**-0.5


def install(model, formats):
    """Patches the model in place; `formats` names the format of each tensor of the file."""
    made = model.config
    _round_rows(made)
    before = lambda module, round: module.register_forward_pre_hook(lambda _, given: (round(given[0]), *given[1:]))
    for number, layer in enumerate(model.model.layers):
        attention, shared = layer.self_attn, layer.mlp.shared_experts
        for name in ("q_a_proj", "q_b_proj", "kv_proj", "o_a_proj", "o_b_proj"):
            before(getattr(attention, name), q8_0)
        for name in ("gate_proj", "up_proj", "down_proj"):
            before(getattr(shared, name), q8_0)
        if formats.get(f"blk.{number}.indexer.attn_q_b.weight") == "Q8_0":
            before(attention.compressor.indexer.q_b_proj, q8_0)
        _round_experts(layer.mlp.experts, made.n_routed_experts)
    before(model.lm_head, q8_0)


def _round_rows(made):
    """Every row that is kept passes through the rotation last, so that is where it is rounded."""
    rotate, rotated = modeling.apply_rotary_pos_emb, made.qk_rope_head_dim

    def rounding(x, cos, sin, unsqueeze_dim=1):
        row = rotate(x, cos, sin, unsqueeze_dim)
        one_head = x.shape[1] == 1
        if x.shape[-1] == made.head_dim:
            return kv_row(row, rotated) if one_head else row
        return scaled(hadamard(row), 32, E2M1, E2M1_FLOOR)

    modeling.apply_rotary_pos_emb = rounding


def _round_experts(experts, count):
    def forward(x, chosen, weights):
        out, rounded = torch.zeros_like(x), q8_k(x)
        for expert in range(count):
            token, slot = torch.where(chosen == expert)
            if len(token):
                inner = experts._apply_gate(rounded[token] @ experts.gate_up_proj[expert].T) * weights[token, slot, None]
                out.index_add_(0, token, q8_k(inner) @ experts.down_proj[expert].T)
        return out

    experts.forward = forward
