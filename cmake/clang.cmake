# The toolchain of the preset `fuzz`: the clang that tools/install_deps.sh installs, 14 where there is a choice.
find_program(REFT_CLANG NAMES clang-14 clang-15 clang-16 clang-17 clang-18 clang-19 clang REQUIRED)
string(REGEX REPLACE "clang(-[0-9]+)?$" "clang++\\1" REFT_CLANGXX ${REFT_CLANG})
set(CMAKE_C_COMPILER ${REFT_CLANG})
set(CMAKE_CXX_COMPILER ${REFT_CLANGXX})
