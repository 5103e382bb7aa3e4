# Installation and the Debian package: the executable, its completion scripts and the licence.
include(GNUInstallDirs)

add_custom_command(
  OUTPUT ${PROJECT_BINARY_DIR}/completion/reft.bash ${PROJECT_BINARY_DIR}/completion/reft.fish
  COMMAND ${CMAKE_COMMAND} -E make_directory ${PROJECT_BINARY_DIR}/completion
  COMMAND reft completion bash > ${PROJECT_BINARY_DIR}/completion/reft.bash
  COMMAND reft completion fish > ${PROJECT_BINARY_DIR}/completion/reft.fish
  DEPENDS reft VERBATIM)
add_custom_target(reft_completion ALL
                  DEPENDS ${PROJECT_BINARY_DIR}/completion/reft.bash ${PROJECT_BINARY_DIR}/completion/reft.fish)

install(TARGETS reft RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(FILES ${PROJECT_BINARY_DIR}/completion/reft.bash
        DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME reft)
install(FILES ${PROJECT_BINARY_DIR}/completion/reft.fish
        DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
install(FILES README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME reft)
set(CPACK_PACKAGE_CONTACT "reft maintainers <maintainers@reft.example>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Serves and trains language models: one native executable, no Python")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_DEPENDS "libc6 (>= 2.36)")
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
include(CPack)
