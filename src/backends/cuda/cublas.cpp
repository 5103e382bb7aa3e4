#include "backends/cuda/cublas.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <tuple>

#include "backends/cuda/common.h"
#include "base/log.h"

namespace reft {
namespace {

// The functions of libcublasLt that are used, by the names of its header.
struct Library {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  bool loaded = false;

  Library() {
    void* handle = nullptr;
    for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}) {
      if ((handle = ::dlopen(name, RTLD_NOW | RTLD_LOCAL)) != nullptr) break;
    }
    if (handle == nullptr) {
      log_warning("CUDA", "libcublasLt was not found: large matrix products use a slower kernel");
      return;
    }
    const auto load = [&](auto& function, const char* name) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(handle, name));
      return function != nullptr;
    };
    loaded = load(create, "cublasLtCreate") && load(desc_create, "cublasLtMatmulDescCreate") &&
             load(desc_set, "cublasLtMatmulDescSetAttribute") &&
             load(layout_create, "cublasLtMatrixLayoutCreate") &&
             load(preference_create, "cublasLtMatmulPreferenceCreate") &&
             load(preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
             load(preference_destroy, "cublasLtMatmulPreferenceDestroy") &&
             load(heuristic, "cublasLtMatmulAlgoGetHeuristic") && load(matmul, "cublasLtMatmul");
  }
};

const Library& library() {
  static const Library instance;
  return instance;
}

constexpr size_t kWorkspaceBytes = size_t{64} << 20;

void blas_check(cublasStatus_t status, const char* what) {
  check(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: {} failed with status {}", what,
        static_cast<int>(status));
}

cudaDataType_t data_type(DType dtype) {
  if (dtype == DType::kF8E4M3) return CUDA_R_8F_E4M3;
  return dtype == DType::kBF16 ? CUDA_R_16BF : dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_32F;
}

// A product of one shape: descriptors and the algorithm that the library's heuristic chose.
struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
  cublasLtMatmulAlgo_t algo{};
  bool usable = false;
};

// What the scales of fp8 operands belong to.
enum class Scales { kNone, kRows, kBlocks };

// The largest power of two, up to 256, that divides the address: algorithms that load whole vectors
// need to know.
uint32_t alignment_of(const Tensor& t) {
  uint32_t alignment = 256;
  while (reinterpret_cast<uintptr_t>(t.raw()) % alignment != 0) alignment /= 2;
  return alignment;
}

// Dtypes of the operands and the result, M, N, K, transpositions, row strides, scales, alignments.
using PlanKey = std::tuple<DType, DType, int64_t, int64_t, int64_t, bool, bool, int64_t, int64_t,
                           int64_t, Scales, uint32_t, uint32_t, uint32_t>;

struct DeviceBlas {
  cublasLtHandle_t handle = nullptr;
  Tensor workspace;
  std::map<PlanKey, Plan> plans;
};

// False where the library is too old to know scales of that kind.
bool set_scale_modes(cublasLtMatmulDesc_t desc, Scales scales) {
  const int32_t of_w = scales == Scales::kRows ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F
                                               : CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
  const int32_t of_x = scales == Scales::kRows ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F
                                               : CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
  const Library& lt = library();
  return lt.desc_set(desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &of_w, sizeof(of_w)) ==
             CUBLAS_STATUS_SUCCESS &&
         lt.desc_set(desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &of_x, sizeof(of_x)) ==
             CUBLAS_STATUS_SUCCESS;
}

void set_scales(cublasLtMatmulDesc_t desc, const void* of_w, const void* of_x) {
  const Library& lt = library();
  blas_check(lt.desc_set(desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &of_w, sizeof(of_w)),
             "setting the scales of the weight");
  blas_check(lt.desc_set(desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &of_x, sizeof(of_x)),
             "setting the scales of the activations");
}

