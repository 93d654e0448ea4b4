# What training by several processes needs of Torch: the interface target plx_c10d, and in
# PLX_C10D_DEFINITIONS the switches of its headers, for the one unit that includes them (in a target
# they would make the precompiled header useless).
#
# Gloo is part of libtorch_cpu.so, but Torch's package has not the headers that ProcessGroupGloo.hpp
# includes. It only passes pointers to Gloo's types around, so that their names are enough. They must
# not be found before Gloo's own, where a Torch brings those.
set(gloo_names ${PROJECT_BINARY_DIR}/gloo_names)
add_library(plx_c10d INTERFACE)
target_link_libraries(plx_c10d INTERFACE plx_libtorch)
set(PLX_C10D_DEFINITIONS USE_DISTRIBUTED USE_C10D_GLOO)
if(NOT EXISTS ${torch_root}/include/gloo/algorithm.h)
  file(CONFIGURE OUTPUT ${gloo_names}/gloo/names.h CONTENT [=[
#pragma once
#include <chrono>
#include <string>
#include <vector>
namespace gloo {
struct Context {
  void setTimeout(std::chrono::milliseconds timeout);
};
namespace rendezvous {
struct Store {
  virtual ~Store();
  virtual void set(const std::string& key, const std::vector<char>& data) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout);
};
}  // namespace rendezvous
namespace transport {
struct Device {};
struct UnboundBuffer {
  virtual ~UnboundBuffer();
};
}  // namespace transport
}  // namespace gloo
]=])
  foreach(header algorithm common/error context rendezvous/store transport/device)
    file(CONFIGURE OUTPUT ${gloo_names}/gloo/${header}.h CONTENT "#include <gloo/names.h>\n")
  endforeach()
  target_include_directories(plx_c10d SYSTEM INTERFACE ${gloo_names})
endif()

# NCCL: a CUDA build of Torch, the header of the NCCL that it loads, and the CUDA headers that
# Torch's own include. The toolkit's libraries are not needed.
set(PLX_NCCL OFF)
set(PLX_WHY_NO_NCCL "this Torch is a CPU build")
if(NOT torch_cuda STREQUAL cpu)
  cmake_path(GET torch_root PARENT_PATH site_packages)
  file(GLOB wheel_headers ${site_packages}/nvidia/*/include)
  find_path(PLX_NCCL_INCLUDE nccl.h HINTS ${site_packages}/nvidia/nccl/include)
  find_path(PLX_CUDA_RUNTIME_INCLUDE cuda_runtime_api.h
    HINTS ${CUDAToolkit_INCLUDE_DIRS} PATHS ENV CUDA_HOME /usr/local/cuda PATH_SUFFIXES include
    PATHS ${wheel_headers})
  mark_as_advanced(PLX_NCCL_INCLUDE PLX_CUDA_RUNTIME_INCLUDE)
  if(NOT PLX_NCCL_INCLUDE)
    set(PLX_WHY_NO_NCCL "nccl.h was not found")
  elseif(NOT PLX_CUDA_RUNTIME_INCLUDE)
    set(PLX_WHY_NO_NCCL "cuda_runtime_api.h was not found")
  else()
    # The runtime's folder first; cuBLAS, cuSPARSE and cuSOLVER may be in the wheels alone.
    set(cuda_includes ${PLX_CUDA_RUNTIME_INCLUDE} ${PLX_NCCL_INCLUDE} ${wheel_headers})
    set(probe_includes ${torch_root}/include ${torch_root}/include/torch/csrc/api/include
      ${cuda_includes})
    set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
    try_compile(PLX_NCCL_COMPILES
      SOURCE_FROM_CONTENT nccl_probe.cc "#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>\n"
      COMPILE_DEFINITIONS -DUSE_C10D_NCCL -DUSE_DISTRIBUTED
      CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${probe_includes}"
      CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON OUTPUT_VARIABLE nccl_output)
    unset(CMAKE_TRY_COMPILE_TARGET_TYPE)
    set(PLX_NCCL ${PLX_NCCL_COMPILES})
    if(NOT PLX_NCCL)
      set(PLX_WHY_NO_NCCL "ProcessGroupNCCL.hpp does not compile")
      file(WRITE ${PROJECT_BINARY_DIR}/nccl_probe.log "${nccl_output}")
    endif()
  endif()
endif()
if(PLX_NCCL)
  message(STATUS "Ranks on GPUs by NCCL, ${PLX_NCCL_INCLUDE}/nccl.h")
  list(APPEND PLX_C10D_DEFINITIONS USE_C10D_NCCL)
  target_include_directories(plx_c10d SYSTEM INTERFACE ${cuda_includes})
  target_link_libraries(plx_c10d INTERFACE
    -Wl,--no-as-needed ${torch_root}/lib/libtorch_cuda.so ${torch_root}/lib/libc10_cuda.so
    -Wl,--as-needed)
else()
  message(STATUS "No ranks on GPUs: ${PLX_WHY_NO_NCCL}")
  list(APPEND PLX_C10D_DEFINITIONS "PLX_WHY_NO_NCCL=\"${PLX_WHY_NO_NCCL}\"")
endif()
