// GPT-OSS: a learned sink beside the keys of each head, windows in every other layer, biases, and
// experts whose gate and up are clamped, chosen by the softmax of the best logits. Published with
// the experts in MXFP4; trained in bfloat16. Follows transformers' modeling_gpt_oss.
#include <cstring>

#include "base/thread_pool.h"
#include "models/decoder_model.h"
#include "ops/moe.h"

namespace reft {

namespace {

struct ExpertSizes {
  int64_t num_experts = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  bool blocks = false;  // in MXFP4 [E, N, K]; else [E, K, N]
};

// The parameters of one product, of all experts in one tensor: "<name>" and "<name>_bias" [E, N].
struct FusedProduct {
  ExpertWeights weights;
  Tensor file;  // until finish_loading
  Tensor bias;  // [E, N] float32

  int64_t out() const { return weights.out_features; }
  int64_t in() const { return weights.in_features; }
};

// Expert `e` as [N, K]; of pairs of gate and up, first the gates, then the ups.
Tensor expert_matrix(const FusedProduct& p, int64_t e, bool pairs) {
  const Tensor file = p.file.rows(e, e + 1);
  const int64_t n = p.out(), k = p.in(), half = n / 2;
  Tensor matrix = Tensor::empty({n, k}, p.weights.dtype);
  const auto source = [&](int64_t row) {
    return !pairs ? row : row < half ? 2 * row : 2 * (row - half) + 1;
  };
  if (!p.weights.transposed) {
    const auto bytes = static_cast<size_t>(row_bytes(p.weights.dtype, k));
    for (int64_t row = 0; row < n; ++row) {
      std::memcpy(matrix.raw() + static_cast<size_t>(row) * bytes,
                  file.raw() + static_cast<size_t>(source(row)) * bytes, bytes);
    }
    return matrix;
  }
  constexpr int64_t kTile = 32;
  const auto transpose = [&]<class T>(T) {
    const T* from = reinterpret_cast<const T*>(file.raw());
    T* to = reinterpret_cast<T*>(matrix.raw());
    compute_pool().parallel_for((n + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t last = std::min(n, (tile + 1) * kTile);
        for (int64_t j = 0; j < k; j += kTile) {
          for (int64_t row = tile * kTile; row < last; ++row) {
            for (int64_t i = j; i < std::min(k, j + kTile); ++i)
              to[row * k + i] = from[i * n + source(row)];
          }
        }
      }
    });
  };
  if (p.weights.dtype == DType::kF32) {
    transpose(uint32_t{});
  } else {
    transpose(uint16_t{});
  }
  return matrix;
}

// down(clamped_swiglu(gate_up(x))) of the chosen experts. Parameters gate_up_proj, down_proj and
// their biases, as the checkpoints have them: gate and up in turns. Follows GptOssExperts.
class FusedExperts : public Module {
 public:
  FusedExperts(Module* parent, std::string name, const ExpertSizes& sizes)
      : Module(parent, std::move(name)) {
    declare("gate_up_proj", gate_up_, sizes, 2 * sizes.intermediate_size, sizes.hidden_size);
    declare("down_proj", down_, sizes, sizes.hidden_size, sizes.intermediate_size);
  }

  // x: [T, D]. Returns [T, D].
  Tensor operator()(const Tensor& x, const Routing& routing) const {
    constexpr Activation kActivation = Activation::kClampedSwiglu;
    if (!plain_) {
      const Tensor h =
          gated_expert_linear(x, routing, gate_up_.weights, gate_up_.bias, kActivation);
      return combined_expert_linear(h, routing, down_.weights, down_.bias);
    }
    const Tensor pairs =
        expert_linear(x, ExpertInput::kTokens, routing, gate_up_.weights, gate_up_.bias);
    return combined_expert_linear(gated_activation(split_pairs(pairs), kActivation), routing,
                                  down_.weights, down_.bias);
  }

  void finish_loading(Device device, DType compute) override {
    plain_ = is_trainable();
    size_t index = 0;
    for (FusedProduct* product : {&gate_up_, &down_}) {
      finish(*product, index, device, compute);
      index += 2;
    }
  }

  int64_t weight_bytes() const override {
    return gate_up_.weights.nbytes() + down_.weights.nbytes() + gate_up_.bias.nbytes() +
           down_.bias.nbytes();
  }

 private:
  void declare(const std::string& name, FusedProduct& p, const ExpertSizes& sizes, int64_t n,
               int64_t k) {
    p.weights = {.num_experts = sizes.num_experts,
                 .out_features = n,
                 .in_features = k,
                 .transposed = !sizes.blocks};
    add_parameter(
        {.name = name,
         .shape = sizes.blocks ? Shape{sizes.num_experts, n, k} : Shape{sizes.num_experts, k, n},
         .set = [&p](const Tensor& t) { p.file = t; },
         .dummy_dtype = sizes.blocks ? std::optional(DType::kMXFP4) : std::nullopt});
    add_parameter({.name = name + "_bias",
                   .shape = {sizes.num_experts, n},
                   .set = [&p](const Tensor& t) { p.bias = t.to(DType::kF32).contiguous(); }});
  }

