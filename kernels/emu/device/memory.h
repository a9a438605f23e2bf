// Device memory: NaN until written, with guards around every allocation.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace simt {

// Bytes that the device has; more is refused.
void set_capacity(size_t bytes);
size_t capacity();
size_t in_use();

// Address of `bytes` bytes, or 0 when the capacity does not have them.
uint64_t allocate(size_t bytes);
// False when nothing was allocated there.
bool release(uint64_t address);
// Whether `bytes` bytes from `address` lie within one allocation.
bool within(uint64_t address, size_t bytes);
// Names the first allocation whose guards were written; empty when none was.
std::string damaged();

// All memory that is allocated, by address.
using Snapshot = std::map<uint64_t, std::vector<unsigned char>>;
Snapshot snapshot();
// Flips the lowest bit of the first byte that differs from the snapshot. False when none does.
bool spoil(const Snapshot& before);

}  // namespace simt
