# The dependency law: one folder under src/ is one library and one layer.
#
#   nibble_layer(NAME [DEPS layer...] [LIBS target...] [HEADER_ONLY] [WHOLE_ARCHIVE] [EXECUTABLE name]
#                [FUZZ_SOURCES stem... FUZZ_DEPS layer...])
#
# Sources are found by name: x.cc belongs to the library, x_test.cc to NAME_tests, x_bench.cc to NAME_bench,
# x_fuzz.cc to a fuzz target of its own. Files that end in _avx2, _avx512, _amx, _neon or _i8mm are compiled with
# that instruction set, and left out where the target processor has none. Folders named cuda/, and their .cu files, are
# compiled with NIBBLE_CUDA alone. Configure stops when a dependency is not on a lower level. tools/check_layers.py holds
# the same law per include.
#
# FUZZ_SOURCES: the files of this layer that its fuzz targets run, and FUZZ_DEPS what these need; without them a fuzz target
# links the layer and all below it.

set(NIBBLE_LEVELS
  base 0  numerics 1  device 2  tensor 3
  formats 4  text 4  grammar 4  comm 4  kernels 4
  models 5  capi 5  engine 6  quantize 6  server 7  eval 7  apps 8)

function(nibble_level NAME OUT)
  list(FIND NIBBLE_LEVELS ${NAME} at)
  if(at EQUAL -1)
    message(FATAL_ERROR "layer ${NAME}: not listed in cmake/layers.cmake")
  endif()
  math(EXPR at "${at} + 1")
  list(GET NIBBLE_LEVELS ${at} level)
  set(${OUT} ${level} PARENT_SCOPE)
endfunction()

# The one exception to "strictly lower": engine may use text and grammar, which are lower anyway.
function(nibble_check_dependency NAME DEP)
  nibble_level(${NAME} mine)
  nibble_level(${DEP} theirs)
  if(NOT theirs LESS mine)
    message(FATAL_ERROR
      "layer ${NAME} (level ${mine}) may not use ${DEP} (level ${theirs}): only lower levels are allowed")
  endif()
endfunction()

# Flags per instruction set, by file name. Such files include no inline-heavy headers (see docs/add-a-kernel.md).
function(nibble_isa_flags SOURCES_VAR)
  set(kept)
  set(x86 OFF)
  set(arm OFF)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    set(x86 ON)
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
    set(arm ON)
  endif()
  # Of every AVX-512 processor that has kernels of ours.
  set(avx512
    "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-mavx512vbmi;-mavx512vbmi2;-mavx2;-mfma;-mf16c;-mbmi2;-mprefer-vector-width=512")
  foreach(file IN LISTS ${SOURCES_VAR})
    if(file MATCHES "_generic\\.cc$")
      # The fallback for processors without kernels of ours: at -O3 its unrolled scalar tiles take minutes to compile.
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "-O1")
      list(APPEND kept ${file})
    elseif(file MATCHES "_avx512\\.cc$")
      if(x86)
        set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS
          "${avx512};-mavx512bf16")
        list(APPEND kept ${file})
      endif()
    elseif(file MATCHES "_amx\\.cc$")
      if(x86)
        set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS
          "-mamx-tile;-mamx-int8;${avx512}")
        list(APPEND kept ${file})
      endif()
    elseif(file MATCHES "_avx2\\.cc$")
      if(x86)
        set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c;-mbmi2")
        list(APPEND kept ${file})
      endif()
    elseif(file MATCHES "_i8mm\\.cc$")
      if(arm)
        set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "-march=armv8.6-a+dotprod+fp16+i8mm+bf16")
        list(APPEND kept ${file})
      endif()
    elseif(file MATCHES "_neon\\.cc$")
      if(arm)
        set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "-march=armv8.2-a+dotprod+fp16")
        list(APPEND kept ${file})
      endif()
    else()
      list(APPEND kept ${file})
    endif()
  endforeach()
  set(${SOURCES_VAR} ${kept} PARENT_SCOPE)
endfunction()

# Files that register themselves (models) must survive the linker, which drops unreferenced archive members silently.
function(nibble_keep_registrations TARGET)
  get_property(layers GLOBAL PROPERTY NIBBLE_WHOLE_ARCHIVE)
  if(layers)
    list(JOIN layers "," layers)
    set_property(TARGET ${TARGET} PROPERTY LINK_LIBRARY_OVERRIDE "WHOLE_ARCHIVE,${layers}")
  endif()
endfunction()

