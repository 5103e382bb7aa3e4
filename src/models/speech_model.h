// What the speech engine knows of a model: an encoder over windows of log-mel features and a
// decoder of text tokens that attends to it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "models/model.h"

namespace reft {

struct SpeechInfo {
  std::string architecture;  // "WhisperForConditionalGeneration"
  int64_t vocab_size = 0;
  int64_t num_mel_bins = 0;
  int64_t num_frames = 0;         // features of a window (10 ms each)
  int64_t encoder_positions = 0;  // what the decoder sees of a window
  int64_t max_target_positions = 0;
  int64_t num_decoder_layers = 0;
  int64_t hidden_size = 0;
  DType checkpoint_dtype = DType::kF16;
};

// The tokens of one decoder step, and what each sequence sees of the encoder.
struct SpeechBatch {
  Batch tokens;            // as for a decoder-only model
  AttentionBatch encoder;  // the same query_start; context_len and block_table of the cross cache
};

// `encode`, `write_cross` and `decode` are called by one thread at a time.
class SpeechModel : public Module {
 public:
  virtual const SpeechInfo& info() const = 0;
  // Of the decoder's own keys and values, and of those that it makes of the encoder's result.
  virtual std::vector<LayerCacheSpec> self_cache_specs() const = 0;
  virtual std::vector<LayerCacheSpec> cross_cache_specs() const = 0;

  // features: [B num_frames, num_mel_bins] float32, B = `windows`. Returns
  // [B encoder_positions, D].
  virtual Tensor encode(const Tensor& features, int64_t windows) const = 0;
  // Puts the decoder's keys and values of `encoded` rows into the cross cache. slots: [T] int32.
  virtual void write_cross(const Tensor& encoded, const Tensor& slots, KvCache& cross) const = 0;
  // Logits [R, V] float32 of batch.tokens.logit_rows. `tap` (may be empty) sees the queries
  // [T, H, Dh] of each layer's cross attention.
  using QueryTap = std::function<void(int64_t layer, const Tensor& q)>;
  virtual Tensor decode(const SpeechBatch& batch, KvCache& self, KvCache& cross,
                        const QueryTap& tap) const = 0;
  // Of `decode`'s cross attention, for attention_weights.
  virtual float cross_scale() const = 0;
};

struct LoadedSpeechModel {
  std::unique_ptr<SpeechModel> model;
  Json config;             // config.json, or what a CTranslate2 folder says in its terms
  Json generation_config;  // suppressed tokens, alignment heads …
  Device device;
  DType compute_dtype = DType::kF32;
  int64_t weight_bytes = 0;
  int64_t num_parameters = 0;
};

// Whether the folder (a Hugging Face or a CTranslate2 one) holds a speech model.
bool is_speech_model(const std::string& path);
// Loads it. Throws Error naming the file, key or tensor at fault. Thread-safe.
LoadedSpeechModel load_speech_model(const std::string& path, const LoadOptions& options);

// Families, one line each in models/speech_load.cpp.
std::unique_ptr<SpeechModel> create_whisper(const Json& config);

}  // namespace reft
