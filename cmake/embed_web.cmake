# Puts the files of web/ into the binary: nibble_embed_web(TARGET) adds the generated definition of
# WebPages() (src/apps/web_pages.h) to TARGET. Needs Python 3 at build time only.
find_package(Python3 REQUIRED COMPONENTS Interpreter)

function(nibble_embed_web TARGET)
  set(script ${CMAKE_SOURCE_DIR}/cmake/embed_web.py)
  set(output ${CMAKE_BINARY_DIR}/generated/web_pages.cc)
  set(web ${CMAKE_SOURCE_DIR}/web)
  file(GLOB files CONFIGURE_DEPENDS ${web}/*.html ${web}/*.css ${web}/*.js ${web}/*.svg)
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/generated)
  add_custom_command(
    OUTPUT ${output}
    COMMAND ${Python3_EXECUTABLE} ${script} ${output} ${files}
    DEPENDS ${script} ${files}
    COMMENT "Embedding the web page"
    VERBATIM)
  target_sources(${TARGET} PRIVATE ${output})
endfunction()
