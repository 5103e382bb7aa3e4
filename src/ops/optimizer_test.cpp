#include "ops/optimizer.h"
#include "base/error_of_test.h"

#include <cmath>

#include "base/json.h"
#include "base/thread_pool.h"
#include "ops/op_cases.h"
#include "ops/philox.h"
#include "tensor/safetensors.h"

namespace reft {
namespace {

const bool covered = cover_ops({"adamw", "adamw_8bit", "sgd", "muon_momentum", "apply_update",
                                "orthogonalize", "square_sums"});

// The devices that have the kernel.
std::vector<Device> devices_with(const KernelSlot& slot) {
  std::vector<Device> devices;
  for (const Device device : test_devices()) {
    if (slot.has(device.type)) devices.push_back(device);
  }
  return devices;
}

Tensor copy_to(const Tensor& x, Device device) {
  Tensor copy = Tensor::empty(x.shape(), x.dtype(), device);
  copy.copy_from(x);
  return copy;
}
Tensor float_zeros(const Tensor& like, DType dtype = DType::kF32) {
  return Tensor::zeros(like.shape(), dtype, like.device());
}

struct Golden {
  Golden()
      : file(open_safetensors(std::string(REFT_SOURCE_DIR) + "/tests/train/optimizer.safetensors")),
        start() {}
  Golden(const std::string& name, Device device) : Golden() {
    start = copy_to(file->read(name + ".start"), device);
    const Tensor all = file->read(name + ".grads");
    for (int64_t i = 0; i < all.size(0); ++i) {
      const Tensor grad = all.rows(i, i + 1);
      grads.push_back(copy_to(grad.reshape(start.shape()), device));
    }
  }
  std::vector<double> after(const std::string& name, int steps) const {
    return doubles(file->read(fmt::format("{}.after{}", name, steps)));
  }

