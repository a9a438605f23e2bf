#include "fibre.h"

#include <sys/mman.h>

#include <cstdint>

#if defined(__x86_64__)
asm(R"(
.text
.globl simt_switch
.type simt_switch,@function
simt_switch:
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
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl simt_switch
.type simt_switch,%function
simt_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#else
#error "simt_switch: expected x86_64 or aarch64"
#endif

namespace simt {

void prepare(Fibre& fibre, void (*entry)(), unsigned number) {
    if (fibre.stack == nullptr) {
        fibre.stack = static_cast<char*>(
            mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    }
    // 61 is prime to the number of cache sets: without the stagger all stacks would compete for a few of them.
    auto top = reinterpret_cast<uintptr_t>(fibre.stack + STACK - 256 - (number % 61) * 192) & ~uintptr_t(63);
    auto slot = reinterpret_cast<void**>(top);
#if defined(__x86_64__)
    *--slot = nullptr;  // where `entry` would return to; keeps the stack aligned as after a call
    *--slot = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; saved++) *--slot = nullptr;
#else
    slot -= 20;
    for (int saved = 0; saved < 20; saved++) slot[saved] = nullptr;
    slot[11] = reinterpret_cast<void*>(entry);  // x30
#endif
    fibre.pointer = slot;
}

}  // namespace simt
