# libnibble_kernels.so, the C ABI of src/capi over the kernels, and the C program that tests it. Part of `all` where CUDA is
# on: without it there is nothing to call.
set(exports ${CMAKE_SOURCE_DIR}/src/capi/exports.map)
set(in_all EXCLUDE_FROM_ALL)
if(NIBBLE_CUDA)
  set(in_all)
endif()

add_library(nibble_kernels SHARED ${in_all} $<TARGET_OBJECTS:capi>)
target_link_libraries(nibble_kernels PRIVATE kernels)
target_link_options(nibble_kernels PRIVATE -Wl,--version-script=${exports} -Wl,--no-undefined -Wl,--gc-sections)
set_target_properties(nibble_kernels PROPERTIES LINKER_LANGUAGE CXX LINK_DEPENDS ${exports} LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}
  PUBLIC_HEADER ${CMAKE_SOURCE_DIR}/src/capi/nibble_kernels.h)

if(NIBBLE_TESTS AND NOT CMAKE_CROSSCOMPILING AND NOT NIBBLE_SANITIZE)
  enable_language(C)
  add_executable(c_abi_test ${in_all} ${CMAKE_SOURCE_DIR}/src/capi/c_abi_test.c)
  set_target_properties(c_abi_test PROPERTIES C_STANDARD 11 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF)
  target_compile_options(c_abi_test PRIVATE -Wall -Wextra -pedantic -Werror)
  target_include_directories(c_abi_test PRIVATE ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(c_abi_test PRIVATE nibble_kernels dl m)
  if(NIBBLE_CUDA)
    add_test(NAME c_abi COMMAND c_abi_test)
    set_tests_properties(c_abi PROPERTIES LABELS unit TIMEOUT 300 SKIP_RETURN_CODE 77)
  endif()
endif()
