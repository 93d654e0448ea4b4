# Installs the library to a scratch prefix, builds examples/ against it with find_package(parallax),
# and runs the example. Nothing of the source tree but examples/ is visible to that build. Then the
# version, and a header folder of another name.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\nfailed (${result}):\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${SCRATCH}/prefix ${SCRATCH}/build)
run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${SCRATCH}/prefix --component library)
run(${CMAKE_COMMAND} -S ${EXAMPLES} -B ${SCRATCH}/build -G ${GENERATOR}
    -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -DCMAKE_CXX_COMPILER=${COMPILER}
    -DCMAKE_PREFIX_PATH=${SCRATCH}/prefix)
run(${CMAKE_COMMAND} --build ${SCRATCH}/build)
run(${SCRATCH}/build/minimal_attention)
if(NOT output MATCHES "backend" OR NOT output MATCHES "largest difference")
  message(FATAL_ERROR "minimal_attention printed:\n${output}")
endif()

file(READ ${SOURCE}/include/parallax/version.h header)
file(GLOB_RECURSE version_file ${SCRATCH}/prefix/*/parallax-config-version.cmake)
set(PACKAGE_FIND_VERSION 0.0)
include(${version_file})
if(NOT header MATCHES "PLX_VERSION \"${PACKAGE_VERSION}\"")
  message(FATAL_ERROR "find_package() says ${PACKAGE_VERSION}, version.h:\n${header}")
endif()

# Only generated, not built: the targets say where the headers will be.
file(REMOVE_RECURSE ${SCRATCH}/renamed)
run(${CMAKE_COMMAND} -S ${SOURCE} -B ${SCRATCH}/renamed -G ${GENERATOR}
    -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -DCMAKE_CXX_COMPILER=${COMPILER}
    -DPLX_TORCH=OFF -DPLX_TESTS=OFF -DCMAKE_INSTALL_INCLUDEDIR=headers)
file(GLOB_RECURSE targets_file ${SCRATCH}/renamed/parallax-targets.cmake)
file(READ ${targets_file} targets)
if(NOT targets MATCHES "INTERFACE_INCLUDE_DIRECTORIES \"\\\${_IMPORT_PREFIX}/headers\"")
  message(FATAL_ERROR "the installed targets do not name the folder 'headers':\n${targets}")
endif()
