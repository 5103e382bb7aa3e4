#!/usr/bin/env python3
"""Makes tests/golden/<case>/: tiny random checkpoints with what transformers computes from them.

Each folder holds a checkpoint as save_pretrained writes it (config.json, model.safetensors or shards), where it
matters the same config in the dialect of transformers 4.x (config_v4.json), GGUF versions (model.<TYPE>.gguf), and
golden.safetensors:

  input_ids            [T]      the prompt, longer than any sliding window
  hidden_states.<i>    [T, D]   embedding, then after each layer, the last one after the final norm (float32)
  logits               [T, V]   float32
  greedy_ids           [16]     greedy continuation in float32
  greedy_logits        [16, V]  the logits they were picked from
  bf16_error, fp16_error        max |logits in that dtype - logits| of transformers itself
  logits.<TYPE>        [T, V]   of the GGUF file's dequantised weights, for block formats

and gradients.safetensors, from which training is checked:

  labels               [T]      int32: the next token, -100 at every third place and at the end
  losses               [T]      float32, 0 where the label is -100
  loss                 [1]      their mean over the labels
  <parameter>                   d loss / d parameter, float32, by its name in the checkpoint
  bf16_error           [1]      of transformers itself: the largest |gradient in bfloat16 - gradient| / |gradient| of a
                                parameter

Norm weights, biases and all other parameters are redrawn: default zeros and ones hide faults. Seeds are searched
until every greedy choice has a clear margin and the choices vary. tests/golden/rope.safetensors holds rotary frequencies of real configs.

Usage: make_golden.py [case ... | gradients | rope]     (torch, transformers, safetensors, gguf; all cases take a minute or two)
"""

import json
import math
import pathlib
import shutil
import sys

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import modeling_rope_utils

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
PROMPT_LEN = 37
NEW_TOKENS = 16
MIN_MARGIN = 2e-2
# router_margins of the prompt, which 16-bit dtypes see, and of all tokens
MIN_PROMPT_MARGIN, MIN_ROUTER_MARGIN = 0.06, 1e-3

SMALL = dict(vocab_size=211, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
             pad_token_id=0)

