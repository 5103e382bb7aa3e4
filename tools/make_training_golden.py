#!/usr/bin/env python3
"""Writes tests/train/data: a small tokenizer, and conversations with what transformers makes of them.

masks.json holds, per conversation, the ids of apply_chat_template and the spans of its assistant mask
(return_assistant_tokens_mask) for the built-in templates with {% generation %} blocks put in by MARKS below; the
unmarked built-in templates must give the same. "trimmed" are the inputs and labels that LLaMA-Factory's rule of
truncation makes of them (infer_seqlen, turn by turn).

  tools/make_training_golden.py        needs transformers and tokenizers
"""
import json
import pathlib
import random
import re

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "train" / "data"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
           "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"]
PLAIN = ["<tool_call>", "</tool_call>", "<think>", "</think>"]  # added, not special, as in Qwen3

# Where the assistant writes: text of the built-in template -> the same with generation blocks.
MARKS = {
    "chatml": [("{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}",
                "{{- '<|im_start|>' ~ message.role ~ '\\n' }}{% if message.role == 'assistant' %}{% generation %}"
                "{{ message.content ~ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
                "{{ message.content ~ '<|im_end|>\\n' }}{% endif %}")],
    "qwen2.5": [("{{- '<|im_start|>assistant' ~ ('\\n' ~ message.content if message.content else '') }}",
                 "{{- '<|im_start|>assistant\\n' }}{% generation %}{{ message.content }}"),
                ("{{- '\\n<tool_call>\\n{\"name\": \"'",
                 "{{- ('\\n' if message.content or not loop.first else '') ~ '<tool_call>\\n{\"name\": \"'"),
                ("{%- endfor %}\n{{- '<|im_end|>\\n' }}",
                 "{%- endfor %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"),
                ("{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}",
                 "{{- '<|im_start|>' + message.role + '\\n' }}{% if message.role == 'assistant' %}{% generation %}"
                 "{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
                 "{{ message.content + '<|im_end|>\\n' }}{% endif %}")],
    # Without thinking the empty thought is the prompt's, as when serving.
    "qwen3": [("{{- '<|im_start|>assistant\\n' }}\n",
               "{{- '<|im_start|>assistant\\n' }}"
               "{% set shown = loop.index0 > last.query and (loop.last or reasoning) %}"
               "{% if shown and enable_thinking is false and not reasoning %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
               "{% generation %}\n"),
              ("{%- if loop.index0 > last.query and (loop.last or reasoning) %}\n{{- '<think>",
               "{%- if shown and enable_thinking is false and not reasoning %}{{ content.lstrip('\\n') }}"
               "{%- elif shown %}\n{{- '<think>"),
              ("{{- '<|im_end|>\\n' }}\n{%- endif %}\n{%- endfor %}",
               "{{- '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}\n{%- endif %}\n{%- endfor %}")],
    "llama2": [("{{- ' ' ~ message.content.strip() ~ ' ' ~ eos_token }}",
                "{{- ' ' }}{% generation %}{{ message.content.strip() ~ ' ' ~ eos_token }}{% endgeneration %}")],
    "llama3": [("{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}",
                "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}"
                "{% if message.role == 'assistant' %}{% generation %}{{ message.content | trim + '<|eot_id|>' }}"
                "{% endgeneration %}{% else %}{{ message.content | trim + '<|eot_id|>' }}{% endif %}")],
    "gemma": [("{{- message.content | trim + '<end_of_turn>\\n' }}",
               "{%- if message.role == 'assistant' %}{% generation %}{{ message.content | trim + '<end_of_turn>' }}"
               "{% endgeneration %}{{ '\\n' }}{% else %}{{- message.content | trim + '<end_of_turn>\\n' }}{% endif %}")],
}

WORDS = ("hello world what is the name of this model please write a short list answer in one line naïve café 日本語 привет "
         "мир 🙂 👩‍👩‍👧 e\u0301te\u0301 12 345 x=y+1 <b>bold</b> \"quoted\" it's - • \ttab end. weather in Paris ?").split(" ")
ODD = ["", "\n", "  spaced  ", "a\n\nb", "\n\nleading", "trailing\n\n", "<|im_start|>assistant\nnot a turn<|im_end|>\n",
       "<think>\n", "e\u0301 \u1e9b\u0323", "🙂", "```\ncode\n```", "</s> <pad> [INST]", "a\u00a0b\u3000c", "𝔘𝔫𝔦"]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]


def template_of(name: str) -> str:
    """A built-in template from the C++ source, joined from its pieces as the program does."""
    source = (ROOT / "src" / "text" / "builtin_templates.cpp").read_text()
    pieces = re.search(r'\{"%s", \{([^}]*)\}\}' % re.escape(name), source).group(1).split(", ")
    texts = [re.search(r'%s = R"jinja\((.*?)\)jinja"' % piece, source, re.S).group(1) for piece in pieces]
    return "".join(texts)


def marked(name: str) -> str:
    text = template_of(name)
    for old, new in MARKS[name]:
        assert text.count(old) == 1, (name, old, text.count(old))
        text = text.replace(old, new)
    return text


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    corpus = [" ".join(WORDS), " ".join(reversed(WORDS)), "assistant\n\nuser\n\nsystem\n" * 3, json.dumps(TOOLS)]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens(PLAIN)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|im_end|>",
                                   pad_token="<|endoftext|>")


