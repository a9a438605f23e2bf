// Fibres: a stack each, switched by hand.
#pragma once
#include <cstddef>

namespace simt {

struct Fibre {
    void* pointer = nullptr;  // saved stack pointer
    char* stack = nullptr;
};

// Bytes of a fibre's stack. Kernels keep arrays of a few kilobytes; the sanitizers multiply that.
constexpr size_t STACK = 256 * 1024;

// Makes `fibre` start in `entry`; `number` staggers the stacks over the cache's sets.
void prepare(Fibre&, void (*entry)(), unsigned number);

}  // namespace simt

// Saves the registers that a call preserves, stores the stack pointer in `*from`, and goes on at `to`.
extern "C" void simt_switch(void** from, void* to);