# name: (config class, overrides of SMALL, options)
CASES = {
    "llama": ("LlamaConfig", dict(intermediate_size=96), dict(gguf=["F32", "F16", "BF16", "Q8_0", "Q4_1"])),
    "llama_sharded": ("LlamaConfig", dict(hidden_size=42, intermediate_size=76, num_attention_heads=6,
                                          num_key_value_heads=3, head_dim=10, vocab_size=199),
                      dict(shard="24KB", dtype="float16")),
    "llama3": ("LlamaConfig", dict(tie_word_embeddings=True, rope_parameters=dict(
        rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=24)), dict(v4=True, gguf=["F32"])),
    "llama_yarn": ("LlamaConfig", dict(num_key_value_heads=1, rope_parameters=dict(
        rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16)),
        dict(v4=True, gguf=["F32"])),
    "llama_bias": ("LlamaConfig", dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                                       num_key_value_heads=4), {}),
    "smollm2": ("LlamaConfig", dict(hidden_size=72, num_attention_heads=9, num_key_value_heads=3, head_dim=None,
                                    intermediate_size=96, tie_word_embeddings=True, num_hidden_layers=2,
                                    rope_parameters=dict(rope_type="default", rope_theta=100000.0)),
                dict(dtype="bfloat16", v4=True)),
    "mistral": ("MistralConfig", dict(sliding_window=11), {}),
    "qwen2": ("Qwen2Config", dict(use_sliding_window=True, sliding_window=13, max_window_layers=1, head_dim=None,
                                  tie_word_embeddings=True), dict(v4=True, gguf=[])),
    "qwen2_full": ("Qwen2Config", dict(head_dim=None), dict(gguf=["F32"])),
    "qwen3": ("Qwen3Config", dict(tie_word_embeddings=True,
                                  rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
              dict(dtype="bfloat16", v4=True, gguf=["F32", "BF16", "Q8_0"])),
    "qwen3_sliding": ("Qwen3Config", dict(use_sliding_window=True, sliding_window=7, attention_bias=True,
                                          layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
                      {}),
    "qwen3_moe": ("Qwen3MoeConfig", dict(
        num_experts=7, num_experts_per_tok=3, moe_intermediate_size=40, norm_topk_prob=True,
        rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
        dict(v4=True, gguf=["F32"])),
    "qwen3_moe_raw": ("Qwen3MoeConfig", dict(
        num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=False, decoder_sparse_step=2,
        use_sliding_window=True, sliding_window=9, attention_bias=True,
        mlp_only_layers=[3], num_hidden_layers=6), dict(dtype="bfloat16")),
    "qwen2_moe": ("Qwen2MoeConfig", dict(
        num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=64, head_dim=None,
        norm_topk_prob=False, use_sliding_window=True, sliding_window=11, max_window_layers=2),
        dict(gguf=[])),
    "qwen2_moe_full": ("Qwen2MoeConfig", dict(
        num_experts=5, num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=32, head_dim=None,
        norm_topk_prob=False), dict(gguf=["F32", "Q8_0"])),
    "gpt_oss": ("GptOssConfig", dict(
        num_local_experts=6, num_experts_per_tok=2, intermediate_size=64, sliding_window=9, attention_bias=True,
        rope_parameters=dict(rope_type="yarn", rope_theta=150000.0, factor=8.0, beta_fast=32.0, beta_slow=1.0,
                             truncate=False, original_max_position_embeddings=16)), dict(v4=True, gguf=["MXFP4"])),
    "gpt_oss_mxfp4": ("GptOssConfig", dict(
        num_local_experts=8, num_experts_per_tok=3, hidden_size=64, intermediate_size=96, sliding_window=5,
        num_hidden_layers=2, rope_parameters=dict(
            rope_type="yarn", rope_theta=150000.0, factor=4.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
            original_max_position_embeddings=32)), dict(dtype="bfloat16", mxfp4=True)),
    "gemma": ("GemmaConfig", dict(num_key_value_heads=1), dict(dtype="bfloat16", v4=True, gguf=["F32"])),
    "gemma2": ("Gemma2Config", dict(sliding_window=9, attn_logit_softcapping=6.0, final_logit_softcapping=4.0,
                                    query_pre_attn_scalar=16), dict(v4=True, gguf=["F32"])),
    "gemma2_scalar": ("Gemma2Config", dict(sliding_window=5, query_pre_attn_scalar=24), dict(dtype="bfloat16")),
    "gemma3": ("Gemma3TextConfig", dict(
        sliding_window=7, num_hidden_layers=7, query_pre_attn_scalar=16, rope_parameters=dict(
            full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
            sliding_attention=dict(rope_type="default", rope_theta=10000.0))), dict(v4=True, gguf=["F32"])),
    # The caps, and the text's own tying, are keys that transformers does not follow here.
    "gemma3_conditional": ("Gemma3Config", dict(sliding_window=6, query_pre_attn_scalar=20, layer_types=[
        "sliding_attention", "full_attention", "sliding_attention"], attn_logit_softcapping=3.0,
        final_logit_softcapping=4.0, tie_word_embeddings=False), dict(v4=True)),
}

ARCHITECTURES = {"LlamaConfig": "LlamaForCausalLM", "MistralConfig": "MistralForCausalLM",
                 "Qwen2Config": "Qwen2ForCausalLM", "Qwen3Config": "Qwen3ForCausalLM",
                 "Qwen2MoeConfig": "Qwen2MoeForCausalLM", "Qwen3MoeConfig": "Qwen3MoeForCausalLM",
                 "GptOssConfig": "GptOssForCausalLM",
                 "GemmaConfig": "GemmaForCausalLM", "Gemma2Config": "Gemma2ForCausalLM",
                 "Gemma3TextConfig": "Gemma3ForCausalLM", "Gemma3Config": "Gemma3ForConditionalGeneration"}


def make_config(kind, overrides):
    values = {k: v for k, v in (SMALL | overrides).items() if v is not None}
    if kind != "Gemma3Config":
        return getattr(transformers, kind)(**values)
    vision = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                  patch_size=14)
    return transformers.Gemma3Config(text_config=values, vision_config=vision, mm_tokens_per_image=4,
                                     image_token_index=210, boi_token_index=208, eoi_token_index=209)


def redraw(model, seed):
    """Gives every parameter values that matter."""
    generator = torch.Generator().manual_seed(seed)
    tied = model.get_input_embeddings().weight
    gemma = "Gemma" in type(model).__name__
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        with torch.no_grad():
            if p is tied:
                # Small where tied: else each token mostly predicts itself.
                p.copy_(noise * (0.2 if gemma or p is model.get_output_embeddings().weight else 1.0))
            elif "norm" in name and name.endswith("weight"):
                p.copy_(0.3 * noise + (0.0 if gemma else 1.0))
            elif p.ndim == 1:
                p.copy_(0.3 * noise)
            elif name.endswith(("mlp.gate.weight", "mlp.router.weight")):  # clear choices
                p.copy_(noise * (3.0 / math.sqrt(p.shape[-1])))
            elif p.ndim == 3:  # experts [E, N, K], GPT-OSS's [E, K, N]
                p.copy_(noise * (1.5 / math.sqrt(p.shape[1 if "GptOss" in type(model).__name__ else 2])))
            elif p.ndim == 2 and "experts" in name:  # their biases
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise * (1.5 / math.sqrt(p[0].numel())))


