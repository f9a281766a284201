# The CUDA backend: option NIBBLE_CUDA, its targets, and the flags of .cu files.
#
# NIBBLE_CUDA_TARGETS names cubins by compute capability. Plain 120 and 121 lack every FP4 instruction and are refused.
option(NIBBLE_CUDA "Compile the CUDA backend" OFF)
option(NIBBLE_CUDA_REPORT "Let ptxas print registers, shared memory and spills of every kernel" OFF)
set(NIBBLE_CUDA_TARGETS "80;89;90a;100a;120f" CACHE STRING "Compute capabilities to compile cubins for")

if(NIBBLE_CUDA)
  execute_process(COMMAND ${CMAKE_SOURCE_DIR}/packaging/cuda-toolkit.sh ${CMAKE_SOURCE_DIR}/build/cuda-toolkit
    OUTPUT_VARIABLE NIBBLE_CUDA_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  set(CMAKE_CUDA_COMPILER ${NIBBLE_CUDA_ROOT}/bin/nvcc)
  # Targets are given below: this version of CMake does not know 120f.
  set(CMAKE_CUDA_ARCHITECTURES OFF)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  if(CMAKE_CROSSCOMPILING)
    # nvcc compiles for the host compiler's processor; the runtime to link comes from NVIDIA's wheel for it.
    execute_process(COMMAND ${CMAKE_SOURCE_DIR}/packaging/cuda-runtime-aarch64.sh ${CMAKE_SOURCE_DIR}/build/cuda-aarch64
      OUTPUT_VARIABLE NIBBLE_CUDART OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
    cmake_path(GET NIBBLE_CUDART PARENT_PATH runtime_folder)
    set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
    set(CMAKE_CUDA_FLAGS_INIT "-I${NIBBLE_CUDA_ROOT}/include -L${runtime_folder}")
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  # This version of CMake may not know that nvcc speaks C++20 either.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  find_path(NIBBLE_CUDA_RUNTIME_INCLUDE cuda_runtime_api.h NO_CMAKE_FIND_ROOT_PATH
    HINTS ${NIBBLE_CUDA_ROOT}/include ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES} REQUIRED)
  find_library(NIBBLE_CUDART libcudart_static.a
    HINTS ${NIBBLE_CUDA_ROOT}/lib64 ${NIBBLE_CUDA_ROOT}/lib REQUIRED)
  # fmt 9 knows nothing of nvcc: it is to use constexpr, but no format is checked by consteval (g++ does it).
  set(NIBBLE_CUDA_FLAGS --expt-relaxed-constexpr -DFMT_USE_CONSTEXPR=1 -DFMT_CONSTEVAL= --compress-mode=size -diag-suppress=20012 -Xcompiler=-Wno-unused-parameter)
  if(NIBBLE_CUDA_REPORT)
    list(APPEND NIBBLE_CUDA_FLAGS -Xptxas=-v)
  endif()
  foreach(target IN LISTS NIBBLE_CUDA_TARGETS)
    if(target MATCHES "^12[01]$")
      message(FATAL_ERROR "NIBBLE_CUDA_TARGETS has ${target}: it lacks the FP4 instructions; use 120f")
    endif()
    list(APPEND NIBBLE_CUDA_FLAGS -gencode=arch=compute_${target},code=sm_${target})
  endforeach()
  # What the binary says that it holds.
  list(JOIN NIBBLE_CUDA_TARGETS "\",\"" NIBBLE_CUDA_TARGET_LIST)
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/kernels/cuda_routes.cc PROPERTIES
    COMPILE_DEFINITIONS "NIBBLE_CUDA_TARGET_LIST=\"${NIBBLE_CUDA_TARGET_LIST}\"")
  if(NIBBLE_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${NIBBLE_CCACHE})
  endif()
endif()

# What a target with sources in cuda/ folders needs.
function(nibble_cuda_target NAME)
  if(NOT NIBBLE_CUDA)
    return()
  endif()
  target_compile_definitions(${NAME} PUBLIC NIBBLE_CUDA=1)
  set(sources ${ARGN})
  list(FILTER sources INCLUDE REGEX "/cuda/")
  if(NOT sources)
    return()
  endif()
  # Public: the tests of GPU code see the runtime, too, also where it is a file of another architecture.
  target_include_directories(${NAME} SYSTEM PUBLIC ${NIBBLE_CUDA_RUNTIME_INCLUDE})
  target_link_libraries(${NAME} PUBLIC ${NIBBLE_CUDART} dl rt Threads::Threads)
  target_compile_options(${NAME} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${NIBBLE_CUDA_FLAGS}>")
endfunction()
