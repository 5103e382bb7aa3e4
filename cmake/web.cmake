# The web page: web/* and the Debian libraries that it uses, embedded in the executable (src/server/assets.h).
# Each line of REFT_WEB_FILES is "URL path|file". Libraries come from /usr/share/javascript, never from a network.
set(REFT_WEB_FILES "")

function(reft_web_library url package)
  foreach(candidate IN LISTS ARGN)
    if(EXISTS ${candidate})
      get_filename_component(real ${candidate} REALPATH)
      set(REFT_WEB_FILES ${REFT_WEB_FILES} "${url}|${real}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  message(FATAL_ERROR "The web page needs ${ARGV2}: install the package ${package}")
endfunction()

set(js /usr/share/javascript)
reft_web_library(/ui/vendor/markdown-it.js libjs-markdown-it ${js}/markdown-it/markdown-it.min.js ${js}/markdown-it/markdown-it.js)
reft_web_library(/ui/vendor/highlight.js libjs-highlight.js ${js}/highlight.js/highlight.min.js ${js}/highlight.js/highlight.js)
reft_web_library(/ui/vendor/katex.js libjs-katex ${js}/katex/katex.min.js ${js}/katex/katex.js)
reft_web_library(/ui/vendor/katex.css libjs-katex ${js}/katex/katex.min.css ${js}/katex/katex.css)
reft_web_library(/ui/vendor/chart.js libjs-chart.js ${js}/chart.js/chart.min.js ${js}/chart.js/chart.js)
file(GLOB fonts CONFIGURE_DEPENDS /usr/share/fonts/truetype/katex/KaTeX_*.woff2)
if(NOT fonts)
  message(FATAL_ERROR "The web page needs KaTeX's woff2 fonts: install the package fonts-katex")
endif()
foreach(font IN LISTS fonts)
  get_filename_component(name ${font} NAME)
  list(APPEND REFT_WEB_FILES "/ui/vendor/fonts/${name}|${font}")
endforeach()

file(GLOB web_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/web/*.html ${PROJECT_SOURCE_DIR}/web/*.css
     ${PROJECT_SOURCE_DIR}/web/*.js ${PROJECT_SOURCE_DIR}/web/*.svg)
foreach(source IN LISTS web_sources)
  get_filename_component(name ${source} NAME)
  if(name STREQUAL "ui.html")
    list(APPEND REFT_WEB_FILES "/ui.html|${source}")
  else()
    list(APPEND REFT_WEB_FILES "/ui/${name}|${source}")
  endif()
endforeach()

set(web_dir ${PROJECT_BINARY_DIR}/web)
file(MAKE_DIRECTORY ${web_dir})
set(web_inputs "")
set(web_list "")
foreach(entry IN LISTS REFT_WEB_FILES)
  string(REPLACE "|" ";" pair ${entry})
  list(GET pair 1 input)
  list(APPEND web_inputs ${input})
  string(APPEND web_list "${entry}\n")
endforeach()
file(CONFIGURE OUTPUT ${web_dir}/files.txt CONTENT "${web_list}" @ONLY)

add_custom_command(
  OUTPUT ${web_dir}/web_assets.cpp
  COMMAND ${CMAKE_COMMAND} -DLIST=${web_dir}/files.txt -DDIR=${web_dir} -P ${PROJECT_SOURCE_DIR}/cmake/embed_web.cmake
  DEPENDS ${web_inputs} ${web_dir}/files.txt ${PROJECT_SOURCE_DIR}/cmake/embed_web.cmake
  COMMENT "Embedding the web page")
add_library(reft_web OBJECT ${web_dir}/web_assets.cpp)
target_link_libraries(reft_web PUBLIC reft_flags)
set(REFT_LAYERS ${REFT_LAYERS} reft_web CACHE INTERNAL "")
