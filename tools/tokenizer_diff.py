#!/usr/bin/env python3
"""Compares the tokenizer program (bench/tokenizer.cpp) with Hugging Face `tokenizers` on random and corpus text, and
on the text of random ids, with and without special tokens.

tokenizer_diff.py PROGRAM TOKENIZER-FOLDER [--count N] [--seed S] [--corpus FILE…] [--no-special] [--gguf FILE]
Prints each difference (up to a few) and a summary; exit status 1 when there is one.
"""
import argparse
import json
import random
import subprocess
import sys

from tokenizers import Tokenizer

SNIPPETS = ["hello", "Hello", "HELLO", "don't", "DON'T", "I'Ve", "we'LL", "x'ſ", "it's", "'s", "''", "'", "can’t", "12345", "3.14159", "1,000,000",
            "٣٤٥", "Ⅻ", "½", "²", "一二三", "你好,世界。", "こんにちは", "カタカナ", "한국어", "한국어", "é", "é", "é́", "ß", "İ",
            "ﬁ", "Å", "Å", "a̐éö̲", "\u0334\u0345", "\u0301", "שלום", "مرحبا", "हिन्दी", "ไทย", "\U0001F468‍\U0001F469‍\U0001F467‍\U0001F466", "\U0001F44D\U0001F3FD",
            "\U0001F1E9\U0001F1EA", "❤️", "\u200d", "\u200b", "\u00a0", "\u2003", "\u3000", "\u0085", "\u2028", "\u180e", "\ufeff", "\ufffd", "\uffff", "\U0010ffff",
            "\ufdd0", "\x00", "\x01", "\x07", "\x1b", "\x7f", "\t", "\n", "\r\n", "\r", "\v", "\f", " ", "  ", "   ", "    ", "\n\n", "\n \n", " \n", "\t\t",
            "def f(x):\n    return x**2\n", "int main() { return 0; }", "#include <a.h>", "https://a.b/c?d=e&f=%20", "a_b", "camelCaseWord", "ALLCAPSWord",
            "!!!", "...", "…", "--", "—", "/", "//", "/*", "*/", "</p>", "<b>", "<think>", "</think>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>",
            "<bos>", "<eos>", "<pad>", "<unk>", "<0x0A>", "[UNK]", "[CLS]", "[MASK]", "▁", "▁▁", "Ġ", "Ċ", "##ing", "ing", "walking", "walked", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "<｜begin▁of▁sentence｜>", "<｜tool▁sep｜>", "<unused5>", "<start_of_turn>", "<|begin_of_text|>", "<|eot_id|>", "<|start|>", "A", "b", "Ⴀ", "Ა", "ǅ", "ʰ", "ª", "ꟊ",
            "\u1c89", "\U00010d50", "\U0001e5d0", "\u0897", "𝒜", "㍻", "㋿", "\u2126", "\u212a", "\u212b", "A\u030a", "e\u0301", "e\u0301\u0323", "\u1100\u1161\u11a8", "\u0958", "\u1e69", "\u0133", "\ufb03", "\U0002f81a", "\uf900", "①", "™", "\U00011935\U00011930", "$", "+", "<", "=", "€", "·"]


def random_text(rng, tokenizer_bits):
    kind = rng.random()
    if kind < 0.15:
        return "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x20), rng.randrange(0x80, 0x800),
                                       rng.randrange(0x800, 0xD800), rng.randrange(0xE000, 0x10000),
                                       rng.randrange(0x10000, 0x20000), rng.randrange(0x110000)])) for _ in range(rng.randrange(1, 30))
                       ).encode("utf-8", "replace").decode("utf-8")
    if kind < 0.25:
        return "".join(rng.choice(" \t\n\r'aA1.é中\u0301/sSx") for _ in range(rng.randrange(1, 40)))
    if kind < 0.3:
        return "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(1, 200)))
    parts = SNIPPETS + tokenizer_bits
    glue = rng.choice(["", "", " ", "\n"])
    return glue.join(rng.choice(parts) for _ in range(rng.randrange(1, 14)))


