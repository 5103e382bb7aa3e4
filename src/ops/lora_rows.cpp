#include "ops/lora_rows.h"

namespace reft {

constinit Kernel<void(Tensor&, const Tensor&, const Tensor&, const LoraStack&, const Tensor&)>
    lora_rows_kernel{"lora_rows"};

LoraStack LoraStack::zeros(int64_t slots, int64_t rank, int64_t n, int64_t k, Device device) {
  return {.a = Tensor::zeros({slots, k, rank}, DType::kF32, device),
          .b = Tensor::zeros({slots, rank, n}, DType::kF32, device),
          .column_change = Tensor::zeros({slots, n}, DType::kF32, device),
          .ranks = Tensor::zeros({slots}, DType::kI32, device)};
}

void add_lora_rows(Tensor& y, const Tensor& x, const Tensor& slots, const LoraStack& stack,
                   const Tensor& bias) {
  check(x.dims() == 2 && y.dims() == 2 && x.size(0) == y.size(0) && x.dtype() == y.dtype(),
        "lora_rows: x is {}, the result {}", x, y);
  check(slots.dims() == 1 && slots.size(0) == x.size(0) && slots.dtype() == DType::kI32,
        "lora_rows: slots are {}, not int32 [{}]", slots, x.size(0));
  check(stack.a.dims() == 3 && stack.b.dims() == 3 && stack.a.size(1) == x.size(1) &&
            stack.b.size(2) == y.size(1) && stack.a.size(2) == stack.b.size(1),
        "lora_rows: A {} and B {} for x {} and a result {}", stack.a, stack.b, x, y);
  if (y.numel() > 0) lora_rows_kernel(x.device(), y, x, slots, stack, bias);
}

}  // namespace reft
