#!/usr/bin/env python3
"""Makes tests/golden/tokenizers: small trained tokenizers of every kind, a corpus, and the ids that the Python libraries
give for it. Packages: tokenizers, sentencepiece, tiktoken, gguf.

make_tokenizer_golden.py OUT-FOLDER SHARED-FOLDER
SHARED-FOLDER has tokenizers/<name>/tokenizer.json.zst and datasets/ (text to train on).
"""
import base64
import io
import json
import os
import random
import subprocess
import sys
import tempfile

import gguf
import sentencepiece as spm
import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tokenizer_diff import SNIPPETS, random_text  # noqa: E402

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
# White space beside a user-defined piece of SentencePiece.
USER_DEFINED = ["<think>", "<think>a b", "a <think> b", "  a  <think>  b  ", "a<think>b", " <think>", "a <think>\u3000<think> \u00a0b<think> "]
LARGE = ["qwen3", "qwen2_5", "gptoss", "deepseek_v3", "gemma", "gemma3", "llama3_1"]


def corpus():
    rng = random.Random(5)
    texts = ["", " ", "  ", "\n", "Hello, world!", "Hello  world\r\n\r\n\tnext", "It's DON'T we'LL I'VE 'tis rock'n'roll",
             "1 12 123 1234 12345 3.14 1,000,000 ٣٤٥ ½ Ⅻ", "你好，世界。我是一个语言模型。こんにちは カタカナ 한국어 조선말",
             "\U0001F468‍\U0001F469‍\U0001F467‍\U0001F466 \U0001F44D\U0001F3FD \U0001F1E9\U0001F1EA ❤️", "café cafe\u0301 e\u0301\u0323 \u0301 \u0334\u0345a",
             "שלום עולם مرحبا بالعالم हिन्दी ไทย", "def f(x):\n    if x > 0:\n\t\treturn x ** 2  # square\n\n\nf(3)\n",
             "a" * 300, "ab" * 200, "x" * 70 + " " + "y" * 64 + " " + "z" * 65, "-" * 150, " " * 130 + "end", "\n" * 40,
             "\x00\x01\x07\x1b[0m\x7f\x85", "\ufffd \uffff \U0010ffff \ufdd0 \ufeff\u200b\u200d",
             "<|im_start|>user\nhi<|im_end|>\n<think>\n\n</think> done <tool_call>{}</tool_call>",
             "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<bos><start_of_turn>user\nHi<end_of_turn>",
             "<s>[INST] Hi [/INST]</s>", "<｜begin▁of▁sentence｜>Hi<｜Assistant｜>ok", "<|start|>user<|message|>Hi<|end|>",
             "a  [LEFT]  b [RIGHT]  c word wordy sword (word) NormTok normtok [LEFT][RIGHT]", "Ｆｕｌｌ ｗｉｄｔｈ ﬁ ㍻ ① ™",
             "CamelCaseWord ALLCAPSWord HTTPServer's O'Neill ǅabc ʰx", "▁▁ a▁b Ġ Ċ <0x0A> ##ing ing", "don't. do not ' quoted '"]
    texts += [random_text(rng, []) for _ in range(60)]
    return texts


def training_text(shared):
    text = open(f"{shared}/datasets/wiki_demo.txt", encoding="utf-8").read()[:120000]
    zh = json.load(open(f"{shared}/datasets/alpaca_zh_demo.json", encoding="utf-8"))[:40]
    return [text[i:i + 500] for i in range(0, len(text), 500)] + [x["output"] for x in zh] + SNIPPETS


def flagged(tok):
    tok.add_special_tokens([AddedToken("<|im_start|>", normalized=False), AddedToken("<|im_end|>", normalized=False)])
    tok.add_tokens([AddedToken("<think>", normalized=False), AddedToken("[LEFT]", lstrip=True, normalized=False),
                    AddedToken("[RIGHT]", rstrip=True, normalized=False), AddedToken("word", single_word=True, normalized=False),
                    AddedToken("NormTok", normalized=True)])


