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
  if (is_trainable()) {
    check(is_float(weight_.dtype), "weights in {} cannot be trained", dtype_name(weight_.dtype));
    place(own_parameters()[0], weight_.data, device);
  } else if (is_head_ || (device.type != DeviceType::kCpu && is_block_format(weight_.dtype))) {
    prepare_weight(weight_, device, compute, /*keep_data=*/true);  // which can look rows up
  } else {
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

// Only the wanted rows are normalised.
Tensor CausalLm::finish(Tensor residual, Tensor delta, const Batch& batch) const {
  if (batch.num_logit_rows() != batch.num_tokens()) {
    residual = gather_rows(residual, batch.logit_rows);
    if (delta.defined()) delta = gather_rows(delta, batch.logit_rows);
  }
  return norm_.add(residual, delta);
}

Tensor CausalLm::hidden_states(const Batch& batch, const TrainingForward& options) const {
  check(!batch.attention.block_table.defined(), "a training batch has no block table");
  Tensor residual = embed_(batch.token_ids);
  if (options.after_embedding) options.after_embedding(residual);
  Tensor delta;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const auto run = [block = blocks_[i].get(), batch](const std::vector<Tensor>& in) {
      PagedKv none;
      Tensor sum = in[0];
      Tensor out = block->forward(sum, in[1], batch, none);
      return std::vector<Tensor>{sum, out};
    };
    Tape* tape = static_cast<int64_t>(i) < options.recompute_layers ? Tape::current() : nullptr;
    std::vector<Tensor> out =
        tape != nullptr ? tape->checkpoint({residual, delta}, run) : run({residual, delta});
    residual = std::move(out[0]);
    delta = std::move(out[1]);
  }
  return finish(std::move(residual), std::move(delta), batch);
}

Tensor CausalLm::token_losses(const Batch& batch, const Tensor& labels,
                              const TrainingForward& options) const {
  CrossEntropyOptions loss = options.loss;
  loss.soft_cap = options_.logit_soft_cap;
  return linear_cross_entropy(hidden_states(batch, options),
                              head_ ? head_->weight() : embed_.weight(), labels, loss);
}

Tensor CausalLm::forward(const Batch& batch, KvCache& cache, const Tap& tap) const {
  const AdapterScope adapters(batch.adapters);
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
  Tensor x;
  if (tap) {  // which sees all rows
    x = norm_.add(residual, delta);
    tap(static_cast<int64_t>(blocks_.size()), x);
    if (batch.num_logit_rows() != batch.num_tokens()) x = gather_rows(x, batch.logit_rows);
  } else {
    x = finish(std::move(residual), std::move(delta), batch);
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
