// The simulator's functions that simulated primitives call; src/device/sim/hook_table.rs is the same table in Rust.
//
// Each CUDA thread is a fiber. A call that waits switches to another fiber and returns when its condition holds. A call
// that finds a fault does not return: the launch ends with that fault.
#ifndef BURRSTONE_SIM_RUNTIME_H
#define BURRSTONE_SIM_RUNTIME_H

#include <stdint.h>

extern "C" {

struct burrstone_sim_thread {
    uint32_t thread;
    uint32_t threads;
    uint32_t block[3];
    uint32_t grid[3];
    // The block's number in its cluster.
    uint32_t rank;
};

enum burrstone_sim_access : uint32_t {
    BURRSTONE_SIM_LOAD = 0,
    BURRSTONE_SIM_STORE = 1,
    BURRSTONE_SIM_ATOMIC = 2,
    // A read by the async proxy (wgmma): checked, not counted.
    BURRSTONE_SIM_ASYNC_LOAD = 3,
};

typedef void (*burrstone_sim_collective)(void *const *records);
typedef void (*burrstone_sim_work)(const void *data);

// One entry for each function, in the order of src/device/sim/hook_table.rs.
struct burrstone_sim_hooks {
    // The running thread.
    const burrstone_sim_thread *(*current)(void);

    // Waits until all lanes of `mask` have called with the same `run` and mask. The last one calls `run` with the
    // records of all 32 lanes (null for lanes outside the mask), which computes every lane's result. Does not order
    // memory. `aligned`: all lanes must call from the same line.
    void (*warp)(uint32_t mask, bool aligned, burrstone_sim_collective run, void *record, const char *what,
                 const char *file, uint32_t line);
    // The same, aligned, for the four warps of a warpgroup, with 128 records.
    void (*warpgroup)(burrstone_sim_collective run, void *record, const char *what, const char *file, uint32_t line);

    // Waits for the lanes of `mask` and orders their memory accesses.
    void (*sync_warp)(uint32_t mask, const char *file, uint32_t line);
    // Barrier `id` of the block, for `threads` of its threads (0: all). Without `wait` the thread only arrives. The
    // lanes of a warp must call from the same line.
    void (*barrier)(uint32_t id, uint32_t threads, bool wait, const char *file, uint32_t line);

    // Barrier of all threads of the cluster.
    void (*cluster_sync)(const char *file, uint32_t line);

    // Checks an access to global memory: bounds, alignment.
    void (*global)(const void *address, uint32_t bytes, uint32_t access, const char *file, uint32_t line);
    // Checks an access to shared memory at `offset` bytes into an array: bounds, alignment, initialisation, races.
    void (*shared)(const void *array, uint32_t array_bytes, uint64_t offset, uint32_t bytes, uint32_t access,
                   const char *file, uint32_t line);
    // The same for an address of the shared window; returns a pointer to the bytes.
    void *(*shared_at)(uint32_t address, uint32_t bytes, uint32_t access, const char *file, uint32_t line);
    // The shared window's address of a pointer.
    uint32_t (*shared_address)(const void *pointer, const char *file, uint32_t line);
    // The address of the same byte of block `rank`, in the window of the cluster.
    uint32_t (*cluster_address)(uint32_t address, uint32_t rank, const char *file, uint32_t line);

    // Asynchronous copies of the calling thread; see common/cp_async.cuh.
    void (*cp_async)(uint32_t shared, const void *global, uint32_t bytes, uint32_t valid, const char *file,
                     uint32_t line);
    void (*cp_async_commit)(const char *file, uint32_t line);
    void (*cp_async_wait)(uint32_t pending, const char *file, uint32_t line);
    void (*cp_async_arrive)(uint32_t mbarrier, const char *file, uint32_t line);

    // Mbarriers; see common/mbarrier.cuh.
    void (*mbarrier_init)(uint32_t barrier, uint32_t count, const char *file, uint32_t line);
    void (*mbarrier_arrive)(uint32_t barrier, uint32_t arrivals, uint32_t bytes, const char *file, uint32_t line);
    // `barrier` is an address in the window of the cluster.
    void (*mbarrier_arrive_cluster)(uint32_t barrier, const char *file, uint32_t line);
    void (*mbarrier_wait)(uint32_t barrier, uint32_t parity, const char *file, uint32_t line);

    // Orders the thread's writes to shared memory before later reads by bulk copies and wgmma.
    void (*fence_async)(void);

    // Bulk copies; see common/tma.cuh. A load arrives at `mbarrier`, a store joins the thread's open group.
    void (*bulk_load)(uint32_t shared, const void *global, uint32_t bytes, uint32_t mbarrier, const char *file,
                      uint32_t line);
    void (*bulk_store)(void *global, uint32_t shared, uint32_t bytes, const char *file, uint32_t line);
    // The same for a box of a tensor; `map` is a descriptor of src/device/sim/tensor_map.rs.
    void (*tensor_load)(uint32_t shared, const void *map, const int32_t *coordinates, uint32_t dimensions,
                        uint32_t mbarrier, const char *file, uint32_t line);
    // A load to every block of the cluster whose bit is set in `blocks`.
    void (*tensor_multicast)(uint32_t shared, const void *map, const int32_t *coordinates, uint32_t dimensions,
                             uint32_t mbarrier, uint32_t blocks, const char *file, uint32_t line);
    void (*tensor_store)(const void *map, const int32_t *coordinates, uint32_t dimensions, uint32_t shared,
                         const char *file, uint32_t line);
    void (*bulk_commit)(const char *file, uint32_t line);
    void (*bulk_wait)(uint32_t pending, const char *file, uint32_t line);

    // Work of the calling warpgroup that runs when it waits; see common/wgmma.cuh. To be called inside a collective of
    // the warpgroup. `data` is copied. `target` is what the work writes.
    void (*defer)(burrstone_sim_work work, const void *data, uint32_t bytes, const void *target);
    // Whether deferred work of the warpgroup writes `target`.
    bool (*deferred)(const void *target);
    void (*defer_commit)(void);
    // Runs all but the last `pending` groups of the warpgroup's work.
    void (*defer_wait)(uint32_t pending);

    // Ends the launch: the kernel broke a rule of a primitive.
    void (*fault)(const char *what, const char *file, uint32_t line);
};

// The simulator's functions, copied into this library of kernels; see sim/kernels.h.
extern burrstone_sim_hooks burrstone_sim;

} // extern "C"

#endif
