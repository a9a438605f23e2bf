#include "memory.h"

#include <cstdlib>
#include <cstring>

namespace simt {

namespace {

constexpr size_t GUARD = 256;  // bytes on both sides; the alignment that a driver gives
constexpr unsigned char MARK = 0xa5;
constexpr unsigned char UNWRITTEN = 0xff;  // a NaN in every float format that the kernels use

std::map<uint64_t, size_t>& allocations() {
    static auto& all = *new std::map<uint64_t, size_t>;
    return all;
}
size_t limit = size_t(8) << 30;
size_t used = 0;

size_t rounded(size_t bytes) { return (bytes + GUARD - 1) / GUARD * GUARD; }

// Offset of the first changed byte, or `bytes`.
size_t changed(const unsigned char* guard, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (guard[i] != MARK) return i;
    return bytes;
}

}  // namespace

void set_capacity(size_t bytes) { limit = bytes; }
size_t capacity() { return limit; }
size_t in_use() { return used; }

uint64_t allocate(size_t bytes) {
    if (bytes == 0 || bytes > limit - used) return 0;
    const size_t behind = rounded(bytes) - bytes + GUARD;
    auto base = static_cast<unsigned char*>(std::aligned_alloc(GUARD, GUARD + bytes + behind));
    if (base == nullptr) return 0;
    std::memset(base, MARK, GUARD);
    std::memset(base + GUARD, UNWRITTEN, bytes);
    std::memset(base + GUARD + bytes, MARK, behind);
    const auto address = reinterpret_cast<uint64_t>(base + GUARD);
    allocations()[address] = bytes;
    used += bytes;
    return address;
}

bool release(uint64_t address) {
    const auto found = allocations().find(address);
    if (found == allocations().end()) return false;
    used -= found->second;
    allocations().erase(found);
    std::free(reinterpret_cast<void*>(address - GUARD));
    return true;
}

bool within(uint64_t address, size_t bytes) {
    auto next = allocations().upper_bound(address);
    if (next == allocations().begin()) return false;
    const auto& [start, size] = *--next;
    return address - start <= size && bytes <= size - (address - start);
}

std::string damaged() {
    for (const auto& [address, bytes] : allocations()) {
        const auto data = reinterpret_cast<unsigned char*>(address);
        const size_t behind = rounded(bytes) - bytes + GUARD;
        const size_t before = changed(data - GUARD, GUARD), after = changed(data + bytes, behind);
        const std::string of = " of an allocation of " + std::to_string(bytes) + " bytes";
        if (before < GUARD) return "out-of-bounds write: " + std::to_string(GUARD - before) + " bytes before the start" + of;
        if (after < behind) return "out-of-bounds write: byte " + std::to_string(bytes + after) + of;
    }
    return "";
}

Snapshot snapshot() {
    Snapshot all;
    for (const auto& [address, bytes] : allocations()) {
        const auto data = reinterpret_cast<const unsigned char*>(address);
        all[address].assign(data, data + bytes);
    }
    return all;
}

bool spoil(const Snapshot& before) {
    for (const auto& [address, bytes] : before) {
        const auto data = reinterpret_cast<unsigned char*>(address);
        for (size_t i = 0; i < bytes.size(); i++) {
            if (data[i] == bytes[i]) continue;
            data[i] ^= 1;
            return true;
        }
    }
    return false;
}

}  // namespace simt
