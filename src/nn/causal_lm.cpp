#include "nn/causal_lm.h"

#include "ops/activation.h"
#include "ops/embedding.h"

namespace reft {

namespace {

float round_to(DType dtype, float value) {
  if (dtype == DType::kBF16) return to_float(to_bf16(value));
  if (dtype == DType::kF16) return to_float(to_f16(value));
  return value;
}

}  // namespace

Embedding::Embedding(Module* parent, std::string name, int64_t vocab_size, int64_t hidden_size,
                     float scale, bool is_head)
    : Module(parent, std::move(name)), scale_(scale), is_head_(is_head) {
  add_parameter({.name = "weight",
                 .shape = {vocab_size, hidden_size},
                 .set = [this](const Tensor& t) { file_tensor_ = t; }});
}

void Embedding::finish_loading(Device device, DType compute) {
  scale_ = round_to(file_tensor_.dtype(), scale_);
  activation_ = device.type == DeviceType::kCpu ? DType::kF32 : compute;
  weight_ = Weight::from(std::move(file_tensor_));
  file_tensor_ = {};
  if (is_head_) {
    prepare_weight(weight_, device, compute, /*keep_data=*/true);
  } else {
    // Only the CPU looks rows up in block formats.
    const bool expand = device.type != DeviceType::kCpu && is_block_format(weight_.dtype);
    if (expand) weight_.data = weight_.data.to(compute);
    weight_.dtype = weight_.data.dtype();
    weight_.data = weight_.data.to(device);
  }
}

Tensor Embedding::operator()(const Tensor& ids) const {
  return embedding(ids, weight_, activation_, scale_);
}

CausalLm::CausalLm(Module* parent, const CausalLmOptions& options, const MakeBlock& make_block)
    : Module(parent, ""),
      options_(options),
      embed_(this, "model.embed_tokens", options.vocab_size, options.hidden_size,
             options.embedding_scale, options.tied_head),
      blocks_([&] {
        std::vector<std::unique_ptr<DecoderBlock>> blocks;
        for (int64_t i = 0; i < options.num_layers; ++i) {
          blocks.push_back(make_block(this, "model.layers." + std::to_string(i), i));
        }
        return blocks;
      }()),
      norm_(this, "model.norm", options.hidden_size, options.norm_eps, options.norm_kind) {
  if (!options.tied_head) {
    head_ = std::make_unique<Linear>(this, "lm_head", options.hidden_size, options.vocab_size);
  }
}

Tensor CausalLm::forward(const Batch& batch, KvCache& cache, const Tap& tap) const {
  Tensor residual = embed_(batch.token_ids);
  if (tap) tap(0, residual);
  Tensor delta;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const auto layer = static_cast<int64_t>(i);
    delta = blocks_[i]->forward(residual, delta, batch, cache.layer(layer));
    if (tap && i + 1 < blocks_.size()) {
      Tensor hidden = Tensor::empty(residual.shape(), residual.dtype(), residual.device());
      hidden.copy_from(residual);
      add_into(hidden, delta);
      tap(layer + 1, hidden);
    }
  }
  // Without a tap only the wanted rows are normalised; with one, all.
  const bool all_rows = batch.num_logit_rows() == batch.num_tokens();
  if (!tap && !all_rows) {
    residual = gather_rows(residual, batch.logit_rows);
    if (delta.defined()) delta = gather_rows(delta, batch.logit_rows);
  }
  Tensor x = norm_.add(residual, delta);
  if (tap) {
    tap(static_cast<int64_t>(blocks_.size()), x);
    if (!all_rows) x = gather_rows(x, batch.logit_rows);
  }
  Tensor logits = head_ ? (*head_)(x, DType::kF32) : embed_.project(x);
  if (options_.logit_soft_cap > 0) soft_cap_(logits, options_.logit_soft_cap);
  return logits;
}

std::vector<LayerCacheSpec> CausalLm::cache_specs() const {
  std::vector<LayerCacheSpec> specs;
  specs.reserve(blocks_.size());
  for (const auto& block : blocks_) specs.push_back(block->cache_spec());
  return specs;
}

}  // namespace reft
