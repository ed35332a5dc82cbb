# ssm_library(<room> SOURCES ... [DEPENDS ...] [PRIVATE ...]) - one static library a folder, so that the link
# graph is the layer rule. DEPENDS names rooms or public packages; PRIVATE names packages the headers do not show.
function(ssm_library room)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;PRIVATE" ${ARGN})
  set(target ssm_${room})
  add_library(${target} STATIC ${ARG_SOURCES})
  add_library(ssm::${room} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${room})
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                                              $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_link_libraries(${target} PUBLIC ${ARG_DEPENDS} PRIVATE ${ARG_PRIVATE})
  ssm_compile_options(${target})
  set_property(GLOBAL APPEND PROPERTY SSM_ROOMS ${target})
endfunction()

function(ssm_compile_options target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-Wnon-virtual-dtor;-Wno-psabi>
    $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo;--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra,-Wno-psabi>)
  # fmt 9 takes nvcc for a compiler without constexpr.
  target_compile_definitions(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>)
  if(SSM_WARNINGS_AS_ERRORS)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Werror>
                                             $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
  endif()
  if(SSM_SANITIZE)
    target_compile_options(${target} PUBLIC -fsanitize=${SSM_SANITIZE} -fno-omit-frame-pointer
                                            -fno-sanitize-recover=all)
    target_link_options(${target} PUBLIC -fsanitize=${SSM_SANITIZE})
    # GCC's manual: a sanitizer makes this warning see what is not there.
    target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  endif()
  if(SSM_BUILD_FUZZ)  # coverage for the fuzzer in every room; only the targets of ssm_fuzz get its main()
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()

set(SSM_X86 FALSE)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(SSM_X86 TRUE)
endif()

# ssm_kernel_targets(<target>) - for which of Highway's targets its sources are compiled, to be chosen at run time:
# SSE4, AVX2 and AVX-512 on x86-64, NEON alone on aarch64.
function(ssm_kernel_targets target)
  if(NOT TARGET ${target})  # a test or a benchmark that this build does not have
    return()
  endif()
  set(disabled "HWY_SSSE3|HWY_AVX3_DL")
  if(NOT SSM_X86)  # kernels keep vectors in arrays, which SVE's cannot be
    set(disabled "HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128")
  endif()
  if(SSM_BUILD_FUZZ)  # sanitized kernels take long to compile, and parsers need none of them
    string(APPEND disabled "|HWY_AVX2|HWY_AVX3")
  endif()
  target_compile_definitions(${target} PRIVATE HWY_DISABLED_TARGETS=\(${disabled}\))
endfunction()

# ssm_kernel_options(<target>) - what a library with Highway kernels is compiled with.
function(ssm_kernel_options target)
  ssm_kernel_targets(${target})
  # A compiler that fuses a multiply into an add in one place and not in another breaks the bitwise contract (and packed
  # bytes that are the same on every machine); kernels ask for fusion with MulAdd.
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)
  if(SSM_X86)  # Highway's SSE4 target as the floor
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-msse4.2;-mpopcnt;-mpclmul;-maes>)
  endif()
endfunction()

# ssm_test(<name> SOURCES ... DEPENDS ...) - one GoogleTest program; every case is a ctest test.
function(ssm_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  if(NOT SSM_BUILD_TESTS)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gtest GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE SSM_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  ssm_compile_options(${name})
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES LABELS ${name})
endfunction()

# ssm_benchmark(<name> SOURCES ... DEPENDS ...) - one Google Benchmark program.
function(ssm_benchmark name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
  if(NOT SSM_BUILD_BENCH)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} benchmark::benchmark benchmark::benchmark_main)
  ssm_compile_options(${name})
endfunction()

# ssm_fuzz(<name> DEPENDS ...) - one libFuzzer program of <name>.cpp. `fuzz_targets` builds them all.
function(ssm_fuzz name)
  cmake_parse_arguments(ARG "" "" "DEPENDS" ${ARGN})
  add_executable(${name} ${name}.cpp)
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS})
  ssm_compile_options(${name})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  if(NOT TARGET fuzz_targets)
    add_custom_target(fuzz_targets)
  endif()
  add_dependencies(fuzz_targets ${name})
endfunction()
