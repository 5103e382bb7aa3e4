// SentencePiece's own files (tokenizer.model).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "text/tokenizer_pipeline.h"

namespace reft {

struct SentencePieceFile {
  SentencePieceSpec spec;
  int64_t bos = 1, eos = 2, pad = -1;  // may be outside of the pieces: none
};

// Throws Error naming `what` for a file that is cut short, and for other models than unigram and
// BPE.
SentencePieceFile read_sentencepiece(std::string_view bytes, const std::string& what);

}  // namespace reft
