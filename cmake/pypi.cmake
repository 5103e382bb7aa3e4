# Source archives from PyPI, for libraries that Debian does not have: pinned, checked by their hash, kept in
# REFT_ARCHIVES (an archive that lies there is not fetched again, so that a machine without a network can build).
set(REFT_ARCHIVES ${PROJECT_SOURCE_DIR}/build/archives CACHE PATH "Where source archives are kept")

# Unpacks the source archive of `name` into <build>/archives/<name>-<version>, fetching it with pip where it is missing.
function(reft_pypi_source name version sha256)
  set(archive ${REFT_ARCHIVES}/${name}-${version}.tar.gz)
  if(NOT EXISTS ${archive})
    find_package(Python3 REQUIRED COMPONENTS Interpreter)
    set(venv ${CMAKE_BINARY_DIR}/pip)
    execute_process(COMMAND ${Python3_EXECUTABLE} -m venv ${venv} COMMAND_ERROR_IS_FATAL ANY)
    execute_process(COMMAND ${venv}/bin/pip download --quiet --no-deps --no-binary ${name} --dest ${REFT_ARCHIVES}
                            ${name}==${version} RESULT_VARIABLE failed)
    file(REMOVE_RECURSE ${venv})
    if(failed OR NOT EXISTS ${archive})
      message(FATAL_ERROR "pip could not fetch ${name} ${version}; put its source archive at ${archive}")
    endif()
  endif()
  file(SHA256 ${archive} hash)
  if(NOT hash STREQUAL sha256)
    message(FATAL_ERROR "${archive} is not ${name} ${version}: its SHA256 is ${hash}, not ${sha256}")
  endif()
  if(NOT EXISTS ${CMAKE_BINARY_DIR}/archives/${name}-${version})
    file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${CMAKE_BINARY_DIR}/archives)
  endif()
endfunction()
