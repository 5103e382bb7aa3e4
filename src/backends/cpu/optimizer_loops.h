// The inner loops of the optimizers on the CPU: one table per instruction set, all in one binary.
// optimizer_generic.cpp, optimizer_avx2.cpp and optimizer_avx512.cpp compile optimizer_loops.inc.
// Elements are worked on in groups of kGroup of the flattened parameter, the last one padded: what
// happens to an element depends neither on the number of threads nor on where a thread begins.
#pragma once

#include <cstdint>

#include "ops/optimizer.h"

namespace reft {

inline constexpr int64_t kGroup = 64;

// `exact`: the float32 value or master, null when there is only `rounded`, the bfloat16 value.
struct ParameterData {
  float* exact;
  bf16* rounded;
  RoundingRng rng;
};

struct AdamRates {
  float grad_scale, one_minus_beta1, beta2, one_minus_beta2;
  float decay;      // 1 − lr weight_decay
  float step_size;  // lr / (1 − β1^t)
  float v_scale;    // 1 / sqrt(1 − β2^t)
  float eps;
};

// m and v: float or bf16.
struct AdamMoments {
  float *m_exact, *v_exact;
  bf16 *m_rounded, *v_rounded;
};
struct Adam8Moments {
  int8_t* m;
  uint8_t* v;
  float *m_scale, *v_scale;
};

struct SgdRates {
  float grad_scale, momentum, weight_decay, learning_rate;
};

// Ranges [begin, end) of elements begin at a multiple of kGroup, those of adamw_8bit at one of
// kAdam8Block; pointers are those of element 0.
struct OptimizerLoops {
  void (*adamw)(const ParameterData& p, const AdamMoments& moments, const float* grad,
                const AdamRates& rates, int64_t begin, int64_t end);
  void (*adamw_8bit)(const ParameterData& p, const Adam8Moments& moments, const float* grad,
                     const AdamRates& rates, int64_t begin, int64_t end);
  // `buffer` null: no momentum.
  void (*sgd)(const ParameterData& p, float* buffer, const float* grad, const SgdRates& rates,
              int64_t begin, int64_t end);
  void (*muon_momentum)(float* update, float* buffer, const float* grad, float momentum,
                        float grad_scale, int64_t begin, int64_t end);
  // p = decay p − rate update
  void (*apply_update)(const ParameterData& p, const float* update, float rate, float decay,
                       int64_t begin, int64_t end);
  double (*square_sum)(const float* x, int64_t n);
  // Rows [begin, end) of c = alpha a b + beta d; a: [m, k], b: [k, n], c and d: [m, n], packed.
  void (*multiply)(float* c, const float* a, const float* b, const float* d, float alpha,
                   float beta, int64_t n, int64_t k, int64_t begin, int64_t end);
  // The random bits of elements [kGroup group, kGroup (group + 1)).
  void (*random_bits)(uint32_t* bits, const RoundingRng& rng, int64_t group);
};

// The best table that this CPU can run (see isa.h).
const OptimizerLoops& optimizer_loops();

extern const OptimizerLoops kOptimizerGeneric;
#if defined(__x86_64__)
extern const OptimizerLoops kOptimizerAvx2;
extern const OptimizerLoops kOptimizerAvx512;
#endif

}  // namespace reft
