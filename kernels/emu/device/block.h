// Running a grid: blocks one after the other, the threads of a block as fibres.
#pragma once
#include <string>
#include <vector>

#include "threads.h"

namespace simt {

struct Entry {
    std::string name;
    Thunk thunk;
    std::vector<size_t> sizes;
};

// The kernel of that name, or null.
const Entry* find(const std::string& name);

// In which order threads (and blocks) get their turn: 0 ascending, 1 descending, others shuffled with that seed, warp by warp.
void set_order(uint64_t seed);

// Shared memory that the declarations of a block may take.
void limit_shared(size_t bytes);

// Runs the grid; empty when it ran to its end, else what was wrong.
std::string launch(const Entry&, dim3 grid, dim3 block, unsigned dynamic, void** arguments);

}  // namespace simt
