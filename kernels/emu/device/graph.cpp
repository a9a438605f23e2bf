#include "graph.h"

#include <algorithm>
#include <set>

#include "memory.h"

namespace simt {

void* Graph::add(std::shared_ptr<Launch> launch, std::vector<void*> before) {
    const auto ours = [&](void* handle) {
        return std::any_of(nodes_.begin(), nodes_.end(), [&](const auto& node) { return node.get() == handle; });
    };
    if (!std::all_of(before.begin(), before.end(), ours)) return nullptr;
    nodes_.push_back(std::make_shared<Node>(Node{std::move(launch), std::move(before)}));
    return nodes_.back().get();
}

size_t Exec::bytes_of_node = 0;

Exec::Exec(const Graph& graph) : bytes_(graph.nodes_.size() * bytes_of_node), memory_(allocate(bytes_)) {
    for (const auto& node : graph.nodes_) {
        handles_.push_back(node.get());
        nodes_.push_back(*node);
    }
}

Exec::~Exec() {
    if (memory_ != 0) release(memory_);
}

Node* Exec::find(void* handle) {
    const auto found = std::find(handles_.begin(), handles_.end(), handle);
    return found == handles_.end() ? nullptr : &nodes_[found - handles_.begin()];
}

bool Exec::set(void* handle, std::shared_ptr<Launch> launch) {
    Node* node = find(handle);
    if (node != nullptr) node->launch = std::move(launch);
    return node != nullptr;
}

bool Exec::enable(void* handle, bool on) {
    Node* node = find(handle);
    if (node != nullptr) node->enabled = on;
    return node != nullptr;
}

std::vector<std::shared_ptr<Launch>> Exec::order() const {
    std::vector<std::shared_ptr<Launch>> launches;
    std::set<void*> done;
    while (done.size() < nodes_.size()) {
        for (size_t i = nodes_.size(); i-- > 0;) {
            const auto& before = nodes_[i].before;
            const bool due = std::all_of(before.begin(), before.end(), [&](void* node) { return done.count(node) != 0; });
            if (done.count(handles_[i]) != 0 || !due) continue;
            done.insert(handles_[i]);
            if (nodes_[i].enabled) launches.push_back(nodes_[i].launch);
            break;
        }
    }
    return launches;
}

}  // namespace simt
