# What the build writes from the list of Hopper kernels, src/cuda/sm90/instances.cmake.
include(${CMAKE_CURRENT_LIST_DIR}/../src/cuda/sm90/instances.cmake)

# plx_write_sm90_units(FOLDER RESULT): a unit FOLDER/NAME.cu for each row, and for each pass a table
# of its instances, FOLDER/PASS_instances.cc. RESULT: the names of the units. nvcc compiles them for
# the library, the host compiler for tests/cuda_emulation. PLX_ROUNDED_SUMS chooses
# ForwardConfig::kRoundedSums.
function(plx_write_sm90_units folder result)
  set(rounded_sums false)
  if(PLX_ROUNDED_SUMS)
    set(rounded_sums true)
  endif()
  set(units "")
  foreach(pass forward backward)
    string(SUBSTRING ${pass} 0 1 initial)
    string(TOUPPER ${initial} initial)
    string(SUBSTRING ${pass} 1 -1 rest)
    set(type ${initial}${rest}Instance)
    set(declarations "")
    set(rows "")
    foreach(row ${PLX_SM90_INSTANCES})
      string(REPLACE " " ";" fields "${row}")
      list(GET fields 0 row_pass)
      list(GET fields 1 dtype)
      list(GET fields 2 head_dim)
      list(GET fields 3 spill_limit)
      if(NOT row_pass STREQUAL pass)
        continue()
      endif()
      if(dtype STREQUAL bfloat16)
        set(element __nv_bfloat16)
        set(dtype_name kBFloat16)
      else()
        set(element half)
        set(dtype_name kFloat16)
      endif()
      if(pass STREQUAL forward)
        set(config "ForwardConfig<${element}, ${head_dim}, ${rounded_sums}>")
        set(members "kForwardTile<${config}>, launch_forward<${config}>")
      else()
        set(members "launch_backward<BackwardConfig<${element}, ${head_dim}>>")
      endif()
      set(name ${pass}_${dtype}_${head_dim})
      set(unit ${folder}/${name}.cu)
      file(CONFIGURE OUTPUT ${unit} @ONLY CONTENT "// Written by cmake/sm90_units.cmake from sm90/instances.cmake. spill limit: ${spill_limit} bytes
#include \"cuda/sm90/${pass}/launch.cuh\"

namespace parallax::cuda::sm90 {
extern const ${type} ${name};
const ${type} ${name} = {DType::${dtype_name}, ${head_dim}, ${members}};
}  // namespace parallax::cuda::sm90
")
      list(APPEND units ${unit})
      string(APPEND declarations "extern const ${type} ${name};\n")
      string(APPEND rows "      ${name},\n")
    endforeach()
    file(CONFIGURE OUTPUT ${folder}/${pass}_instances.cc @ONLY CONTENT "// Written by cmake/sm90_units.cmake from sm90/instances.cmake.
#include \"cuda/sm90/${pass}/instance.h\"

namespace parallax::cuda::sm90 {
${declarations}
std::span<const ${type}> ${pass}_instances() {
  static const ${type} list[] = {
${rows}  };
  return list;
}

}  // namespace parallax::cuda::sm90
")
  endforeach()
  set(${result} ${units} PARENT_SCOPE)
endfunction()
