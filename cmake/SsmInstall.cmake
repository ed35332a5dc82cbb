# cmake --install: the command, the libraries, the headers, and a package for find_package(ssm).
include(CMakePackageConfigHelpers)

get_property(rooms GLOBAL PROPERTY SSM_ROOMS)
add_library(ssm_all INTERFACE)
add_library(ssm::ssm ALIAS ssm_all)
set_target_properties(ssm_all PROPERTIES EXPORT_NAME ssm)
target_link_libraries(ssm_all INTERFACE ${rooms})

install(TARGETS ssm_all ${rooms} EXPORT ssm-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS ssm_command RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/ssm DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h"
        REGEX "(_reference|-inl|_cpu|_cuda|_util|_blocks|/test_[a-z_]*|/scratch)\\.h$" EXCLUDE)  # the library's own
install(DIRECTORY ${PROJECT_SOURCE_DIR}/models/ DESTINATION ${CMAKE_INSTALL_DATADIR}/ssm/models)
install(EXPORT ssm-targets NAMESPACE ssm:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ssm)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/ssm-config.cmake.in ${PROJECT_BINARY_DIR}/ssm-config.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ssm)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/ssm-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/ssm-config.cmake ${PROJECT_BINARY_DIR}/ssm-config-version.cmake
              ${PROJECT_SOURCE_DIR}/cmake/FindSentencePiece.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/ssm)
