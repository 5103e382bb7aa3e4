#include "nn/linear.h"

#include <cstring>

#include "nn/lora.h"

namespace reft {

namespace {

// Parameters first, first + step … are the rows of `data` in order, and of one gradient.
void share_rows(const Tensor& data, std::vector<Parameter>& parameters, size_t first, size_t step,
                size_t last) {
  Tensor gradient;
  for (size_t i = first; i < last; i += step) {
    if (parameters[i].trainable && !gradient.defined())
      gradient = Tensor::zeros(data.shape(), DType::kF32, data.device());
  }
  int64_t row = 0;
  for (size_t i = first; i < last; i += step) {
    Parameter& parameter = parameters[i];
    const int64_t end = row + parameter.shape[0];
    parameter.value = data.rows(row, end);
    if (parameter.trainable) parameter.gradient = gradient.rows(row, end);
    row = end;
  }
}

// Tensors first … last - 1, one below the other; lets go of them.
Tensor stack(std::vector<Tensor>& parts, size_t first, size_t last) {
  if (last == first + 1 || !parts[first].defined()) return std::move(parts[first]);
  int64_t rows = 0;
  for (size_t i = first; i < last; ++i) rows += parts[i].size(0);
  Shape shape = parts[first].dims() == 1 ? Shape{rows} : Shape{rows, parts[first].size(1)};
  Tensor all = Tensor::empty(shape, parts[first].dtype());
  std::byte* to = all.raw();
  for (size_t i = first; i < last; ++i) {
    const Tensor part = parts[i].contiguous();
    std::memcpy(to, part.raw(), static_cast<size_t>(part.nbytes()));
    to += part.nbytes();
    parts[i] = {};
  }
  return all;
}

// Whether a part's scales may follow those of `rows` rows: blocks must not straddle parts.
bool scales_join(const Tensor& above, const Tensor& below, int64_t rows) {
  if (above.defined() != below.defined()) return false;
  return !above.defined() ||
         (above.dims() == below.dims() && (above.dims() == 1 || rows % kFp8Block == 0));
}

}  // namespace

Linear::Linear(Module* parent, std::string name, int64_t in_features, int64_t out_features,
               bool bias)
    : Module(parent, std::move(name)), in_features_(in_features), has_bias_(bias) {
  add_part("", out_features, bias);
}

Linear::Linear(Module* parent, int64_t in_features, const std::vector<Part>& parts, bool bias)
    : Module(parent, ""), in_features_(in_features), has_bias_(bias) {
  for (const Part& part : parts) add_part(part.name, part.out_features, bias);
}

Linear::~Linear() = default;

void Linear::add_part(const std::string& name, int64_t out_features, bool bias) {
  const std::string prefix = name.empty() ? "" : name + ".";
  const size_t index = part_weights_.size();
  const int64_t begin = out_features_;
  parts_.push_back({name, out_features});
  part_weights_.emplace_back();
  part_scales_.emplace_back();
  out_features_ += out_features;
  add_parameter({.name = prefix + "weight",
                 .shape = {out_features, in_features_},
                 .set = [this, index](const Tensor& t) { part_weights_[index] = t; },
                 .set_scales = [this, index](const Tensor& t) { part_scales_[index] = t; }});
  if (!bias) return;
  add_parameter(
      {.name = prefix + "bias",
       .shape = {out_features},
       .set = [this, begin, out_features](const Tensor& t) {
         if (!bias_.defined()) bias_ = Tensor::zeros({out_features_}, DType::kF32);
         bias_.rows(begin, begin + out_features).copy_from(t.to(DType::kF32).contiguous());
       }});
}

void Linear::finish_loading(Device device, DType compute) {
  int64_t begin = 0;
  for (size_t i = 0; i < part_weights_.size();) {
    size_t end = i + 1;
    int64_t rows = part_weights_[i].size(0);
    while (end < part_weights_.size() && part_weights_[end].dtype() == part_weights_[i].dtype() &&
           scales_join(part_scales_[i], part_scales_[end], rows)) {
      rows += part_weights_[end++].size(0);
    }
    Group group{Weight::from(stack(part_weights_, i, end), stack(part_scales_, i, end)), begin};
    if (is_trainable()) {
      finish_training_group(group, i, end, device);
    } else {
      if (own_parameters()[0].quantize && is_float(group.weight.dtype))
        quantize_weight(group.weight, device);
      prepare_weight(group.weight, device, compute);
    }
    groups_.push_back(std::move(group));
    begin += rows;
    i = end;
  }
  part_weights_.clear();
  part_scales_.clear();
  if (!bias_.defined()) return;
  if (!is_trainable()) {
    bias_ = bias_.to(device);
    return;
  }
  bias_ = copy_to(bias_, device);
  share_rows(bias_, own_parameters(), 1, 2, own_parameters().size());
}

void Linear::finish_training_group(Group& group, size_t first, size_t last, Device device) {
  check(is_float(group.weight.dtype), "weights in {} cannot be trained",
        dtype_name(group.weight.dtype));
  group.weight.data = copy_to(group.weight.data, device);
  const size_t step = has_bias_ ? 2 : 1;
  share_rows(group.weight.data, own_parameters(), first * step, step, last * step);
}

Tensor Linear::product(const Tensor& x, DType out_dtype, const Tensor& bias) const {
  if (groups_.size() == 1) return linear(x, groups_[0].weight, bias, out_dtype);
  Tensor y = Tensor::empty({x.size(0), out_features_}, out_dtype, x.device());
  for (const Group& group : groups_) {
    const int64_t end = group.begin + group.weight.out_features;
    Tensor columns = y.columns(group.begin, end);
    linear_into(columns, x, group.weight, bias.defined() ? bias.rows(group.begin, end) : Tensor());
  }
  return y;
}

Tensor Linear::operator()(const Tensor& x, DType out_dtype) const {
  if (lora_ == nullptr) {
    Tensor y = product(x, out_dtype, bias_);
    if (const Tensor* slots = AdapterScope::current(); slots != nullptr) {
      for (const LoraTable& table : tables_) {
        Tensor columns = y.columns(table.begin, table.end);
        add_lora_rows(columns, x, *slots, table.stack,
                      bias_.defined() ? bias_.rows(table.begin, table.end) : Tensor());
      }
    }
    return y;
  }
  Tensor y = product(x, out_dtype, lora_->adds_bias() ? Tensor() : bias_);
  lora_->apply(y, x, bias_, [&](const Tensor& rows) { return product(rows, out_dtype, {}); });
  return y;
}

Tensor Linear::gated(const Tensor& x, Activation activation) const {
  const bool served = !tables_.empty() && AdapterScope::current() != nullptr;
  if (groups_.size() == 1 && lora_ == nullptr && !served)
    return gated_linear(x, groups_[0].weight, bias_, activation);
  return gated_activation((*this)(x), activation);
}

Tensor Linear::squared_row_norms() const {
  Tensor sums;
  for (const Group& group : groups_) {
    Tensor part = reft::squared_row_norms(group.weight);
    if (groups_.size() == 1) return part;
    if (!sums.defined()) sums = Tensor::empty({out_features_}, DType::kF32, part.device());
    sums.rows(group.begin, group.begin + part.numel()).copy_from(part);
  }
  return sums;
}

void Linear::set_lora(std::unique_ptr<Lora> lora) {
  check(lora_ == nullptr, "a linear layer has an adapter already");
  lora_ = std::move(lora);
}

int64_t weight_nbytes(const Weight& weight) {
  int64_t total = weight.data.defined() ? weight.data.nbytes() : 0;
  if (weight.scales.defined()) total += weight.scales.nbytes();
  if (weight.packed != nullptr) total += weight.packed->nbytes();
  return total;
}

int64_t Linear::weight_bytes() const {
  int64_t total = bias_.defined() ? bias_.nbytes() : 0;
  for (const Group& group : groups_) total += weight_nbytes(group.weight);
  return total;
}

}  // namespace reft
