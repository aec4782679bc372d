// Just enough of csrc/sim for the generator's own tests.
extern "C" {

struct burrstone_sim_kernel {
    const char *name;
    void (*run)(const void *args, void *shared);
    const unsigned *shared_bytes;
};

#define DECLARE(name)                                                                                                  \
    void burrstone_sim_##name(const void *args, void *shared);                                                         \
    extern const unsigned burrstone_sim_##name##__shared;
BURRSTONE_SIM_KERNELS(DECLARE)

const burrstone_sim_kernel *burrstone_sim_kernels();
const burrstone_sim_kernel *burrstone_sim_kernels() {
#define ENTRY(name) {#name, burrstone_sim_##name, &burrstone_sim_##name##__shared},
    static const burrstone_sim_kernel kernels[] = {BURRSTONE_SIM_KERNELS(ENTRY){nullptr, nullptr, nullptr}};
    return kernels;
}

}