  std::unique_ptr<CheckpointReader> file;
  Tensor start;
  std::vector<Tensor> grads;
};

// Runs `step(value, master, grad, count)` ten times on a float32 value and on a bfloat16 one with a
// master, and compares float32 with torch's after one and ten steps.
template <class Step>
void expect_golden(const std::string& name, const KernelSlot& slot, Step make_step) {
  for (const Device device : devices_with(slot)) {
    for (const bool with_master : {false, true}) {
      Golden golden(name, device);
      Tensor value = golden.start, master;
      if (with_master) {
        master = golden.start;
        value = golden.start.to(kCpuDevice).to(DType::kBF16).to(device);
      }
      auto step = make_step(golden.start);
      for (int i = 0; i < static_cast<int>(golden.grads.size()); ++i) {
        step(value, master, golden.grads[static_cast<size_t>(i)], i + 1);
        if (i != 0 && i != 9) continue;
        expect_close(with_master ? master : value, golden.after(name, i + 1), 1e-6,
                     fmt::format("{} step {} master {}", name, i + 1, with_master));
        if (with_master) {
          EXPECT_EQ(doubles(value), doubles(master.to(kCpuDevice).to(DType::kBF16)));
        }
      }
    }
  }
}

TEST(AdamW, MatchesTorch) {
  const auto run = [](const std::string& name, AdamWArgs settings) {
    expect_golden(name, adamw_kernel, [&](const Tensor& start) {
      return [m = float_zeros(start), v = float_zeros(start), settings = settings](
                 Tensor& value, Tensor& master, const Tensor& grad, int step) mutable {
        settings.step = step;
        adamw(value, master, m, v, grad, settings);
      };
    });
  };
  run("adamw_matrix", {.learning_rate = 3e-3, .beta2 = 0.95, .weight_decay = 0.1});
  run("adamw_vector", {.learning_rate = 1e-2, .eps = 1e-6});
}

TEST(Sgd, MatchesTorch) {
  expect_golden("sgd", sgd_kernel, [](const Tensor& start) {
    return [buffer = float_zeros(start)](Tensor& value, Tensor& master, const Tensor& grad,
                                         int) mutable {
      sgd(value, master, buffer, grad,
          {.learning_rate = 0.05, .momentum = 0.9, .weight_decay = 0.01});
    };
  });
  expect_golden("sgd_plain", sgd_kernel, [](const Tensor&) {
    return [](Tensor& value, Tensor& master, const Tensor& grad, int) {
      Tensor none;
      sgd(value, master, none, grad, {.learning_rate = 0.05});
    };
  });
}

TEST(Muon, MatchesTorch) {
  for (const char* name : {"muon_wide", "muon_tall"}) {
    expect_golden(name, orthogonalize_kernel, [](const Tensor& start) {
      return [buffer = float_zeros(start)](Tensor& value, Tensor& master, const Tensor& grad,
                                           int) mutable {
        muon(value, master, buffer, grad,
             {.learning_rate = 2e-3, .momentum = 0.95, .weight_decay = 0.1});
      };
    });
  }
}

TEST(Orthogonalize, SingularValuesComeNearOne) {
  for (const Device device : devices_with(orthogonalize_kernel)) {
    for (const Shape& shape :
         {Shape{1, 1}, Shape{1, 50}, Shape{40, 300}, Shape{70, 70}, Shape{300, 65}}) {
      Tensor x = random_values(shape, 3).to(device);
      orthogonalize(x);
      const std::vector<double> u = doubles(x);
      const int64_t rows = shape[0], columns = shape[1];
      // Of the smaller Gram matrix: the trace is the sum of the squared singular values.
      double trace = 0;
      for (const double value : u) trace += value * value;
      const auto rank = static_cast<double>(std::min(rows, columns));
      EXPECT_GT(trace / rank, 0.69 * 0.69) << shape.str();
      EXPECT_LT(trace / rank, 1.21 * 1.21) << shape.str();
    }
  }
}

TEST(AdamW, GradientIsScaled) {
  for (const Device device : devices_with(adamw_kernel)) {
    const Tensor start = random_values({100}, 1), grad = random_values({100}, 2);
    Tensor halved = copy_to(grad, kCpuDevice);
    for (int64_t i = 0; i < 100; ++i) halved.data<float>()[i] *= 0.5f;
    Tensor a = copy_to(start, device), b = copy_to(start, device), master;
    Tensor am = float_zeros(a), av = float_zeros(a), bm = float_zeros(a), bv = float_zeros(a);
    adamw(a, master, am, av, grad.to(device), {.learning_rate = 1e-2, .eps = 1, .grad_scale = 0.5});
    adamw(b, master, bm, bv, halved.to(device), {.learning_rate = 1e-2, .eps = 1});
    EXPECT_EQ(doubles(a), doubles(b));
    EXPECT_NE(doubles(a), doubles(start));
  }
}

// A bfloat16 value of 1 that should fall by a thousandth of its ulp per step, 1000 times: rounded
// to nearest it would never move, rounded randomly the mean over many elements falls as it should.
TEST(AdamW, StochasticRoundingIsUnbiased) {
  constexpr int64_t kCount = 4096;
  constexpr int kSteps = 200;
  for (const Device device : devices_with(adamw_kernel)) {
    const Tensor ones = Tensor::from_vector(std::vector<float>(kCount, 1.0f));
    Tensor value = ones.to(DType::kBF16).to(device), master;
    Tensor m = float_zeros(value, DType::kBF16), v = float_zeros(value, DType::kBF16);
    const Tensor grad = ones.to(device);
    constexpr double kRate = 0x1p-8 / 100;  // ulp below 1: 2^-8
    for (int step = 1; step <= kSteps; ++step) {
      AdamWArgs args{.learning_rate = kRate, .step = step};
      args.rng = {7, static_cast<uint64_t>(step)};
      adamw(value, master, m, v, grad, args);
    }
    double mean = 0;
    for (const double x : doubles(value)) mean += x / kCount;
    // 200 steps of 1/100 ulp: 2 ulp. The mean of 4096 sums of 200 draws has a standard deviation of
    // sqrt(200 · 0.01 / 4096) = 0.022 ulp; m / sqrt(v) itself is 1 on average to within a percent.
    EXPECT_NEAR((1 - mean) / 0x1p-8, kSteps * 0.01, 0.15);
  }
}

struct Trajectory {
  std::vector<double> value, m, v;
  bool operator==(const Trajectory&) const = default;
};

Trajectory run_adamw(Device device, int64_t n, uint64_t seed) {
  Tensor value = random_values({n}, 1).to(DType::kBF16).to(device), master;
  Tensor m = float_zeros(value, DType::kBF16), v = float_zeros(value, DType::kBF16);
  for (int step = 1; step <= 3; ++step) {
    AdamWArgs args{.learning_rate = 1e-3, .step = step};
    args.rng = {seed, static_cast<uint64_t>(step)};
    adamw(value, master, m, v, random_values({n}, 10 + static_cast<uint32_t>(step)).to(device),
          args);
  }
  return {doubles(value), doubles(m), doubles(v)};
}

Trajectory run_adamw_8bit(Device device, int64_t n, uint64_t seed) {
  Tensor value = random_values({n}, 1).to(device), master;
  Adam8State state = Adam8State::zeros(value);
  for (int step = 1; step <= 3; ++step) {
    AdamWArgs args{.learning_rate = 1e-3, .step = step};
    args.rng = {seed, static_cast<uint64_t>(step)};
    adamw_8bit(value, master, state,
               random_values({n}, 10 + static_cast<uint32_t>(step)).to(device), args);
  }
  std::vector<double> codes;
  for (const int8_t c : state.m.to_vector<int8_t>()) codes.push_back(c);
  for (const uint8_t c : state.v.to_vector<uint8_t>()) codes.push_back(c);
  return {doubles(value), codes, doubles(state.v_scale)};
}

TEST(AdamW, SameBitsWithAnyNumberOfThreadsAndOtherBitsWithAnotherSeed) {
  constexpr int64_t kCount = 50'001;
  for (const auto run : {&run_adamw, &run_adamw_8bit}) {
    set_compute_threads(1);
    const Trajectory one = run(kCpuDevice, kCount, 5);
    set_compute_threads(3);
    EXPECT_TRUE(run(kCpuDevice, kCount, 5) == one);
    EXPECT_FALSE(run(kCpuDevice, kCount, 6) == one);
    set_compute_threads(0);
  }
}

// Up to a last bit of the arithmetic, which seldom shows after rounding: a run goes on elsewhere.
TEST(AdamW, DevicesDrawTheSameRandomNumbers) {
  constexpr int64_t kCount = 50'001;
  for (const Device device : devices_with(adamw_kernel)) {
    const Trajectory here = run_adamw(device, kCount, 5), want = run_adamw(kCpuDevice, kCount, 5);
    const auto differing = [](const std::vector<double>& a, const std::vector<double>& b) {
      int64_t count = 0;
      for (size_t i = 0; i < a.size(); ++i) count += a[i] != b[i];
      return count;
    };
    EXPECT_LT(differing(here.value, want.value), kCount / 50);
    EXPECT_LT(differing(here.m, want.m), kCount / 50);
    EXPECT_LT(differing(here.v, want.v), kCount / 50);
  }
}

// What a decoded moment is, written down a second time.
double decode_m(int8_t c, float scale) {
  const double x = c / 127.0;
  return scale * x * std::abs(x);
}
double decode_v(uint8_t c, float scale) { return scale * std::pow(c / 255.0, 4); }

TEST(AdamW8bit, MomentsAreNextToTheExactOnesAndUnbiased) {
  constexpr int64_t kCount = 1000;
  constexpr int kDraws = 400;
  for (const Device device : devices_with(adamw_8bit_kernel)) {
    const Tensor grad = random_values({kCount}, 2);
    const std::vector<double> g = doubles(grad);
    std::vector<double> m_mean(kCount), v_mean(kCount);
    for (int draw = 0; draw < kDraws; ++draw) {
      Tensor value = Tensor::zeros({kCount}, DType::kF32, device), master;
      Adam8State state = Adam8State::zeros(value);
      AdamWArgs args{.learning_rate = 1e-3};
      args.rng = {static_cast<uint64_t>(draw), 1};
      adamw_8bit(value, master, state, grad.to(device), args);
      const auto m = state.m.to_vector<int8_t>();
      const auto v = state.v.to_vector<uint8_t>();
      const auto ms = state.m_scale.to_vector<float>(), vs = state.v_scale.to_vector<float>();
      for (int64_t i = 0; i < kCount; ++i) {
        const auto block = static_cast<size_t>(i / kAdam8Block), at = static_cast<size_t>(i);
        const double want_m = 0.1 * g[at], want_v = 0.001 * g[at] * g[at];
        // One code off at most: (c ± 1)² − c² ≤ (2 c + 1) / 127².
        const double c = std::sqrt(std::abs(want_m) / ms[block]) * 127;
        ASSERT_NEAR(decode_m(m[at], ms[block]), want_m, ms[block] * (2 * c + 1.01) / 127 / 127);
        const double d = std::pow(want_v / vs[block], 0.25) * 255;
        ASSERT_NEAR(decode_v(v[at], vs[block]), want_v,
                    vs[block] * (std::pow((d + 1.01) / 255, 4) - std::pow(d / 255, 4)));
        m_mean[at] += decode_m(m[at], ms[block]) / kDraws;
        v_mean[at] += decode_v(v[at], vs[block]) / kDraws;
      }
    }
    double m_bias = 0, v_bias = 0, m_sum = 0, v_sum = 0;
    for (size_t i = 0; i < kCount; ++i) {
      m_bias += m_mean[i] - 0.1 * g[i];
      v_bias += v_mean[i] - 0.001 * g[i] * g[i];
      m_sum += std::abs(0.1 * g[i]);
      v_sum += 0.001 * g[i] * g[i];
    }
    // One draw errs by less than 1 % of m's mean size, 1000 · 400 of them on average by less than
    // 1e-2 / sqrt(4e5) = 1.6e-5.
    EXPECT_LT(std::abs(m_bias) / m_sum, 1e-4);
    EXPECT_LT(std::abs(v_bias) / v_sum, 1e-4);
  }
}

// Least squares: features of very different sizes, so that Adam's second moment matters.
struct Regression {
  static constexpr int64_t kFeatures = 512, kRows = 1024, kBatch = 32;
  Regression() : x(random_values({kRows, kFeatures}, 1)), truth(random_values({kFeatures}, 2)) {
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t f = 0; f < kFeatures; ++f) {
        x.data<float>()[r * kFeatures + f] *=
            std::pow(10.0f, -2.0f * static_cast<float>(f) / kFeatures);
      }
    }
  }
  double loss(const std::vector<double>& w, Tensor* grad, int64_t begin, int64_t end) const {
    if (grad != nullptr) std::fill_n(grad->data<float>(), kFeatures, 0.0f);
    double sum = 0;
    for (int64_t r = begin; r < end; ++r) {
      const float* row = x.data<float>() + r * kFeatures;
      double error = 0;
      for (int64_t f = 0; f < kFeatures; ++f) {
        error += row[f] * (w[static_cast<size_t>(f)] - truth.data<float>()[f]);
      }
      sum += error * error / static_cast<double>(end - begin);
      if (grad == nullptr) continue;
      for (int64_t f = 0; f < kFeatures; ++f) {
        grad->data<float>()[f] += static_cast<float>(2 * error * row[f] / (end - begin));
      }
    }
    return sum;
  }