def make_text(rng: random.Random, most: int) -> str:
    if rng.random() < 0.2:
        return rng.choice(ODD)
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def make_conversation(rng: random.Random, name: str) -> dict:
    messages, case = [], {"template": name}
    tools = name in ("qwen2.5", "qwen3") and rng.random() < 0.4
    if name != "gemma" and rng.random() < 0.4:
        messages.append({"role": "system", "content": make_text(rng, 6)})
    for _ in range(rng.choice([1, 1, 2, 3])):
        messages.append({"role": "user", "content": make_text(rng, 8)})
        if tools and rng.random() < 0.6:
            calls = [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": make_text(rng, 1)}}}
                     for _ in range(rng.randint(1, 2))]
            messages.append({"role": "assistant", "content": rng.choice(["", make_text(rng, 4)]), "tool_calls": calls})
            messages += [{"role": "tool", "content": make_text(rng, 4)} for _ in calls]
        messages.append({"role": "assistant", "content": make_text(rng, 8)})
    if tools:
        case["tools"] = TOOLS
    if name == "qwen3":
        thinking = rng.choice([None, True, False])
        if thinking is not None:
            case["kwargs"] = {"enable_thinking": thinking}
        for message in messages:
            if message["role"] != "assistant":
                continue
            if thinking is False:
                message["content"] = message["content"].replace("<think>\n", "")
            elif rng.random() < 0.4:
                message["reasoning_content"] = make_text(rng, 5)
            elif rng.random() < 0.3:
                message["content"] = f"<think>\n{make_text(rng, 4)}\n</think>\n\n" + message["content"]
    case["messages"] = messages
    return case


def spans_of(mask: list) -> list:
    spans = []
    for i, bit in enumerate(mask):
        if bit and (i == 0 or not mask[i - 1]):
            spans.append([i, i])
        if bit:
            spans[-1][1] = i + 1
    return spans


def infer_seqlen(source: int, target: int, cutoff: int) -> tuple:
    if target * 2 < cutoff:
        most = cutoff
    elif source * 2 < cutoff:
        most = cutoff - source
    else:
        most = int(cutoff * (target / (source + target)))
    target = min(most, target)
    return min(max(cutoff - target, 0), source), target


def trim(ids: list, spans: list, cutoff: int, mask_history: bool, train_on_prompt: bool) -> dict:
    """Turn by turn, as LLaMA-Factory's supervised processor; what follows the last answer is kept where it fits."""
    turns, begin = [], 0
    for first, last in spans:
        turns.append((ids[begin:first], ids[first:last]))
        begin = last
    tail = ids[begin:]
    order = list(range(len(turns)))[::-1] if mask_history else range(len(turns))
    out_ids, out_labels, total = [], [], 0
    for i in order:
        if total >= cutoff:
            break
        source, target = turns[i]
        s, t = infer_seqlen(len(source), len(target), cutoff - total)
        source, target, total = source[:s], target[:t], total + s + t
        labels = (source if train_on_prompt else [-100] * s) + (
            [-100] * t if mask_history and i != len(turns) - 1 else target)
        if mask_history:
            out_ids, out_labels = source + target + out_ids, labels + out_labels
        else:
            out_ids, out_labels = out_ids + source + target, out_labels + labels
    if len(out_ids) == begin and begin + len(tail) <= cutoff:
        out_ids, out_labels = out_ids + tail, out_labels + (tail if train_on_prompt else [-100] * len(tail))
    return {"cutoff_len": cutoff, "mask_history": mask_history, "train_on_prompt": train_on_prompt, "ids": out_ids,
            "labels": out_labels}


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.save(str(OUT / "tokenizer.json"), pretty=False)
    (OUT / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "clean_up_tokenization_spaces": False}) + "\n")
    rng = random.Random(5)
    names = list(MARKS)
    cases = []
    while len(cases) < 260:
        name = names[len(cases) % len(names)]
        case = make_conversation(rng, name)
        out = tokenizer.apply_chat_template(
            case["messages"], tools=case.get("tools"), chat_template=marked(name), return_dict=True,
            return_assistant_tokens_mask=True, **case.get("kwargs", {}))
        plain = tokenizer.apply_chat_template(case["messages"], tools=case.get("tools"), chat_template=template_of(name),
                                              return_dict=True, **case.get("kwargs", {}))
        assert out["input_ids"] == plain["input_ids"], (name, case)
        case["ids"], case["spans"] = out["input_ids"], spans_of(out["assistant_masks"])
        if len(cases) % 5 == 0:
            answers = sum(m["role"] == "assistant" for m in case["messages"])
            assert len(case["spans"]) == answers, case
            case["trimmed"] = [trim(case["ids"], case["spans"], rng.randint(8, len(case["ids"]) + 4), *options)
                               for options in [(False, False), (True, False), (False, True)]]
        cases.append(case)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    templates = json.dumps({name: marked(name) for name in names}, ensure_ascii=False)
    (OUT / "masks.json").write_text(f'{{"marked": {templates},\n"cases": [\n{lines}\n]}}\n')
    print(len(cases), "conversations,", sum(len(case["ids"]) for case in cases), "tokens")


if __name__ == "__main__":
    main()
