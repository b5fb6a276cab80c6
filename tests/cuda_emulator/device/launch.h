// Kernels by number: a call from an array of pointers to arguments, as cudaLaunchKernel takes it, and the parameters'
// types as text. One EMULATOR_KERNEL for each instantiation follows the source.
#pragma once

#include <string>
#include <utility>

#include "emulator.h"

namespace emulator {

template <typename T> const char* code() {
    if (std::is_same<T, bool>::value) return "bool";
    if (std::is_same<T, __half>::value) return "float16";
    if (std::is_same<T, __nv_bfloat16>::value) return "bfloat16";
    if (std::is_same<T, float>::value) return "float32";
    if (std::is_same<T, double>::value) return "float64";
    if (!std::is_integral<T>::value) return "?";
    switch (sizeof(T)) {
        case 1: return std::is_signed<T>::value ? "int8" : "uint8";
        case 2: return std::is_signed<T>::value ? "int16" : "uint16";
        case 4: return std::is_signed<T>::value ? "int32" : "uint32";
        default: return std::is_signed<T>::value ? "int64" : "uint64";
    }
}

template <typename P> std::string parameter() {
    using T = std::remove_cv_t<std::remove_pointer_t<P>>;
    return std::string(code<T>()) + (std::is_pointer<P>::value ? "* " : " ");
}

template <typename... P> std::string signature(void (*)(P...)) { return (std::string() + ... + parameter<P>()); }

template <typename... P, size_t... I>
void unpack(void (*kernel)(P...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::decay_t<P>*>(args[I])...);
}
template <typename... P> void call(void (*kernel)(P...), void** args) {
    unpack(kernel, args, std::index_sequence_for<P...>());
}

}  // namespace emulator

#define EMULATOR_KERNEL(number, ...)                                                          \
    extern "C" __attribute__((visibility("default"))) void emulator_call_##number(void** a) { \
        emulator::call(&__VA_ARGS__, a);                                                      \
    }                                                                                         \
    extern "C" __attribute__((visibility("default"))) const char* emulator_signature_##number() { \
        static const std::string text = emulator::signature(&__VA_ARGS__);                    \
        return text.c_str();                                                                  \
    }
