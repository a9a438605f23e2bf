// What a translated kernel tells of itself.
#pragma once
#include <cstddef>

#include "threads.h"

namespace simt {

// A buffer that is read ('r') or written ('w') with the size of an element, or the constants ('c') with their size.
struct Parameter {
    char kind;
    size_t size;
};

struct MetalKernel {
    MetalKernel(const char* name, Thunk, const Parameter* parameters, size_t count);
};

}  // namespace simt