@torch.no_grad()
def serve_goldens(model, input_ids):
    out = model(input_ids=input_ids[None], output_hidden_states=True, use_cache=False)
    golden = {"logits": out.logits[0].float()}
    for i, hidden in enumerate(out.hidden_states):
        golden[f"hidden_states.{i}"] = hidden[0].float()
    ids, greedy_logits = input_ids.clone(), []
    for _ in range(NEW_TOKENS):
        logits = model(input_ids=ids[None], use_cache=False).logits[0, -1].float()
        greedy_logits.append(logits)
        ids = torch.cat([ids, logits.argmax()[None]])
    golden["greedy_ids"] = ids[len(input_ids):].to(torch.int32)
    golden["greedy_logits"] = torch.stack(greedy_logits)
    return golden


@torch.no_grad()
def router_margins(model, input_ids):
    """Of each token, how far the last expert chosen is from the next, in standard deviations of the router's logits:
    the least of all layers."""
    out = model(input_ids=input_ids[None], use_cache=False, output_router_logits=True)
    margins = []
    for logits in out.router_logits:
        top = logits.float().topk(model.config.num_experts_per_tok + 1).values
        margins.append((top[:, -2] - top[:, -1]) / logits.float().std())
    return torch.stack(margins).min(0).values


def draw_prompt(model, generator, routed):
    if not routed:
        return torch.randint(3, 190, (PROMPT_LEN,), generator=generator)
    # Token by token, so that rounding to 16 bits chooses the same experts.
    ids = torch.empty(0, dtype=torch.long)
    while len(ids) < PROMPT_LEN:
        longer = torch.cat([ids, torch.randint(3, 190, (1,), generator=generator)])
        if router_margins(model, longer)[-1] > MIN_PROMPT_MARGIN:
            ids = longer
    return ids


def margin(golden):
    top = golden["greedy_logits"].topk(2).values
    return (top[:, 0] - top[:, 1]).min().item()


def is_telling(golden):
    return margin(golden) > MIN_MARGIN and len(set(golden["greedy_ids"].tolist())) >= 6


@torch.no_grad()
def rounding_error(model, input_ids, logits, dtype):
    import copy
    low = copy.deepcopy(model).to(dtype)
    return (low(input_ids=input_ids[None], use_cache=False).logits[0].float() - logits).abs().max()


