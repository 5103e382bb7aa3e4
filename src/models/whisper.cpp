// Whisper: log-mel windows → two convolutions and a transformer encoder; a transformer decoder with
// cross attention. Follows modeling_whisper.py (WhisperForConditionalGeneration).
#include <cmath>
#include <numeric>

#include "models/config.h"
#include "models/speech_model.h"
#include "nn/causal_lm.h"
#include "nn/conv1d.h"
#include "nn/layer_norm.h"
#include "nn/linear.h"
#include "ops/embedding.h"

namespace reft {
namespace {

constexpr float kNormEps = 1e-5f;

struct WhisperConfig {
  SpeechInfo info;
  int64_t encoder_layers, encoder_heads, encoder_ffn;
  int64_t decoder_heads, decoder_ffn;
  float embedding_scale;
  Activation activation;
};

WhisperConfig read_config(const Json& json) {
  const Config config(json);
  WhisperConfig out{};
  SpeechInfo& info = out.info;
  info.architecture = read_architecture(json);
  info.vocab_size = config.size("vocab_size", 51865);
  info.num_mel_bins = config.size("num_mel_bins", 80);
  info.encoder_positions = config.size("max_source_positions", 1500);
  info.num_frames = 2 * info.encoder_positions;
  info.max_target_positions = config.size("max_target_positions", 448);
  info.hidden_size = config.size("d_model", 384);
  info.num_decoder_layers = config.size("decoder_layers", 4);
  info.checkpoint_dtype = read_dtype(json).value_or(DType::kF32);
  out.encoder_layers = config.size("encoder_layers", 4);
  out.encoder_heads = config.size("encoder_attention_heads", 6);
  out.encoder_ffn = config.size("encoder_ffn_dim", 1536);
  out.decoder_heads = config.size("decoder_attention_heads", 6);
  out.decoder_ffn = config.size("decoder_ffn_dim", 1536);
  out.embedding_scale = config.flag("scale_embedding", false)
                            ? std::sqrt(static_cast<float>(info.hidden_size))
                            : 1.0f;
  out.activation = read_activation(config, {"activation_function"}, "gelu");
  for (const auto& [key, heads] : {std::pair("encoder_attention_heads", out.encoder_heads),
                                   {"decoder_attention_heads", out.decoder_heads}}) {
    if (info.hidden_size % heads != 0)
      config.refuse(key, "is {}, which does not divide d_model {}", heads, info.hidden_size);
  }
  if (!config.flag("tie_word_embeddings", true))
    config.refuse("tie_word_embeddings", "must be true: Whisper's head is its embedding");
  return out;
}

// Keys are projected without a bias.
void without_key_bias(Linear& linear) {
  for (Parameter& parameter : linear.own_parameters()) {
    if (parameter.name.ends_with("k_proj.bias")) parameter.optional = true;
  }
}

Tensor iota(int64_t n, Device device) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), 0);
  return Tensor::from_vector(ids).to(device);
}

// fc2(act(fc1(norm(x)))). Parameters "final_layer_norm", "fc1", "fc2".
class FeedForward : public Module {
 public:
  FeedForward(Module* parent, int64_t size, int64_t ffn, Activation activation)
      : Module(parent, ""),
        activation_(activation),
        norm_(this, "final_layer_norm", size, kNormEps),
        fc1_(this, "fc1", size, ffn, true),
        fc2_(this, "fc2", ffn, size, true) {}

  Tensor operator()(const Tensor& x) const {
    Tensor hidden = fc1_(norm_(x));
    activate_(hidden, activation_);
    return fc2_(hidden);
  }

 private:
  Activation activation_;
  LayerNorm norm_;
  Linear fc1_, fc2_;
};

// out(attention(q(norm(x)), keys and values of a cache)), with what makes those keys and values.
// Parameters "<name>_layer_norm", "<name>.{q,k,v,out}_proj".
class Attend : public Module {
 public:
  Attend(Module* parent, const std::string& name, int64_t size, int64_t heads)
      : Module(parent, ""),
        size_(size),
        heads_(heads),
        scale_(1.0f / std::sqrt(static_cast<float>(size) / static_cast<float>(heads))),
        kv_(this, size, {{name + ".k_proj", size}, {name + ".v_proj", size}}, true),
        q_(this, name + ".q_proj", size, size, true),
        out_(this, name + ".out_proj", size, size, true),
        norm_(this, name + "_layer_norm", size, kNormEps) {
    without_key_bias(kv_);
  }

