#include "nn/attention.h"

#include <cmath>

namespace reft {

Attention::Attention(Module* parent, std::string name, const AttentionOptions& o, Tensor cos_sin)
    : Module(parent, std::move(name)),
      cache_spec_{.num_kv_heads = o.num_kv_heads, .head_dim = o.head_dim, .window = o.window},
      rope_{.eps = o.norm_eps, .kind = o.norm_kind, .cos_sin = std::move(cos_sin)},
      attention_{.scale = o.scale > 0 ? o.scale : 1.0f / std::sqrt(static_cast<float>(o.head_dim)),
                 .soft_cap = o.soft_cap,
                 .window = o.window},
      qkv_(this, o.hidden_size,
           {{"q_proj", o.num_heads * o.head_dim},
            {"k_proj", o.num_kv_heads * o.head_dim},
            {"v_proj", o.num_kv_heads * o.head_dim}},
           o.qkv_bias),
      out_(this, "o_proj", o.num_heads * o.head_dim, o.hidden_size, o.out_bias) {
  if (!o.qk_norm) return;
  const float mean = o.norm_kind == NormKind::kOnePlus ? 0.0f : 1.0f;
  add_parameter(
      {.name = "q_norm.weight",
       .shape = {o.head_dim},
       .set = [this](const Tensor& t) { rope_.q_weight = t.to(DType::kF32).contiguous(); },
       .dummy_mean = mean});
  add_parameter(
      {.name = "k_norm.weight",
       .shape = {o.head_dim},
       .set = [this](const Tensor& t) { rope_.k_weight = t.to(DType::kF32).contiguous(); },
       .dummy_mean = mean});
}

Tensor Attention::operator()(const Tensor& x, const Batch& batch, PagedKv& kv) const {
  return out_(rope_attention(qkv_(x), batch.positions, batch.slots, kv, rope_, batch.attention,
                             attention_));
}

void Attention::finish_loading(Device device, DType) {
  if (rope_.q_weight.defined()) rope_.q_weight = rope_.q_weight.to(device);
  if (rope_.k_weight.defined()) rope_.k_weight = rope_.k_weight.to(device);
}

}  // namespace reft
