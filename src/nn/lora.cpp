#include "nn/lora.h"

#include <cmath>

#include "ops/dropout.h"
#include "ops/linear.h"
#include "ops/philox.h"

namespace reft {
namespace {

constexpr uint64_t kDropoutStream = uint64_t{0xD0} << 56;
constexpr uint64_t kInitialStream = uint64_t{0xA0} << 56;

Tensor uniform_tensor(const Shape& shape, float bound, uint64_t seed, uint64_t stream) {
  Tensor result = Tensor::empty(shape, DType::kF32);
  for (int64_t i = 0; i < result.numel(); ++i) {
    const auto bits = philox(seed, static_cast<uint64_t>(i), stream);
    const double u = static_cast<double>(bits[0]) * 0x1p-31 - 1;
    result.data<float>()[i] = bound * static_cast<float>(u);
  }
  return result;
}

}  // namespace

Lora::Lora(Module* parent, int64_t in_features, int64_t out_features, std::vector<Part> parts,
           std::shared_ptr<const LoraDropout> dropout, uint64_t stream)
    : Module(parent, ""),
      in_features_(in_features),
      out_features_(out_features),
      parts_(std::move(parts)),
      row_(1, 0),
      dropout_(std::move(dropout)),
      stream_(stream) {
  for (const Part& part : parts_) has_dora_ = has_dora_ || part.dora;
  for (const Part& part : parts_) {
    check(part.dora == has_dora_, "DoRA is for all parts of a linear layer or for none");
    row_.push_back(row_.back() + part.rank);
    const std::string prefix = part.name.empty() ? "" : part.name + ".";
    const auto add = [&](const char* name, const Shape& shape) {
      add_parameter({.name = prefix + name, .shape = shape, .optional = true, .trainable = true});
    };
    add("lora_A.weight", {part.rank, in_features_});
    add("lora_B.weight", {part.end - part.begin, part.rank});
    if (has_dora_) add("lora_magnitude_vector", {part.end - part.begin});
  }
}

Tensor Lora::rows_of_a(size_t part) const { return a_.rows(row_[part], row_[part + 1]); }

void Lora::initialize(Device device, uint64_t seed, const Tensor& squared_norms) {
  const auto bound = static_cast<float>(1 / std::sqrt(static_cast<double>(in_features_)));
  a_ =
      uniform_tensor({row_.back(), in_features_}, bound, seed, kInitialStream | stream_).to(device);
  const Tensor gradient_of_a = Tensor::zeros(a_.shape(), DType::kF32, device);
  values_.resize(parts_.size());
  for (size_t i = 0; i < parts_.size(); ++i) {
    Parameter* parameter = &own_parameters()[parameter_index(i)];
    Values& v = values_[i];
    parameter[0].value = rows_of_a(i);
    parameter[0].gradient = gradient_of_a.rows(row_[i], row_[i + 1]);
    v.b = Tensor::zeros(parameter[1].shape, DType::kF32, device);
    parameter[1].value = v.b;
    parameter[1].gradient = Tensor::zeros(v.b.shape(), DType::kF32, device);
    if (!has_dora_) continue;
    v.squared_norms = squared_norms.rows(parts_[i].begin, parts_[i].end).to(device);
    const Tensor host = v.squared_norms.to(kCpuDevice);
    Tensor magnitude = Tensor::empty(host.shape(), DType::kF32);
    for (int64_t n = 0; n < host.numel(); ++n) {
      // As adapted_row_norms computes it for B = 0, so that the first step changes nothing.
      magnitude.data<float>()[n] =
          static_cast<float>(std::sqrt(static_cast<double>(host.data<float>()[n])));
    }
    v.magnitude = magnitude.to(device);
    parameter[2].value = v.magnitude;
    parameter[2].gradient = Tensor::zeros(v.magnitude.shape(), DType::kF32, device);
  }
}

void Lora::apply(Tensor& y, const Tensor& x, const Tensor& bias,
                 const std::function<Tensor(const Tensor& rows)>& project) const {
  check(a_.defined(), "an adapter without values is used");
  Tensor in = x;
  if (dropout_->p > 0 && Tape::current() != nullptr) {
    in = dropout(x, {.p = dropout_->p,
                     .seed = dropout_->seed,
                     .stream = kDropoutStream | dropout_->pass << 16 | stream_});
  }
  const Tensor h = linear(in, Weight::from(a_));
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Part& part = parts_[i];
    Tensor columns = y.columns(part.begin, part.end);
    const Tensor scaled = dropout(h.columns(row_[i], row_[i + 1]), {.factor = part.scale});
    linear_add_into(columns, scaled, Weight::from(values_[i].b));
  }
  if (!has_dora_) return;
  Tensor projected;
  {
    const Tape::Pause constant;
    projected = project(a_);
  }
  Tensor out = Tensor::empty(y.shape(), y.dtype(), y.device());
  int64_t done = 0;
  const auto put = [&](int64_t begin, int64_t end, const Tensor& magnitude, const Tensor& norms) {
    if (begin == end) return;
    Tensor columns = out.columns(begin, end);
    dora_into(columns, y.columns(begin, end), magnitude, norms,
              bias.defined() ? bias.rows(begin, end) : Tensor());
  };
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Part& part = parts_[i];
    const Values& v = values_[i];
    Tensor norms;
    {
      const Tape::Pause constant;
      const Tensor a = rows_of_a(i);
      norms = adapted_row_norms(v.squared_norms,
                                projected.rows(row_[i], row_[i + 1]).columns(part.begin, part.end),
                                linear(a, Weight::from(a)), v.b, part.scale);
    }
    put(done, part.begin, {}, {});
    put(part.begin, part.end, v.magnitude, norms);
    done = part.end;
  }
  put(done, out_features_, {}, {});
  y = out;
}

int64_t Lora::weight_bytes() const {
  int64_t total = a_.defined() ? a_.nbytes() : 0;
  for (const Values& v : values_)
    total += v.b.nbytes() + (v.magnitude.defined() ? v.magnitude.nbytes() : 0);
  return total;
}

bool is_lora_parameter(std::string_view name) {
  return name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight") ||
         name.ends_with(".lora_magnitude_vector");
}

}  // namespace reft
