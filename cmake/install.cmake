# What `cmake --install` puts in place: the kernel library, its headers and the CMake package
# `parallax`. A user writes find_package(parallax) and links parallax::parallax.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/parallax)
set(library_targets plx_core plx_reference plx_cpu plx_backends)
if(PLX_CUDA)
  list(APPEND library_targets plx_cuda)
endif()
foreach(target ${library_targets})
  string(REPLACE plx_ "" export_name ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${export_name})
endforeach()
set_target_properties(plx_backends PROPERTIES EXPORT_NAME parallax)

install(TARGETS ${library_targets} EXPORT parallax_targets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/parallax
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT library)
install(EXPORT parallax_targets FILE parallax-targets.cmake NAMESPACE parallax::
        DESTINATION ${package_dir} COMPONENT library)
configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/parallax-config.cmake.in ${PROJECT_BINARY_DIR}/parallax-config.cmake
  INSTALL_DESTINATION ${package_dir})
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/parallax-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/parallax-config.cmake
              ${PROJECT_BINARY_DIR}/parallax-config-version.cmake
        DESTINATION ${package_dir} COMPONENT library)