def make_small(data):
    out = {}
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(data, trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    flagged(t)
    out["byte_level"] = t

    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    t.train_from_iterator([" ".join(x.split()) for x in data], trainers.BpeTrainer(vocab_size=900, special_tokens=special, limit_alphabet=120, show_progress=False, max_token_length=8))
    config = json.loads(t.to_str())
    config["added_tokens"] = [x for x in config["added_tokens"] if x["id"] < 3]
    t = Tokenizer.from_str(json.dumps(config))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    out["byte_fallback"] = t

    t = Tokenizer(models.BPE(unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    t.decoder = decoders.Metaspace(prepend_scheme="first")
    t.train_from_iterator(data, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>"], limit_alphabet=150, show_progress=False))
    out["metaspace_first"] = t

    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    few = ["".join(c for c in x if ord(c) < 0x250) for x in data]  # the vocabulary must hold every character
    t.train_from_iterator(few, trainers.UnigramTrainer(vocab_size=600, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    t.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    out["unigram"] = t

    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer()
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    t.train_from_iterator(data, trainers.WordPieceTrainer(vocab_size=700, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], limit_alphabet=200, show_progress=False))
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    out["wordpiece"] = t

    t = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.BPEDecoder()
    t.train_from_iterator(data, trainers.BpeTrainer(vocab_size=600, end_of_word_suffix="</w>", special_tokens=["<|startoftext|>", "<|endoftext|>"],
                                                    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.post_processor = processors.RobertaProcessing(("<|endoftext|>", 1), ("<|startoftext|>", 0), trim_offsets=False, add_prefix_space=False)
    out["word_suffix"] = t

    t = Tokenizer(models.WordLevel(unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation("contiguous")])
    t.train_from_iterator(data, trainers.WordLevelTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False))
    out["word_level"] = t
    return out


def train_spm(data, folder):
    rules = os.path.join(tempfile.mkdtemp(), "rules.tsv")
    with open(rules, "w") as f:  # a small character map: full width, ligature, wide space, a two-character key
        for a, b in [("FF26", "46"), ("FB01", "66 69"), ("3000", "20"), ("A0", "20"), ("9", "20"), ("A", "20"), ("D", "20"), ("2460", "31"),
                     ("65 301", "E9"), ("AD", "")]:
            f.write(f"{a}\t{b}\n")
    models_out = {}
    for name, kind, extra in [("spm_bpe", "bpe", dict(byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)),
                              ("spm_unigram", "unigram", dict(byte_fallback=False, normalization_rule_tsv=rules))]:
        buffer = io.BytesIO()
        spm.SentencePieceTrainer.train(sentence_iterator=iter([x.replace("\n", " ") for x in data]), model_writer=buffer, model_type=kind,
                                       vocab_size=700, character_coverage=0.98, user_defined_symbols=["<think>"], minloglevel=2, num_threads=1, **extra)
        open(f"{folder}/{name}.model", "wb").write(buffer.getvalue())
        models_out[name] = spm.SentencePieceProcessor(model_proto=buffer.getvalue())
    return models_out


def write_gguf(folder, byte_level, sp):
    def writer(name, kind):
        w = gguf.GGUFWriter(f"{folder}/{name}.gguf", "llama")
        w.add_tokenizer_model(kind)
        return w

    def close(w):
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()

    config = json.loads(byte_level.to_str())
    size = byte_level.get_vocab_size()
    tokens = [byte_level.id_to_token(i) for i in range(size)]
    types = [1] * size
    for a in config["added_tokens"]:
        types[a["id"]] = 3 if a["special"] else 4
    w = writer("gpt2", "gpt2")
    w.add_tokenizer_pre("llama-bpe")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges([" ".join(m) for m in config["model"]["merges"]])
    w.add_bos_token_id(tokens.index("<|im_start|>"))
    w.add_eos_token_id(tokens.index("<|im_end|>"))
    w.add_add_bos_token(False)
    w.add_chat_template("{{ messages }}")
    close(w)
    n = sp.get_piece_size()
    w = writer("llama", "llama")
    w.add_token_list([sp.id_to_piece(i) for i in range(n)])
    w.add_token_scores([sp.get_score(i) for i in range(n)])
    w.add_token_types([2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else
                       4 if sp.id_to_piece(i) == "<think>" else 1 for i in range(n)])
    w.add_bos_token_id(sp.bos_id())
    w.add_eos_token_id(sp.eos_id())
    close(w)


def dump(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


def main():
    folder, shared = sys.argv[1], sys.argv[2]
    os.makedirs(folder, exist_ok=True)
    texts = corpus()
    dump(f"{folder}/corpus.json", texts)
    data = training_text(shared)
    small = make_small(data)
    golden = {}
    for name, tok in small.items():
        config = json.loads(tok.to_str())
        dump(f"{folder}/{name}.json", config)
        ids = [tok.encode(t).ids for t in texts]
        golden[name] = {"ids": ids, "text": [tok.decode(i, skip_special_tokens=True) if i else "" for i in ids]}
    sps = train_spm(data, folder)
    for name, sp in sps.items():
        # Control pieces written in the text become their ids here and stay text there: leave those texts out.
        plain = [sp.encode(t) if not any(s in t for s in ("<s>", "</s>", "<unk>", "<think>")) else None for t in texts]
        golden[name] = {"plain": plain, "text": [sp.decode(i) if i is not None else None for i in plain],
                        "user_defined": [[t, sp.encode(t)] for t in USER_DEFINED]}
    config = json.loads(small["byte_level"].to_str())
    alphabet = {c: b for b, c in byte_alphabet().items()}
    ranks = {bytes(alphabet[c] for c in t): i for t, i in config["model"]["vocab"].items()}
    with open(f"{folder}/small.tiktoken", "wb") as f:
        for token, rank in sorted(ranks.items(), key=lambda x: x[1]):
            f.write(base64.b64encode(token) + b" " + str(rank).encode() + b"\n")
    enc = tiktoken.Encoding("small", pat_str=r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
                            mergeable_ranks=ranks, special_tokens={})
    golden["tiktoken"] = {"plain": [enc.encode(t, disallowed_special=()) for t in texts]}
    write_gguf(folder, small["byte_level"], sps["spm_bpe"])
    dump(f"{folder}/small.ids.json", golden)
    large = {}
    for name in LARGE:
        raw = subprocess.run(["zstd", "-dc", f"{shared}/tokenizers/{name}/tokenizer.json.zst"], capture_output=True, check=True).stdout
        tok = Tokenizer.from_str(raw.decode("utf-8"))
        large[name] = [tok.encode(t).ids for t in texts]
    dump(f"{folder}/large.ids.json", large)


def byte_alphabet():
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    out, extra = {}, 256
    for b in range(256):
        if b in printable:
            out[b] = chr(b)
        else:
            out[b] = chr(extra)
            extra += 1
    return out


if __name__ == "__main__":
    main()
