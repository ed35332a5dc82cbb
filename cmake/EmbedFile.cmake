# cmake -DFILE=... -DNAME=... -DOUTPUT=... -P EmbedFile.cmake: a source file that holds another file's bytes as
# the std::string_view ssm::serve::NAME.
file(READ ${FILE} hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "(0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,)" "\\1\n" bytes "${bytes}")
file(WRITE ${OUTPUT} "#include \"ssm/serve/embedded.h\"\n
namespace ssm::serve {\nnamespace {\nconst unsigned char kBytes[] = {\n${bytes}};\n}  // namespace\n
extern const std::string_view ${NAME}{reinterpret_cast<const char*>(kBytes), sizeof(kBytes)};\n}  // namespace ssm::serve\n")
