#include "stream.h"

#include <deque>
#include <vector>

namespace simt {

struct Stream {
    size_t number;
    std::deque<std::function<void()>> steps;
    uint64_t submitted = 0, done = 0;
};

namespace {

std::vector<std::shared_ptr<Stream>>& streams() {
    static auto& all = *new std::vector<std::shared_ptr<Stream>>;
    return all;
}
uint64_t late = 0;

// A step may wait for another stream, never for what comes behind it in its own.
void advance(Stream& stream, uint64_t steps) {
    while (stream.done < steps && !stream.steps.empty()) {
        const auto step = std::move(stream.steps.front());
        stream.steps.pop_front();
        step();
        stream.done++;
    }
}

bool is_late(const Stream& stream) { return stream.number < 64 && (late >> stream.number & 1) != 0; }

}  // namespace

void* create() {
    streams().push_back(std::make_shared<Stream>(Stream{streams().size(), {}}));
    return streams().back().get();
}

std::shared_ptr<Stream> stream(void* handle) {
    for (const auto& stream : streams())
        if (stream.get() == handle) return stream;
    static const auto& standard = *new auto(std::make_shared<Stream>(Stream{SIZE_MAX, {}}));
    return standard;
}

void set_late(uint64_t of) {
    late = of;
    for (const auto& stream : streams())
        if (!is_late(*stream)) finish(stream);
}

void submit(const std::shared_ptr<Stream>& stream, std::function<void()> step) {
    stream->steps.push_back(std::move(step));
    stream->submitted++;
    if (!is_late(*stream)) finish(stream);
}

std::shared_ptr<Mark> record(const std::shared_ptr<Stream>& stream) {
    auto mark = std::make_shared<Mark>(Mark{stream, stream->submitted + 1, {}});
    submit(stream, [mark = mark.get(), keep = std::weak_ptr<Mark>(mark)] {
        if (const auto still = keep.lock()) clock_gettime(CLOCK_MONOTONIC, &mark->at);
    });
    return mark;
}

void finish(const std::shared_ptr<Mark>& mark) {
    if (mark != nullptr) advance(*mark->on, mark->steps);
}

void finish(const std::shared_ptr<Stream>& stream) { advance(*stream, stream->submitted); }

void finish_all() {
    for (const auto& stream : streams()) finish(stream);
}

void forget() {
    for (const auto& stream : streams()) {
        stream->steps.clear();
        stream->done = stream->submitted;
    }
}

}  // namespace simt
