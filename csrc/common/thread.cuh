// Thread and block indices.
#ifndef BURRSTONE_COMMON_THREAD_CUH
#define BURRSTONE_COMMON_THREAD_CUH

#include "common/platform.cuh"

namespace burrstone {

constexpr unsigned WARP = 32;
constexpr uint32_t FULL_WARP = 0xffffffffu;

#ifdef BURRSTONE_SIM
inline unsigned thread_index() { return burrstone_sim.current()->thread; }
inline unsigned block_size() { return burrstone_sim.current()->threads; }
inline unsigned block_index_x() { return burrstone_sim.current()->block[0]; }
inline unsigned block_index_y() { return burrstone_sim.current()->block[1]; }
inline unsigned block_index_z() { return burrstone_sim.current()->block[2]; }
inline unsigned grid_size_x() { return burrstone_sim.current()->grid[0]; }
inline unsigned grid_size_y() { return burrstone_sim.current()->grid[1]; }
inline unsigned grid_size_z() { return burrstone_sim.current()->grid[2]; }
#else
BURRSTONE_DEVICE unsigned thread_index() { return threadIdx.x; }
BURRSTONE_DEVICE unsigned block_size() { return blockDim.x; }
BURRSTONE_DEVICE unsigned block_index_x() { return blockIdx.x; }
BURRSTONE_DEVICE unsigned block_index_y() { return blockIdx.y; }
BURRSTONE_DEVICE unsigned block_index_z() { return blockIdx.z; }
BURRSTONE_DEVICE unsigned grid_size_x() { return gridDim.x; }
BURRSTONE_DEVICE unsigned grid_size_y() { return gridDim.y; }
BURRSTONE_DEVICE unsigned grid_size_z() { return gridDim.z; }
#endif

BURRSTONE_DEVICE unsigned lane_index() { return thread_index() % WARP; }
BURRSTONE_DEVICE unsigned warp_index() { return thread_index() / WARP; }

} // namespace burrstone

#endif
