// Copies within the device, in the order of the other kernels. A thread per byte.

struct Copy {
    uint bytes;
};

kernel void copy_bytes(device const uchar* from [[buffer(0)]], device uchar* to [[buffer(1)]], constant Copy& c [[buffer(2)]], PLACE) {
    const uint i = group.x * threads.x + thread_index;
    if (i < c.bytes) to[i] = from[i];
}