// The library's matrices are column-major: cᵀ [N, M] = bᵀ aᵀ, so that its first operand is b and
// what lies transposed here does not there.
Plan make_plan(const DeviceBlas& blas, const Tensor& c, const GemmOperand& a, const GemmOperand& b,
               Scales scales) {
  const Library& lt = library();
  Plan plan;
  blas_check(lt.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
             "cublasLtMatmulDescCreate");
  const auto transpose = [&](cublasLtMatmulDescAttributes_t attribute, bool transposed) {
    const cublasOperation_t operation = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    blas_check(lt.desc_set(plan.desc, attribute, &operation, sizeof(operation)),
               "setting a transposition");
  };
  transpose(CUBLASLT_MATMUL_DESC_TRANSA, b.transposed);
  transpose(CUBLASLT_MATMUL_DESC_TRANSB, a.transposed);
  if (scales != Scales::kNone) {
    if (!set_scale_modes(plan.desc, scales)) return plan;
    set_scales(plan.desc, blas.workspace.raw(), blas.workspace.raw());  // of the same alignment
  }
  const auto layout = [&](cublasLtMatrixLayout_t* out, const Tensor& t) {
    blas_check(lt.layout_create(out, data_type(t.dtype()), static_cast<uint64_t>(t.size(1)),
                                static_cast<uint64_t>(t.size(0)), t.stride(0)),
               "cublasLtMatrixLayoutCreate");
  };
  layout(&plan.a, b.data);
  layout(&plan.b, a.data);
  layout(&plan.d, c);
  cublasLtMatmulPreference_t preference = nullptr;
  blas_check(lt.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    blas_check(lt.preference_set(preference, attribute, &value, sizeof(value)),
               "setting a preference");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(b.data));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(a.data));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(c));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(c));
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status = lt.heuristic(blas.handle, plan.desc, plan.a, plan.b, plan.d, plan.d,
                                             preference, 1, &result, &found);
  lt.preference_destroy(preference);
  plan.usable = status == CUBLAS_STATUS_SUCCESS && found > 0;
  plan.algo = result.algo;
  return plan;
}

// Never destroyed: the driver may be gone by then. Under the mutex.
DeviceBlas& device_blas(Device device) {
  static auto* devices = new std::map<int, DeviceBlas>();
  DeviceBlas& blas = (*devices)[device.index];
  if (blas.handle == nullptr) {
    blas_check(library().create(&blas.handle), "cublasLtCreate");
    blas.workspace = Tensor::empty({static_cast<int64_t>(kWorkspaceBytes)}, DType::kU8, device);
  }
  return blas;
}

const Plan& find_plan(DeviceBlas& blas, const Tensor& c, const GemmOperand& a, const GemmOperand& b,
                      Scales scales) {
  const PlanKey key{a.data.dtype(),       c.dtype(),      a.rows(),     b.columns(),
                    a.columns(),          a.transposed,   b.transposed, a.data.stride(0),
                    b.data.stride(0),     c.stride(0),    scales,       alignment_of(a.data),
                    alignment_of(b.data), alignment_of(c)};
  auto it = blas.plans.find(key);
  if (it == blas.plans.end()) it = blas.plans.emplace(key, make_plan(blas, c, a, b, scales)).first;
  return it->second;
}

void multiply(const DeviceBlas& blas, const Plan& plan, const Tensor& c, const GemmOperand& a,
              const GemmOperand& b, bool accumulate) {
  const float one = 1.0f, beta = accumulate ? 1.0f : 0.0f;
  blas_check(library().matmul(blas.handle, plan.desc, &one, b.data.raw(), plan.a, a.data.raw(),
                              plan.b, &beta, c.raw(), plan.d, c.raw(), plan.d, &plan.algo,
                              blas.workspace.raw(), kWorkspaceBytes, stream_of(c)),
             "cublasLtMatmul");
}

// x Wᵀ.
const Plan& find_linear_plan(DeviceBlas& blas, const Tensor& y, const Tensor& x, const Tensor& w,
                             Scales scales) {
  return find_plan(blas, y, {x, false}, {w, true}, scales);
}

std::mutex& blas_mutex() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace

bool cublas_gemm(const Tensor& c, const GemmOperand& a, const GemmOperand& b, bool accumulate) {
  if (!library().loaded) return false;
  std::lock_guard lock(blas_mutex());
  DeviceBlas& blas = device_blas(c.device());
  const Plan& plan = find_plan(blas, c, a, b, Scales::kNone);
  if (!plan.usable) return false;
  multiply(blas, plan, c, a, b, accumulate);
  return true;
}

bool cublas_can_fp8(const Tensor& y, const Tensor& x, const Tensor& w, bool blocks) {
  if (!library().loaded) return false;
  std::lock_guard lock(blas_mutex());
  return find_linear_plan(device_blas(x.device()), y, x, w,
                          blocks ? Scales::kBlocks : Scales::kRows)
      .usable;
}

bool cublas_fp8_linear(Tensor& y, const Tensor& x, const Tensor& x_scales, const Tensor& w,
                       const Tensor& w_scales) {
  if (!library().loaded) return false;
  std::lock_guard lock(blas_mutex());
  DeviceBlas& blas = device_blas(x.device());
  const Plan& plan =
      find_linear_plan(blas, y, x, w, w_scales.dims() == 2 ? Scales::kBlocks : Scales::kRows);
  if (!plan.usable) return false;
  set_scales(plan.desc, w_scales.raw(), x_scales.raw());
  multiply(blas, plan, y, {x, false}, {w, true}, false);
  return true;
}

}  // namespace reft
