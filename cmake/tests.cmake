# The helper that makes one GoogleTest program per folder.
include(GoogleTest)

# plx_add_tests(NAME LINK targets... [LABELS labels...] [TORCH]): NAME_test from every *_test.cc of
# the calling folder, each case registered with CTest under the given labels (default: unit). A case
# has one OpenMP thread: CTest runs as many cases side by side as there are cores. Suites whose names
# end in "Slow" get the label slow too.
function(plx_add_tests name)
  cmake_parse_arguments(ARG "TORCH" "" "LINK;LABELS" ${ARGN})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*_test.cc)
  add_executable(${name}_test ${sources})
  target_include_directories(${name}_test PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
  target_compile_options(${name}_test PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${PLX_WARNINGS}>")
  target_link_libraries(${name}_test PRIVATE ${ARG_LINK} system::gtest)
  if(ARG_TORCH)
    plx_use_libtorch(${name}_test)
  endif()
  gtest_discover_tests(
    ${name}_test DISCOVERY_MODE PRE_TEST TEST_PREFIX "${name}." TEST_FILTER "-*Slow.*"
    PROPERTIES LABELS "${ARG_LABELS}" ENVIRONMENT OMP_NUM_THREADS=1)
  gtest_discover_tests(
    ${name}_test DISCOVERY_MODE PRE_TEST TEST_PREFIX "${name}." TEST_FILTER "*Slow.*"
    PROPERTIES LABELS "${ARG_LABELS};slow" ENVIRONMENT OMP_NUM_THREADS=1)
endfunction()
