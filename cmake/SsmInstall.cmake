# cmake --install: the command, the libraries, the headers, and a package for find_package(ssm).
include(CMakePackageConfigHelpers)

get_property(rooms GLOBAL PROPERTY SSM_ROOMS)
add_library(ssm_all INTERFACE)
add_library(ssm::ssm ALIAS ssm_all)
set_target_properties(ssm_all PROPERTIES EXPORT_NAME ssm)
target_link_libraries(ssm_all INTERFACE ${rooms})

install(TARGETS ssm_all ${rooms} EXPORT ssm-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS ssm_command RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})

# Manual pages and shells' completion are what the built command says of itself.
if(NOT CMAKE_CROSSCOMPILING OR CMAKE_CROSSCOMPILING_EMULATOR)
  set(told ${PROJECT_BINARY_DIR}/share)
  add_custom_command(
    OUTPUT ${told}/ssm.bash ${told}/_ssm ${told}/ssm.fish ${told}/man1/ssm.1
    COMMAND ${CMAKE_COMMAND} -E make_directory ${told}
    COMMAND ssm_command completion bash > ${told}/ssm.bash
    COMMAND ssm_command completion zsh > ${told}/_ssm
    COMMAND ssm_command completion fish > ${told}/ssm.fish
    COMMAND ssm_command man --out ${told}/man1
    DEPENDS ssm_command VERBATIM)
  add_custom_target(ssm_pages ALL DEPENDS ${told}/ssm.bash ${told}/_ssm ${told}/ssm.fish ${told}/man1/ssm.1)
  install(DIRECTORY ${told}/man1 DESTINATION ${CMAKE_INSTALL_MANDIR})
  install(FILES ${told}/ssm.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME ssm)
  install(FILES ${told}/_ssm DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
  install(FILES ${told}/ssm.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
endif()

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
