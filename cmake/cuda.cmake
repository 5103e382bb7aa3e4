# The CUDA backend. Static runtime; the driver and cuBLASLt are opened at run time, so that the executable also starts
# on a machine that has neither.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  # A feature-specific target emits no PTX with "-real"; 80, 89, 100a and 120a work by -DCMAKE_CUDA_ARCHITECTURES.
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)
endif()
enable_language(CUDA)
# CMake 3.25 does not know that nvcc 13 has C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
if(REFT_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${REFT_CCACHE})
endif()
find_package(CUDAToolkit 12.4 REQUIRED)

file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/backends/cuda/*.cu
     ${PROJECT_SOURCE_DIR}/src/backends/cuda/*.cpp)
list(FILTER cuda_sources EXCLUDE REGEX "_test\\.cpp$")
add_library(reft_backend_cuda OBJECT ${cuda_sources})
target_link_libraries(reft_backend_cuda PUBLIC reft_base CUDA::cudart_static ${CMAKE_DL_LIBS})
# fmt leaves constexpr off under nvcc, which its own headers then trip over.
target_compile_options(reft_backend_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr --extended-lambda
                       --compress-mode=size -diag-suppress=20208 -DFMT_CONSTEVAL= -DFMT_USE_CONSTEXPR=1>)
set(REFT_LAYERS ${REFT_LAYERS} reft_backend_cuda CACHE INTERNAL "")
