# The system's libraries outside the project's own field: the imported target system::NAME for each
# row of packages.txt that this build needs. Headers and libraries are looked up by name, with neither
# pkg-config nor the packages' own CMake files: it is one way for all of them, and a plain folder with
# include/ and lib/ in CMAKE_PREFIX_PATH serves as well as the system (scripts/device makes one).
set(packages_file ${CMAKE_CURRENT_LIST_DIR}/packages.txt)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${packages_file})
find_package(Threads REQUIRED)

set(missing_packages "")
file(STRINGS ${packages_file} rows REGEX "^[a-z]")
foreach(row ${rows})
  string(REGEX MATCHALL "[^ ]+" libraries "${row}")
  list(POP_FRONT libraries name option package header)
  if(NOT ${option})
    continue()
  endif()
  find_path(PLX_INCLUDE_${name} ${header})
  set(parts PLX_INCLUDE_${name})
  add_library(system::${name} INTERFACE IMPORTED)
  target_include_directories(system::${name} INTERFACE ${PLX_INCLUDE_${name}})
  foreach(library ${libraries})
    find_library(PLX_LIBRARY_${library} ${library})
    list(APPEND parts PLX_LIBRARY_${library})
    target_link_libraries(system::${name} INTERFACE ${PLX_LIBRARY_${library}} Threads::Threads)
  endforeach()
  foreach(part ${parts})
    mark_as_advanced(${part})
    if(NOT ${part})
      list(APPEND missing_packages ${package})
    endif()
  endforeach()
endforeach()
if(missing_packages)
  list(REMOVE_DUPLICATES missing_packages)
  list(JOIN missing_packages " " missing_packages)
  message(FATAL_ERROR "Not found, by their headers and libraries: ${missing_packages}\n"
                      "Run scripts/setup, or name the folder that has their include/ and lib/ in "
                      "-DCMAKE_PREFIX_PATH=.")
endif()
