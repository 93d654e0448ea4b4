# What the build writes from the list of Hopper kernels, src/cuda/sm90/instances.cmake.
include(${CMAKE_CURRENT_LIST_DIR}/../src/cuda/sm90/instances.cmake)

# plx_write_sm90_units(FOLDER RESULT): a unit FOLDER/NAME.cu for each row and forward_instances.cc,
# the table of them all. RESULT: the names of the units. nvcc compiles them for the library, the host
# compiler for tests/cuda_emulation. PLX_ROUNDED_SUMS chooses ForwardConfig::kRoundedSums.
function(plx_write_sm90_units folder result)
  set(rounded_sums false)
  if(PLX_ROUNDED_SUMS)
    set(rounded_sums true)
  endif()
  set(units "")
  set(launches "")
  set(rows "")
  foreach(row ${PLX_SM90_INSTANCES})
    string(REPLACE " " ";" fields "${row}")
    list(GET fields 0 pass)
    list(GET fields 1 dtype)
    list(GET fields 2 head_dim)
    list(GET fields 3 spill_limit)
    if(dtype STREQUAL bfloat16)
      set(element __nv_bfloat16)
      set(dtype_name kBFloat16)
    else()
      set(element half)
      set(dtype_name kFloat16)
    endif()
    set(config "ForwardConfig<${element}, ${head_dim}, ${rounded_sums}>")
    set(name ${pass}_${dtype}_${head_dim})
    set(unit ${folder}/${name}.cu)
    file(CONFIGURE OUTPUT ${unit} @ONLY CONTENT "// Written by cmake/sm90_units.cmake from sm90/instances.cmake. spill limit: ${spill_limit} bytes
#include \"cuda/sm90/forward/launch.cuh\"

namespace parallax::cuda::sm90 {
extern const ForwardInstance ${name};
const ForwardInstance ${name} = {DType::${dtype_name}, ${head_dim}, kForwardTile<${config}>, launch_forward<${config}>};
}  // namespace parallax::cuda::sm90
")
    list(APPEND units ${unit})
    string(APPEND launches "extern const ForwardInstance ${name};\n")
    string(APPEND rows "      ${name},\n")
  endforeach()
  file(CONFIGURE OUTPUT ${folder}/forward_instances.cc @ONLY CONTENT "// Written by cmake/sm90_units.cmake from sm90/instances.cmake.
#include \"cuda/sm90/forward/instance.h\"

namespace parallax::cuda::sm90 {
${launches}
std::span<const ForwardInstance> forward_instances() {
  static const ForwardInstance list[] = {
${rows}  };
  return list;
}

}  // namespace parallax::cuda::sm90
")
  set(${result} ${units} PARENT_SCOPE)
endfunction()