  void finish(FusedProduct& p, size_t index, Device device, DType compute) {
    ExpertWeights& w = p.weights;
    w.dtype = p.file.dtype();
    p.file = p.file.contiguous();
    if (plain_) {
      check(w.transposed, "experts in MXFP4 cannot be trained; use the bfloat16 checkpoint");
      w.data = p.file;
      place(own_parameters()[index], w.data, device);
      place(own_parameters()[index + 1], p.bias, device);
    } else {
      const bool pairs = &p == &gate_up_;
      for (int64_t e = 0; e < w.num_experts; ++e)
        place_expert(w, e, expert_matrix(p, e, pairs), device, compute);
      w.transposed = false;
      p.bias = (pairs ? split_pairs(p.bias) : p.bias).to(device);
    }
    p.file = {};
  }

  FusedProduct gate_up_, down_;
  bool plain_ = false;  // as the checkpoint has them
};

class GptOssMlp : public FeedForward {
 public:
  GptOssMlp(Module* parent, std::string name, const ExpertSizes& sizes, int64_t top_k)
      : FeedForward(parent, std::move(name)),
        options_{.top_k = top_k, .score = RouterScore::kSoftmaxOfTopK},
        router_(this, "router", sizes.hidden_size, sizes.num_experts, /*bias=*/true),
        experts_(this, "experts", sizes) {}

  Tensor operator()(const Tensor& x) const override {
    return experts_(x, route(router_(x, DType::kF32), {}, options_));
  }

 private:
  RouterOptions options_;
  Linear router_;
  FusedExperts experts_;
};

bool has_blocks(const Config& config) {
  return config.has("quantization_config") &&
         config.section("quantization_config").text("quant_method", "") == "mxfp4";
}

}  // namespace

std::unique_ptr<CausalLmModel> create_gpt_oss(const Json& json, const LoadOptions& options) {
  const Config config(json);
  DecoderConfig d =
      read_decoder_config(config, {.norm_eps = 1e-5, .max_position = 131072, .head_dim = 64});
  const bool bias = config.flag("attention_bias", true);
  const AttentionOptions attention{.hidden_size = d.hidden_size,
                                   .num_heads = d.num_heads,
                                   .num_kv_heads = d.num_kv_heads,
                                   .head_dim = d.head_dim,
                                   .qkv_bias = bias,
                                   .out_bias = bias,
                                   .norm_eps = d.norm_eps,
                                   .norm_kind = NormKind::kFloat,
                                   .sinks = true};
  const ExpertSizes sizes{.num_experts = config.size("num_local_experts"),
                          .hidden_size = d.hidden_size,
                          .intermediate_size = d.intermediate_size,
                          .blocks = has_blocks(config)};
  const int64_t top_k =
      config.size(config.has("num_experts_per_tok") ? "num_experts_per_tok" : "experts_per_token");
  d.num_experts = sizes.num_experts;
  d.experts_per_token = top_k;
  d.expert_size = sizes.intermediate_size;
  const double limit = config.number("swiglu_limit", double{kSwigluLimit});
  if (limit != double{kSwigluLimit})
    config.refuse("swiglu_limit", "is {}; only {} is supported", limit, kSwigluLimit);
  if (top_k > sizes.num_experts)
    config.refuse("num_experts_per_tok", "is {}, of {} experts", top_k, sizes.num_experts);
  if (sizes.blocks && (d.hidden_size % 32 != 0 || d.intermediate_size % 32 != 0)) {
    config.refuse("intermediate_size", "is {}, hidden_size {}: not whole blocks of 32",
                  d.intermediate_size, d.hidden_size);
  }
  const std::vector<int64_t> windows = read_windows(config, d.num_layers, read_window(config),
                                                    [](int64_t layer) { return layer % 2 == 0; });
  const Tensor cos_sin = build_rope(read_rope(config, d, 150000.0), d, options);
  return std::make_unique<DecoderModel>(
      d, CausalLmOptions{.norm_kind = NormKind::kFloat},
      [&](Module* parent, const std::string& name, int64_t layer) {
        AttentionOptions own = attention;
        own.window = windows[static_cast<size_t>(layer)];
        return std::make_unique<PreNormBlock>(
            parent, name, d, own, cos_sin, [&](Module* block) -> std::unique_ptr<FeedForward> {
              return std::make_unique<GptOssMlp>(block, "mlp", sizes, top_k);
            });
      });
}

}  // namespace reft
