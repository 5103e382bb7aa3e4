# Installation and the Debian package: the executable, its completion scripts and the README.
include(GNUInstallDirs)

set(completion ${PROJECT_BINARY_DIR}/completion/reft)
add_custom_command(
  OUTPUT ${completion}.bash ${completion}.zsh ${completion}.fish
  COMMAND ${CMAKE_COMMAND} -E make_directory ${PROJECT_BINARY_DIR}/completion
  COMMAND reft completion bash > ${completion}.bash
  COMMAND reft completion zsh > ${completion}.zsh
  COMMAND reft completion fish > ${completion}.fish
  DEPENDS reft VERBATIM)
add_custom_target(reft_completion ALL DEPENDS ${completion}.bash ${completion}.zsh ${completion}.fish)

install(TARGETS reft RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(FILES ${completion}.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME reft)
install(FILES ${completion}.zsh DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions RENAME _reft)
install(FILES ${completion}.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
install(FILES README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME reft)
set(CPACK_PACKAGE_CONTACT "reft maintainers <maintainers@reft.example>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Serves and trains language models: one native executable, no Python")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
# The only library that is not static; symbols of a newer one than this machine's cannot be in the executable.
execute_process(COMMAND getconf GNU_LIBC_VERSION OUTPUT_VARIABLE libc)
string(REGEX MATCH "[0-9.]+" libc "${libc}")
set(CPACK_DEBIAN_PACKAGE_DEPENDS "libc6 (>= ${libc})")
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS ca-certificates)  # for downloads from the hub
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
include(CPack)
