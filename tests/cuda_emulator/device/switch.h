// Contexts of execution and the switch between them: by hand on x86-64, where it takes a few nanoseconds (swapcontext, a
// system call each, takes ten times as long), with ucontext elsewhere.
#pragma once

#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_SWITCH 1
#else
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

struct Context {
#if defined(EMULATOR_SWITCH)
    void* sp;
#else
    ucontext_t context;
#endif
    // the stack as AddressSanitizer has to be told
    const void* bottom;
    size_t size;
    void* fake;
};

#if defined(EMULATOR_SWITCH)

// Saves what a call must preserve on the stack, leaves the stack pointer in *from, and returns on the other stack.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, . - emulator_switch
)");

inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    uint64_t* top = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(stack + size) & ~uintptr_t(15));
    *--top = 0;  // where entry would return to: keeps the stack aligned as after a call
    *--top = reinterpret_cast<uint64_t>(entry);
    for (int i = 0; i < 6; ++i) *--top = 0;  // the registers
    context.sp = top;
    context.bottom = stack;
    context.size = size;
    context.fake = nullptr;
}
inline void swap(Context& from, Context& to) { emulator_switch(&from.sp, to.sp); }

#else

inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = stack;
    context.context.uc_stack.ss_size = size;
    context.context.uc_link = nullptr;
    makecontext(&context.context, entry, 0);
    context.bottom = stack;
    context.size = size;
    context.fake = nullptr;
}
inline void swap(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

#endif

// `arrived` is the first thing to call on a new stack: it tells `from` where its own lies. `leave` is the last: no variable
// of its own, since what AddressSanitizer marks around those would stay behind on the stack.
#if defined(__SANITIZE_ADDRESS__)
inline void arrived(Context& self, Context& from) {
    __sanitizer_finish_switch_fiber(self.fake, &from.bottom, &from.size);
}
inline void go(Context& from, Context& to) {
    __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.size);
    swap(from, to);
    __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
}
inline void leave(Context& from, Context& to) {
    __sanitizer_start_switch_fiber(nullptr, to.bottom, to.size);
    swap(from, to);
}
inline void forget(const char* memory, size_t size) { __asan_unpoison_memory_region(memory, size); }
#else
inline void arrived(Context&, Context&) {}
inline void go(Context& from, Context& to) { swap(from, to); }
inline void leave(Context& from, Context& to) { swap(from, to); }
inline void forget(const char*, size_t) {}
#endif

}  // namespace emulator
