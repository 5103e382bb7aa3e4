// For tests: the tiny Whisper of tests/golden with a tokenizer made up for it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "speech/speech_engine.h"

namespace reft::fake {

// Ids below 100 are words (" a0", " a1" …), then come the special tokens of a Whisper.
class SpeechTokenizer : public Tokenizer {
 public:
  static constexpr int32_t kEnd = 100, kStart = 101, kEnglish = 102, kGerman = 103,
                           kTranslate = 104, kTranscribe = 105, kStartOfModel = 106,
                           kPrevious = 107, kNoSpeech = 108, kNoTimestamps = 109, kTime = 110;

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions&) const override {
    std::vector<int32_t> ids;
    for (const char c : text) {
      if (c != ' ') ids.push_back(c % 90);
    }
    if (ids.empty()) ids.push_back(7);  // the blank
    return ids;
  }
  std::string decode(std::span<const int32_t> ids, bool) const override {
    std::string out;
    for (const int32_t id : ids) out += token_bytes(id);
    return out;
  }
  int64_t vocab_size() const override { return 211; }
  std::optional<int32_t> token_to_id(std::string_view token) const override {
    static const std::map<std::string_view, int32_t> ids = {{"<|endoftext|>", kEnd},
                                                            {"<|startoftranscript|>", kStart},
                                                            {"<|en|>", kEnglish},
                                                            {"<|de|>", kGerman},
                                                            {"<|translate|>", kTranslate},
                                                            {"<|transcribe|>", kTranscribe},
                                                            {"<|startoflm|>", kStartOfModel},
                                                            {"<|startofprev|>", kPrevious},
                                                            {"<|nospeech|>", kNoSpeech},
                                                            {"<|notimestamps|>", kNoTimestamps}};
    const auto it = ids.find(token);
    if (it == ids.end()) return std::nullopt;
    return it->second;
  }
  std::string id_to_token(int32_t id) const override { return token_bytes(id); }
  std::string token_bytes(int32_t id) const override {
    return id < kEnd ? " a" + std::to_string(id) : "";
  }
  bool is_special(int32_t id) const override { return id >= kEnd; }
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_id() const override { return kEnd; }
  std::optional<int32_t> pad_id() const override { return std::nullopt; }
  const std::string& chat_template() const override { return none_; }

 private:
  std::string none_;
};

inline LoadedSpeechModel tiny_speech_model() {
  LoadedSpeechModel model = load_speech_model(
      std::string(REFT_SOURCE_DIR) + "/tests/golden/whisper/model", {.quiet = true});
  model.generation_config["is_multilingual"] = true;
  return model;
}

// A window of it is 0.64 s.
inline std::vector<float> noise(double seconds, uint32_t seed = 1) {
  std::vector<float> out(static_cast<size_t>(seconds * 16000));
  for (float& x : out) {
    seed = seed * 1664525u + 1013904223u;
    x = static_cast<float>(static_cast<int32_t>(seed) / 4294967296.0);
  }
  return out;
}

}  // namespace reft::fake