  Tensor x, truth;
};

template <class Step>
double train(const Regression& problem, DType dtype, Step step) {
  Tensor value = Tensor::zeros({Regression::kFeatures}, dtype), master;
  Tensor grad = Tensor::zeros({Regression::kFeatures}, DType::kF32);
  constexpr int kSteps = 600;
  for (int i = 0; i < kSteps; ++i) {
    const int64_t begin = i * Regression::kBatch % Regression::kRows;
    problem.loss(doubles(value), &grad, begin, begin + Regression::kBatch);
    AdamWArgs args{.learning_rate = 3e-2 * (1 - i / double(kSteps)), .beta2 = 0.99, .step = i + 1};
    args.rng = {1, static_cast<uint64_t>(i)};
    step(value, master, grad, args);
  }
  return problem.loss(doubles(value), nullptr, 0, Regression::kRows);
}

TEST(AdamW8bit, ReachesTheLossOfFloatStates) {
  const Regression problem;
  const double before =
      problem.loss(std::vector<double>(Regression::kFeatures), nullptr, 0, Regression::kRows);
  const auto with_states = [&](DType states, DType values) {
    Tensor m = Tensor::zeros({Regression::kFeatures}, states), v = m;
    v = Tensor::zeros({Regression::kFeatures}, states);
    return train(problem, values,
                 [&](Tensor& value, Tensor& master, const Tensor& g, const AdamWArgs& args) {
                   adamw(value, master, m, v, g, args);
                 });
  };
  const double exact = with_states(DType::kF32, DType::kF32);
  ASSERT_LT(exact, before / 100);
  Adam8State state = Adam8State::zeros(Tensor::zeros({Regression::kFeatures}, DType::kF32));
  const double eight =
      train(problem, DType::kF32,
            [&](Tensor& value, Tensor& master, const Tensor& g, const AdamWArgs& args) {
              adamw_8bit(value, master, state, g, args);
            });
  const double half = with_states(DType::kBF16, DType::kF32);
  RecordProperty("losses", fmt::format("{} from {}, 8 bit {}, bfloat16 states {}", exact, before,
                                       eight, half));
  EXPECT_LT(eight, 1.1 * exact);
  EXPECT_LT(half, 1.1 * exact);
}

