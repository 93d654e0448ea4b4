# nvcc, and what is built with it.
#
# -std=c++20 is given to it as a flag, since older CMakes ignore CMAKE_CUDA_STANDARD 20. 554: a
# conversion from a view to its own type, which the template has for views of const data.
# A host function called in device code is only a warning otherwise, and garbage when it runs.
set(PLX_CUDA_FLAGS -std=c++20 -lineinfo -diag-suppress=554 -Werror=cross-execution-space-call)
set(PLX_CUDA_ARCHITECTURES 90a-real CACHE STRING
    "Architectures of the plain CUDA kernels, as for CMAKE_CUDA_ARCHITECTURES: 80-real;90a-real")
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES ${PLX_CUDA_ARCHITECTURES})
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "PLX_CUDA=ON needs nvcc of CUDA 13.0 or later, and none was found.\n"
                      "Put its folder into PATH or set -DCMAKE_CUDA_COMPILER=, or -DPLX_CUDA=OFF.")
endif()
enable_language(CUDA)
find_package(CUDAToolkit 13.0 REQUIRED)
message(STATUS "CUDA ${CUDAToolkit_VERSION}, plain kernels for ${PLX_CUDA_ARCHITECTURES}")
set(PLX_CUDA_LAUNCHER "")
if(PLX_CCACHE)
  set(PLX_CUDA_LAUNCHER ${PLX_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${PLX_CCACHE})
endif()
