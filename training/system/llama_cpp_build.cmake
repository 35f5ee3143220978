# How llama.cpp is built in less time: read by CMake when llama-cpp-python's project begins (llama_cpp_build.py).

# What is used here is its library. The package asks for the code that llama.cpp's own programs have in common, too, by a
# cache variable, which this one stands before (policy CMP0126 of CMake 3.21, the least that the package takes).
set(LLAMA_BUILD_COMMON OFF)
# llama builds the graphs that ggml computes: ggml keeps its -O3, and nothing that takes time while a model runs is here.
if(NOT MSVC)
    cmake_language(DEFER CALL target_compile_options llama PRIVATE -O1)
endif()
