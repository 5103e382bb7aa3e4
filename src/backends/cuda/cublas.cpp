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
  return dtype == DType::kBF16 ? CUDA_R_16BF : dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_32F;
}

// A product of one shape: descriptors and the algorithm that the library's heuristic chose.
struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
  cublasLtMatmulAlgo_t algo{};
  bool usable = false;
};

// dtype of x and w, dtype of y, N, T, K, x's and y's row strides.
using PlanKey = std::tuple<DType, DType, int64_t, int64_t, int64_t, int64_t, int64_t>;

struct DeviceBlas {
  cublasLtHandle_t handle = nullptr;
  Tensor workspace;
  std::map<PlanKey, Plan> plans;
};

Plan make_plan(const DeviceBlas& blas, const Tensor& y, const Tensor& x, const Tensor& w) {
  const Library& lt = library();
  Plan plan;
  blas_check(lt.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
             "cublasLtMatmulDescCreate");
  // Column-major: Yᵀ [N, T] = op(A) B with A = W seen as [K, N], B = xᵀ [K, T].
  const cublasOperation_t transpose = CUBLAS_OP_T;
  blas_check(lt.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose)),
             "setting TRANSA");
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
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status = lt.heuristic(blas.handle, plan.desc, plan.a, plan.b, plan.d, plan.d,
                                             preference, 1, &result, &found);
  lt.preference_destroy(preference);
  plan.usable = status == CUBLAS_STATUS_SUCCESS && found > 0;
  plan.algo = result.algo;
  return plan;
}

}  // namespace

bool cublas_linear(Tensor& y, const Tensor& x, const Tensor& w) {
  const Library& lt = library();
  if (!lt.loaded) return false;
  static std::mutex mutex;
  static auto* devices =
      new std::map<int, DeviceBlas>();  // never destroyed: the driver may be gone by then
  std::lock_guard lock(mutex);
  DeviceBlas& blas = (*devices)[x.device().index];
  if (blas.handle == nullptr) {
    blas_check(lt.create(&blas.handle), "cublasLtCreate");
    blas.workspace = Tensor::empty({static_cast<int64_t>(kWorkspaceBytes)}, DType::kU8, x.device());
  }
  const PlanKey key{x.dtype(), y.dtype(),   w.size(0),  x.size(0),
                    w.size(1), x.stride(0), y.stride(0)};
  auto it = blas.plans.find(key);
  if (it == blas.plans.end()) it = blas.plans.emplace(key, make_plan(blas, y, x, w)).first;
  const Plan& plan = it->second;
  if (!plan.usable) return false;
  const float one = 1.0f, zero = 0.0f;
  blas_check(lt.matmul(blas.handle, plan.desc, &one, w.raw(), plan.a, x.raw(), plan.b, &zero,
                       y.raw(), plan.d, y.raw(), plan.d, &plan.algo, blas.workspace.raw(),
                       kWorkspaceBytes, stream_of(x)),
             "cublasLtMatmul");
  return true;
}

}  // namespace reft
