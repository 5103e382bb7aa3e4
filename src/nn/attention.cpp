#include "nn/attention.h"

#include <cmath>

namespace reft {

Attention::Attention(Module* parent, std::string name, const AttentionOptions& o, Tensor cos_sin)
    : Module(parent, std::move(name)),
      cache_spec_{.num_kv_heads = o.num_kv_heads, .head_dim = o.head_dim, .window = o.window},
      heads_{o.num_heads, o.num_kv_heads, o.head_dim},
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
  if (o.sinks) {
    add_parameter({.name = "sinks", .shape = {o.num_heads}, .set = [this](const Tensor& t) {
                     attention_.sinks = t.to(DType::kF32).contiguous();
                   }});
  }
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
  if (!batch.attention.block_table.defined()) {
    const Tensor qkv = qk_norm_rope(qkv_(x), batch.positions, heads_, rope_);
    return out_(packed_attention(qkv, heads_, batch.attention, attention_));
  }
  return out_(rope_attention(qkv_(x), batch.positions, batch.slots, kv, rope_, batch.attention,
                             attention_));
}

void Attention::finish_loading(Device device, DType) {
  for (Parameter& parameter : own_parameters()) {
    Tensor& data = parameter.name == "sinks"           ? attention_.sinks
                   : parameter.name == "q_norm.weight" ? rope_.q_weight
                                                       : rope_.k_weight;
    place(parameter, data, device);
  }
}

}  // namespace reft