def config_v4(config):
    """config.json as transformers 4.x wrote it."""
    config = json.loads(json.dumps(config))
    for part in (config, config.get("text_config", {})):
        if "dtype" in part:
            part["torch_dtype"] = part.pop("dtype")
        rope = part.pop("rope_parameters", None)
        if rope is None:
            continue
        full = rope.get("full_attention", rope)
        part["rope_theta"] = full.pop("rope_theta")
        part["rope_scaling"] = None if full["rope_type"] == "default" else full
        if "num_local_experts" in part and part.get("model_type") != "gpt_oss":
            part["num_experts"] = part.pop("num_local_experts")
        if "sliding_attention" in rope:
            part["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        if part["model_type"] in ("gemma2", "qwen2", "qwen3"):
            part.pop("layer_types", None)
        if part["model_type"] == "gemma3_text" and len(part["layer_types"]) > 6:
            del part["layer_types"]
            part["sliding_window_pattern"] = 6
        if part["model_type"] == "gemma":
            part["hidden_act"] = "gelu"
            part["hidden_activation"] = None
            del part["tie_word_embeddings"]
    config["transformers_version"] = "4.51.3"
    return config


def split_experts(tensors):
    """The tensors with one matrix for each expert, under the names of published checkpoints."""
    if any(name.endswith("_proj_bias") for name in tensors):
        return tensors  # GPT-OSS, whose checkpoints keep them together
    out = {}
    for name, t in tensors.items():
        if name.endswith(".experts.gate_up_proj") or name.endswith(".experts.down_proj"):
            prefix, part = name.rsplit(".", 1)
            for e, matrix in enumerate(t):
                halves = matrix.chunk(2) if part == "gate_up_proj" else [matrix]
                for sub, half in zip(["gate_proj", "up_proj"] if len(halves) == 2 else [part], halves):
                    out[f"{prefix}.{e}.{sub}.weight"] = half
        else:
            out[name] = t
    return out


def make_gradients(folder):
    """The loss of a finished case and its gradients, in float32."""
    ids = load_file(folder / "golden.safetensors")["input_ids"].long()
    labels = torch.full_like(ids, -100)
    labels[:-1] = ids[1:]
    labels[::3] = -100

    def differentiate(dtype):
        model = load(folder, dtype)
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        loss = losses.sum() / (labels >= 0).sum()
        loss.backward()
        # The vision part has no gradients.
        return losses.detach(), loss.detach(), {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}

    losses, loss, gradients = differentiate(torch.float32)
    _, _, low = differentiate(torch.bfloat16)
    gradients, low = split_experts(gradients), split_experts(low)
    assert all(g.norm() > 0 for g in gradients.values()), f"{folder.name}: an expert is not used"
    error = max(((low[name] - g).norm() / g.norm()).item() for name, g in gradients.items())
    golden = gradients | {"labels": labels.to(torch.int32), "losses": losses, "loss": loss.reshape(1),
                          "bf16_error": torch.tensor([error])}
    save_file({k: v.contiguous() for k, v in golden.items()}, folder / "gradients.safetensors")


def load(folder, dtype=torch.float32):
    config = transformers.AutoConfig.from_pretrained(folder)
    cls = getattr(transformers, config.architectures[0])
    return cls.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


# ---- GGUF ----

GGUF_ARCH = {"gpt_oss": gguf.MODEL_ARCH.GPT_OSS, "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE, "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE, "llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3,
             "gemma": gguf.MODEL_ARCH.GEMMA, "gemma2": gguf.MODEL_ARCH.GEMMA2, "gemma3_text": gguf.MODEL_ARCH.GEMMA3}


def permute(weight, heads):
    """Rows of each head from halves to interleaved pairs, as llama.cpp wants them."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(model, path, kind):
    """Writes the GGUF and returns the state dict that its weights dequantise to."""
    c = model.config
    arch = GGUF_ARCH[c.model_type]
    names = gguf.get_tensor_name_map(arch, c.num_hidden_layers)
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[arch])
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        plain = 1.0 / (rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))
        scaled, _ = modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](c, "cpu")
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
    if c.model_type in ("gemma2", "gemma3_text", "gpt_oss"):
        writer.add_sliding_window(c.sliding_window)
    if c.model_type == "gemma2":
        writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
        writer.add_final_logit_softcapping(c.final_logit_softcapping)

    if c.model_type == "gpt_oss":
        writer.add_expert_count(c.num_local_experts)
        writer.add_expert_used_count(c.num_experts_per_tok)
        writer.add_expert_feed_forward_length(c.intermediate_size)
    if c.model_type in ("qwen2_moe", "qwen3_moe"):
        writer.add_expert_count(c.num_local_experts if hasattr(c, "num_local_experts") else c.num_experts)
        writer.add_expert_used_count(c.num_experts_per_tok)
        writer.add_expert_feed_forward_length(c.moe_intermediate_size)
    kind = gguf.GGMLQuantizationType[kind]
    back = {}
    state = dict(model.state_dict())
    if c.model_type == "gpt_oss":
        for name in list(state):
            prefix = name.rpartition(".")[0]
            if name.endswith(".experts.gate_up_proj"):
                pairs = state.pop(name).transpose(1, 2)
                state |= {prefix + ".gate_proj.weight": pairs[:, ::2], prefix + ".up_proj.weight": pairs[:, 1::2],
                          prefix + ".down_proj.weight": state.pop(prefix + ".down_proj").transpose(1, 2)}
                pairs = state.pop(prefix + ".gate_up_proj_bias")
                state |= {prefix + ".gate_proj.bias": pairs[:, ::2], prefix + ".up_proj.bias": pairs[:, 1::2],
                          prefix + ".down_proj.bias": state.pop(prefix + ".down_proj_bias")}
            if name.endswith(".sinks"):
                state[name + ".weight"] = state.pop(name)
    for name in [n for n in state if n.endswith(".experts.gate_up_proj")]:
        gate, up = state.pop(name).chunk(2, dim=1)
        prefix = name.removesuffix("gate_up_proj")
        state |= {prefix + "gate_proj.weight": gate, prefix + "up_proj.weight": up,
                  prefix + "down_proj.weight": state.pop(prefix + "down_proj")}
    for name, p in state.items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        data = p.float().numpy()
        back[name] = p.float()
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(name.split(".")[-2])
        if c.model_type == "llama" and heads:
            data = permute(data, heads)
        if name.endswith("norm.weight") and "gemma" in c.model_type:
            data = data + np.float32(1.0)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        # As llama.cpp: routers stay as they are.
        # MXFP4 is for experts alone.
        plain = data.ndim < 3 if kind == gguf.GGMLQuantizationType.MXFP4 else data.ndim == 1
        if plain or kind == gguf.GGMLQuantizationType.F32 or "_inp" in target:
            writer.add_tensor(target, np.ascontiguousarray(data))
            continue
        blocks = gguf.quants.quantize(np.ascontiguousarray(data), kind)
        writer.add_tensor(target, blocks, raw_dtype=kind)
        values = torch.from_numpy(gguf.quants.dequantize(blocks, kind).copy())
        if c.model_type == "llama" and heads:  # the inverse of permute
            values = values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(p.shape)
        back[name] = values
    if c.model_type == "gpt_oss":
        for name in [n for n in back if n.endswith(".experts.gate_proj.weight")]:
            prefix = name.removesuffix("gate_proj.weight")
            take = lambda part: back.pop(prefix + part)
            pairs = torch.stack([take("gate_proj.weight"), take("up_proj.weight")], dim=2).flatten(1, 2)
            bias = torch.stack([take("gate_proj.bias"), take("up_proj.bias")], dim=2).flatten(1, 2)
            back |= {prefix + "gate_up_proj": pairs.transpose(1, 2), prefix + "gate_up_proj_bias": bias,
                     prefix + "down_proj": take("down_proj.weight").transpose(1, 2),
                     prefix + "down_proj_bias": take("down_proj.bias")}
        for name in [n for n in back if n.endswith(".sinks.weight")]:
            back[name.removesuffix(".weight")] = back.pop(name)
    for name in [n for n in back if n.endswith(".experts.gate_proj.weight")]:
        prefix = name.removesuffix("gate_proj.weight")
        parts = {part: back.pop(f"{prefix}{part}.weight") for part in ("gate_proj", "up_proj", "down_proj")}
        back[prefix + "gate_up_proj"] = torch.cat([parts["gate_proj"], parts["up_proj"]], dim=1)
        back[prefix + "down_proj"] = parts["down_proj"]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if c.tie_word_embeddings:
        back["lm_head.weight"] = back["model.embed_tokens.weight"]
    return back


# ---- MXFP4, as GPT-OSS is published ----

E2M1 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])


def to_mxfp4(weight):
    """blocks [E, N, K / 32, 16] and scales [E, N, K / 32] of experts [E, K, N]."""
    w = weight.float().transpose(1, 2).unflatten(-1, (-1, 32))
    exponent = torch.floor(torch.log2(w.abs().amax(-1).clamp(min=1e-30))) - 2
    codes = (w[..., None] * torch.exp2(-exponent)[..., None, None] - E2M1).abs().argmin(-1)
    return (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8), (exponent + 127).to(torch.uint8)


def from_mxfp4(blocks, scales):
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
    return (E2M1[codes] * torch.exp2(scales.float() - 127)[..., None]).flatten(-2).transpose(1, 2).contiguous()


def round_experts(model):
    for name, p in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            with torch.no_grad():
                p.copy_(from_mxfp4(*to_mxfp4(p)))


def pack_experts(folder):
    """The checkpoint of rounded experts as it is published."""
    tensors = {}
    for name, t in load_file(folder / "model.safetensors").items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name + "_blocks"], tensors[name + "_scales"] = to_mxfp4(t)
            assert torch.equal(from_mxfp4(tensors[name + "_blocks"], tensors[name + "_scales"]), t.float())
        else:
            tensors[name] = t
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = dict(quant_method="mxfp4", modules_to_not_convert=[
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"])
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


# ---- one case ----

def make_case(name):
    kind, overrides, options = CASES[name]
    folder = ROOT / name
    dtype = getattr(torch, options.get("dtype", "float32"))
    for seed in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        config = make_config(kind, overrides)
        config._attn_implementation = "eager"
        model = getattr(transformers, ARCHITECTURES[kind])(config)
        redraw(model, seed)
        if options.get("mxfp4"):
            round_experts(model)
        model.to(dtype).save_pretrained(folder, max_shard_size=options.get("shard", "1GB"))
        (folder / "generation_config.json").write_text(
            json.dumps({"bos_token_id": 1, "eos_token_id": [2, 5], "temperature": 0.7}, indent=2) + "\n")
        model = load(folder)
        generator = torch.Generator().manual_seed(1000 + seed)
        routed = hasattr(config, "num_experts_per_tok")
        input_ids = draw_prompt(model, generator, routed)
        golden = serve_goldens(model, input_ids)
        if is_telling(golden) and (not routed or router_margins(
                model, torch.cat([input_ids, golden["greedy_ids"].long()])).min() > MIN_ROUTER_MARGIN):
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear greedy choices")
    golden["input_ids"] = input_ids.to(torch.int32)
    for key, low in (("bf16_error", torch.bfloat16), ("fp16_error", torch.float16)):
        golden[key] = rounding_error(model, input_ids, golden["logits"], low).reshape(1)

    if options.get("v4"):
        v4 = config_v4(json.loads((folder / "config.json").read_text()))
        text = json.dumps(v4, indent=2) + "\n"
        (folder / "config_v4.json").write_text(text)
        check = ROOT / "check_v4"
        shutil.rmtree(check, ignore_errors=True)
        shutil.copytree(folder, check)
        (check / "config.json").write_text(text)
        with torch.no_grad():
            logits = load(check)(input_ids=input_ids[None]).logits[0]
        shutil.rmtree(check)
        assert torch.equal(logits, golden["logits"]), f"{name}: config_v4.json means something else"

    for gguf_kind in options.get("gguf", []):
        back = write_gguf(model, folder / f"model.{gguf_kind}.gguf", gguf_kind)
        model.load_state_dict(back)
        with torch.no_grad():
            golden[f"logits.{gguf_kind}"] = model(input_ids=input_ids[None]).logits[0].float().clone()
        model = load(folder)
    save_file({k: v.contiguous() for k, v in golden.items()}, folder / "golden.safetensors")
    if options.get("mxfp4"):
        pack_experts(folder)
    else:
        make_gradients(folder)
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: seed {seed}, margin {margin(golden):.3f}, |logits| {golden['logits'].abs().max():.2f}, "
          f"bf16 error {golden['bf16_error'].item():.4f}, {size // 1024} KiB")


# ---- rotary frequencies of real configs ----

ROPE_CASES = {
    "llama2": dict(rope_theta=10000.0, max_position=4096, head_dim=128),
    "llama31": dict(rope_theta=500000.0, max_position=131072, head_dim=128, scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192)),
    "llama32": dict(rope_theta=500000.0, max_position=131072, head_dim=64, scaling=dict(
        rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192)),
    "qwen_yarn": dict(rope_theta=1000000.0, max_position=32768, head_dim=128, scaling=dict(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)),
    "deepseek_yarn": dict(rope_theta=10000.0, max_position=163840, head_dim=64, scaling=dict(
        rope_type="yarn", factor=40, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=0.707,
        original_max_position_embeddings=4096)),
    "yarn_untruncated": dict(rope_theta=150000.0, max_position=131072, head_dim=64, scaling=dict(
        rope_type="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
        original_max_position_embeddings=4096)),
    "gemma3_linear": dict(rope_theta=1000000.0, max_position=131072, head_dim=256, scaling=dict(
        rope_type="linear", factor=8.0)),
    "dynamic": dict(rope_theta=10000.0, max_position=2048, head_dim=128, scaling=dict(rope_type="dynamic", factor=4.0),
                    positions=5000),
    "dynamic_short": dict(rope_theta=10000.0, max_position=2048, head_dim=128,
                          scaling=dict(rope_type="dynamic", factor=4.0), positions=2048),
    "partial": dict(rope_theta=10000.0, max_position=2048, head_dim=96, scaling=dict(
        rope_type="linear", factor=1.0, partial_rotary_factor=0.25)),
    "longrope_short": dict(rope_theta=10000.0, max_position=131072, head_dim=8, positions=4096, scaling=dict(
        rope_type="longrope", short_factor=[1.0, 1.05, 1.1, 1.3], long_factor=[1.1, 2.5, 8.0, 50.0],
        original_max_position_embeddings=4096)),
    "longrope_long": dict(rope_theta=10000.0, max_position=131072, head_dim=8, positions=131072, scaling=dict(
        rope_type="longrope", short_factor=[1.0, 1.05, 1.1, 1.3], long_factor=[1.1, 2.5, 8.0, 50.0],
        original_max_position_embeddings=4096)),
}


def make_rope():
    tensors, configs = {}, {}
    for name, case in ROPE_CASES.items():
        scaling = case.get("scaling")
        config = transformers.LlamaConfig(
            hidden_size=case["head_dim"] * 2, num_attention_heads=2, head_dim=case["head_dim"],
            max_position_embeddings=case["max_position"],
            rope_parameters=dict(scaling or dict(rope_type="default"), rope_theta=case["rope_theta"]))
        positions = case.get("positions", case["max_position"])
        if scaling is None:
            half = torch.arange(0, case["head_dim"], 2, dtype=torch.float) / case["head_dim"]
            inv_freq, factor = 1.0 / (case["rope_theta"] ** half), 1.0
        else:
            inv_freq, factor = modeling_rope_utils.ROPE_INIT_FUNCTIONS[scaling["rope_type"]](
                config, "cpu", seq_len=positions)
        at = torch.tensor([0, 1, 777, positions - 1])
        angles = at[:, None].float() * inv_freq[None]
        tensors[f"{name}.inv_freq"] = inv_freq.float()
        tensors[f"{name}.cos_sin"] = torch.cat([angles.cos() * factor, angles.sin() * factor], -1).float()
        tensors[f"{name}.positions"] = at.to(torch.int32)
        configs[name] = dict(vocab_size=8, hidden_size=2 * case["head_dim"], intermediate_size=8, num_hidden_layers=1,
                             num_attention_heads=2, head_dim=case["head_dim"],
                             max_position_embeddings=case["max_position"],
                             rope_parameters=dict(scaling or dict(rope_type="default"), rope_theta=case["rope_theta"]))
    save_file({k: v.contiguous() for k, v in tensors.items()}, ROOT / "rope.safetensors")
    (ROOT / "rope.json").write_text(json.dumps(configs, indent=1) + "\n")
    print(f"rope: {len(ROPE_CASES)} configs")


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name in sys.argv[1:] or [*CASES, "rope"]:
        if name == "rope":
            make_rope()
        elif name == "gradients":  # of all cases as they are
            for case in CASES:
                make_gradients(ROOT / case)
        else:
            make_case(name)


if __name__ == "__main__":
    main()
