#!/usr/bin/env python3
"""Makes tests/golden/whisper/: a tiny random Whisper with what transformers computes from it, and log-mel features.

  model/                     config.json, generation_config.json, model.safetensors (float32)
  model_ct2/, model_int8/    the same weights as CTranslate2's model.bin (float32; int8 with its scales)
  golden.speech.safetensors:
    input_features  [2, 64, 24]    two windows, frames first
    encoder         [2, 32, D]     the encoder's result
    decoder_ids     [2, 9]         prompts
    logits          [2, 9, V]
    greedy_ids      [2, 12]        greedy continuation, every choice with a clear margin
    cross.<layer>   [2, H, 9, 32]  weights of the cross attention
    int8_logits     [2, 9, V]      of the weights rounded as int8
  features.safetensors:
    samples         [16000]        a sound of 1 s at 16 kHz
    mel80, mel128   [200, n]       WhisperFeatureExtractor with windows of 2 s

src/media/testdata/tone.*: half a second of 440 Hz at amplitude 0.5, at 22050 Hz on two channels (Opus: 48000 Hz).

Norm weights, biases and position tables are redrawn: default zeros and ones hide faults.

Usage: make_speech_golden.py [tones]     (torch, transformers, safetensors, soundfile)
"""

import json
import pathlib
import shutil
import struct
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "whisper"
CONFIG = dict(vocab_size=211, num_mel_bins=24, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
              decoder_attention_heads=4, encoder_ffn_dim=80, decoder_ffn_dim=72, d_model=48, max_source_positions=32,
              max_target_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
              begin_suppress_tokens=None, suppress_tokens=None, attn_implementation="eager")
NEW_TOKENS = 12
MIN_MARGIN = 2e-2


def make_model(seed):
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**CONFIG)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        with torch.no_grad():
            if "embed" in name:
                p.copy_(noise * 0.35)
            elif p.dim() == 1:
                p.copy_(noise * 0.2 + (1 if name.endswith("norm.weight") else 0))
            else:
                p.copy_(noise * 1.6 / np.sqrt(p[0].numel()))
    return model


def decode(model, features, ids):
    return model(input_features=features.transpose(1, 2), decoder_input_ids=ids, output_attentions=True)


def greedy(model, features, prompt):
    ids, margin = prompt, np.inf
    for _ in range(NEW_TOKENS):
        top = decode(model, features, ids).logits[:, -1].topk(2)
        margin = min(margin, (top.values[:, 0] - top.values[:, 1]).min().item())
        ids = torch.cat([ids, top.indices[:, :1]], 1)
    return ids[:, prompt.shape[1]:], margin


def rounded_to_int8(weight):
    """A scale for each row, 127 / largest: the codes and the scales."""
    rows = weight.reshape(weight.shape[0], -1)
    scale = 127.0 / rows.abs().amax(1).clamp_min(1e-9)
    return torch.round(rows * scale[:, None]).to(torch.int8).reshape(weight.shape), scale


