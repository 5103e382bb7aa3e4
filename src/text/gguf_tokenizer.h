// Tokenizers in GGUF's terms, for writing such files: what load_tokenizer(GgufReader) reads.
#pragma once

#include <string>

#include "tensor/gguf_writer.h"
#include "text/tokenizer.h"

namespace reft {

// tokenizer.ggml.* and tokenizer.chat_template for the tokenizer `tokenizer` that was loaded from
// the folder or file `path`, for a model of `rows` logits (ids beyond the vocabulary become unused
// tokens). Byte-level BPE (tokenizer.json) and SentencePiece-like BPE (tokenizer.model, or a
// tokenizer.json with byte fallback) can be written; others, and a way of splitting text that GGUF
// has no name for, are an Error that says so.
GgufMetadata gguf_tokenizer(const std::string& path, const Tokenizer& tokenizer, int64_t rows);
// The same of a GGUF file: its own keys.
GgufMetadata gguf_tokenizer(const GgufReader& gguf);

// Throws Error with the text where the two encode one of a few texts of all kinds differently.
void check_same_tokens(const Tokenizer& written, const Tokenizer& source);

}  // namespace reft
