"""The `deepseek_v4` model of the Python package transformers, filled from a GGUF file: an implementation that shares nothing with ours.

    python reference.py MODEL.gguf TOKENS.json OUT.f32 [--numerics canonical] [--nudge]

Writes the logits of every position, little-endian f32, tokens by vocabulary, as `ds4 logits` does. Weights are de-quantised by gguf-py and
everything is computed in f32, in one forward pass. With `--numerics canonical`, `rounding.py` rounds activations and KV rows as the served
arithmetic does. `--nudge` changes the last bit of what every norm gives: how far the results then are from those without it is how far any
two correct implementations may be apart.
"""
import argparse
import json

import gguf
import numpy as np
import torch
from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4ForCausalLM

LAYER_TYPES = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
HYPER = ("fn", "base", "scale")
COMPRESSOR = {"kv_proj.weight": "kv", "gate_proj.weight": "gate", "position_bias": "ape", "kv_norm.weight": "norm"}
ATTENTION = {
    "q_a_proj.weight": "attn_q_a.weight",
    "q_a_norm.weight": "attn_q_a_norm.weight",
    "q_b_proj.weight": "attn_q_b.weight",
    "kv_proj.weight": "attn_kv.weight",
    "kv_norm.weight": "attn_kv_a_norm.weight",
    "sinks": "attn_sinks.weight",
    "o_a_proj.weight": "attn_output_a.weight",
    "o_b_proj.weight": "attn_output_b.weight",
}