function(nibble_layer NAME)
  cmake_parse_arguments(L "HEADER_ONLY;WHOLE_ARCHIVE" "EXECUTABLE" "DEPS;LIBS;FUZZ_SOURCES;FUZZ_DEPS" ${ARGN})
  set(dir ${CMAKE_SOURCE_DIR}/src/${NAME})
  foreach(dep IN LISTS L_DEPS)
    nibble_check_dependency(${NAME} ${dep})
  endforeach()

  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${dir}/*.cc)
  if(NIBBLE_CUDA)
    file(GLOB_RECURSE device_sources CONFIGURE_DEPENDS ${dir}/*.cu)
    list(APPEND sources ${device_sources})
  else()
    list(FILTER sources EXCLUDE REGEX "/cuda/")
  endif()
  set(tests ${sources})
  set(benches ${sources})
  set(fuzzers ${sources})
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  list(FILTER benches INCLUDE REGEX "_bench\\.cc$")
  list(FILTER fuzzers INCLUDE REGEX "_fuzz\\.cc$")
  list(FILTER sources EXCLUDE REGEX "(_test|_bench|_fuzz|/main)\\.cc$")
  nibble_isa_flags(sources)

  if(L_HEADER_ONLY)
    add_library(${NAME} INTERFACE)
    target_include_directories(${NAME} INTERFACE ${CMAKE_SOURCE_DIR}/src)
    target_link_libraries(${NAME} INTERFACE ${L_DEPS} ${L_LIBS})
  elseif(sources)
    add_library(${NAME} STATIC ${sources})
    nibble_cuda_target(${NAME} ${sources})
    target_include_directories(${NAME} PUBLIC ${CMAKE_SOURCE_DIR}/src)
    target_link_libraries(${NAME} PUBLIC ${L_DEPS} ${L_LIBS})
  else()
    return()  # the folder holds only its README so far
  endif()
  if(L_WHOLE_ARCHIVE)
    set_property(GLOBAL APPEND PROPERTY NIBBLE_WHOLE_ARCHIVE ${NAME})
  endif()

  if(L_EXECUTABLE AND EXISTS ${dir}/main.cc)
    add_executable(${L_EXECUTABLE} ${dir}/main.cc)
    target_link_libraries(${L_EXECUTABLE} PRIVATE ${NAME})
    nibble_keep_registrations(${L_EXECUTABLE})
    set_target_properties(${L_EXECUTABLE} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
  endif()

  if(NIBBLE_TESTS AND tests)
    add_executable(${NAME}_tests ${tests})
    target_link_libraries(${NAME}_tests PRIVATE ${NAME} testing GTest::gtest_main)
    nibble_keep_registrations(${NAME}_tests)
    add_test(NAME ${NAME} COMMAND ${NAME}_tests)
    set_tests_properties(${NAME} PROPERTIES LABELS unit TIMEOUT 900)
  endif()
  if(NIBBLE_TESTS AND benches AND TARGET benchmark::benchmark)
    add_executable(${NAME}_bench EXCLUDE_FROM_ALL ${benches})
    target_link_libraries(${NAME}_bench PRIVATE ${NAME} testing benchmark::benchmark_main)
  endif()
  if(NIBBLE_FUZZ)
    set(fuzzed ${sources})
    list(JOIN L_FUZZ_SOURCES "|" stems)
    list(FILTER fuzzed INCLUDE REGEX "/(${stems})\\.cc$")
    foreach(file IN LISTS fuzzers)
      get_filename_component(target ${file} NAME_WE)
      add_executable(${target} ${file})
      if(L_FUZZ_SOURCES)
        target_sources(${target} PRIVATE ${fuzzed})
        target_link_libraries(${target} PRIVATE ${L_FUZZ_DEPS} ${L_LIBS})
      else()
        target_link_libraries(${target} PRIVATE ${NAME})
      endif()
      target_link_options(${target} PRIVATE -fsanitize=fuzzer)
    endforeach()
  endif()
endfunction()

# Test-only layer: fixtures, matchers, golden loader. Linked by tests, never by the product.
if(NIBBLE_TESTS)
  file(GLOB testing_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/testing/*.cc)
  add_library(testing STATIC ${testing_sources})
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/testing/source_folder.cc PROPERTIES
    COMPILE_DEFINITIONS NIBBLE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  target_link_libraries(testing PUBLIC GTest::gtest)
  target_include_directories(testing PUBLIC ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(testing PUBLIC expected nibble_fmt Boost::json)
endif()

# The host side of the CUDA toolkit's number formats is an oracle for ours: headers alone, no nvcc and no GPU.
function(nibble_compare_with_cuda_headers TARGET)
  if(NOT TARGET ${TARGET} OR CMAKE_CROSSCOMPILING OR NIBBLE_SANITIZE)
    return()
  endif()
  find_path(NIBBLE_CUDA_INCLUDE cuda_fp4.h PATHS /usr/local/cuda/include /opt/cuda/include)
  if(NIBBLE_CUDA_INCLUDE)
    target_include_directories(${TARGET} SYSTEM PRIVATE ${NIBBLE_CUDA_INCLUDE})
    target_compile_definitions(${TARGET} PRIVATE NIBBLE_HAVE_CUDA_HEADERS)
  endif()
endfunction()
