# Compiler settings that every target shares.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
# For every target alike, so that programs and libraries can share one precompiled header.
add_compile_options(-fPIC)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(PLX_CCACHE ccache)
if(PLX_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${PLX_CCACHE})
endif()

if(PLX_SANITIZE)
  add_compile_options(-fsanitize=${PLX_SANITIZE} -fno-omit-frame-pointer -g)
  add_link_options(-fsanitize=${PLX_SANITIZE})
  if(PLX_SANITIZE STREQUAL "address")
    add_compile_options(-fsanitize=undefined -fno-sanitize-recover=undefined)
    add_link_options(-fsanitize=undefined)
  endif()
endif()

# Warnings apply to our own targets (plx_add_library and friends), never to other people's headers.
set(PLX_WARNINGS -Wall -Wextra -Wshadow -Wconversion)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # False alarms inside the standard library after inlining: std::string's operator+ in GCC 12 (bug
  # 105651), std::vector's copies and std::optional's moves in GCC 13.
  list(APPEND PLX_WARNINGS
       -Wno-restrict -Wno-array-bounds -Wno-stringop-overflow -Wno-maybe-uninitialized)
endif()
if(PLX_WERROR)
  list(APPEND PLX_WARNINGS -Werror)
endif()
