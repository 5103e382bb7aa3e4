# The CUDA backend. Static runtime; the driver and cuBLASLt are opened at run time, so that the executable also starts
# on a machine that has neither.
set(REFT_CUDA_ARCHITECTURES "90a" CACHE STRING
    "GPUs to compile for, a list of 80 86 89 90a 100a 120a; native: those of this machine, 90a when it has none")
set(architectures ${REFT_CUDA_ARCHITECTURES})
if(architectures STREQUAL "native")
  # CMake's own "native" leaves out the "a" that WGMMA and TMA need.
  set(architectures 90a)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE capabilities RESULT_VARIABLE failed ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" capabilities "${capabilities}")
  if(capabilities AND failed EQUAL 0)
    string(REPLACE "." "" architectures "${capabilities}")
    list(REMOVE_DUPLICATES architectures)
  endif()
endif()
# Machine code only, no PTX; from 90 on for the very GPU, whose own instructions have no other name.
set(CMAKE_CUDA_ARCHITECTURES "")
foreach(architecture IN LISTS architectures)
  string(REGEX REPLACE "^(9|1[0-9])([0-9])$" "\\1\\2a" architecture ${architecture})
  list(APPEND CMAKE_CUDA_ARCHITECTURES ${architecture}-real)
endforeach()
message(STATUS "GPU architectures: ${CMAKE_CUDA_ARCHITECTURES}")
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(REFT_NVCC nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin REQUIRED)
  set(CMAKE_CUDA_COMPILER ${REFT_NVCC})
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
find_package(CUDAToolkit 12.8 REQUIRED)

file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/backends/cuda/*.cu
     ${PROJECT_SOURCE_DIR}/src/backends/cuda/*.cpp)
list(FILTER cuda_sources EXCLUDE REGEX "_test\\.cpp$")
add_library(reft_backend_cuda OBJECT ${cuda_sources})
target_link_libraries(reft_backend_cuda PUBLIC reft_base CUDA::cudart_static ${CMAKE_DL_LIBS})
# fmt leaves constexpr off under nvcc, which its own headers then trip over.
target_compile_options(reft_backend_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr --extended-lambda
                       --compress-mode=size -diag-suppress=20208 -DFMT_CONSTEVAL= -DFMT_USE_CONSTEXPR=1>)
set(REFT_LAYERS ${REFT_LAYERS} reft_backend_cuda CACHE INTERNAL "")