TEST(ApplyUpdate, DecaysAndSubtracts) {
  for (const Device device : devices_with(apply_update_kernel)) {
    for (const int64_t n : {1, 63, 64, 65, 40'000}) {
      const Tensor start = random_values({n}, 1), update = random_values({n}, 2);
      Tensor value = copy_to(start, device), master;
      apply_update_kernel(device, value, master, update.to(device), 0.25, 0.5, RoundingRng{});
      std::vector<double> want = doubles(start);
      const std::vector<double> u = doubles(update);
      for (size_t i = 0; i < want.size(); ++i) want[i] = 0.5 * want[i] - 0.25 * u[i];
      expect_close(value, want, 4e-7, fmt::format("{}", n));
    }
  }
}

TEST(GlobalNorm, IsExactFiniteAndTheSameWithAnyNumberOfThreads) {
  for (const Device device : devices_with(square_sums_kernel)) {
    const Tensor a = random_values({70'000}, 1), b = random_values({3, 5}, 2, 1e-3f);
    const Tensor huge = Tensor::from_vector<float>({1e30f, 3e38f});
    std::vector<Tensor> tensors = {a.to(device), Tensor::zeros({0}, DType::kF32, device),
                                   b.to(device)};
    double want = 0;
    for (const Tensor& t : tensors) {
      for (const double x : doubles(t)) want += x * x;
    }
    const double norm = global_norm(tensors);
    EXPECT_NEAR(norm, std::sqrt(want), 1e-12 * norm);
    set_compute_threads(3);
    EXPECT_EQ(global_norm(tensors), norm);
    set_compute_threads(1);
    EXPECT_EQ(global_norm(tensors), norm);
    set_compute_threads(0);
    tensors.push_back(huge.to(device));
    EXPECT_TRUE(std::isfinite(global_norm(tensors)));
    tensors.push_back(Tensor::from_vector<float>({NAN}).to(device));
    EXPECT_FALSE(std::isfinite(global_norm(tensors)));
  }
  EXPECT_EQ(global_norm({}), 0);
  EXPECT_EQ(clip_scale(0.5, 1), 1);
  EXPECT_DOUBLE_EQ(clip_scale(4, 1), 1 / (4 + 1e-6));
  EXPECT_EQ(clip_scale(4, 0), 1);
}

TEST(AdamW, ErrorsNameOpAndTensors) {
  Tensor value = random_values({8}, 1), m = float_zeros(value), v = float_zeros(value), master;
  const Tensor grad = random_values({8}, 2);
  const auto contains = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  contains(error_of([&] { adamw(value, master, m, v, random_values({9}, 1), {}); }),
           "adamw: the gradient must be contiguous float32 [8]");
  contains(error_of([&] {
             Tensor other = float_zeros(value, DType::kBF16);
             adamw(value, master, m, other, grad, {});
           }),
           "adamw: v must be contiguous float32 [8]");
  contains(error_of([&] { adamw(value, m, m, v, grad, {}); }), "needs no float32 master");
  contains(error_of([&] { adamw(value, master, m, v, grad, {.step = 0}); }), "steps count from 1");
  contains(error_of([&] {
             Adam8State state = Adam8State::zeros(random_values({300}, 1));
             adamw_8bit(value, master, state, grad, {});
           }),
           "adamw_8bit: m must be contiguous int8 [8]");
  contains(error_of([&] { sgd(value, master, master, grad, {.momentum = 0.9}); }),
           "sgd: the buffer must be");
  contains(error_of([&] { muon(value, master, m, grad, {}); }), "muon: a matrix is wanted");
  contains(error_of([&] { orthogonalize(value); }), "orthogonalize: a contiguous float32 matrix");
}

}  // namespace
}  // namespace reft
