// Whisper checkpoints as CTranslate2 writes them (model.bin beside config.json and tokenizer.json),
// which users of faster-whisper have. float32, float16, bfloat16, int8 (with float32 or float16
// beside it) and int16.
//
// The file: version, name and revision of the model's specification, a count, then for each
// variable its name, rank, sizes, type and bytes; then aliases. All little-endian and packed.
// Source: CTranslate2, python/ctranslate2/specs/model_spec.py.
#pragma once

#include <memory>
#include <string>

#include "base/json.h"
#include "tensor/checkpoint_reader.h"

namespace reft {

struct Ctranslate2Checkpoint {
  std::unique_ptr<CheckpointReader> reader;  // under Hugging Face's names
  Json config;  // the sizes, in the terms of a Hugging Face config.json
};

// Whether `path` is a folder with a model.bin that CTranslate2 wrote for Whisper.
bool is_ctranslate2_whisper(const std::string& path);
// Throws Error naming the file, and the variable, at fault. Integers become float32 when read.
Ctranslate2Checkpoint open_ctranslate2_checkpoint(const std::string& path);

}  // namespace reft