  Tensor norm(const Tensor& x) const { return norm_(x); }
  // x: [T, D]. Keys and values: [T, 2 D].
  Tensor keys_and_values(const Tensor& x) const { return kv_(x); }
  Tensor queries(const Tensor& x) const {
    return q_(x).reshape({x.size(0), heads_, size_ / heads_});
  }
  Tensor attend(const Tensor& q, const PagedKv& kv, const AttentionBatch& batch) const {
    return out_(full_attention(q, kv, batch, scale_));
  }
  LayerCacheSpec cache_spec() const {
    return {.num_kv_heads = heads_, .head_dim = size_ / heads_, .window = 0};
  }
  float scale() const { return scale_; }

 private:
  int64_t size_, heads_;
  float scale_;
  Linear kv_, q_, out_;
  LayerNorm norm_;
};

class EncoderBlock : public Module {
 public:
  EncoderBlock(Module* parent, const std::string& name, const WhisperConfig& config)
      : Module(parent, name),
        attend_(this, "self_attn", config.info.hidden_size, config.encoder_heads),
        feed_forward_(this, config.info.hidden_size, config.encoder_ffn, config.activation) {}

  // `kv` and `slots`: room for the keys of this batch.
  void forward(Tensor& x, PagedKv& kv, const Tensor& slots, const AttentionBatch& batch) const {
    const Tensor normed = attend_.norm(x);
    write_kv(attend_.keys_and_values(normed), slots, kv);
    add_into(x, attend_.attend(attend_.queries(normed), kv, batch));
    add_into(x, feed_forward_(x));
  }
  LayerCacheSpec cache_spec() const { return attend_.cache_spec(); }

 private:
  Attend attend_;
  FeedForward feed_forward_;
};

class Encoder : public Module {
 public:
  Encoder(Module* parent, const WhisperConfig& config)
      : Module(parent, "model.encoder"),
        config_(config),
        conv1_(this, "conv1", config.info.num_mel_bins, config.info.hidden_size, 3, 1),
        conv2_(this, "conv2", config.info.hidden_size, config.info.hidden_size, 3, 2),
        positions_(this, "embed_positions", config.info.encoder_positions, config.info.hidden_size,
                   1.0f, false) {
    for (int64_t i = 0; i < config.encoder_layers; ++i) {
      blocks_.push_back(
          std::make_unique<EncoderBlock>(this, "layers." + std::to_string(i), config));
    }
    norm_ = std::make_unique<LayerNorm>(this, "layer_norm", config.info.hidden_size, kNormEps);
  }

  Tensor forward(const Tensor& features, int64_t windows) const {
    const Device device = features.device();
    const int64_t length = config_.info.encoder_positions;
    Tensor x = conv1_(features, windows);
    activate_(x, Activation::kGeluErf);
    x = conv2_(x, windows);
    activate_(x, Activation::kGeluErf);
    const Tensor positions = positions_(iota(length, device));
    for (int64_t b = 0; b < windows; ++b) {
      Tensor window = x.rows(b * length, (b + 1) * length);
      add_into(window, positions);
    }
    // One block of all positions for each window, used by every layer in turn.
    const LayerCacheSpec spec = blocks_[0]->cache_spec();
    const Shape shape{windows, spec.num_kv_heads, length, spec.head_dim};
    PagedKv kv{Tensor::empty(shape, x.dtype(), device), Tensor::empty(shape, x.dtype(), device)};
    const Tensor slots = iota(windows * length, device);
    std::vector<int32_t> starts;
    for (int64_t b = 0; b <= windows; ++b) starts.push_back(static_cast<int32_t>(b * length));
    const std::vector<int32_t> lengths(static_cast<size_t>(windows), static_cast<int32_t>(length));
    const AttentionBatch batch{.query_start = Tensor::from_vector(starts).to(device),
                               .context_len = Tensor::from_vector(lengths).to(device),
                               .block_table = iota(windows, device).reshape({windows, 1}),
                               .max_query_len = length,
                               .max_context_len = length};
    for (const auto& block : blocks_) block->forward(x, kv, slots, batch);
    return (*norm_)(x);
  }

 private:
  WhisperConfig config_;
  Conv1d conv1_, conv2_;
  Embedding positions_;
  std::vector<std::unique_ptr<EncoderBlock>> blocks_;
  std::unique_ptr<LayerNorm> norm_;
};

class WhisperDecoderBlock : public Module {
 public:
  WhisperDecoderBlock(Module* parent, const std::string& name, const WhisperConfig& config)
      : Module(parent, name),
        size_(config.info.hidden_size),
        self_norm_(this, "self_attn_layer_norm", size_, kNormEps),
        self_qkv_(
            this, size_,
            {{"self_attn.q_proj", size_}, {"self_attn.k_proj", size_}, {"self_attn.v_proj", size_}},
            true),
        self_out_(this, "self_attn.out_proj", size_, size_, true),
        cross_(this, "encoder_attn", size_, config.decoder_heads),
        feed_forward_(this, size_, config.decoder_ffn, config.activation) {
    without_key_bias(self_qkv_);
  }

