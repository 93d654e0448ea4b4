# plx_add_library(NAME [LINK targets...]): the static library plx_NAME from every .cc file of the
# calling folder. LINK names the layers below it: what is not linked cannot be included by accident
# from another build, and tests/repo checks the include lines against the same order.
function(plx_add_library name)
  cmake_parse_arguments(ARG "" "" "LINK;EXCLUDE" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  foreach(pattern ${ARG_EXCLUDE})
    list(FILTER sources EXCLUDE REGEX "${pattern}")
  endforeach()
  add_library(plx_${name} STATIC ${sources})
  target_include_directories(
    plx_${name}
    PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
           $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
    PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_compile_options(plx_${name} PRIVATE ${PLX_WARNINGS})
  target_link_libraries(plx_${name} PUBLIC ${ARG_LINK})
endfunction()

# plx_use_libtorch(TARGET): compile against LibTorch's C++ API through one shared precompiled header
# (its headers alone cost 20 s per unit). Even so each unit costs seconds before its first line, so
# PLX_UNITY compiles up to four files as one.
function(plx_use_libtorch target)
  target_link_libraries(${target} PUBLIC plx_libtorch)
  target_precompile_headers(${target} REUSE_FROM plx_torch_pch)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ${PLX_UNITY} UNITY_BUILD_BATCH_SIZE 4)
endfunction()
