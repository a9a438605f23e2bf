// `SHARED(float, sums, [32])` declares threadgroup memory that is NaN until it is written.
#define SHARED(T, name, dims)   \
    typedef T name##_type dims; \
    threadgroup name##_type& name = *(threadgroup name##_type*)uintptr_t(::simt::shared(__COUNTER__, sizeof(name##_type)))