  const Attend& cross() const { return cross_; }

  void forward(Tensor& x, const SpeechBatch& batch, PagedKv& self, const PagedKv& encoder,
               const std::function<void(const Tensor& q)>& tap) const {
    const Batch& tokens = batch.tokens;
    const Tensor attended = rope_attention(self_qkv_(self_norm_(x)), tokens.positions, tokens.slots,
                                           self, {}, tokens.attention, {.scale = cross_.scale()});
    add_into(x, self_out_(attended));
    const Tensor q = cross_.queries(cross_.norm(x));
    if (tap) tap(q);
    add_into(x, cross_.attend(q, encoder, batch.encoder));
    add_into(x, feed_forward_(x));
  }

 private:
  int64_t size_;
  LayerNorm self_norm_;
  Linear self_qkv_, self_out_;
  Attend cross_;
  FeedForward feed_forward_;
};

class Decoder : public Module {
 public:
  Decoder(Module* parent, const WhisperConfig& config)
      : Module(parent, "model.decoder"),
        embed_(this, "embed_tokens", config.info.vocab_size, config.info.hidden_size,
               config.embedding_scale, true),
        positions_(this, "embed_positions", config.info.max_target_positions,
                   config.info.hidden_size, 1.0f, false) {
    for (int64_t i = 0; i < config.info.num_decoder_layers; ++i) {
      blocks_.push_back(
          std::make_unique<WhisperDecoderBlock>(this, "layers." + std::to_string(i), config));
    }
    norm_ = std::make_unique<LayerNorm>(this, "layer_norm", config.info.hidden_size, kNormEps);
  }

  const std::vector<std::unique_ptr<WhisperDecoderBlock>>& blocks() const { return blocks_; }

  Tensor forward(const SpeechBatch& batch, KvCache& self, KvCache& cross,
                 const SpeechModel::QueryTap& tap) const {
    const Batch& tokens = batch.tokens;
    Tensor x = embed_(tokens.token_ids);
    add_into(x, positions_(tokens.positions));
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const auto layer = static_cast<int64_t>(i);
      std::function<void(const Tensor&)> layer_tap;
      if (tap) layer_tap = [&](const Tensor& q) { tap(layer, q); };
      blocks_[i]->forward(x, batch, self.layer(layer), cross.layer(layer), layer_tap);
    }
    if (tokens.num_logit_rows() != tokens.num_tokens()) x = gather_rows(x, tokens.logit_rows);
    return embed_.project((*norm_)(x));
  }

 private:
  Embedding embed_, positions_;
  std::vector<std::unique_ptr<WhisperDecoderBlock>> blocks_;
  std::unique_ptr<LayerNorm> norm_;
};

class Whisper : public SpeechModel {
 public:
  explicit Whisper(const WhisperConfig& config)
      : config_(config), encoder_(this, config), decoder_(this, config) {}

  const SpeechInfo& info() const override { return config_.info; }
  std::vector<LayerCacheSpec> self_cache_specs() const override { return cross_cache_specs(); }
  std::vector<LayerCacheSpec> cross_cache_specs() const override {
    return std::vector<LayerCacheSpec>(decoder_.blocks().size(),
                                       decoder_.blocks()[0]->cross().cache_spec());
  }
  float cross_scale() const override { return decoder_.blocks()[0]->cross().scale(); }

  Tensor encode(const Tensor& features, int64_t windows) const override {
    const Shape want{windows * config_.info.num_frames, config_.info.num_mel_bins};
    check(windows > 0 && features.shape() == want && features.dtype() == DType::kF32,
          "whisper: features must be float32 {}, got {}", want, features);
    return encoder_.forward(features, windows);
  }
  void write_cross(const Tensor& encoded, const Tensor& slots, KvCache& cross) const override {
    for (size_t i = 0; i < decoder_.blocks().size(); ++i) {
      write_kv(decoder_.blocks()[i]->cross().keys_and_values(encoded), slots,
               cross.layer(static_cast<int64_t>(i)));
    }
  }
  Tensor decode(const SpeechBatch& batch, KvCache& self, KvCache& cross,
                const QueryTap& tap) const override {
    return decoder_.forward(batch, self, cross, tap);
  }

 private:
  WhisperConfig config_;
  Encoder encoder_;
  Decoder decoder_;
};

}  // namespace

std::unique_ptr<SpeechModel> create_whisper(const Json& config) {
  return std::make_unique<Whisper>(read_config(config));
}

}  // namespace reft
