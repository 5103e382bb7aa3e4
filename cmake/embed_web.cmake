# Script mode: writes DIR/web_assets.cpp from LIST ("URL path|file" per line). Text is gzip-compressed; the bytes are
# pulled in by the assembler (.incbin), which takes no time to compile.
file(STRINGS ${LIST} entries)
find_program(GZIP gzip REQUIRED)
set(type_.html "text/html; charset=utf-8")
set(type_.css "text/css; charset=utf-8")
set(type_.js "text/javascript; charset=utf-8")
set(type_.svg "image/svg+xml")
set(type_.woff2 "font/woff2")
set(index 0)
set(blobs "")
set(externs "")
set(rows "")
foreach(entry IN LISTS entries)
  string(REPLACE "|" ";" pair "${entry}")
  list(GET pair 0 url)
  list(GET pair 1 input)
  get_filename_component(extension ${url} LAST_EXT)
  if(NOT DEFINED type_${extension})
    message(FATAL_ERROR "No content type is known for ${url}")
  endif()
  set(type "${type_${extension}}")
  file(SHA256 ${input} hash)
  string(SUBSTRING ${hash} 0 20 etag)
  set(blob ${DIR}/asset_${etag})
  set(gzip false)
  if(NOT extension STREQUAL ".woff2")
    set(gzip true)
    execute_process(COMMAND ${GZIP} -9 -n -c INPUT_FILE ${input} OUTPUT_FILE ${blob} RESULT_VARIABLE failed)
    if(failed)
      message(FATAL_ERROR "gzip failed on ${input}")
    endif()
  else()
    file(COPY_FILE ${input} ${blob})
  endif()
  file(SIZE ${blob} size)
  string(APPEND blobs "    \"reft_web_${index}: .incbin \\\"${blob}\\\"\\n\"\n")
  string(APPEND externs "extern \"C\" const char reft_web_${index}[];\n")
  string(APPEND rows "    {\"${url}\", \"${type}\", {reft_web_${index}, ${size}}, ${gzip}, \"\\\"${etag}\\\"\"},\n")
  math(EXPR index "${index} + 1")
endforeach()
file(WRITE ${DIR}/web_assets.cpp
"// Generated from web/ by cmake/embed_web.cmake.
#include \"server/assets.h\"

asm(\".section .rodata\\n\"
${blobs}    \".text\\n\");
${externs}
namespace reft {

const Asset* find_asset(std::string_view path) {
  static const Asset kAssets[] = {
${rows}  };
  if (path == \"/\" || path == \"/ui\" || path == \"/ui/\") path = \"/ui.html\";
  for (const Asset& asset : kAssets) {
    if (asset.path == path) return &asset;
  }
  return nullptr;
}

}  // namespace reft
")
