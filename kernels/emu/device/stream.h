// Streams: steps in order, each done at once or as late as can be; events are places in them.
#pragma once
#include <cstdint>
#include <ctime>
#include <functional>
#include <memory>

namespace simt {

struct Stream;

// A place in a stream, and when it was reached.
struct Mark {
    std::shared_ptr<Stream> on;
    uint64_t steps;
    timespec at;
};

struct Event {
    std::shared_ptr<Mark> mark;  // null until recorded
};

// A handle for `stream`; streams stay until the process ends.
void* create();
// The stream of a handle; null is the default one.
std::shared_ptr<Stream> stream(void* handle);
// Bit n: the n-th stream that was created does its steps when they are waited for.
void set_late(uint64_t streams);

void submit(const std::shared_ptr<Stream>&, std::function<void()> step);
std::shared_ptr<Mark> record(const std::shared_ptr<Stream>&);
// Does what is left up to the place, or all.
void finish(const std::shared_ptr<Mark>&);
void finish(const std::shared_ptr<Stream>&);
void finish_all();
// Drops what is left, as the end of a context does.
void forget();

}  // namespace simt