def ctranslate2_variables(state, quantize):
    out = {}

    def norm(to, key):
        out[to + "/gamma"], out[to + "/beta"] = state[key + ".weight"], state[key + ".bias"]

    def matrix(to, weight):
        if quantize:
            out[to], out[to + "_scale"] = rounded_to_int8(weight)
        else:
            out[to] = weight

    def linear(to, *keys):
        matrix(to + "/weight", torch.cat([state[k + ".weight"] for k in keys]))
        zero = torch.zeros(CONFIG["d_model"])
        out[to + "/bias"] = torch.cat([state.get(k + ".bias", zero) for k in keys])

    for conv in ("conv1", "conv2"):
        linear(f"encoder/{conv}", f"model.encoder.{conv}")
    matrix("decoder/embeddings/weight", state["model.decoder.embed_tokens.weight"])
    for side in ("encoder", "decoder"):
        out[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        out[f"{side}/num_heads"] = torch.tensor(4, dtype=torch.int16)
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for i in range(CONFIG[f"{side}_layers"]):
            to, key = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            norm(to + "/self_attention/layer_norm", key + ".self_attn_layer_norm")
            linear(to + "/self_attention/linear_0", *(f"{key}.self_attn.{p}_proj" for p in "qkv"))
            linear(to + "/self_attention/linear_1", key + ".self_attn.out_proj")
            norm(to + "/ffn/layer_norm", key + ".final_layer_norm")
            linear(to + "/ffn/linear_0", key + ".fc1")
            linear(to + "/ffn/linear_1", key + ".fc2")
            if side == "decoder":
                norm(to + "/attention/layer_norm", key + ".encoder_attn_layer_norm")
                linear(to + "/attention/linear_0", key + ".encoder_attn.q_proj")
                linear(to + "/attention/linear_1", key + ".encoder_attn.k_proj", key + ".encoder_attn.v_proj")
                linear(to + "/attention/linear_2", key + ".encoder_attn.out_proj")
    return out


def write_ctranslate2(folder, state, quantize=False):
    folder.mkdir(parents=True)
    types = {torch.float32: 0, torch.int8: 1, torch.int16: 2}

    def text(s):
        return struct.pack("<H", len(s) + 1) + s.encode() + b"\0"

    variables = ctranslate2_variables(state, quantize)
    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in sorted(variables.items()):
        value = value.contiguous()
        raw = value.numpy().tobytes()
        data += text(name) + struct.pack("<B", value.dim()) + struct.pack(f"<{value.dim()}I", *value.shape)
        data += struct.pack("<BI", types[value.dtype], len(raw)) + raw
    data += struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")
    (folder / "model.bin").write_bytes(data)
    (folder / "config.json").write_text(json.dumps(
        {"suppress_ids": [5, 6], "suppress_ids_begin": [7, 2], "alignment_heads": [[1, 2], [2, 0]], "lang_ids": [8, 9]}))


def make_model_golden():
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(2, 64, 24, generator=generator) * 0.7
    prompt = torch.randint(4, 211, (2, 9), generator=generator)
    for seed in range(1000):
        model = make_model(seed)
        with torch.no_grad():
            continuation, margin = greedy(model, features, prompt)
        if margin > MIN_MARGIN and all(len(set(row.tolist())) > 3 for row in continuation):
            break
    state = {k: v.detach() for k, v in model.state_dict().items()}
    with torch.no_grad():
        result = decode(model, features, prompt)
        golden = dict(input_features=features, encoder=result.encoder_last_hidden_state,
                      decoder_ids=prompt.int(), logits=result.logits, greedy_ids=continuation.int())
        for i, weights in enumerate(result.cross_attentions):
            golden[f"cross.{i}"] = weights
        int8 = make_model(seed)
        for name, p in int8.named_parameters():
            if p.dim() > 1 and "embed_positions" not in name:
                codes, scale = rounded_to_int8(p)
                shape = [-1] + [1] * (p.dim() - 1)
                p.copy_(codes.float() / scale.reshape(shape))
        golden["int8_logits"] = decode(int8, features, prompt).logits
    model.generation_config = transformers.GenerationConfig(
        suppress_tokens=[5, 6], begin_suppress_tokens=[7, 2], alignment_heads=[[1, 2], [2, 0]])
    model.save_pretrained(ROOT / "model")
    write_ctranslate2(ROOT / "model_ct2", state)
    write_ctranslate2(ROOT / "model_int8", state, quantize=True)
    save_file({k: v.contiguous() for k, v in golden.items()}, ROOT / "golden.speech.safetensors")
    print(f"seed {seed}, margin {margin:.3f}")


def make_features():
    t = np.arange(16000) / 16000
    rng = np.random.default_rng(3)
    samples = (0.4 * np.sin(2 * np.pi * (200 + 900 * t) * t) + 0.1 * np.sin(2 * np.pi * 3100 * t) +
               0.02 * rng.standard_normal(16000)).astype(np.float32)
    out = {"samples": torch.from_numpy(samples)}
    for bins in (80, 128):
        extractor = transformers.WhisperFeatureExtractor(feature_size=bins, chunk_length=2)
        mel = extractor(samples, sampling_rate=16000, return_tensors="pt")["input_features"][0]
        out[f"mel{bins}"] = mel.T.contiguous()
    save_file(out, ROOT / "features.safetensors")


def make_tones():
    import soundfile
    folder = ROOT.parents[2] / "src" / "media" / "testdata"
    folder.mkdir(exist_ok=True)
    for name, rate, options in (("tone.flac", 22050, dict(subtype="PCM_16")), ("tone.ogg", 22050, dict(subtype="VORBIS")),
                                ("tone.mp3", 22050, dict(subtype="MPEG_LAYER_III")),
                                ("tone.opus", 48000, dict(subtype="OPUS", format="OGG"))):
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)
        soundfile.write(folder / name, np.stack([tone, tone], 1), rate, **options)


if __name__ == "__main__":
    if sys.argv[1:] == ["tones"]:
        make_tones()
        sys.exit()
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(parents=True)
    make_model_golden()
    make_features()
    make_tones()
