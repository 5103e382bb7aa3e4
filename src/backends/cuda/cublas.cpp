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

// What addresses are multiples of, as far as the library cares.
using Alignment = uint32_t;
Alignment alignment_of(const Tensor& t) {
  const auto address = reinterpret_cast<uintptr_t>(t.raw()) | 256;
  return static_cast<Alignment>(address & -address);
}

// dtype of x and w, dtype of y, N, T, K, x's and y's row strides, scales, alignment of w, x, y.
using PlanKey = std::tuple<DType, DType, int64_t, int64_t, int64_t, int64_t, int64_t, Scales,
                           Alignment, Alignment, Alignment>;

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

Plan make_plan(const DeviceBlas& blas, const Tensor& y, const Tensor& x, const Tensor& w,
               Scales scales) {
  const Library& lt = library();
  Plan plan;
  blas_check(lt.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
             "cublasLtMatmulDescCreate");
  // Column-major: Yᵀ [N, T] = op(A) B with A = W seen as [K, N], B = xᵀ [K, T].
  const cublasOperation_t transpose = CUBLAS_OP_T;
  blas_check(lt.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose)),
             "setting TRANSA");
  if (scales != Scales::kNone) {
    if (!set_scale_modes(plan.desc, scales)) return plan;
    set_scales(plan.desc, blas.workspace.raw(), blas.workspace.raw());  // of the same alignment
  }
  const int64_t n = w.size(0), k = w.size(1), tokens = x.size(0);
  const auto layout = [&](cublasLtMatrixLayout_t* out, DType dtype, int64_t rows, int64_t cols,
                          int64_t ld) {
    blas_check(lt.layout_create(out, data_type(dtype), static_cast<uint64_t>(rows),
                                static_cast<uint64_t>(cols), ld),
               "cublasLtMatrixLayoutCreate");
  };
  layout(&plan.a, w.dtype(), k, n, k);
  layout(&plan.b, x.dtype(), k, tokens, x.stride(0));
  layout(&plan.d, y.dtype(), n, tokens, y.stride(0));
  cublasLtMatmulPreference_t preference = nullptr;
  blas_check(lt.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  blas_check(lt.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                               &kWorkspaceBytes, sizeof(kWorkspaceBytes)),
             "setting the workspace");
  // The library takes 256 for granted.
  for (const auto& [attribute, tensor] :
       {std::pair(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &w),
        std::pair(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &x),
        std::pair(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &y),
        std::pair(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &y)}) {
    const Alignment alignment = alignment_of(*tensor);
    blas_check(lt.preference_set(preference, attribute, &alignment, sizeof(alignment)),
               "setting an alignment");
  }
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

const Plan& find_plan(DeviceBlas& blas, const Tensor& y, const Tensor& x, const Tensor& w,
                      Scales scales) {
  const PlanKey key{x.dtype(),       y.dtype(),       w.size(0),      x.size(0),
                    w.size(1),       x.stride(0),     y.stride(0),    scales,
                    alignment_of(w), alignment_of(x), alignment_of(y)};
  auto it = blas.plans.find(key);
  if (it == blas.plans.end()) it = blas.plans.emplace(key, make_plan(blas, y, x, w, scales)).first;
  return it->second;
}

void multiply(const DeviceBlas& blas, const Plan& plan, Tensor& y, const Tensor& x,
              const Tensor& w) {
  const float one = 1.0f, zero = 0.0f;
  blas_check(library().matmul(blas.handle, plan.desc, &one, w.raw(), plan.a, x.raw(), plan.b, &zero,
                              y.raw(), plan.d, y.raw(), plan.d, &plan.algo, blas.workspace.raw(),
                              kWorkspaceBytes, stream_of(x)),
             "cublasLtMatmul");
}

std::mutex& blas_mutex() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace

bool cublas_linear(Tensor& y, const Tensor& x, const Tensor& w) {
  if (!library().loaded) return false;
  std::lock_guard lock(blas_mutex());
  DeviceBlas& blas = device_blas(x.device());
  const Plan& plan = find_plan(blas, y, x, w, Scales::kNone);
  if (!plan.usable) return false;
  multiply(blas, plan, y, x, w);
  return true;
}

bool cublas_can_fp8(const Tensor& y, const Tensor& x, const Tensor& w, bool blocks) {
  if (!library().loaded) return false;
  std::lock_guard lock(blas_mutex());
  return find_plan(device_blas(x.device()), y, x, w, blocks ? Scales::kBlocks : Scales::kRows)
      .usable;
}

bool cublas_fp8_linear(Tensor& y, const Tensor& x, const Tensor& x_scales, const Tensor& w,
                       const Tensor& w_scales) {
  if (!library().loaded) return false;
  std::lock_guard lock(blas_mutex());
  DeviceBlas& blas = device_blas(x.device());
  const Plan& plan =
      find_plan(blas, y, x, w, w_scales.dims() == 2 ? Scales::kBlocks : Scales::kRows);
  if (!plan.usable) return false;
  set_scales(plan.desc, w_scales.raw(), x_scales.raw());
  multiply(blas, plan, y, x, w);
  return true;
}

}  // namespace reft
