# Third-party code: Debian packages only, static wherever Debian has a static library. None of it is copied into
# the repository. `tools/install_deps.sh` installs the packages named here.
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)              # libfmt-dev (header-only use: Debian has no static one)
find_package(spdlog REQUIRED)           # libspdlog-dev (header-only use)
find_package(nlohmann_json REQUIRED)    # nlohmann-json3-dev
if(POLICY CMP0167)
  cmake_policy(SET CMP0167 NEW)         # Boost's own package file: newer CMakes have no FindBoost
endif()
find_package(Boost 1.74 REQUIRED)       # libboost1.81-dev: Beast and Asio, headers only

# Prefers lib<name>.a over the shared object.
function(reft_static_library target name header)
  find_library(${target}_LIBRARY NAMES lib${name}.a ${name} REQUIRED)
  find_path(${target}_INCLUDE NAMES ${header} REQUIRED)
  add_library(${target} INTERFACE)
  target_link_libraries(${target} INTERFACE ${${target}_LIBRARY})
  target_include_directories(${target} SYSTEM INTERFACE ${${target}_INCLUDE})
endfunction()

reft_static_library(reft_pcre2 pcre2-8 pcre2.h)         # libpcre2-dev
target_compile_definitions(reft_pcre2 INTERFACE PCRE2_CODE_UNIT_WIDTH=8 PCRE2_STATIC)
reft_static_library(reft_utf8proc utf8proc utf8proc.h)  # libutf8proc-dev
target_compile_definitions(reft_utf8proc INTERFACE UTF8PROC_STATIC)
reft_static_library(reft_zlib z zlib.h)                # zlib1g-dev
reft_static_library(reft_zstd zstd zstd.h)              # libzstd-dev
reft_static_library(reft_lz4 lz4 lz4.h)                 # liblz4-dev
reft_static_library(reft_ssl ssl openssl/ssl.h)         # libssl-dev
reft_static_library(reft_crypto crypto openssl/sha.h)
target_link_libraries(reft_ssl INTERFACE reft_crypto Threads::Threads ${CMAKE_DL_LIBS})
reft_static_library(reft_edit_only edit histedit.h)     # libedit-dev
reft_static_library(reft_tinfo tinfo term.h)            # libncurses-dev
reft_static_library(reft_bsd bsd bsd/string.h)          # libbsd-dev
reft_static_library(reft_md md md5.h)                   # libmd-dev
add_library(reft_edit INTERFACE)
target_link_libraries(reft_edit INTERFACE reft_edit_only reft_tinfo reft_bsd reft_md)

# Asio and Beast are compiled once, in boost_http.cpp.
add_library(reft_http STATIC ${CMAKE_CURRENT_LIST_DIR}/boost_http.cpp)
target_link_libraries(reft_http PUBLIC reft_ssl)
target_include_directories(reft_http SYSTEM PUBLIC ${Boost_INCLUDE_DIRS})
target_compile_definitions(reft_http PUBLIC BOOST_ERROR_CODE_HEADER_ONLY BOOST_ASIO_SEPARATE_COMPILATION
                           BOOST_BEAST_SEPARATE_COMPILATION)

# For C libraries that are built here. Without "undefined": they read numbers where they lie, aligned or not.
function(reft_sanitize_library target)
  if(REFT_SANITIZE)
    string(REPLACE ",undefined" "" sanitizers "${REFT_SANITIZE}")
    target_compile_options(${target} PRIVATE -fsanitize=${sanitizers} -fno-omit-frame-pointer)
  elseif(REFT_FUZZ)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link,address -fno-omit-frame-pointer)
  endif()
endfunction()

# Parquet.
include(cmake/pypi.cmake)
reft_pypi_source(carquet 0.7.2 5d57c00217906e672fe8b569d8a24c6cbd6d1ab7736d56057e9b884f1a043e7d)
set(CARQUET_ZLIB_TARGET reft_zlib)
set(CARQUET_ZSTD_TARGET reft_zstd)
set(CARQUET_LZ4_TARGET reft_lz4)
set(CARQUET_ENABLE_BROTLI OFF CACHE BOOL "" FORCE)
set(CARQUET_BUILD_CLI OFF CACHE BOOL "" FORCE)
set(CMAKE_DISABLE_FIND_PACKAGE_OpenMP ON)
add_subdirectory(${CMAKE_BINARY_DIR}/archives/carquet-0.7.2/native ${CMAKE_BINARY_DIR}/carquet EXCLUDE_FROM_ALL)
unset(CMAKE_DISABLE_FIND_PACKAGE_OpenMP)
target_compile_options(carquet PRIVATE -w)
reft_sanitize_library(carquet)
add_library(reft_parquet INTERFACE)
target_link_libraries(reft_parquet INTERFACE carquet)
target_include_directories(reft_parquet SYSTEM INTERFACE ${CMAKE_BINARY_DIR}/archives/carquet-0.7.2/native/include)

# Sound: FLAC, Vorbis and Opus from Debian, MP3 (of which Debian has no static decoder) from miniaudio.
reft_static_library(reft_ogg ogg ogg/ogg.h)             # libogg-dev
reft_static_library(reft_flac FLAC FLAC/stream_decoder.h)  # libflac-dev
target_compile_definitions(reft_flac INTERFACE FLAC__NO_DLL)
reft_static_library(reft_vorbis vorbis vorbis/codec.h)  # libvorbis-dev
reft_static_library(reft_vorbisfile vorbisfile vorbis/vorbisfile.h)
reft_static_library(reft_opus opus opus/opus.h)         # libopus-dev
target_include_directories(reft_opus SYSTEM INTERFACE ${reft_opus_INCLUDE}/opus)
reft_static_library(reft_opusfile opusfile opus/opusfile.h)  # libopusfile-dev
target_include_directories(reft_opusfile SYSTEM INTERFACE ${reft_opusfile_INCLUDE}/opus)
reft_pypi_source(miniaudio 1.71 ff51e2887bb673e2e757752b586b3dc924d59aa5fbcae9bbc45f4a111bd3262b)
add_library(reft_mp3 STATIC ${CMAKE_CURRENT_LIST_DIR}/miniaudio.c)
target_include_directories(reft_mp3 SYSTEM PUBLIC ${CMAKE_BINARY_DIR}/archives/miniaudio-1.71/miniaudio)
target_compile_options(reft_mp3 PRIVATE -w)
reft_sanitize_library(reft_mp3)
add_library(reft_audio INTERFACE)
target_link_libraries(reft_audio INTERFACE reft_vorbisfile reft_vorbis reft_opusfile reft_opus reft_flac reft_ogg reft_mp3 m)

if(REFT_TESTS)
  find_package(GTest REQUIRED)          # libgtest-dev, libgmock-dev
endif()
