#include "ops/sampling.h"

namespace reft {

constinit Kernel<void(std::vector<SampleResult>&, Tensor&, const std::vector<SampleRow>&)>
    sample_kernel{"sample"};
constinit Kernel<void(std::vector<SampleResult>&, const Tensor&, const std::vector<int32_t>&,
                      int32_t)>
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

std::vector<SampleResult> sample(Tensor& logits, const std::vector<SampleRow>& rows) {
  check_logits("sample", logits, rows.size());
  std::vector<SampleResult> out(rows.size());
  if (!rows.empty()) sample_kernel(logits.device(), out, logits, rows);
  return out;
}

std::vector<SampleResult> score(const Tensor& logits, const std::vector<int32_t>& targets,
                                int32_t top) {
  check_logits("score", logits, targets.size());
  for (const int32_t target : targets) {
    check(target >= 0 && target < logits.size(1), "score: target {} is outside a vocabulary of {}",
          target, logits.size(1));
  }
  std::vector<SampleResult> out(targets.size());
  if (!targets.empty()) score_kernel(logits.device(), out, logits, targets, top);
  return out;
}

}  // namespace reft