class File:
    """Metadata and de-quantised tensors of a GGUF file."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("deepseek4.")}
        self.formats = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        self.tensors = {tensor.name: self._values(tensor) for tensor in reader.tensors}

    @staticmethod
    def _values(tensor):
        plain = tensor.tensor_type.name in ("F32", "I32")
        values = np.array(tensor.data) if plain else gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type)
        return values.reshape([int(dim) for dim in reversed(tensor.shape)])

    def __getitem__(self, key):
        return self.fields["deepseek4." + key]


def config(file):
    ratios = file["attention.compress_ratios"][: file["block_count"]]
    clamp = file["swiglu_clamp_exp"]
    width, rotated, layers = file["attention.key_length"], file["rope.dimension_count"], file["block_count"]
    scaling = {
        "rope_type": "yarn",
        "factor": float(file["rope.scaling.factor"]),
        "beta_fast": float(file["rope.scaling.yarn_beta_fast"]),
        "beta_slow": float(file["rope.scaling.yarn_beta_slow"]),
        "original_max_position_embeddings": int(file["rope.scaling.original_context_length"]),
    }
    made = DeepseekV4Config(
        vocab_size=file["vocab_size"],
        hidden_size=file["embedding_length"],
        num_hidden_layers=layers,
        num_attention_heads=file["attention.head_count"],
        num_key_value_heads=1,
        head_dim=width,
        partial_rotary_factor=rotated / width,
        q_lora_rank=file["attention.q_lora_rank"],
        o_groups=file["attention.output_group_count"],
        o_lora_rank=file["attention.output_lora_rank"],
        sliding_window=file["attention.sliding_window"],
        layer_types=[LAYER_TYPES[ratio] for ratio in ratios],
        index_n_heads=file["attention.indexer.head_count"],
        index_head_dim=file["attention.indexer.key_length"],
        index_topk=file["attention.indexer.top_k"],
        moe_intermediate_size=file["expert_feed_forward_length"],
        n_routed_experts=file["expert_count"],
        num_experts_per_tok=file["expert_used_count"],
        n_shared_experts=1,
        scoring_func="sqrtsoftplus",
        routed_scaling_factor=float(file["expert_weights_scale"]),
        mlp_layer_types=["hash_moe" if layer < file["hash_layer_count"] else "moe" for layer in range(layers)],
        swiglu_limit=float(clamp[0] if isinstance(clamp, (list, tuple)) else clamp),
        hc_mult=file["hyper_connection.count"],
        hc_sinkhorn_iters=file["hyper_connection.sinkhorn_iterations"],
        hc_eps=float(np.float32(file["hyper_connection.epsilon"])),
        rms_norm_eps=1e-6,
        rope_theta=float(file["rope.freq_base"]),
        compress_rope_theta=float(file["attention.compress_rope_freq_base"]),
        rope_parameters=scaling,
        max_position_embeddings=int(scaling["original_max_position_embeddings"] * scaling["factor"]),
        torch_dtype="float32",
    )
    made._attn_implementation = "eager"
    made._experts_implementation = "eager"
    return made


def state(file, made):
    """Parameters by the name that the model gives them."""
    t = file.tensors
    yield "model.embed_tokens.weight", t["token_embd.weight"]
    yield "model.norm.weight", t["output_norm.weight"]
    yield "lm_head.weight", t["output.weight"]
    for part in HYPER:
        yield f"model.hc_head.hc_{part}", t[f"output_hc_{part}.weight"]
    for layer in range(made.num_hidden_layers):
        for name, values in layer_state(t, f"blk.{layer}.", made.layer_types[layer], made.mlp_layer_types[layer]):
            yield f"model.layers.{layer}.{name}", values


def layer_state(t, of, attention, feed_forward):
    yield "input_layernorm.weight", t[of + "attn_norm.weight"]
    yield "post_attention_layernorm.weight", t[of + "ffn_norm.weight"]
    for part in HYPER:
        yield f"attn_hc.{part}", t[of + f"hc_attn_{part}.weight"]
        yield f"ffn_hc.{part}", t[of + f"hc_ffn_{part}.weight"]
    for name, tensor in ATTENTION.items():
        yield f"self_attn.{name}", t[of + tensor]
    if attention != "sliding_attention":
        for name, tensor in COMPRESSOR.items():
            yield f"self_attn.compressor.{name}", t[of + f"attn_compressor_{tensor}.weight"]
    if attention == "compressed_sparse_attention":
        indexer = "self_attn.compressor.indexer."
        for name, tensor in COMPRESSOR.items():
            yield indexer + name, t[of + f"indexer_compressor_{tensor}.weight"]
        yield indexer + "q_b_proj.weight", t[of + "indexer.attn_q_b.weight"]
        yield indexer + "scorer.weights_proj.weight", t[of + "indexer.proj.weight"]
    yield "mlp.gate.weight", t[of + "ffn_gate_inp.weight"]
    if feed_forward == "hash_moe":
        yield "mlp.gate.tid2eid", t[of + "ffn_gate_tid2eid.weight"].astype(np.int64)
    else:
        yield "mlp.gate.e_score_correction_bias", t[of + "exp_probs_b.bias"]
    gate_up = [t[of + "ffn_gate_exps.weight"], t[of + "ffn_up_exps.weight"]]
    yield "mlp.experts.gate_up_proj", np.concatenate(gate_up, axis=1)
    yield "mlp.experts.down_proj", t[of + "ffn_down_exps.weight"]
    for part in ("gate", "up", "down"):
        yield f"mlp.shared_experts.{part}_proj.weight", t[of + f"ffn_{part}_shexp.weight"]


def load(path):
    file = File(path)
    made = config(file)
    model = DeepseekV4ForCausalLM(made).to(torch.float32).eval()
    # Strict: a parameter that the file does not fill, or fills twice, ends here.
    filled = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in state(file, made)}
    model.load_state_dict(filled, strict=True)
    return file, model


def nudge(model):
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.data *= 1 + 2**-23


def main():
    flags = argparse.ArgumentParser()
    flags.add_argument("model")
    flags.add_argument("tokens")
    flags.add_argument("out")
    flags.add_argument("--numerics", choices=["reference", "canonical"], default="reference")
    flags.add_argument("--nudge", action="store_true")
    given = flags.parse_args()
    # One thread: the order of additions is then the same on every machine.
    torch.set_num_threads(1)
    file, model = load(given.model)
    if given.numerics == "canonical":
        import rounding

        rounding.install(model, file.formats)
    if given.nudge:
        nudge(model)
    with open(given.tokens, encoding="utf-8") as tokens:
        ids = torch.tensor([json.load(tokens)])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
    logits.numpy().astype("<f4").tofile(given.out)


if __name__ == "__main__":
    main()
