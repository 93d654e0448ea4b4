# LibTorch from the installed torch package, as the imported target plx_libtorch.
#
# find_package(Torch) is not used: with a CUDA build of torch it demands a CUDA toolkit, which the
# CPU code here does not need. What the package consists of is asked of the package itself.
set(PLX_PYTHON ${PROJECT_SOURCE_DIR}/.venv/bin/python
    CACHE FILEPATH "The Python whose torch package is used")
execute_process(
  COMMAND ${PLX_PYTHON} -c "import os, torch
print(torch.__version__, os.path.dirname(torch.__file__), int(torch._C._GLIBCXX_USE_CXX11_ABI),
      torch.version.cuda or 'cpu', sep=';')"
  OUTPUT_VARIABLE torch_facts OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_VARIABLE torch_error RESULT_VARIABLE torch_result)
if(NOT torch_result EQUAL 0)
  message(FATAL_ERROR "PLX_TORCH=ON needs a Python with torch, and ${PLX_PYTHON} gave:\n"
                      "${torch_error}\nRun scripts/setup, or set -DPLX_PYTHON=, or -DPLX_TORCH=OFF.")
endif()
list(GET torch_facts 0 PLX_TORCH_VERSION)
list(GET torch_facts 1 torch_root)
list(GET torch_facts 2 torch_cxx11_abi)
list(GET torch_facts 3 torch_cuda)
message(STATUS "LibTorch ${PLX_TORCH_VERSION} (${torch_cuda}) in ${torch_root}")

add_library(plx_libtorch INTERFACE)
target_include_directories(plx_libtorch SYSTEM INTERFACE
  ${torch_root}/include ${torch_root}/include/torch/csrc/api/include)
target_compile_definitions(plx_libtorch INTERFACE _GLIBCXX_USE_CXX11_ABI=${torch_cxx11_abi})
# libtorch.so names every backend that the package has; --no-as-needed keeps it, so that a CUDA
# build registers its kernels although nothing here calls them. Its own dependencies (cuDNN, ...)
# are found at run time through the package's rpath, not by this link.
# The shared libstdc++ comes first, by its own name: some compilers have only libstdc++.a where they
# look for -lstdc++, and a copy of the runtime beside Torch's breaks exceptions that Torch catches,
# and std::filesystem, which libtorch_cpu.so exports as its own compiler laid it out.
find_library(PLX_LIBSTDCXX libstdc++.so.6 PATHS ${CMAKE_CXX_IMPLICIT_LINK_DIRECTORIES}
  NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH REQUIRED)
mark_as_advanced(PLX_LIBSTDCXX)
target_link_libraries(plx_libtorch INTERFACE
  -Wl,--no-as-needed ${PLX_LIBSTDCXX} ${torch_root}/lib/libtorch.so -Wl,--as-needed
  ${torch_root}/lib/libtorch_cpu.so ${torch_root}/lib/libc10.so
  -Wl,--unresolved-symbols=ignore-in-shared-libs)
set(CMAKE_BUILD_RPATH ${torch_root}/lib)

# The shared precompiled header of all LibTorch units.
file(WRITE ${PROJECT_BINARY_DIR}/torch_pch.cc "")
add_library(plx_torch_pch OBJECT ${PROJECT_BINARY_DIR}/torch_pch.cc)
target_link_libraries(plx_torch_pch PUBLIC plx_libtorch)
# Not torch/torch.h, which brings every layer, optimizer and data loader: 5.0 s for an empty unit
# instead of 3.4 s.
target_precompile_headers(plx_torch_pch PRIVATE
  <torch/types.h> <torch/autograd.h> <torch/nn/module.h> <torch/nn/modules/container/modulelist.h>)
