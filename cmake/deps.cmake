# Third-party libraries: package, version on Debian 12, licence, reason. All are linked statically.
#
#   Boost.JSON, URL, Container  libboost-{json,url}1.81-dev 1.81.0   BSL-1.0   JSON that keeps key order; URLs
#   Boost.Asio, Beast           libboost1.81-dev 1.81.0              BSL-1.0   HTTP server on coroutines
#   fmt                         libfmt-dev 9.1.0                     MIT       formatting
#   spdlog                      libspdlog-dev 1.10.0                 MIT       logging back end, seen by log.cc only
#   tl::expected                libexpected-dev 1.0.0                CC0-1.0   Result<T> (nvcc stops at C++20)
#   CLI11                       libcli11-dev 2.1.2                   BSD-3     command line
#   PCRE2                       libpcre2-dev 10.42                   BSD-3     split patterns without a hand-written matcher
#   utf8proc                    libutf8proc-dev 2.8.0                MIT       NFC, NFKC
#   OpenSSL                     libssl-dev 3.0                       Apache-2  SHA-256, constant-time compare
#   xxHash                      libxxhash-dev 0.8.1                  BSD-2     prefix-cache hashes (header only)
#   GoogleTest, Benchmark       libgtest-dev 1.12, libbenchmark-dev  BSD-3, Apache-2   tests only
#   rapidcheck                  librapidcheck-dev                    BSD-2     property tests only

find_package(Threads REQUIRED)
set(Boost_USE_STATIC_LIBS ON)
find_package(Boost 1.81 REQUIRED COMPONENTS json url container)
set(OPENSSL_USE_STATIC_LIBS ON)
find_package(OpenSSL 3.0 REQUIRED)
find_package(CLI11 REQUIRED)

# Debian ships no static fmt and spdlog: two files of ours compile their -inl.h headers.
find_path(NIBBLE_FMT_INCLUDE fmt/core.h REQUIRED)
find_path(NIBBLE_SPDLOG_INCLUDE spdlog/spdlog.h REQUIRED)
find_path(NIBBLE_EXPECTED_INCLUDE tl/expected.hpp REQUIRED)
add_library(nibble_fmt STATIC ${CMAKE_SOURCE_DIR}/cmake/fmt_impl.cc)
target_include_directories(nibble_fmt SYSTEM PUBLIC ${NIBBLE_FMT_INCLUDE})
add_library(nibble_spdlog STATIC ${CMAKE_SOURCE_DIR}/cmake/spdlog_impl.cc)
target_include_directories(nibble_spdlog SYSTEM PUBLIC ${NIBBLE_SPDLOG_INCLUDE})
target_compile_definitions(nibble_spdlog PUBLIC SPDLOG_COMPILED_LIB SPDLOG_FMT_EXTERNAL)
target_link_libraries(nibble_spdlog PUBLIC nibble_fmt)
add_library(expected INTERFACE)
target_include_directories(expected SYSTEM INTERFACE ${NIBBLE_EXPECTED_INCLUDE})

function(nibble_static_library NAME HEADER ARCHIVE)
  find_path(${NAME}_INCLUDE ${HEADER} REQUIRED)
  find_library(${NAME}_ARCHIVE ${ARCHIVE} REQUIRED)
  add_library(${NAME} INTERFACE)
  target_include_directories(${NAME} SYSTEM INTERFACE ${${NAME}_INCLUDE})
  target_link_libraries(${NAME} INTERFACE ${${NAME}_ARCHIVE})
endfunction()
nibble_static_library(nibble_pcre2 pcre2.h libpcre2-8.a)
nibble_static_library(nibble_utf8proc utf8proc.h libutf8proc.a)
target_compile_definitions(nibble_utf8proc INTERFACE UTF8PROC_STATIC)

find_path(NIBBLE_XXHASH_INCLUDE xxhash.h REQUIRED)
add_library(nibble_xxhash INTERFACE)
target_include_directories(nibble_xxhash SYSTEM INTERFACE ${NIBBLE_XXHASH_INCLUDE})

add_library(nibble_asio INTERFACE)
target_link_libraries(nibble_asio INTERFACE Boost::headers Threads::Threads)
target_compile_definitions(nibble_asio INTERFACE BOOST_ASIO_NO_DEPRECATED BOOST_ASIO_DISABLE_BOOST_ARRAY)

if(NIBBLE_TESTS)
  find_package(GTest REQUIRED)
  find_package(benchmark QUIET)
endif()
