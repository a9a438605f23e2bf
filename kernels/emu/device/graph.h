// Graphs of kernel launches.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "block.h"

namespace simt {

// A launch with its arguments' bytes.
struct Launch {
    const Entry* entry;
    dim3 grid, block;
    unsigned shared;
    std::vector<std::vector<unsigned char>> values;
};

struct Node {
    std::shared_ptr<Launch> launch;
    std::vector<void*> before;  // nodes that it follows
    bool enabled = true;
};

class Graph {
public:
    // A handle; null when a node that it follows is none of this graph.
    void* add(std::shared_ptr<Launch>, std::vector<void*> before);

private:
    friend class Exec;
    std::vector<std::shared_ptr<Node>> nodes_;
};

// What was instantiated of a graph: nodes keep their handles, and get launches of their own. It takes memory of the device, as a driver's does.
class Exec {
public:
    static size_t bytes_of_node;

    explicit Exec(const Graph&);
    ~Exec();
    Exec(const Exec&) = delete;
    size_t nodes() const { return nodes_.size(); }
    size_t bytes() const { return bytes_; }
    // Whether the device had its bytes.
    bool has_room() const { return bytes_ == 0 || memory_ != 0; }
    // False when there is no such node.
    bool set(void* node, std::shared_ptr<Launch>);
    bool enable(void* node, bool);
    // The launches of enabled nodes in an order that their edges allow, the last added first where they leave a choice: who counts on the order in which
    // nodes were added is wrong at once.
    std::vector<std::shared_ptr<Launch>> order() const;

private:
    std::vector<void*> handles_;
    std::vector<Node> nodes_;
    size_t bytes_;
    uint64_t memory_;
    Node* find(void* handle);
};

}  // namespace simt
