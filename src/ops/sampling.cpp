#include "ops/sampling.h"

namespace reft {

constinit Kernel<PendingSamplesPtr(Tensor&, Tensor&, const std::vector<SampleRow>&, const Tensor&)>
    sample_kernel{"sample"};
constinit Kernel<PendingSamplesPtr(const Tensor&, const std::vector<int32_t>&, int32_t)>
    score_kernel{"score"};

namespace {

void check_logits(const char* op, const Tensor& logits, size_t rows) {
  check(logits.dims() == 2 && logits.dtype() == DType::kF32 && logits.is_contiguous() &&
            logits.size(1) > 0,
        "{}: logits must be contiguous float32 [R, V], got {}", op, logits);
  check(logits.size(0) == static_cast<int64_t>(rows), "{}: {} rows asked of logits {}", op, rows,
        logits);
}

}  // namespace

PendingSamplesPtr start_sample(Tensor& tokens, Tensor& logits, const std::vector<SampleRow>& rows,
                               const Tensor& previous) {
  check_logits("sample", logits, rows.size());
  check(tokens.dtype() == DType::kI32 && tokens.dims() == 1 && tokens.size(0) == logits.size(0) &&
            tokens.device() == logits.device(),
        "sample: tokens must be int32 [{}] on {}, got {}", logits.size(0), logits.device(), tokens);
  for (const SampleRow& row : rows) {
    check(row.pending < 0 || (previous.defined() && row.pending < previous.numel() &&
                              previous.device() == logits.device()),
          "sample: row {} of the tokens before, which are {}", row.pending, previous);
  }
  return sample_kernel(logits.device(), tokens, logits, rows, previous);
}

std::vector<SampleResult> sample(Tensor& logits, const std::vector<SampleRow>& rows) {
  check_logits("sample", logits, rows.size());
  Tensor tokens = Tensor::empty({logits.size(0)}, DType::kI32, logits.device());
  return start_sample(tokens, logits, rows)->wait();
}

PendingSamplesPtr start_score(const Tensor& logits, const std::vector<int32_t>& targets,
                              int32_t top) {
  check_logits("score", logits, targets.size());
  for (const int32_t target : targets) {
    check(target >= 0 && target < logits.size(1), "score: target {} is outside a vocabulary of {}",
          target, logits.size(1));
  }
  if (targets.empty()) return std::make_unique<ReadySamples>(std::vector<SampleResult>());
  return score_kernel(logits.device(), logits, targets, top);
}

std::vector<SampleResult> score(const Tensor& logits, const std::vector<int32_t>& targets,
                                int32_t top) {
  return start_score(logits, targets, top)->wait();
}

}  // namespace reft