def compare_decoding(a, tok, rng):
    """Texts of random ids that differ."""
    added = list(tok.get_added_tokens_decoder())
    size = max(tok.get_vocab().values()) + 1
    lists = [[rng.choice(added) if added and rng.random() < 0.1 else rng.randrange(size)
              for _ in range(rng.randrange(1, 24))] for _ in range(a.count)]
    out = subprocess.run([a.program, "text", a.gguf or a.folder], input="".join(f"{x}\n" for x in lists).encode(),
                         capture_output=True, check=True)
    bad = 0
    for ids, line in zip(lists, out.stdout.decode().split("\n")):
        want = [tok.decode(ids, skip_special_tokens=skip) for skip in (False, True)]
        if json.loads(line) != want:
            bad += 1
            if bad <= 3:
                print("IDS", ids, "\n  hf  ", json.dumps(want)[:600], "\n  here", line[:600])
    return bad


def main():
    p = argparse.ArgumentParser()
    p.add_argument("program")
    p.add_argument("folder")
    p.add_argument("--count", type=int, default=10000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--corpus", nargs="*", default=[])
    p.add_argument("--no-special", action="store_true")
    p.add_argument("--gguf")
    p.add_argument("--batch", type=int, default=20000)
    a = p.parse_args()
    tok = Tokenizer.from_file(a.folder if a.folder.endswith(".json") else a.folder + "/tokenizer.json")
    if a.no_special:
        tok.encode_special_tokens = True
    rng = random.Random(a.seed)
    ids = list(tok.get_vocab().keys())
    bits = [t for t in rng.sample(ids, min(300, len(ids)))]
    bits += [t.content for t in list(tok.get_added_tokens_decoder().values())[:40]]
    texts = [random_text(rng, bits) for _ in range(a.count)]
    for name in a.corpus:
        data = open(name, encoding="utf-8", newline="").read()
        i = 0
        while i < len(data):
            n = rng.randrange(1, 2000)
            texts.append(data[i:i + n])
            i += n
    bad = bad_text = 0
    for b in range(0, len(texts), a.batch):
        chunk = texts[b:b + a.batch]
        command = [a.program, "ids", a.gguf or a.folder] + (["plain"] if a.no_special else [])
        out = subprocess.run(command, input="".join(json.dumps(t) + "\n" for t in chunk).encode(), capture_output=True)
        if out.returncode:
            sys.exit(f"program failed: {out.stderr.decode()}")
        lines = out.stdout.decode().split("\n")[:-1]
        assert len(lines) == len(chunk), (len(lines), len(chunk))
        for text, line in zip(chunk, lines):
            got_ids, _, got_text = line.partition("\t")
            try:
                enc = tok.encode(text).ids
            except Exception as e:  # noqa: BLE001
                enc = f"{e}"
            want = " ".join(map(str, enc)) if isinstance(enc, list) else "error"
            if got_ids != want and not (want == "error" and got_ids.startswith("error")):
                bad += 1
                if bad <= 6:
                    print("DIFF", json.dumps(text), "\n  hf  ", want[:400], "\n  here", got_ids[:400])
                continue
            if want == "error":
                continue
            decoded = tok.decode(enc, skip_special_tokens=False)
            if json.loads(got_text) != decoded:
                bad_text += 1
                if bad_text <= 3:
                    print("TEXT", json.dumps(text), "\n  hf  ", json.dumps(decoded)[:300], "\n  here", got_text[:300])
    bad_decoded = compare_decoding(a, tok, rng)
    print(f"{a.folder}: {len(texts)} texts, {bad} with other ids, {bad_text} with other decoded text; "
          f"{a.count} lists of random ids, {bad_decoded} with other text")
    sys.exit(bool(bad or bad_text or bad_decoded))


if __name__ == "__main__":
    main()
